"""Losses over seeds: equivalence within a stated margin, or honestly nothing."""

import dataclasses

import numpy as np
import pytest

from intone.prove.gates.seeds import T95, SeedPairs, judge

BASE = SeedPairs((1, 2, 3, 4), (2.00, 2.10, 1.95, 2.05), (2.001, 2.099, 1.951, 2.049))


def shifted(amount, *, spread=0.001, count=4):
    wobble = [spread * (-1) ** i for i in range(count)]
    baseline = [2.0 + 0.05 * i for i in range(count)]
    return SeedPairs(
        tuple(range(count)), tuple(baseline), tuple(a + amount + w for a, w in zip(baseline, wobble, strict=True))
    )


def test_equal_ends_pass_with_their_interval():
    result = judge(BASE)
    assert result.passed and result.reason.endswith("over 4 seeds: within 0.50%")
    assert result.evidence["low"] < result.evidence["difference"] < result.evidence["high"]
    assert abs(result.evidence["high"]) < 0.001


def test_the_interval_is_students():
    result = judge(dataclasses.replace(BASE, seeds=(1, 2, 3), baseline=(2.0, 2.0, 2.0), candidate=(2.0, 2.02, 2.04)))
    # mean 1 %, deviation 1 %: half of the 90 % interval is 2.920 / sqrt(3) of it
    assert result.evidence["high"] == pytest.approx(0.01 + 0.01 * 2.920 / 3**0.5)


def test_an_end_that_is_worse_beyond_the_margin_is_rejected():
    result = judge(shifted(+0.04))
    assert result.passed is False and "worse by more than 0.50%" in result.reason


def test_a_neutral_change_that_learns_much_faster_is_rejected_unless_it_may():
    assert judge(shifted(-0.04)).passed is False
    assert judge(shifted(-0.04), allow_better=True).passed


def test_differences_between_pairs_count_and_not_those_between_seeds():
    result = judge(shifted(0.001, spread=0.0005, count=5))
    assert np.std([2.0 + 0.05 * i for i in range(5)]) > 20 * 0.002 and result.passed


def test_noise_is_not_judged_and_says_how_many_seeds_it_takes():
    result = judge(shifted(0.001, spread=0.012))
    assert result.passed is None and result.fix.startswith("needs about ") and "more seeds" in result.fix
    hopeless = judge(shifted(0.0099, spread=0.03))
    assert hopeless.passed is None and hopeless.fix == "needs a wider margin, stated on purpose"


def test_the_margin_is_the_callers():
    assert judge(shifted(0.04), margin=0.03).passed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": (1, 2, 3, 3)}, "repeat"),
        ({"seeds": (1, 2, 3)}, "3 seeds, but 4 and 4 results"),
        ({"candidate": (2.0, float("nan"), 2.0, 2.0)}, "not a positive number"),
        ({"seeds": (1, 2), "baseline": (2.0, 2.1), "candidate": (2.0, 2.1)}, "2 seeds were trained"),
    ],
)
def test_what_cannot_be_compared_is_not_judged(changes, reason):
    result = judge(dataclasses.replace(BASE, **changes))
    assert result.passed is None and reason in result.reason


def test_equal_sides_pass_and_a_two_percent_loss_never_does_over_many_draws():
    generator = np.random.default_rng(3)
    passed = {0.0: 0, 0.02: 0}
    for amount in passed:
        for _ in range(200):
            noise = generator.normal(0, 0.002, (2, 5)) + 2.0
            pairs = SeedPairs(tuple(range(5)), tuple(noise[0]), tuple(noise[1] * (1 + amount)))
            passed[amount] += judge(pairs).passed is True
    assert passed[0.0] >= 195 and passed[0.02] == 0


def test_the_table_of_quantiles_falls():
    assert list(T95) == sorted(T95, reverse=True) and len(T95) == 29
