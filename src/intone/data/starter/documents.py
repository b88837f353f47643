"""Plain text for pre-training: about half stories, half knowledge in the shapes that the skills need later."""

from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from intone.data.starter import dates, facts, letters
from intone.data.starter.calculating import PAIRS
from intone.data.starter.item import is_held_out
from intone.data.starter.templates_story import OPENINGS
from intone.data.starter.words import TRAINING_WORDS
from intone.data.starter.world import World, new_world


def documents(seed: int, num: int | None = None) -> Iterator[str]:
    """Training documents, num of them or without end; the same for the same seed everywhere."""
    rng = Random(f"starter documents {seed}")
    makers, weights = tuple(_MAKERS), tuple(_MAKERS.values())
    for _ in count() if num is None else range(num):
        yield rng.choices(makers, weights)[0](rng)


def story_text(rng: Random) -> str:
    """A story of one or two paragraphs with talk between its people."""
    world = new_world(rng, letters.practice_names(rng, rng.randint(2, 4)))
    paragraphs = []
    for number in range(rng.randint(1, 2)):
        sentences = world.sentences(rng.randint(7, 13), prose=True)
        opening = (
            rng.choice(OPENINGS) if number == 0 else rng.choice(("Later that day ", "In the evening ", "After that, "))
        )
        if rng.random() < 0.6:
            sentences.append(_talk(rng, world))
        paragraphs.append(opening + " ".join(sentences))
    return "\n".join(paragraphs)


def _talk(rng: Random, world: World) -> str:
    """Two people talk about the story; the answer is right."""
    asker, teller = rng.sample(world.people, 2)
    known = [entry for entry in world.questions() if entry[0] in _ASKED]
    if not known:
        return f'"What a day," said {asker}.'
    kind, words, answer = rng.choice(known)
    return f'"{_ASKED[kind].format(**words)}" asked {asker}. "{answer[:-1]}," said {teller}.'


_ASKED = {
    "where person": "Where is {p}?",
    "where thing": "Where is the {t}?",
    "who has": "Who has the {t}?",
    "who is in": "Who is in the {place}?",
    "who took": "Who took the {t}?",
}


def fact_text(rng: Random) -> str:
    """Facts of a few relations."""
    return " ".join(line for _ in range(rng.randint(1, 3)) for line in facts.statements(rng, rng.randint(2, 5)))


def spelling_text(rng: Random) -> str:
    """Words letter by letter, and some backwards."""
    lines = []
    backwards = rng.random() < 0.5
    for _ in range(rng.randint(3, 8)):
        word = letters.practice_word(rng, held_out=False)
        if backwards:
            lines.append(f"The word {word} is {letters.spelled(word)}, backwards {letters.spelled(word[::-1])}.")
        else:
            lines.append(f"You spell {word} {letters.spelled(word)}.")
    return "\n".join(lines)


def count_text(rng: Random) -> str:
    """How often letters appear in words."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        word = letters.practice_word(rng, held_out=False)
        letter = rng.choice(word)
        times = word.count(letter)
        lines.append(f"The letter {letter} appears {times} time{'' if times == 1 else 's'} in {word}.")
    return " ".join(lines)


def sorted_text(rng: Random) -> str:
    """Words or numbers, mixed and then sorted."""
    item = letters.sorting(rng, held_out=False)
    return f"{item.messages[0].visible} {item.answer}"


def sequence_text(rng: Random) -> str:
    """A stretch of the numbers, weekdays, months or dates, on or back."""
    sign = rng.choice((1, -1))
    kind = rng.choice(("numbers", "numbers", "weekday", "next month", "date", "date"))
    if kind == "numbers":
        return _numbers(rng, sign)
    ring = dates.WEEKDAYS if kind == "weekday" else dates.MONTHS
    start = rng.choice(ring)
    if kind == "date":
        start = f"{start} {rng.randint(1, 28)}"
    passed = dates.walk(kind, start, sign * rng.randint(5, 9))
    return f"{'On' if sign > 0 else 'Back'} from {start}: {', '.join(passed)}."


def _numbers(rng: Random, sign: int) -> str:
    """Numbers up or down, by equal steps or with gaps; the order of numbers is what sorting needs."""
    num = rng.randint(6, 14)
    if rng.random() < 0.4:
        numbers = sorted(rng.sample(range(1, 100), num))
    else:
        step = rng.choice((1, 1, 1, 2, 5, 10))
        first = rng.randint(1, 99 - (step * num) % 99)
        numbers = list(range(first, first + step * num, step))
    return f"{'Up' if sign > 0 else 'Down'}: {', '.join(map(str, numbers[::sign]))}."


def sum_text(rng: Random) -> str:
    """Small sums in words."""
    lines: list[str] = []
    while len(lines) < 4:
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        sign = rng.choice("+-")
        if is_held_out(("arithmetic", sign, a, b)):
            continue
        if sign == "+":
            lines.append(f"{letters.practice_names(rng, 1)[0]} had {a} and got {b} more. {a} + {b} = {a + b}.")
        else:
            lines.append(f"{letters.practice_names(rng, 1)[0]} had {a} and gave away {b}. {a} - {b} = {a - b}.")
    return "So " + " ".join(lines)


def unit_text(rng: Random) -> str:
    """What one of a unit is in smaller ones."""
    chosen = rng.sample(PAIRS, 4)
    return " ".join(f"One {one} is {factor} {small}." for _, one, small, factor in chosen)


def list_text(rng: Random) -> str:
    """A list of words."""
    return "Words: " + ", ".join(rng.sample(TRAINING_WORDS, rng.randint(5, 10))) + "."


# documents of each kind per hundred or so; stories are about half of the tokens
_MAKERS: dict[Callable[[Random], str], float] = {
    story_text: 26,
    fact_text: 14,
    spelling_text: 12,
    count_text: 4,
    sorted_text: 10,
    sequence_text: 12,
    sum_text: 5,
    unit_text: 3,
    list_text: 4,
}
