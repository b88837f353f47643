"""From pairs of measurements to one of five words: how large the difference is, how sure, and what is still missing.

A pair is what one A B B A round measured: the rates of both sides, moments apart. Pairs come in replicates, each of
fresh processes, because what differs between two processes of one program (memory layout, placement) stays the same
within them: ten pairs of one process are one sample of it.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["faster", "slower", "same", "not proven", "rejected"]
VERDICTS: tuple[Verdict, ...] = ("faster", "slower", "same", "not proven", "rejected")

LEAST_EFFECT = 0.01  # a smaller difference is never called one (reference: speed protocol)
SAME = 0.02  # "same" means: the whole interval lies within this; guess, half of what differs between two processes
MIN_PAIRS = 5  # reference: speed protocol
NUM_BOOT = 2000
MANY_PAIRS = 1000  # beyond this nobody would wait for a verdict
NOTHING = 10.0  # ends of an interval so many times apart say nothing of a change
TIMES = 3.0  # from this ratio on people read times more easily than percent
# two-sided quantiles of Student's t by degrees of freedom, for the two levels in use
STUDENT: dict[float, dict[float, float]] = {
    0.95: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228, 15: 2.131, 30: 2.042},
    0.99: {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 8: 3.355, 10: 3.169, 15: 2.947, 30: 2.750},
}


@dataclass(frozen=True)
class Pair:
    """One round: rates in units per second, the better the higher.

    a_halves, b_halves: the two blocks of each side, in their order; whole is their work over their time.
    """

    a: float
    b: float
    a_halves: tuple[float, float]
    b_halves: tuple[float, float]

    @property
    def log_ratio(self) -> float:
        """Above 0: B is faster."""
        return math.log(self.b / self.a)

    def sped_up(self, a: float, b: float) -> "Pair":
        """The same with either side faster by so much, as logarithms."""
        times_a, times_b = math.exp(a), math.exp(b)
        (a1, a2), (b1, b2) = self.a_halves, self.b_halves
        return Pair(self.a * times_a, self.b * times_b, (a1 * times_a, a2 * times_a), (b1 * times_b, b2 * times_b))


@dataclass(frozen=True)
class Comparison:
    """What is known about B against A. Ratios are of rates: above 1, B is faster. None: nothing was measured."""

    ratio: float | None
    low: float | None  # 95 % interval of the ratio
    high: float | None
    num_pairs: int
    noise_low: float | None  # the same interval for A against itself, by the spread of these measurements
    noise_high: float | None
    verdict: Verdict
    reason: str
    more_pairs: int | None = None  # about how many more would settle a "not proven"; None: too many, or no question

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval that says something."""
        return self.low is not None and self.high is not None and self.high <= NOTHING * self.low

    @property
    def times(self) -> str:
        """1.31x [1.25, 1.37]; where the interval says nothing, that, or the end that the verdict rests on."""
        if self.ratio is None:
            return self.reason
        if not self.has_interval:
            return f"{self.ratio:.2f}x, {self._end('{:.2f}x'.format)}"
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    @property
    def span(self) -> str:
        """+31.0% [+27.1, +35.2]; from TIMES on as a factor."""
        if self.ratio is None or self.ratio >= TIMES:
            return self.times
        if self.low is None or self.high is None or not self.has_interval:
            return f"{percent(self.ratio)}, {self._end(percent)}"
        return f"{percent(self.ratio)} [{percent(self.low, '')}, {percent(self.high, '')}]"

    def _end(self, words: Callable[[float], str]) -> str:
        """What is known where the interval says nothing: a proven difference has one end all the same."""
        if self.verdict == "faster" and self.low is not None:
            return f"at least {words(self.low)}"
        if self.verdict == "slower" and self.high is not None:
            return f"at most {words(self.high)}"
        return "no interval"

    def text(self) -> str:
        """One line for people: faster: +31.0% [+27.1, +35.2], 10 pairs; the reason where it is not the numbers."""
        if self.ratio is None or self.low is None or self.high is None:
            return f"{self.verdict}: {self.reason}"
        words = {"same": "no difference"}.get(self.verdict, self.verdict)
        tail = f"; {self.reason}" if self.verdict in ("not proven", "rejected") else ""
        return f"{words}: {self.span}, {self.num_pairs} pairs{tail}"


