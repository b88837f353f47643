"""Chooses the number of CPU threads by timing: two threads on two busy cores can be 7x slower than one."""

import statistics
from collections.abc import Mapping, Sequence

from intone.hardware import Facts
from intone.records import Choice
from intone.tune.probe import speedup

WORTH = 1.05  # more threads must be this much faster: fewer leave a core to the loader, and to others


def candidates(facts: Facts) -> tuple[int, ...]:
    """1 and all usable cores, with 4, 16, 64 ... between them on large machines."""
    between = [4**power for power in range(1, 6) if 4**power < facts.cores_physical]
    return tuple(sorted({1, *between, facts.cores_physical}))


def pick(times: Mapping[int, Sequence[float]]) -> Choice:
    """The fewest threads that no larger number beats by more than 5 %.

    times: seconds per step for each number of threads, entry i of all from the same round.
    """
    numbers = sorted(times)
    best = numbers[0]
    beat = []
    for number in numbers[1:]:
        gain = speedup(times[best], times[number])
        if gain > WORTH:
            beat.append({"value": best, "why": f"{number} threads are {gain:.2f}x as fast"})
            best = number
        else:
            beat.append({"value": number, "why": f"{gain:.2f}x as fast as {best}, not more than {WORTH:.2f}x"})
    step_s = {str(number): statistics.median(times[number]) for number in numbers}
    rounds = len(times[best])
    shown = ", ".join(f"{number}: {step_s[str(number)] * 1000:.0f} ms" for number in numbers)
    reason = f"fastest training step by measurement ({shown}; median of {rounds} rounds)"
    if any(number > best for number in numbers):
        reason = f"more threads gain less than 5 % ({shown}; median of {rounds} rounds)"
    return Choice(best, reason, "measured", tuple(beat), {"step_s": step_s, "rounds": rounds})
