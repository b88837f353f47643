"""How people ask about the letters and the order of words."""

from intone.data.starter.item import numbered

SPELLING = numbered(
    {
        "spell": """
How do you spell {word}?
Spell {word}.
Spell the word {word}.
Please spell {word}.
Can you spell {word}?
How is {word} spelled?
What are the letters of {word}?
Give me the letters of {word}.
Spell {word} for me.
How do I spell {word}?
Which letters are in {word}?
How do you write {word} letter by letter?
Write {word} letter by letter.
I want to spell {word}.
What letters make the word {word}?
Tell me how to spell {word}.
Spell out {word}.
how do you spell {word}
How should I spell {word}?
Could you spell {word}?
Could you please spell {word} for me?
I need the letters of {word}.
I do not know how to spell {word}.
Show me how to spell {word}.
Help me spell {word}.
What is the spelling of {word}?
What is the right spelling of {word}?
Give me the spelling of {word}.
Say the letters of {word}.
Say {word} letter by letter.
Read me the letters of {word}.
List the letters of {word}.
List all letters in {word}.
Name the letters of the word {word}.
Which letters make up {word}?
Which letters do I need for {word}?
Which letters does {word} have?
How would you spell {word}?
How do people spell {word}?
How do we spell the word {word}?
How is the word {word} written?
My child asked me how to spell {word}.
I must write {word}. How is it spelled?
I forgot how to spell {word}.
The word is {word}. Spell it.
Take the word {word} and spell it.
Do you know how to spell {word}?
Will you spell {word} for me?
spell {word}
can you spell {word}
Break {word} into letters.
Write the word {word} one letter at a time.
Write down the letters of {word}.
Put a line between the letters of {word}.
I am learning to spell {word}.
Teach me to spell {word}.
""",
    }
)

REVERSING = numbered(
    {
        "reverse": """
Write {word} backwards.
What is {word} backwards?
Reverse {word}.
Reverse the word {word}.
How do you write {word} backwards?
Spell {word} backwards.
Please write {word} backwards.
Turn the word {word} around.
Say {word} backwards.
Can you reverse {word}?
What is the word {word} in reverse?
Write the letters of {word} from last to first.
Give me {word} backwards.
Can you write {word} backwards?
How is {word} spelled backwards?
Read {word} from the end to the start.
what is {word} backwards
Could you reverse {word}?
Could you write {word} backwards?
Please reverse the word {word}.
Please spell {word} backwards.
Can you spell {word} backwards?
How do you spell {word} backwards?
How do you say {word} backwards?
How is {word} written backwards?
I want to see {word} backwards.
I want to reverse {word}.
Show me {word} backwards.
Show me the word {word} in reverse.
Tell me {word} backwards.
Tell me how {word} is written backwards.
Help me write {word} backwards.
Help me reverse {word}.
What do you get if you reverse {word}?
What do you get when you write {word} backwards?
What is the reverse of {word}?
Give me the reverse of {word}.
Write the word {word} in reverse.
Write {word} in reverse order.
Write {word} from the last letter to the first.
Put the letters of {word} in reverse order.
Turn {word} around.
Turn around the letters of {word}.
Read the word {word} backwards.
Read {word} backwards to me.
The word is {word}. Write it backwards.
The word is {word}. Reverse it.
Take the word {word} and reverse it.
Take {word} and write it backwards.
Do you know what {word} is backwards?
Will you write {word} backwards for me?
write {word} backwards
reverse {word}
can you reverse {word}
If you read {word} from the end, what do you get?
How does {word} look in a mirror, letter by letter?
How would you write {word} backwards?
""",
    }
)

