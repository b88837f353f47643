import numpy as np
import pytest

from intone.evals.intervals import Interval, mean_of, proportion, ratio


@pytest.mark.parametrize(
    "num_right, num_items, low, high",
    # by hand from Wilson's formula; 0 and 10 of 10 are the known ends 0.2775 apart from the edge
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (180, 200, 0.85065, 0.93430)],
)
def test_wilson_intervals_of_known_shares(num_right, num_items, low, high):
    got = proportion(num_right, num_items)
    assert (got.value, got.low, got.high) == (
        num_right / num_items, pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4)
    )  # fmt: skip


def test_a_share_of_nothing_is_refused():
    for num_right, num_items in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="is not a share"):
            proportion(num_right, num_items)


def test_wilson_intervals_cover_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    for truth in (0.03, 0.5, 0.9):
        counts = generator.binomial(37, truth, 1500)
        covered = [proportion(int(count), 37) for count in counts]
        assert 0.92 < np.mean([interval.low <= truth <= interval.high for interval in covered]) < 0.985


def test_the_mean_of_shares_is_narrower_than_its_parts_and_has_a_width_at_the_ends():
    parts = [proportion(200, 200)] * 11
    mean = mean_of(parts)
    assert mean.value == mean.high == 1.0
    assert parts[0].low < mean.low < 1.0
    single = proportion(3, 7)
    assert mean_of([single]) == Interval(single.value, pytest.approx(single.low), pytest.approx(single.high))
    with pytest.raises(ValueError, match="no values"):
        mean_of([])


def test_the_ratios_interval_has_the_width_that_theory_says():
    generator = np.random.default_rng(1)
    denominators = generator.integers(50, 150, 401).astype(float)
    numerators = denominators * generator.normal(2.0, 0.5, 401)
    got = ratio(numerators, denominators)
    assert got.value == numerators.sum() / denominators.sum()
    residual = numerators - got.value * denominators
    half = 1.96 * residual.std() * 401**0.5 / denominators.sum()
    # the bootstrap's own noise with 2,000 resamples: 4% of a half-width
    assert got.high - got.value == pytest.approx(half, rel=0.15)
    assert got.value - got.low == pytest.approx(half, rel=0.15)
    assert ratio(numerators, denominators) == got


def test_ratios_of_nothing_are_refused():
    for numerators, denominators in ((np.zeros(0), np.zeros(0)), (np.ones(2), np.ones(3)), (np.ones(2), np.zeros(2))):
        with pytest.raises(ValueError, match="not positive pairs"):
            ratio(numerators, denominators)
