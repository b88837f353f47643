"""Arithmetic and unit conversion: the model writes a calculator call, then reads its output aloud."""

from random import Random

from intone.data.starter.item import Item, calculated, dressed, is_held_out
from intone.data.starter.letters import practice_names
from intone.data.starter.names import HELD_OUT_NAMES
from intone.data.starter.templates_numbers import ARITHMETIC, OBJECTS, UNITS

SIGNS = {"+": "+", "-": "-", "*": "x"}


def arithmetic(rng: Random, *, held_out: bool) -> Item:
    """A sum, difference or product of two numbers of 1-4 digits; key (skill, sign, a, b) as calculated."""
    while True:
        sign = rng.choice("++--*")
        a, b = _operands(rng, sign)
        kind = sign
        if rng.random() < 0.15:
            kind = sign + "story"
            if sign == "-" and a < b:
                a, b = b, a
        elif sign == "-" and rng.random() < 0.3:
            kind = "-swapped"
        key = ("arithmetic", sign, a, b)
        if is_held_out(key) == held_out:
            break
    number, text = ARITHMETIC[kind].draw(rng, held_out=held_out)
    name = rng.choice(HELD_OUT_NAMES) if held_out else practice_names(rng, 1)[0]
    question = text.format(a=a, b=b, name=name, things=rng.choice(OBJECTS))
    result = a + b if sign == "+" else a - b if sign == "-" else a * b
    return calculated(
        "arithmetic",
        dressed(rng, question),
        call=f"{a}{sign}{b}",
        output=str(result),
        answer=f"{a} {SIGNS[sign]} {b} = {result}.",
        key=key,
        template=number,
    )


def _operands(rng: Random, sign: str) -> tuple[int, int]:
    if sign == "*":
        digits = rng.choice(
            ((1, 1), (1, 2), (2, 1), (2, 2), (2, 2), (1, 3), (3, 1), (3, 2), (2, 3), (3, 3), (4, 1), (4, 4))
        )
    else:
        digits = (rng.randint(1, 4), rng.randint(1, 4))
    return _number(rng, digits[0]), _number(rng, digits[1])


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


# (large unit, one of it, small unit, how many small in one large)
PAIRS = (
    ("kilometres", "kilometre", "metres", 1000),
    ("metres", "metre", "centimetres", 100),
    ("centimetres", "centimetre", "millimetres", 10),
    ("kilograms", "kilogram", "grams", 1000),
    ("tonnes", "tonne", "kilograms", 1000),
    ("litres", "litre", "millilitres", 1000),
    ("hours", "hour", "minutes", 60),
    ("minutes", "minute", "seconds", 60),
    ("days", "day", "hours", 24),
    ("weeks", "week", "days", 7),
    ("years", "year", "months", 12),
    ("dollars", "dollar", "cents", 100),
    ("euros", "euro", "cents", 100),
    ("feet", "foot", "inches", 12),
    ("yards", "yard", "feet", 3),
    ("dozens", "dozen", "pieces", 12),
)


def units(rng: Random, *, held_out: bool) -> Item:
    """A whole number of one unit in another; key (skill, from, to, number)."""
    while True:
        large, _, small, factor = rng.choice(PAIRS)
        count = rng.randint(2, 20) if rng.random() < 0.5 else rng.randint(2, 300)
        down = rng.random() < 0.6
        source, target = (large, small) if down else (small, large)
        amount = count if down else count * factor
        key = ("units", source, target, amount)
        if is_held_out(key) == held_out:
            break
    number, text = UNITS["convert"].draw(rng, held_out=held_out)
    result = amount * factor if down else count
    return calculated(
        "units",
        dressed(rng, text.format(n=amount, source=source, target=target)),
        call=f"{amount}{'*' if down else '/'}{factor}",
        output=str(result),
        answer=f"{amount} {source} is {result} {target}.",
        key=key,
        template=number,
    )
