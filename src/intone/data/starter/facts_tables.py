"""The facts themselves: for each relation its questions, its one form of answer, and its table."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Relation:
    """Questions with {x}, a statement with {x} and {y}, and the table as text "x=y; x=y".

    {a_x} stands for the subject with its article, {A_x} for the same with a capital.
    """

    questions: tuple[str, ...]
    statement: str
    table: str
    pairs: tuple[tuple[str, str], ...] = field(init=False)
    values: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        pairs = []
        for entry in self.table.split(";"):
            subject, value = entry.strip().split("=")
            pairs.append((subject, value))
        object.__setattr__(self, "pairs", tuple(pairs))
        object.__setattr__(self, "values", dict(pairs))

    def state(self, subject: str) -> str:
        """The fact about this subject as a sentence; KeyError if the table has none."""
        return filled(self.statement, subject, self.values[subject])


def filled(text: str, subject: str, value: str = "") -> str:
    """A question or statement about the subject."""
    article = "an" if subject[0] in "aeiou" else "a"
    return text.format(x=subject, y=value, a_x=f"{article} {subject}", A_x=f"{article.capitalize()} {subject}")


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


RELATIONS = {
    "capital": Relation(
        _lines("""
What is the capital of {x}?
Which city is the capital of {x}?
Name the capital of {x}.
Tell me the capital of {x}.
What city is the capital of {x}?
Do you know the capital of {x}?
What is the capital city of {x}?
capital of {x}?
I want to know the capital of {x}.
"""),
        "The capital of {x} is {y}.",
        """
France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; England=London; Ireland=Dublin;
Austria=Vienna; Greece=Athens; Norway=Oslo; Sweden=Stockholm; Finland=Helsinki; Denmark=Copenhagen; Poland=Warsaw;
Russia=Moscow; Japan=Tokyo; China=Beijing; India=Delhi; Egypt=Cairo; Kenya=Nairobi; Canada=Ottawa; Cuba=Havana;
Peru=Lima; Chile=Santiago; Hungary=Budapest; Turkey=Ankara; Belgium=Brussels; Scotland=Edinburgh; Wales=Cardiff;
Iceland=Reykjavik; Thailand=Bangkok; Vietnam=Hanoi; Nepal=Kathmandu; Iran=Tehran; Iraq=Baghdad
""",
    ),
    "young": Relation(
        _lines("""
What is a young {x} called?
What is a baby {x} called?
What do you call a young {x}?
What do you call a baby {x}?
What is the name of a young {x}?
What do people call a young {x}?
How do you call the young of {a_x}?
What is the child of {a_x} called?
"""),
        "A young {x} is called a {y}.",
        """
dog=puppy; cat=kitten; cow=calf; horse=foal; sheep=lamb; goat=kid; pig=piglet; bear=cub; lion=cub; hen=chick;
duck=duckling; swan=cygnet; deer=fawn; frog=tadpole; kangaroo=joey; wolf=pup; owl=owlet; goose=gosling; tiger=cub;
rabbit=kit
""",
    ),
    "sound": Relation(
        _lines("""
What does {a_x} do to make a sound?
What sound does {a_x} make?
Which sound does {a_x} make?
What noise does {a_x} make?
How does {a_x} sound?
What kind of sound comes from {a_x}?
Tell me the sound {a_x} makes.
Which noise do you hear from {a_x}?
"""),
        "The sound {a_x} makes is {y}.",
        """
dog=woof; cat=meow; cow=moo; sheep=baa; duck=quack; pig=oink; lion=roar; horse=neigh; bee=buzz; snake=hiss; owl=hoot;
frog=croak; mouse=squeak; wolf=howl; bell=ding; clock=tick; crow=caw; bird=tweet; drum=boom
""",
    ),
    "home": Relation(
        _lines("""
Where does {a_x} live?
Where do you find {a_x}?
Where is the home of {a_x}?
In which place does {a_x} live?
What is the home of {a_x}?
Where does {a_x} have its home?
Tell me where {a_x} lives.
Where would {a_x} live?
"""),
        "{A_x} lives in the {y}.",
        """
bear=forest; whale=sea; camel=desert; penguin=snow; monkey=jungle; cow=barn; horse=stable; shark=ocean; frog=pond;
fish=water; bird=nest; bee=hive; wolf=woods; lion=grassland; spider=web; mole=ground; eagle=mountains; crab=beach;
worm=soil; tiger=jungle; farmer=country; king=castle
""",
    ),
    "legs": Relation(
        _lines("""
How many legs does {a_x} have?
How many legs are there on {a_x}?
What is the number of legs of {a_x}?
{A_x} has how many legs?
Tell me how many legs {a_x} has.
On how many legs does {a_x} walk?
Count the legs of {a_x}.
"""),
        "{A_x} has {y} legs.",
        """
dog=four; cat=four; horse=four; spider=eight; ant=six; bee=six; bird=two; hen=two; duck=two; cow=four; snake=no;
fish=no; crab=ten; octopus=eight; person=two; fly=six; sheep=four; worm=no; frog=four
""",
    ),
    "colour": Relation(
        _lines("""
What colour is {x}?
Which colour does {x} have?
What is the colour of {x}?
Tell me the colour of {x}.
Which colour is {x}?
Say which colour {x} has.
Do you know the colour of {x}?
"""),
        "The colour of {x} is {y}.",
        """
snow=white; grass=green; coal=black; blood=red; the sky=blue; a lemon=yellow; a carrot=orange; milk=white;
a banana=yellow; chocolate=brown; the sun=yellow; a strawberry=red; a frog=green; an elephant=grey; the sea=blue;
a pumpkin=orange; a crow=black; a plum=purple; salt=white; a leaf=green; a cherry=red; a flamingo=pink
""",
    ),
    "opposite": Relation(
        _lines("""
