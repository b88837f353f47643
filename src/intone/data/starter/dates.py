"""Steps in the calendar: the answer counts them one by one, then says where it arrived."""

from random import Random

from intone.data.starter.item import HELD_OUT_ONE_IN, Item, dressed, is_held_out, said
from intone.data.starter.templates_dates import DATES

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_STEPS = {"after": 1, "before": -1}


def dates(rng: Random, *, held_out: bool) -> Item:
    """A weekday or a date some days on or back, or a neighbour; key (skill, kind, start, direction, steps)."""
    while True:
        chance = rng.random()
        direction = rng.choice(("after", "before"))
        steps = 1
        if chance < 0.3:
            kind, start, steps = "weekday", rng.choice(WEEKDAYS), rng.randint(1, 10)
        elif chance < 0.8:
            kind, start, steps = "date", _date(rng, direction), rng.randint(1, 7)
        elif chance < 0.86:
            kind, start = "next weekday", rng.choice(WEEKDAYS)
        elif chance < 0.94:
            kind, start = "next month", rng.choice(MONTHS)
        else:
            kind, start = "today", rng.choice(WEEKDAYS)
        key = ("dates", kind, start, direction, steps)
        # there are only 140 weekday steps: a quarter is held out, so that the evaluation has some
        if is_held_out(key, 4 if kind == "weekday" else HELD_OUT_ONE_IN) == held_out:
            break
    one = " one" if kind in ("weekday", "date") and steps == 1 else ""
    number, text = DATES[f"{kind} {direction}{one}"].draw(rng, held_out=held_out)
    question = text.format(start=start, n=steps)
    return said("dates", dressed(rng, question), answer_steps(kind, start, direction, steps), key, number)


def answer_steps(kind: str, start: str, direction: str, steps: int) -> str:
    """After Monday: 1 Tuesday, 2 Wednesday. The answer is Wednesday.

    The direction and the start are said first: each step then follows from the words just before it.
    """
    walked = walk(kind, start, _STEPS[direction] * steps)
    counted = ", ".join(f"{number} {place}" for number, place in enumerate(walked, 1))
    return f"{direction.capitalize()} {start}: {counted}. The answer is {walked[-1]}."


def walk(kind: str, start: str, steps: int) -> list[str]:
    """The weekdays, months or dates passed on |steps| steps from start, start itself not included."""
    sign = 1 if steps > 0 else -1
    if kind == "date":
        month_name, day = start.rsplit(" ", 1)
        month, number = MONTHS.index(month_name), int(day)
        passed = []
        for _ in range(abs(steps)):
            month, number = _next_date(month, number, sign)
            passed.append(f"{MONTHS[month]} {number}")
        return passed
    ring = MONTHS if kind == "next month" else WEEKDAYS
    place = ring.index(start)
    return [ring[(place + sign * step) % len(ring)] for step in range(1, abs(steps) + 1)]


def _next_date(month: int, day: int, sign: int) -> tuple[int, int]:
    """The day after or before, in a year that is not a leap year; month 0-11, day 1-31."""
    day += sign
    if day > MONTH_DAYS[month]:
        return (month + 1) % 12, 1
    if day < 1:
        month = (month - 1) % 12
        return month, MONTH_DAYS[month]
    return month, day


def _date(rng: Random, direction: str) -> str:
    """A start from which seven steps cross the end of a month about half of the time."""
    month = rng.randrange(12)
    last = MONTH_DAYS[month]
    if rng.random() < 0.3:
        day = rng.randint(1, last)
    else:
        day = rng.randint(last - 6, last) if direction == "after" else rng.randint(1, 7)
    return f"{MONTHS[month]} {day}"
