"""What every skill hands back: an item with its held-out key, and question templates of which some are held out."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from intone.data.chat import Message, Part

SKILLS = (
    "identity",
    "smalltalk",
    "arithmetic",
    "spelling",
    "counting",
    "sorting",
    "reversing",
    "dates",
    "units",
    "facts",
    "story",
)

HELD_OUT_ONE_IN = 10  # of arguments; the share CONTRACTS.md asks for


@dataclass(frozen=True)
class Item:
    """A question and its one right answer.

    answer: the visible text of the last message, stripped. key: (skill, *arguments), the unit that is held out.
    template: number of the question's template inside its skill.
    """

    skill: str
    messages: list[Message]
    answer: str
    key: tuple
    template: int


def is_held_out(key: tuple, one_in: int = HELD_OUT_ONE_IN) -> bool:
    """Whether these arguments belong to the evaluation: the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") % one_in == 0


def listed(text: str) -> tuple[str, ...]:
    """The words of a text, each once, in the order in which they first stand there."""
    return tuple(dict.fromkeys(text.split()))


class Templates:
    """Question texts of one kind, with the rule which of them are held out: numbers 5, 13, 21, ... of each kind.

    first: the number of the first text inside its skill, so that template numbers are unique in the skill.
    """

    def __init__(self, texts: Iterable[str], *, first: int = 0) -> None:
        self.texts = tuple(texts)
        self.first = first
        numbered = list(enumerate(self.texts, first))
        self.training = [pair for place, pair in enumerate(numbered) if place % 8 != 5]
        self.held_out = [pair for place, pair in enumerate(numbered) if place % 8 == 5]

    def __len__(self) -> int:
        return len(self.texts)

    def draw(self, rng: Random, *, held_out: bool) -> tuple[int, str]:
        """(number, text): for training an ordinary one; for evaluation a held-out one half of the time."""
        if held_out and self.held_out and rng.random() < 0.5:
            return rng.choice(self.held_out)
        return rng.choice(self.training)


def numbered(groups: dict[str, str]) -> dict[str, Templates]:
    """Kind -> one template per line of its text; the numbers run on over the kinds."""
    made: dict[str, Templates] = {}
    first = 0
    for kind, lines in groups.items():
        texts = [line.strip() for line in lines.strip().splitlines()]
        made[kind] = Templates(texts, first=first)
        first += len(texts)
    return made


BEFORE = (
    "Hi! ",
    "Hello. ",
    "Please help me. ",
    "I have a question. ",
    "Next question: ",
    "A quick one: ",
    "Tell me this: ",
    "Okay. ",
    "I need your help. ",
    "Now this: ",
)
AFTER = (" Thanks!", " Thank you.", " Please tell me.", " Please.", " I want to know.", " Can you tell me?")


def dressed(rng: Random, question: str) -> str:
    """The question, one time in six with a polite sentence before or after it."""
    chance = rng.random()
    if chance < 0.09:
        return rng.choice(BEFORE) + question
    if chance < 0.16:
        return question + rng.choice(AFTER)
    return question


def said(skill: str, question: str, answer: str, key: tuple, template: int) -> Item:
    """An item answered in plain text."""
    return Item(skill, [Message("user", question), Message("assistant", answer)], answer, key, template)


def calculated(skill: str, question: str, *, call: str, output: str, answer: str, key: tuple, template: int) -> Item:
    """An item answered with one calculator call first."""
    parts = (Part("call", call), Part("output", output), Part("text", answer))
    return Item(skill, [Message("user", question), Message("assistant", parts)], answer, key, template)