What is the opposite of {x}?
Which word is the opposite of {x}?
Tell me the opposite of {x}.
Name the opposite of {x}.
What word means the opposite of {x}?
Give me the opposite of {x}.
What is the opposite word for {x}?
Do you know the opposite of {x}?
"""),
        "The opposite of {x} is {y}.",
        """
hot=cold; big=small; high=low; fast=slow; happy=sad; old=young; light=dark; hard=soft; full=empty; open=closed;
early=late; rich=poor; strong=weak; long=short; wet=dry; day=night; up=down; left=right; good=bad; loud=quiet;
thick=thin; near=far; first=last; clean=dirty; easy=difficult; heavy=light; wide=narrow; warm=cool; win=lose;
buy=sell; push=pull; come=go; give=take; remember=forget; always=never; cold=hot; small=big; low=high; slow=fast;
sad=happy; young=old; dark=light; soft=hard; empty=full; late=early; dry=wet; night=day; down=up; bad=good
""",
    ),
    "month": Relation(
        _lines("""
Which month of the year is {x}?
What number is the month {x}?
What number month is {x}?
Which number does the month {x} have?
Tell me the number of the month {x}.
What place in the year has the month {x}?
In the year, which month is {x}?
"""),
        "The month {x} is the {y} month of the year.",
        """
January=first; February=second; March=third; April=fourth; May=fifth; June=sixth; July=seventh; August=eighth;
September=ninth; October=tenth; November=eleventh; December=twelfth
""",
    ),
    "material": Relation(
        _lines("""
What is {a_x} made of?
What do people use to make {a_x}?
Which material is {a_x} made of?
From what is {a_x} made?
What is used to make {a_x}?
Of what is {a_x} made?
Tell me what {a_x} is made of.
What material is in {a_x}?
"""),
        "{A_x} is made of {y}.",
        """
book=paper; window=glass; key=metal; shirt=cotton; scarf=wool; shoe=leather; candle=wax; tyre=rubber; desk=wood;
brick=clay; coin=metal; sandwich=bread; snowman=snow; bottle=glass; web=silk; bag=plastic; nail=iron; beach=sand;
castle=stone; newspaper=paper; ring=gold; wall=bricks
""",
    ),
    "tool": Relation(
        _lines("""
What is {a_x} for?
What do you do with {a_x}?
What is {a_x} used for?
What do people use {a_x} for?
Why do people need {a_x}?
What can you do with {a_x}?
Tell me what {a_x} is for.
For what do we use {a_x}?
"""),
        "{A_x} is used to {y}.",
        """
knife=cut; pen=write; hammer=hit nails; spoon=eat soup; broom=sweep the floor; ladder=climb; clock=tell the time;
key=open a door; brush=paint; needle=sew; kettle=boil water; lamp=give light; bed=sleep; camera=take pictures;
phone=talk; saw=cut wood; towel=dry hands; umbrella=stay dry; oven=bake; map=find the way; soap=wash; ruler=measure;
fridge=keep food cold; rope=tie things; boat=cross water; shovel=dig; cup=drink; car=drive; basket=carry things
""",
    ),
    "planet": Relation(
        _lines("""
Which planet is number {x} from the sun?
Name planet number {x} from the sun.
What is planet number {x} called?
What is the name of planet {x} from the sun?
Tell me planet number {x}.
Counting from the sun, which planet is number {x}?
Which planet has place {x} from the sun?
"""),
        "Planet number {x} from the sun is {y}.",
        "1=Mercury; 2=Venus; 3=Earth; 4=Mars; 5=Jupiter; 6=Saturn; 7=Uranus; 8=Neptune",
    ),
    "group": Relation(
        _lines("""
What kind of thing is {a_x}?
What is {a_x}?
What sort of thing is {a_x}?
To which group does {a_x} belong?
Tell me what {a_x} is.
Explain what {a_x} is.
Can you say what {a_x} is?
Do you know what {a_x} is?
"""),
        "{A_x} is a kind of {y}.",
        """
rose=flower; dog=animal; pear=fruit; carrot=vegetable; piano=instrument; oak=tree; chair=furniture; hammer=tool;
salmon=fish; robin=bird; bee=insect; violin=instrument; table=furniture; lemon=fruit; saw=tool; tulip=flower;
boot=shoe; potato=vegetable; train=vehicle; truck=vehicle; pine=tree; owl=bird; guitar=instrument; tiger=animal;
coat=clothing; shirt=clothing; ruby=stone; football=game
""",
    ),
    "season": Relation(
        _lines("""
In which season is {x}?
Which season is it in {x}?
What season is {x} in?
To which season does {x} belong?
What is the season in {x}?
Tell me the season of {x}.
Which season has the month {x}?
"""),
        "The season in {x} is {y}.",
        """
January=winter; February=winter; March=spring; April=spring; May=spring; June=summer; July=summer; August=summer;
September=autumn; October=autumn; November=autumn; December=winter
""",
    ),
    "worker": Relation(
        _lines("""
Where does {a_x} work?
In which place does {a_x} work?
Where do you meet {a_x} at work?
What is the work place of {a_x}?
Tell me where {a_x} works.
Where is {a_x} when at work?
Where would you find {a_x} at work?
"""),
        "The place where {a_x} works is a {y}.",
        """
teacher=school; doctor=hospital; baker=bakery; farmer=farm; cook=kitchen; sailor=ship; pilot=plane; waiter=restaurant;
actor=theatre; judge=court; painter=studio; nurse=hospital; miner=mine; shopkeeper=shop; gardener=garden
""",
    ),
}
