"""The whole stack: measured together, and nothing in it that gains nothing."""

import dataclasses

from intone.evals.intervals import Interval
from intone.prove.gates.stack import Stack, judge

GAIN, NONE, UNCLEAR = Interval(1.4, 1.3, 1.5), Interval(1.0, 0.99, 1.008), Interval(1.03, 0.98, 1.08)
GOOD = Stack(Interval(2.62, 2.5, 2.75), {"batch": GAIN, "compile": GAIN}, {"batch": 1.9, "compile": 1.67})


def changed(**fields):
    return judge(dataclasses.replace(GOOD, **fields))


def test_a_measured_stack_of_changes_that_all_gain_passes():
    result = changed()
    assert result.passed
    assert result.reason == "measured together: 2.62x [2.50, 2.75]; each of 2 changes has a gain of its own"


def test_the_product_of_factors_is_recognised_measured_or_not():
    result = changed(claimed=3.17)
    assert result.passed is False
    assert result.reason == (
        "the claimed 3.17x, the product of its parts, is outside what was measured, 2.62x [2.50, 2.75]"
    )
    missing = changed(claimed=3.17, total=None)
    assert missing.passed is False and "3.17x is the product of its parts" in missing.reason
    assert changed(claimed=3.0).reason.startswith("the claimed 3.00x is outside")
    assert changed(claimed=2.7).passed


def test_a_change_that_can_go_without_loss_is_named():
    result = changed(without={"batch": GAIN, "prefetch": NONE, "pinning": NONE})
    assert result.passed is False and result.fix == "drop prefetch, pinning, and measure again"
    assert result.evidence["no_own_gain"] == ["prefetch", "pinning"]


def test_a_change_that_makes_the_stack_slower_is_named_too():
    assert changed(without={"batch": GAIN, "nice": Interval(0.9, 0.88, 0.93)}).evidence["no_own_gain"] == ["nice"]


def test_what_is_unclear_or_was_not_measured_is_not_judged():
    result = changed(without={"batch": GAIN, "threads": UNCLEAR, "compile": None})
    assert result.passed is None and "compile, threads" in result.reason
    assert changed(without={}).passed is None


def test_an_idle_change_beats_an_unclear_one():
    assert changed(without={"threads": UNCLEAR, "prefetch": NONE}).passed is False
