"""The verdict: right as often as it claims on made-up noise, and never 'faster' for nothing."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intone.prove import verdict
from intone.prove.measure import QUICK_MOST
from intone.prove.simulate import Noise, pair, replicates, verdict_of
from intone.prove.verdict import Comparison, judge, rejected, unproven

AA_ROUNDS = Path(__file__).with_name("aa_rounds.json")


def verdicts(effect, noise, *, rounds=100, seed=0, **shape) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    return [verdict_of(replicates(effect, noise, rng, **shape)) for _ in range(rounds)]


def words(found) -> Counter:
    return Counter(entry.verdict for entry in found)


def exact(*ratios, pairs_each=1):
    """Replicates without noise inside a round, B this many times as fast as A."""
    pairs = [pair([0.0, 0.0], [math.log(ratio)] * 2) for ratio in ratios]
    return [pairs[i : i + pairs_each] for i in range(0, len(pairs), pairs_each)]


# --- how often it is right ------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "word"), [(1.05, "faster"), (0.95, "slower")])
def test_with_1_percent_noise_a_5_percent_change_is_found_within_10_pairs(effect, word):
    found = verdicts(effect, Noise(round=0.01))
    assert words(found)[word] >= 95
    assert max(entry.num_pairs for entry in found) <= 10


@pytest.mark.parametrize("effect", [1.05, 0.95, 1.3, 0.7])
def test_with_15_percent_noise_the_sign_is_never_wrong(effect):
    wrong = {"slower", "same"} if effect > 1 else {"faster", "same"}
    assert not wrong & set(words(verdicts(effect, Noise(round=0.15))))


@pytest.mark.parametrize("pairs_each", [1, 3])
@pytest.mark.parametrize(
    "noise",
    [Noise(0.01), Noise(0.05), Noise(0.15), Noise(0.01, process=0.045), Noise(0.03, process=0.03, drift=0.05)],
    ids=str,
)
def test_a_against_a_is_never_faster(noise, pairs_each):
    found = verdicts(1.0, noise, count=10 // pairs_each, pairs_each=pairs_each, seed=1)
    assert words(found)["faster"] == words(found)["slower"] == 0


QUICK = dict(count=QUICK_MOST, pairs_each=2)


@pytest.mark.parametrize("noise", [Noise(0.05), Noise(0.05, 0.03), Noise(0.04, 0.03, drift=0.1)], ids=str)
def test_a_quick_measurement_names_a_change_of_60_percent_and_nothing_where_nothing_is(noise):
    assert words(verdicts(1.6, noise, **QUICK))["faster"] >= 90
    equal = words(verdicts(1.0, noise, **QUICK, seed=1))
    assert equal["faster"] == equal["slower"] == 0


@pytest.mark.parametrize("noise", [Noise(0.03, process=0.03), Noise(0.02, process=0.045)], ids=str)
def test_a_slow_down_of_30_percent_is_found_in_the_noise_between_processes(noise):
    assert words(verdicts(1 / 1.3, noise))["slower"] >= 95


@pytest.mark.parametrize("noise", [Noise(0.05), Noise(0.02, process=0.045)], ids=str)
@pytest.mark.parametrize("shape", [dict(count=5), dict(count=10), dict(count=3, pairs_each=3)], ids=str)
def test_the_interval_holds_the_truth_19_times_in_20(noise, shape):
    rng = np.random.default_rng(2)
    found = [judge(replicates(1.1, noise, rng, **shape)) for _ in range(300)]
    held = sum(entry.low <= 1.1 <= entry.high for entry in found)
    assert 270 <= held <= 298  # 285 expected, 3.8 is one standard deviation; bootstrap and widening are approximate


def test_equal_sides_are_called_the_same_where_the_noise_is_small():
    assert words(verdicts(1.0, Noise(round=0.01)))["same"] >= 95


def test_the_count_of_missing_pairs_is_about_right():
    """Measuring on as told settles it for most; a tenth of it does for hardly any."""
    rng = np.random.default_rng(3)
    settled = early = asked = 0
    for _ in range(40):
        made = replicates(1.06, Noise(0.03, process=0.02), rng, count=150)
        first = judge(made[:10])
        if first.verdict != "not proven" or first.more_pairs is None or first.more_pairs > 140:
            continue
        asked += 1
        settled += judge(made[: 10 + 2 * first.more_pairs]).verdict == "faster"
        early += judge(made[: 10 + first.more_pairs // 10]).verdict == "faster"
    assert asked >= 20
    assert settled >= 0.7 * asked
    assert early <= 0.3 * asked


def test_recorded_rounds_of_a_against_a_are_never_faster():
    """Every replicate on a real machine with busy neighbours, also in other orders and with the sides exchanged."""
    recorded = [
        [[pair(np.log(a), np.log(b)) for a, b in group] for group in comparison]
        for comparison in json.loads(AA_ROUNDS.read_text())
    ]
    assert len(recorded) == 20
    rng = np.random.default_rng(4)
    found = []
    for comparison in recorded:
        exchanged = [
            [replace(p, a=p.b, b=p.a, a_halves=p.b_halves, b_halves=p.a_halves) for p in group] for group in comparison
        ]
        for groups in (comparison, exchanged):
            found += [verdict_of(groups), verdict_of([groups[i] for i in rng.permutation(len(groups))])]
    assert not {"faster", "slower"} & {entry.verdict for entry in found}


# --- what it says ---------------------------------------------------------------------------------


def test_the_ratio_is_of_rates_and_above_1_where_b_is_faster():
    found = judge(exact(1.31, 1.29, 1.3, 1.3, 1.3))
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(1.3, rel=1e-3)
    assert 1.28 < found.low < 1.3 < found.high < 1.32
    assert found.noise_low * found.noise_high == pytest.approx(1)
    assert found.more_pairs is None


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.1] * 5, "faster"),
        ([1 / 1.1] * 5, "slower"),
        ([1.012] * 5, "faster"),  # above 1 %
        ([1.009] * 5, "same"),
        ([1.1] * 4, "not proven"),  # too few
        ([1.1, 1.4, 0.9, 1.2, 0.8], "not proven"),
    ],
)
def test_thresholds(ratios, word):
    assert judge(exact(*ratios)).verdict == word


def test_pairs_of_one_process_are_one_sample_of_it():
    """Ten pairs in two replicates prove less than ten in ten."""
    steady = [1.08, 1.07, 1.08, 1.09, 1.08, 1.03, 1.02, 1.03, 1.03, 1.04]
    together, apart = judge(exact(*steady, pairs_each=5)), judge(exact(*steady))
    assert together.num_pairs == apart.num_pairs == 10
    assert together.high - together.low > 3 * (apart.high - apart.low)
    assert (together.verdict, apart.verdict) == ("not proven", "faster")


def test_a_spread_of_each_side_against_itself_stands_in_the_way():
    """Pairs agree, but both sides jump by 20 % between processes: such a machine cannot show 5 %."""
    jumping = [[pair([level] * 2, [level + 0.05] * 2)] for level in (0.0, 0.2, 0.0, 0.2, 0.0, 0.2)]
    still = [[pair([0.0] * 2, [0.05] * 2)] for _ in range(6)]
    assert judge(jumping).verdict == "not proven"
    assert judge(still).verdict == "faster"
    assert judge(jumping).noise_high > 1.1 > judge(still).noise_high


def test_before_the_last_look_it_takes_more_to_be_settled():
    close = exact(1.0825, 1.06, 1.0375, 1.075, 1.045)
    assert (judge(close).verdict, judge(close, is_last=False).verdict) == ("faster", "not proven")


def test_equal_data_gives_an_equal_verdict():
    made = replicates(1.05, Noise(0.04), np.random.default_rng(5))
    assert judge(made) == judge(made)


def test_nothing_measured_is_not_proven():
    assert judge([[], []]) == unproven("nothing was measured")


def test_a_hopeless_difference_has_no_count_to_go():
    found = judge(exact(1.5, 0.66, 1.49, 0.67, 1.0))
    assert (found.verdict, found.more_pairs, found.reason) == (
        "not proven", None, "more than 1,000 pairs would be needed"
    )  # fmt: skip


def test_a_refused_change_keeps_its_numbers():
    found = rejected("the loss differs", judge(exact(*[1.5] * 5)))
    assert (found.verdict, found.reason) == ("rejected", "the loss differs")
    assert found.ratio == pytest.approx(1.5)
    assert rejected("it does not start").ratio is None


def test_one_line_says_it_all():
    assert judge(exact(*[1.31] * 5)).text() == "faster: +31.0% [+31.0, +31.0], 5 pairs"
    assert judge(exact(*[1.0] * 6)).text() == "no difference: +0.0% [+0.0, +0.0], 6 pairs"
    assert rejected("it died").text() == "rejected: it died"
    assert judge(exact(*[74.7] * 5)).text() == "faster: 74.70x [74.70, 74.70], 5 pairs"
    nothing = replace(judge(exact(*[1.5] * 5)), low=0.01, high=80.0)
    nothing = replace(nothing, verdict="not proven")
    assert nothing.span == replace(nothing, low=None).span == "+50.0%, no interval"
    assert replace(nothing, verdict="faster", ratio=60.0, low=7.9).span == "60.00x, at least 7.90x"
    assert replace(nothing, verdict="slower", ratio=0.02, high=0.5).span == "-98.0%, at most -50.0%"
    text = judge(exact(1.1, 1.4, 0.9, 1.2, 0.8)).text()
    assert text.startswith("not proven: +") and text.endswith("more pairs")


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_students_quantiles_fall_to_the_normal_one(level):
    values = [verdict.student(degrees, level) for degrees in (0.5, 1, 1.5, 2, 2.5, 7, 9, 29, 100, 1e9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx({0.95: 1.960, 0.99: 2.576}[level], abs=1e-3)
    # exact ones between the entries of the table: 2.365 and 3.499 (7), 1.984 and 2.626 (100)
    assert values[5] == pytest.approx({0.95: 2.365, 0.99: 3.499}[level], rel=0.005)
    assert values[8] == pytest.approx({0.95: 1.984, 0.99: 2.626}[level], rel=0.005)
