"""How people ask for sums and conversions."""

from intone.data.starter.item import listed, numbered

OBJECTS = listed("apples coins books pencils cards cookies flowers eggs stones shells tickets buttons candles")

ARITHMETIC = numbered(
    {
        "+": """
What is {a} plus {b}?
{a} + {b} = ?
Add {a} and {b}.
How much is {a} + {b}?
What is the sum of {a} and {b}?
Can you add {a} and {b} for me?
Work out {a} + {b}.
What do {a} and {b} make together?
Please calculate {a} plus {b}.
{a}+{b}
what is {a}+{b}
Compute {a} + {b}.
What do I get if I add {a} to nothing and then add {b}?
How much is {a} and {b} together?
what's {a} plus {b}?
{a} plus {b} is how much?
Tell me {a} + {b}.
If I have {a} and add {b}, how much is it?
Solve {a} + {b}.
I want to add {a} and {b}.
""",
        "-": """
What is {a} minus {b}?
{a} - {b} = ?
How much is {a} - {b}?
What is {a} take away {b}?
Work out {a} - {b}.
Please calculate {a} minus {b}.
{a}-{b}
what is {a}-{b}
Compute {a} - {b}.
what's {a} minus {b}?
{a} minus {b} is how much?
Tell me {a} - {b}.
Solve {a} - {b}.
If I have {a} and take away {b}, how much is left?
How much is {a} less {b}?
Start with {a} and take away {b}.
""",
        "-swapped": """
Subtract {b} from {a}.
Take {b} away from {a}.
What do you get if you subtract {b} from {a}?
What is left if I take {b} from {a}?
Can you subtract {b} from {a}?
Please subtract {b} from {a}.
Take {b} from {a}.
How much is it if {b} is taken away from {a}?
""",
        "*": """
What is {a} times {b}?
{a} x {b} = ?
{a} * {b} = ?
Multiply {a} by {b}.
How much is {a} x {b}?
What is {a} multiplied by {b}?
What is the product of {a} and {b}?
Work out {a} times {b}.
Please calculate {a} x {b}.
{a}*{b}
what is {a}*{b}
Compute {a} * {b}.
what's {a} times {b}?
{a} times {b} is how much?
Tell me {a} x {b}.
Solve {a} x {b}.
Can you multiply {a} and {b}?
""",
        "+story": """
{name} has {a} {things} and buys {b} more. How many {things} is that?
{name} finds {a} {things} and then {b} more. How many are there now?
There are {a} {things} in a box and {b} in a bag. How many {things} are there?
{name} had {a} {things} and got {b} more. How many now?
A shop has {a} {things}. Then {b} more come. How many {things} does it have?
{name} counts {a} {things} in the morning and {b} in the evening. How many in all?
I have {a} {things} and {name} has {b}. How many do we have together?
""",
        "-story": """
{name} has {a} {things} and gives away {b}. How many {things} are left?
{name} had {a} {things} and lost {b}. How many are left?
There are {a} {things} in a box. {name} takes {b}. How many stay in the box?
A shop has {a} {things} and sells {b}. How many {things} does it still have?
There were {a} {things}. Then {b} were eaten. How many are left?
{name} had {a} {things} and used {b}. How many {things} remain?
I had {a} {things} and gave {b} to {name}. How many do I have now?
""",
        "*story": """
There are {a} boxes with {b} {things} each. How many {things} is that?
{name} has {a} bags of {b} {things}. How many {things} are there in all?
{a} children have {b} {things} each. How many {things} is that?
Each of {a} boxes holds {b} {things}. How many {things} are there?
{name} buys {a} boxes of {b} {things}. How many is that?
On {a} tables there are {b} {things} each. How many {things} are there?
""",
    }
)

UNITS = numbered(
    {
        "convert": """
How many {target} are {n} {source}?
How many {target} are in {n} {source}?
Convert {n} {source} to {target}.
What is {n} {source} in {target}?
Change {n} {source} into {target}.
How many {target} is {n} {source}?
{n} {source} in {target}?
{n} {source} to {target}
Please convert {n} {source} into {target}.
I have {n} {source}. How many {target} is that?
How many {target} make {n} {source}?
Can you convert {n} {source} to {target}?
Tell me how many {target} there are in {n} {source}.
What do {n} {source} make in {target}?
Write {n} {source} in {target}.
{n} {source} is how many {target}?
Give me {n} {source} in {target}.
If something is {n} {source}, how many {target} is it?
Convert {n} {source} into {target}.
Please convert {n} {source} to {target}.
Can you convert {n} {source} into {target}?
Could you convert {n} {source} to {target}?
Could you change {n} {source} to {target}?
Change {n} {source} to {target}.
Please change {n} {source} into {target}.
Turn {n} {source} into {target}.
Please turn {n} {source} into {target}.
Can you turn {n} {source} into {target}?
Express {n} {source} in {target}.
Can you express {n} {source} in {target}?
Say {n} {source} in {target}.
Show me {n} {source} in {target}.
Can you give me {n} {source} in {target}?
I need {n} {source} in {target}.
I want {n} {source} in {target}.
I want to convert {n} {source} to {target}.
I have {n} {source} and want to know how many {target} it is.
It is {n} {source}. How many {target} are that?
My list says {n} {source}. How much is it in {target}?
The sign says {n} {source}. How many {target} is that?
The answer was {n} {source}. What is it in {target}?
How much is {n} {source} in {target}?
How much are {n} {source} in {target}?
How many {target} do {n} {source} have?
How many {target} do you get from {n} {source}?
How many {target} do I need to make {n} {source}?
How many {target} equal {n} {source}?
How many {target} does it take to make {n} {source}?
What are {n} {source} in {target}?
What number of {target} is {n} {source}?
Do you know how many {target} are in {n} {source}?
Work out {n} {source} in {target}.
Calculate {n} {source} in {target}.
Help me convert {n} {source} to {target}.
convert {n} {source} to {target}
how many {target} are {n} {source}
""",
    }
)