def percent(ratio: float, unit: str = "%") -> str:
    """1.031 -> +3.1%."""
    return f"{100 * (ratio - 1):+.1f}{unit}"


def rejected(reason: str, before: Comparison | None = None) -> Comparison:
    """A change that may not be kept however fast it is: it failed, or a gate refused it."""
    if before is None:
        return Comparison(None, None, None, 0, None, None, "rejected", reason)
    return dataclasses.replace(before, verdict="rejected", reason=reason, more_pairs=None)


def unproven(reason: str, before: Comparison | None = None) -> Comparison:
    """No verdict for a reason that more pairs would not cure: an unsteady machine, or nothing measured."""
    if before is None:
        return Comparison(None, None, None, 0, None, None, "not proven", reason)
    return dataclasses.replace(before, verdict="not proven", reason=reason, more_pairs=None)


def judge(replicates: Sequence[Sequence[Pair]], *, is_last: bool = True, seed: int = 0) -> Comparison:
    """The verdict on all pairs so far; replicates without a pair are left out.

    The interval: the mean log ratio with replicates and, inside them, pairs drawn again (hierarchical bootstrap),
    widened for their small number by Student's t at Satterthwaite's degrees of freedom. The noise: how far A would
    seem to be from itself, by the spread of each side's own processes, and of its neighbouring blocks where that is
    larger. Faster: the low end clears 1 % and twice that noise; slower: the same downward; same: the whole interval
    lies within 2 %.

    It may be called after every replicate, until a verdict is settled: while it is not the last look (is_last), the
    99 % interval must say the same. Simulated over noise between processes and blocks of 0 to 15 %, up to six looks
    call A against A faster in 1 of 1,000 rounds or fewer (tests/prove/test_verdict.py).
    """
    groups = [group for group in replicates if group]
    num_pairs = sum(map(len, groups))
    if num_pairs == 0:
        return unproven("nothing was measured")
    logs = [np.array([pair.log_ratio for pair in group]) for group in groups]
    estimate = float(np.mean([group.mean() for group in logs]))
    noise = noise_half_width(groups)
    draws = bootstrap(logs, np.random.default_rng(seed))
    low, high = interval(logs, estimate, draws, 0.95)
    strict = (low, high) if is_last else interval(logs, estimate, draws, 0.99)
    verdict = settled(*strict, noise) if num_pairs >= MIN_PAIRS else "not proven"
    more, reason = None, explain(verdict, estimate, noise)
    if verdict == "not proven":
        more = pairs_missing(estimate, (high - low) / 2, noise, num_pairs, student(freedom(logs), 0.95))
        reason = f"needs about {more:,} more pairs" if more else f"more than {MANY_PAIRS:,} pairs would be needed"
    return Comparison(
        math.exp(estimate), math.exp(low), math.exp(high), num_pairs, math.exp(-noise), math.exp(noise), verdict,
        reason, more,
    )  # fmt: skip


def settled(low: float, high: float, noise: float) -> Verdict:
    """The verdict of a log interval against the noise's half width."""
    threshold = max(math.log1p(LEAST_EFFECT), 2 * noise)
    if low > threshold:
        return "faster"
    if high < -threshold:
        return "slower"
    if low > math.log1p(-SAME) and high < math.log1p(SAME):
        return "same"
    return "not proven"


def explain(verdict: Verdict, estimate: float, noise: float) -> str:
    """Why this verdict, in words; for "not proven" the caller knows better."""
    itself = f"A against itself stays within {100 * math.expm1(noise):.1f}%"
    if verdict in ("faster", "slower"):
        return f"the whole interval is beyond 1% and twice the noise; {itself}"
    return f"the whole interval lies within {100 * SAME:.0f}%; {itself}"


def pairs_missing(estimate: float, half_width: float, noise: float, num_pairs: int, quantile: float) -> int | None:
    """About how many more pairs settle it if the estimate and the spread stay as they are; None beyond MANY_PAIRS.

    Widths shrink with the root of the number of pairs, and the quantile of t falls to that of the normal law.
    """
    width = half_width * 1.96 / quantile  # what the interval would be if its spread were known
    size = abs(estimate)
    shrinks = []
    if size > 0:
        shrinks.append((width + 2 * noise) / size)
    if size > math.log1p(LEAST_EFFECT):
        shrinks[-1] = max(shrinks[-1], width / (size - math.log1p(LEAST_EFFECT)))
    else:
        shrinks = []
    if size < math.log1p(SAME):
        shrinks.append(width / (math.log1p(SAME) - size))
    total = max(min(shrinks) ** 2 * num_pairs, MIN_PAIRS)
    more = max(1, math.ceil(total - num_pairs))
    return more if more <= MANY_PAIRS else None


