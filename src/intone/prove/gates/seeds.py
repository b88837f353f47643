"""The gate on losses over seeds: a change of the recipe must end where the baseline ends, within a stated margin."""

import math
import statistics
from dataclasses import dataclass

from intone.prove.gates.parity import NAME
from intone.prove.gates.result import GateResult, Threshold, not_judged

MARGIN = 0.005  # share of the baseline's final loss that counts as no difference; guess
MIN_SEEDS = 3  # two differences have no spread to speak of; reference: 3 to 5 seeds each side
MAX_SEEDS = 30  # more than anybody trains for a gate; the table of T95 ends there
# 95 % quantiles of Student's t for 1, 2, ... degrees of freedom (any table)
T95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753,
    1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699,
)  # fmt: skip


@dataclass(frozen=True)
class SeedPairs:
    """Where both sides ended, seed by seed: entry i of both comes from seeds[i]."""

    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    what: str = "final loss"  # lower is better


def judge(pairs: SeedPairs, *, margin: float = MARGIN, allow_better: bool = False) -> GateResult:
    """Passed where the 90 % interval of the mean paired difference lies within +-margin of the baseline's mean.

    That is two one-sided tests at 5 % (Schuirmann 1987). An interval that only reaches out of the margin is not
    judged and says how many seeds it would take. allow_better: only being worse is a reason to reject; without it a
    clear gain is one too, since a neutral change that learns faster has most likely seen what it should not.
    """
    threshold = Threshold(
        f"90% interval of the paired difference of the {pairs.what} within "
        f"{'+' if allow_better else '+-'}{margin:.2%} of the baseline's, over {MIN_SEEDS} seeds or more",
        "two one-sided tests (Schuirmann 1987); the margin is a guess unless the caller states one",
    )
    problem = unusable(pairs)
    if problem:
        return not_judged(NAME, problem, f"train both sides with {MIN_SEEDS} to {MAX_SEEDS} different seeds")
    middle = statistics.fmean(pairs.baseline)
    differences = [(b - a) / middle for a, b in zip(pairs.baseline, pairs.candidate, strict=True)]
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    half = T95[len(differences) - 2] * spread / math.sqrt(len(differences))
    low, high = mean - half, mean + half
    evidence = {
        "kind": "statistical", "seeds": pairs.seeds, "baseline": pairs.baseline, "candidate": pairs.candidate,
        "difference": mean, "low": low, "high": high, "margin": margin, "spread": spread,
    }  # fmt: skip
    measured = f"{pairs.what} {mean:+.2%} [{low:+.2%}, {high:+.2%}] over {len(differences)} seeds"
    if low > margin or (high < -margin and not allow_better):
        side = "worse" if low > margin else "better, which a neutral change cannot be,"
        reason = f"{measured}: {side} by more than {margin:.2%}"
        fix = "undo the change, or declare and justify what it changes in the recipe"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if high <= margin and (allow_better or low >= -margin):
        return GateResult(NAME, True, f"{measured}: within {margin:.2%}", threshold, evidence)
    needed = seeds_needed(spread, max(1e-9, margin - abs(mean)), have=len(differences))
    more = f"about {needed - len(differences)} more seeds" if needed else "a wider margin, stated on purpose"
    reason = f"{measured}: neither inside nor outside {margin:.2%}"
    return GateResult(NAME, None, reason, threshold, evidence, fix=f"needs {more}")


def unusable(pairs: SeedPairs) -> str | None:
    """Why these numbers cannot be compared; None where they can."""
    count = len(pairs.seeds)
    if not len(pairs.baseline) == len(pairs.candidate) == count:
        return f"{count} seeds, but {len(pairs.baseline)} and {len(pairs.candidate)} results"
    if len(set(pairs.seeds)) < count:
        return f"seeds {list(pairs.seeds)} repeat: a repeated seed is no new evidence"
    if not MIN_SEEDS <= count <= MAX_SEEDS:
        return f"{count} seeds were trained"
    if not all(math.isfinite(value) and value > 0 for value in (*pairs.baseline, *pairs.candidate)):
        return f"a {pairs.what} is not a positive number: {[*pairs.baseline, *pairs.candidate]}"
    return None


def seeds_needed(spread: float, room: float, *, have: int) -> int | None:
    """How many seeds would bring the interval's half below room, at this spread; None: more than anybody trains."""
    for count in range(have + 1, MAX_SEEDS + 1):
        if T95[count - 2] * spread / math.sqrt(count) <= room:
            return count
    return None

