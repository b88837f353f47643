"""A small world that keeps track of who is where and who holds what while it tells a story."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from intone.data.starter.item import listed

PLACES = listed(
    """kitchen garden bedroom bathroom attic cellar hallway garage office library school park forest barn stable market
    shop bakery museum theatre station harbour castle hospital hotel cafe tower cave courtyard workshop
    classroom basement studio cabin"""
)
THINGS = listed(
    """ball book lamp key cup hat coat bag box apple banana candle bottle basket blanket bucket camera clock coin drum
    flower guitar hammer kite knife ladder letter map mirror newspaper orange pen pencil phone picture plate ring rope
    scarf shoe spoon suitcase ticket towel umbrella vase violin wallet whistle torch notebook necklace helmet puzzle
    pillow brush comb jar sandwich cake egg lemon feather"""
)
FEELINGS = listed(
    "happy sad tired hungry thirsty proud angry worried excited bored calm cold lucky sleepy surprised glad nervous"
)

_GO = ("went to", "walked to", "ran to", "moved to", "hurried to", "came to", "rushed to")
_TAKE = ("took", "picked up", "grabbed", "got")
_LEAVE = ("left", "put", "dropped", "placed")
_GIVE = ("gave", "handed", "passed")
_FEEL = ("felt", "was", "looked", "seemed")
_REMARKS = ("I like it in the {place},", "It is nice in the {place},", "I am in the {place},", "The {place} is quiet,")
_ACTIONS = ("go", "take", "leave", "give", "lie", "feel", "aside", "say")
_LINKED = frozenset(("go", "take", "leave", "give", "feel"))
_SHARES = (8, 5, 3, 3, 1, 1.5, 1, 0)
_PROSE_SHARES = (7, 5, 3, 3, 1, 2, 2, 3)
_LINKS = ("Then ", "Later ", "After that, ", "Soon ", "Next, ")
_ASIDES = (
    "It was a sunny day.",
    "It was a quiet day.",
    "The birds were singing.",
    "Outside it began to rain.",
    "The sun was warm.",
    "A dog was sleeping near the door.",
    "The wind was strong.",
    "The clock struck three.",
    "Nobody was in a hurry.",
    "It was almost time for dinner.",
    "Some children were laughing far away.",
    "A small cat looked through the window.",
    "There was music in the street.",
    "The sky was blue and clear.",
)


@dataclass
class World:
    """The state of one story; every telling method changes it and returns the sentence that says so."""

    rng: Random
    people: Sequence[str]
    places: Sequence[str]
    things: Sequence[str]
    where: dict[str, str] = field(default_factory=dict)  # person -> place
    holder: dict[str, str] = field(default_factory=dict)  # thing -> person
    lies_in: dict[str, str] = field(default_factory=dict)  # thing -> place, only while nobody holds it
    feeling: dict[str, str] = field(default_factory=dict)
    takings: list[tuple[str, str]] = field(default_factory=list)  # (person, thing) in order
    givings: list[tuple[str, str, str]] = field(default_factory=list)  # (giver, thing, receiver) in order

    def go(self) -> str | None:
        """Somebody goes to another place, carrying what they hold."""
        person = self.rng.choice(self.people)
        place = self.rng.choice(self.places)
        if self.where.get(person) == place:
            return None
        self.where[person] = place
        return f"{person} {self.rng.choice(_GO)} the {place}."

    def lie(self) -> str | None:
        """A thing not heard of so far lies somewhere."""
        thing = self.rng.choice(self.things)
        if thing in self.holder or thing in self.lies_in:
            return None
        place = self.lies_in[thing] = self.rng.choice(self.places)
        return f"The {thing} was in the {place}."

    def take(self) -> str | None:
        """Somebody takes a thing that is new in the story or lies where they are."""
        person, thing = self.rng.choice(self.people), self.rng.choice(self.things)
        if thing in self.holder or self.lies_in.get(thing, self.where.get(person)) != self.where.get(person):
            return None
        self.lies_in.pop(thing, None)
        self.holder[thing] = person
        self.takings.append((person, thing))
        return f"{person} {self.rng.choice(_TAKE)} the {thing}."

    def leave(self) -> str | None:
        """Somebody leaves a thing they hold where they are."""
        held = [thing for thing, person in self.holder.items() if person in self.where]
        if not held:
            return None
        thing = self.rng.choice(held)
        person = self.holder.pop(thing)
        place = self.lies_in[thing] = self.where[person]
        return f"{person} {self.rng.choice(_LEAVE)} the {thing} in the {place}."

    def give(self) -> str | None:
        """Somebody gives a thing to another who is in the same place, or whose place is unknown."""
        if not self.holder:
            return None
        thing = self.rng.choice(list(self.holder))
        giver, receiver = self.holder[thing], self.rng.choice(self.people)
        apart = giver in self.where and receiver in self.where and self.where[giver] != self.where[receiver]
        if receiver == giver or apart:
            return None
        self.holder[thing] = receiver
        self.givings.append((giver, thing, receiver))
        return f"{giver} {self.rng.choice(_GIVE)} the {thing} to {receiver}."

    def feel(self) -> str | None:
        """Somebody feels something."""
        person, feeling = self.rng.choice(self.people), self.rng.choice(FEELINGS)
        self.feeling[person] = feeling
        return f"{person} {self.rng.choice(_FEEL)} {feeling}."

    def say(self) -> str | None:
        """Somebody says how they feel, where they are or what they hold."""
        person = self.rng.choice(self.people)
        held = [thing for thing, holder in self.holder.items() if holder == person]
        if held and self.rng.random() < 0.5:
            return f'"I like this {self.rng.choice(held)}," said {person}.'
        if person in self.where and self.rng.random() < 0.5:
            return f'"{self.rng.choice(_REMARKS).format(place=self.where[person])}" said {person}.'
        feeling = self.feeling[person] = self.rng.choice(FEELINGS)
        return f'"I am {feeling}," said {person}.'

    def aside(self) -> str | None:
        """A sentence that changes nothing."""
        return self.rng.choice(_ASIDES)

    def place_of(self, thing: str) -> str | None:
        """Where a thing is: where it lies, or where its holder is; None if the story does not say."""
        return self.lies_in.get(thing) or self.where.get(self.holder.get(thing, ""))

    def sentences(self, num: int, *, prose: bool = False) -> list[str]:
        """The next num sentences; the first begins with a person who goes somewhere. prose: people talk."""
        told: list[str] = []
        while len(told) < num:
            kind = "go" if not told else self.rng.choices(_ACTIONS, _PROSE_SHARES if prose else _SHARES)[0]
            sentence = getattr(self, kind)()
            if sentence is None:
                continue
            if told and kind in _LINKED and self.rng.random() < 0.3:
                sentence = self.rng.choice(_LINKS) + sentence
            told.append(sentence)
        return told

    def questions(self) -> list[tuple[str, dict[str, str], str]]:
        """All (kind, words for the template, answer) that the story so far decides."""
        asked: list[tuple[str, dict[str, str], str]] = []
        for person, place in self.where.items():
            asked.append(("where person", {"p": person}, f"Now {person} is in the {place}."))
            if list(self.where.values()).count(place) == 1:
                asked.append(("who is in", {"place": place}, f"Now {person} is in the {place}."))
        for thing in (*self.lies_in, *self.holder):
            if there := self.place_of(thing):
                asked.append(("where thing", {"t": thing}, f"Now the {thing} is in the {there}."))
        for thing, person in self.holder.items():
            asked.append(("who has", {"t": thing}, f"Now {person} has the {thing}."))
        takers, taken = [person for person, _ in self.takings], [thing for _, thing in self.takings]
        for person, thing in self.takings:
            if taken.count(thing) == 1:
                asked.append(("who took", {"t": thing}, f"It was {person}."))
            if takers.count(person) == 1:
                asked.append(("what took", {"p": person}, f"It was the {thing}."))
        for person, thing, receiver in self.givings:
            if sum(giving[:2] == (person, thing) for giving in self.givings) == 1:
                asked.append(("whom gave", {"p": person, "t": thing}, f"It was {receiver}."))
            if sum(giving[::2] == (person, receiver) for giving in self.givings) == 1:
                asked.append(("what gave", {"p": person, "q": receiver}, f"It was the {thing}."))
        for person, feeling in self.feeling.items():
            asked.append(("feels", {"p": person}, f"Now {person} feels {feeling}."))
        return asked


def new_world(rng: Random, people: Sequence[str]) -> World:
    """A world with these people, a few places and a few things."""
    return World(rng, people, rng.sample(PLACES, rng.randint(3, 4)), rng.sample(THINGS, rng.randint(2, 3)))