# --- spread ---------------------------------------------------------------------------------------------------------


def bootstrap(logs: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """NUM_BOOT means, each of replicates drawn with replacement and of pairs drawn with replacement inside them."""
    lengths = np.array([len(group) for group in logs])
    padded = np.zeros((len(logs), lengths.max()))
    for row, group in zip(padded, logs, strict=True):
        row[: len(group)] = group
    chosen = rng.integers(len(logs), size=(NUM_BOOT, len(logs)))
    counts = lengths[chosen][..., None]
    inside = (rng.random((*chosen.shape, lengths.max())) * counts).astype(int)
    values = np.where(np.arange(lengths.max()) < counts, padded[chosen[..., None], inside], 0.0)
    return (values.sum(axis=2) / counts[..., 0]).mean(axis=1)


def interval(
    logs: Sequence[np.ndarray], estimate: float, draws: np.ndarray, level: float
) -> tuple[float, float]:
    """The bootstrap's interval, widened: few replicates underestimate their spread, and its quantile is Student's.

    One replicate says nothing about the next: its interval is that of one degree of freedom.
    """
    normal = statistics.NormalDist().inv_cdf((1 + level) / 2)
    count = max(2, len(logs))
    factor = student(freedom(logs), level) / normal * math.sqrt(count / (count - 1))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return estimate - factor * (estimate - float(low)), estimate + factor * (float(high) - estimate)


def freedom(logs: Sequence[np.ndarray]) -> float:
    """Satterthwaite's degrees of freedom of the bootstrap's variance: between replicates and between their pairs."""
    count = len(logs)
    if count < 2:
        return 1.0
    pairs = np.array([len(group) for group in logs])
    between = float(np.var([group.mean() for group in logs], ddof=1)) * (count - 1) / count
    inner = [float(group.var(ddof=1)) for group in logs if len(group) > 1]
    within = float(np.mean(inner)) * float(np.mean((pairs - 1) / pairs**2)) if inner else 0.0
    if between + within == 0:
        return count - 1.0
    below = between**2 / (count - 1) + (within**2 / float((pairs - 1).sum()) if within else 0.0)
    return (between + within) ** 2 / below


def noise_half_width(groups: Sequence[Sequence[Pair]]) -> float:
    """Half the 95 % interval (log) that A against A would have here: as many replicates of as many pairs.

    The variance of one replicate's ratio is seen in each side's own rate from one replicate to the next, and, as its
    part within a process, in the two neighbouring blocks of a round: the larger counts.
    """
    steps: list[float] = []
    inner: list[float] = []
    for side in ("a", "b"):
        levels = [statistics.fmean(math.log(getattr(pair, side)) for pair in group) for group in groups]
        steps += [later - earlier for earlier, later in zip(levels, levels[1:], strict=False)]
    for group in groups:
        for pair in group:
            # the ratio of two halves varies by 2 half-block variances, the ratio of two sides' wholes by 1
            inner += [math.log(half[1] / half[0]) ** 2 / 2 for half in (pair.a_halves, pair.b_halves)]
    pairs_each = statistics.fmean(map(len, groups))
    variance = statistics.fmean(inner) / pairs_each
    if steps:
        variance = max(variance, statistics.fmean(step**2 for step in steps))
    return 1.96 * math.sqrt(variance / len(groups))


def student(freedom_degrees: float, level: float) -> float:
    """Two-sided quantile of Student's t, between the entries of the table linear in 1 / degrees of freedom."""
    entries = STUDENT[level]
    known = sorted(entries)
    if freedom_degrees <= known[0]:
        return entries[known[0]]
    points = [(1 / degrees, entries[degrees]) for degrees in known]
    points.append((0.0, statistics.NormalDist().inv_cdf((1 + level) / 2)))
    wanted = 1 / freedom_degrees
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        if wanted >= x2:
            return y2 + (y1 - y2) * (wanted - x2) / (x1 - x2)
    raise AssertionError("1 / degrees of freedom is above 0")
