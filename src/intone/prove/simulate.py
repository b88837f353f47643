"""Makes up measurements whose truth is known, to see how often the verdict is right."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from intone.prove.measure import MAX_PAIRS, MIN_REPLICATES
from intone.prove.verdict import Comparison, Pair, judge


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log rates. round: of a side within one round; drift: of the machine between replicates."""

    round: float
    process: float = 0.0
    drift: float = 0.0


def replicates(
    effect: float, noise: Noise, rng: np.random.Generator, *, count: int = MAX_PAIRS, pairs_each: int = 1
) -> list[list[Pair]]:
    """count replicates of A B B A rounds; effect: B's true rate against A's, 1.05 is 5 % faster."""
    block = noise.round * math.sqrt(2)  # a side's rate of a round is the mean of two blocks
    made = []
    machine = 0.0
    for _ in range(count):
        machine += rng.normal(0, noise.drift)
        a, b = machine + rng.normal(0, noise.process), machine + math.log(effect) + rng.normal(0, noise.process)
        made.append([pair(a + rng.normal(0, block, 2), b + rng.normal(0, block, 2)) for _ in range(pairs_each)])
    return made


def pair(a: Iterable[float], b: Iterable[float]) -> Pair:
    """A round from the log rates of its blocks, two per side, of equal work."""
    sides = []
    for logs in (a, b):
        first, second = (math.exp(value) for value in logs)
        sides.append((2 / (1 / first + 1 / second), (first, second)))
    return Pair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def verdict_of(made: Sequence[Sequence[Pair]]) -> Comparison:
    """What measure.py would say: a look after every replicate from the third on, until it is settled."""
    found = judge([], is_last=True)
    for count in range(MIN_REPLICATES, len(made) + 1):
        found = judge(made[:count], is_last=count == len(made))
        if found.verdict != "not proven":
            break
    return found
