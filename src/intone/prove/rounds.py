"""Rounds of blocks, what a measurement in turns is made of, and the verdict on the pairs that they give"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from intone.prove.noise import Disturbance, Signals, most_lost, summary
from intone.prove.verdict import MIN_PAIRS, Comparison, Pair, judge, unproven


@dataclass(frozen=True)
class Block:
    """One measured block. answer: everything the child said, its losses and memory too."""

    side: str
    replicate: int
    round: int
    work: float
    seconds: float
    answer: Mapping[str, Any]
    before: Signals
    after: Signals


@dataclass(frozen=True)
class Round:
    """Two blocks per side in the order of time, and what interfered with them."""

    replicate: int
    blocks: tuple[Block, ...]
    disturbed: tuple[Disturbance, ...]

    def of(self, side: str) -> list[Block]:
        return [block for block in self.blocks if block.side == side]


def judge_rounds(rounds: Sequence[Round], a: str, b: str, *, is_last: bool = True, least: int = 1) -> Comparison:
    """The verdict on b against a over undisturbed rounds, where they are enough: of at least so many replicates.

    Otherwise over all of them, as if everything that interfered had been in the way of one side only (both ways, so
    that the interval holds whatever it did): large differences are proven on an unsteady machine too.
    """
    clean = [entry for entry in rounds if not entry.disturbed]
    found = judge(pairs_between(clean, a, b), is_last=is_last)
    if found.num_pairs >= MIN_PAIRS and len({entry.replicate for entry in clean}) >= least:
        if found.verdict != "not proven" or len(clean) * 2 > len(rounds):
            return found
    elif len(clean) == len(rounds):
        return found  # too few so far, or all that the limits allowed
    words = f"the machine was unsteady: {summary([entry.disturbed for entry in rounds])}"
    found = judge(pairs_between(rounds, a, b), is_last=is_last)
    at_worst = [pairs_at_worst(rounds, a, b, hampered=side) for side in (a, b)]
    if not all(at_worst):
        return unproven(words, replace(found, low=None, high=None))
    low, high = (judge(pairs or (), is_last=is_last) for pairs in at_worst)
    found = replace(found, low=min(found.low or 0.0, low.low or 0.0), high=max(found.high or 0.0, high.high or 0.0))
    if len({entry.replicate for entry in rounds}) >= least:
        for verdict, worst in (("faster", low), ("slower", high)):
            if worst.verdict == verdict:
                reason = f"{worst.reason}, even if all that interfered hit one side; {words}"
                return replace(found, verdict=worst.verdict, more_pairs=None, reason=reason)
    return unproven(words, found)


def pairs_between(rounds: Sequence[Round], a: str, b: str) -> list[list[Pair]]:
    """The pairs of two sides that were measured in the same rounds, by replicate."""
    groups: dict[int, list[Pair]] = {}
    for entry in rounds:
        first, second = entry.of(a), entry.of(b)
        if len(first) == len(second) == 2:
            groups.setdefault(entry.replicate, []).append(
                Pair(whole_rate(first), whole_rate(second), halves(first), halves(second))
            )
    return list(groups.values())


def pairs_at_worst(rounds: Sequence[Round], a: str, b: str, hampered: str) -> list[list[Pair]] | None:
    """The same pairs if in disturbed rounds one side had all that interfered, and would have been faster without it.

    None: nothing bounds what it did.
    """
    groups: dict[int, list[Pair]] = {}
    for entry in rounds:
        sides = {name: entry.of(name) for name in (a, b)}
        for (pair,) in pairs_between([entry], a, b):
            if entry.disturbed:
                signals = {name: [(block.before, block.after) for block in blocks] for name, blocks in sides.items()}
                lost = most_lost(signals[hampered], signals[b if hampered == a else a])
                if lost is None:
                    return None
                pair = pair.sped_up(lost if hampered == a else 0.0, lost if hampered == b else 0.0)
            groups.setdefault(entry.replicate, []).append(pair)
    return list(groups.values())


def is_settled(found: Comparison) -> bool:
    """Whether more pairs could not change the word."""
    return found.verdict != "not proven"


def whole_rate(blocks: Sequence[Block]) -> float:
    """Units per second over all blocks together."""
    return sum(block.work for block in blocks) / sum(block.seconds for block in blocks)


def halves(blocks: Sequence[Block]) -> tuple[float, float]:
    """The rates of the two blocks of a round, in their order."""
    first, second = blocks
    return first.work / first.seconds, second.work / second.seconds
