"""How sure a measured share or rate is: 95% intervals that also hold for few items and for scores of 0 and 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILE = 1.959964  # of the normal distribution at 97.5%
NUM_RESAMPLES = 2000  # the interval's own noise is then 2% of its width [calc]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def proportion(num_right: int, num_items: int) -> Interval:
    """The share num_right / num_items with Wilson's score interval.

    Raises ValueError without items. Source: Wilson 1927, "Probable inference, the law of succession".
    """
    if not 0 <= num_right <= num_items or num_items < 1:
        raise ValueError(f"{num_right} right of {num_items} items is not a share")
    share = num_right / num_items
    square = QUANTILE**2
    middle = (share + square / (2 * num_items)) / (1 + square / num_items)
    half = QUANTILE / (1 + square / num_items)
    half *= math.sqrt(share * (1 - share) / num_items + square / (4 * num_items**2))
    # the share itself can leave the interval by a rounding error at 0 and 1
    return Interval(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def mean_of(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent values, its interval from theirs.

    The parts' distances to their ends are added in squares, each side on its own, so that the interval is neither
    empty nor outside 0..1 where every part is 0 or 1.
    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures" (MOVER).
    """
    if not parts:
        raise ValueError("no values to take the mean of")
    count = len(parts)
    value = sum(part.value for part in parts) / count
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / count
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / count
    return Interval(value, value - below, value + above)


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Interval:
    """sum(numerators) / sum(denominators) of (N,) paired units, with a bootstrap interval over the units.

    A mean is the ratio with denominators of 1. One unit alone gives an interval of no width.
    Raises ValueError without units or where a denominator is not positive.
    Source: Efron 1979, "Bootstrap methods", percentile form.
    """
    if len(numerators) != len(denominators) or len(numerators) == 0 or not (denominators > 0).all():
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators are not positive pairs")
    count = len(numerators)
    pairs = np.stack((numerators, denominators), axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)
    resampled = np.empty(NUM_RESAMPLES)
    for i in range(NUM_RESAMPLES):
        top, bottom = pairs[generator.integers(0, count, count)].sum(axis=0)
        resampled[i] = top / bottom
    value = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(value, min(float(low), value), max(float(high), value))
