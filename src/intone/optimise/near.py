"""A verdict that is a few pairs away: how many are wanted, and the verdict on two measurements of the same together"""

from dataclasses import replace

from intone.prove.measure import MAX_PAIRS, Measured
from intone.prove.rounds import judge_rounds
from intone.prove.verdict import MIN_PAIRS, Comparison


def pairs_wanted(found: Comparison) -> int | None:
    """How many more pairs to measure for a verdict that is "not proven"; None: it is settled, or out of reach.

    Twice what the estimate says, since the estimate is as uncertain as what it rests on.
    """
    if found.verdict != "not proven" or found.more_pairs is None or found.more_pairs > MAX_PAIRS:
        return None
    return max(MIN_PAIRS, 2 * found.more_pairs)


def together(first: Measured, second: Measured, a: str, b: str) -> Comparison:
    """The verdict on b against a over the rounds of both measurements, whose processes were all different ones."""
    later = [replace(entry, replicate=entry.replicate + first.num_replicates) for entry in second.rounds]
    return judge_rounds([*first.rounds, *later], a, b)
