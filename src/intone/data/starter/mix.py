"""Training conversations mixed from all skills, and the held-out items that measure them."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from random import Random

from intone.data.chat import Message
from intone.data.starter.calculating import arithmetic, units
from intone.data.starter.dates import dates
from intone.data.starter.facts import facts
from intone.data.starter.item import SKILLS, Item
from intone.data.starter.letters import counting, reversing, sorting, spelling
from intone.data.starter.story import story, story_items
from intone.data.starter.talk import identity, smalltalk
from intone.errors import UserError

_MAKERS: dict[str, Callable[..., Item]] = {
    "identity": identity,
    "smalltalk": smalltalk,
    "arithmetic": arithmetic,
    "spelling": spelling,
    "counting": counting,
    "sorting": sorting,
    "reversing": reversing,
    "dates": dates,
    "units": units,
    "facts": facts,
    "story": story,
}

# share of the turns a person begins; what was learned last in trial runs comes more often (LOG.md)
_SHARES = {
    "identity": 6,
    "smalltalk": 7,
    "arithmetic": 7,
    "spelling": 9,
    "counting": 6,
    "sorting": 17,
    "reversing": 9,
    "dates": 14,
    "units": 5,
    "facts": 9,
    "story": 12,
}
_STORY_QUESTIONS = (1, 2, 3, 4)  # questions about one story
_NUM_TURNS = (1, 2, 3, 4)
_TURN_SHARES = (50, 25, 15, 10)


def conversation_items(seed: int) -> Iterator[list[Item]]:
    """The items of each training conversation, without end."""
    rng = Random(f"starter conversations {seed}")
    shares = [_SHARES[skill] for skill in SKILLS]
    for _ in count():
        num_turns = rng.choices(_NUM_TURNS, _TURN_SHARES)[0]
        items: list[Item] = []
        for skill in rng.choices(SKILLS, shares, k=num_turns):
            if skill == "story":
                items += story_items(rng, held_out=False, num_questions=rng.choice(_STORY_QUESTIONS))
            else:
                items.append(_MAKERS[skill](rng, held_out=False))
            if len(items) >= num_turns:
                break
        yield items


def conversations(seed: int, num: int | None = None) -> Iterator[list[Message]]:
    """Training conversations of 1-4 turns, half of them of one; num of them or without end."""
    for items in islice(conversation_items(seed), num):
        yield [message for item in items for message in item.messages]


def training_items(seed: int, num: int) -> Iterator[Item]:
    """The first num items inside conversations(seed)."""
    return islice((item for items in conversation_items(seed) for item in items), num)


def practice_item(skill: str, seed: int, number: int, attempt: int = 0) -> Item:
    """One training question of a skill, by its number: the same whatever was asked before. Never a held-out one.

    attempt: another question in the same place.
    """
    return _MAKERS[skill](Random(f"starter practice {seed} {skill} {number} {attempt}"), held_out=False)


def eval_items(skill: str, seed: int = 0, num: int = 200) -> list[Item]:
    """Up to num held-out items, no two with the same key; fewer only if the skill has no more.

    Raises UserError for an unknown skill.
    """
    if skill not in _MAKERS:
        raise UserError(f"unknown skill {skill!r}", value=skill, fix=f"known skills: {', '.join(SKILLS)}")
    rng = Random(f"starter evaluation {seed} {skill}")
    found: dict[tuple, Item] = {}
    # 100 draws for each item: where that is not enough there are hardly any more keys
    for _ in range(100 * num):
        if len(found) == num:
            break
        item = _MAKERS[skill](rng, held_out=True)
        found.setdefault(item.key, item)
    return list(found.values())