COUNTING = numbered(
    {
        "count": """
How many times does the letter {letter} appear in {word}?
How many {letter} are in {word}?
Count the letter {letter} in {word}.
How often is the letter {letter} in {word}?
How many times is {letter} in the word {word}?
Count how many times {letter} appears in {word}.
In the word {word}, how many {letter} are there?
How many letters {letter} does {word} have?
How often does {word} have the letter {letter}?
Count every {letter} in {word}.
Please count the letter {letter} in the word {word}.
The word is {word}. How many {letter} does it have?
Can you count the letter {letter} in {word}?
How often do you see {letter} in {word}?
how many {letter} in {word}?
Tell me how many times {letter} is in {word}.
How many times do you see the letter {letter} in {word}?
How many times do you write {letter} in {word}?
How many times can you find {letter} in {word}?
How many times is the letter {letter} used in {word}?
How many {letter} does the word {word} have?
How many {letter} can you find in {word}?
How many {letter} do you count in {word}?
How many of the letters in {word} are {letter}?
How many times does {word} have {letter}?
How often does the letter {letter} appear in {word}?
How often does {letter} come in the word {word}?
How often is {letter} used in {word}?
How often can you find the letter {letter} in {word}?
Count the {letter} in {word}.
Count all {letter} in {word}.
Count all letters {letter} in the word {word}.
Count how often {letter} is in {word}.
Count the times that {letter} is in {word}.
Please count how many {letter} are in {word}.
Please count every {letter} in the word {word}.
Can you count every {letter} in {word}?
Can you tell how many {letter} are in {word}?
Could you count the letter {letter} in {word}?
Could you count how many {letter} are in {word}?
Tell me how many {letter} there are in {word}.
Tell me how often {letter} appears in {word}.
I want to count the letter {letter} in {word}.
I want to know how many {letter} are in {word}.
Help me count the letter {letter} in {word}.
Find every {letter} in {word} and count them.
Look at the word {word}. How many {letter} do you see?
Look at {word} and count the letter {letter}.
The word is {word}. Count the letter {letter}.
Take the word {word} and count the letter {letter}.
In {word}, how often do you see {letter}?
In {word}, how many times does {letter} appear?
In the word {word}, count the letter {letter}.
count {letter} in {word}
how many times is {letter} in {word}
What is the number of {letter} in {word}?
What is the count of the letter {letter} in {word}?
""",
    }
)

SORTING = numbered(
    {
        "words": """
Sort these words: {items}
Put these words in order: {items}
Put these words in alphabetical order: {items}
Sort the words {items}.
Order these words from a to z: {items}
What is the alphabetical order of {items}?
Please sort {items}.
Sort alphabetically: {items}
Can you sort these words? They are {items}.
Write these words in alphabetical order: {items}
Which order do these words have in a dictionary: {items}
Please put these words in order: {items}
Please sort these words from a to z: {items}
Can you put these words in alphabetical order: {items}
I have some words: {items}. Sort them.
Here are some words: {items}. Put them in order.
Sort this list of words: {items}
Put this list in alphabetical order: {items}
Help me sort these words: {items}
Give me these words in alphabetical order: {items}
sort {items}
""",
        "words down": """
Sort these words in reverse alphabetical order: {items}
Put these words in reverse order: {items}
Order these words from z to a: {items}
Sort from z to a: {items}
Write these words in reverse alphabetical order: {items}
Please put these words in order from z to a: {items}
Sort this list of words from z to a: {items}
Here are some words: {items}. Sort them from z to a.
Give me these words in reverse alphabetical order: {items}
Can you sort these words from z to a: {items}
""",
        "numbers": """
Sort these numbers: {items}
Put these numbers in order: {items}
Sort the numbers {items}.
Order these numbers from smallest to largest: {items}
Put these numbers in order from small to large: {items}
Please sort the numbers {items}.
Write these numbers from smallest to largest: {items}
Can you sort these numbers? They are {items}.
Sort these from low to high: {items}
I have some numbers: {items}. Sort them.
Here are some numbers: {items}. Put them in order.
Sort this list of numbers: {items}
Help me sort these numbers: {items}
Please put these numbers in order: {items}
Give me these numbers from small to large: {items}
Can you put these numbers in order: {items}
What is the right order of the numbers {items}?
""",
        "numbers down": """
Sort these numbers from largest to smallest: {items}
Order these numbers from large to small: {items}
Put these numbers in order from high to low: {items}
Sort from largest to smallest: {items}
Write these numbers from largest to smallest: {items}
Please put these numbers in order from large to small: {items}
Sort this list of numbers from high to low: {items}
Here are some numbers: {items}. Sort them from largest to smallest.
Give me these numbers from large to small: {items}
Can you sort these numbers from high to low: {items}
""",
    }
)
