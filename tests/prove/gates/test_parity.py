"""Losses bit for bit and within a tolerance of fp32: what passes, what is rejected, what cannot be judged."""

import dataclasses
import math

import pytest

from intone.prove.gates.parity import (
    LIMITS,
    GradientError,
    Losses,
    judge_bitwise,
    judge_tolerance,
    kind_of_change,
    trajectory_gate,
)
from intone.prove.gates.tiny import SEGMENT
from intone.records import Choices

REFERENCE = [5.5, 4.9, 4.1, 3.6, 3.1, 2.7, 2.2, 1.8, 1.5, 1.2, 1.0]
NEAR = GradientError(5e-3, 1e-3, 1e-2, "head.weight")
RIGHT = Losses(tuple(REFERENCE), weights="w", moments="m", gradient=NEAR)


def changed(**fields):
    return dataclasses.replace(RIGHT, **fields)


def times(factor, *, first=1.0):
    return tuple([REFERENCE[0] * first, *(loss * factor for loss in REFERENCE[1:])])


# --- a trajectory -------------------------------------------------------------------------------------------------


def test_losses_close_to_fp32_pass():
    ok, why = trajectory_gate([loss * 1.003 for loss in REFERENCE], REFERENCE)
    assert ok and why == "losses within 0.30% of fp32 over 11 steps"


def test_one_step_two_percent_off_fails_and_is_named():
    losses = [*REFERENCE[:6], REFERENCE[6] * 1.021, *REFERENCE[7:]]
    ok, why = trajectory_gate(losses, REFERENCE)
    assert not ok and "at step 7" in why and "2.10% off fp32, allowed are 2%" in why


def test_many_steps_slightly_off_fail_by_their_mean():
    ok, why = trajectory_gate([loss * 1.006 for loss in REFERENCE], REFERENCE)
    assert not ok and "0.60% off fp32 on average over 11 steps, allowed are 0.5%" in why


def test_a_loss_below_fp32s_is_as_wrong_as_one_above():
    assert not trajectory_gate([loss * 0.97 for loss in REFERENCE], REFERENCE)[0]


def test_fp32_has_less_room_than_narrower_dtypes():
    losses = [loss * 1.003 for loss in REFERENCE]
    assert not trajectory_gate(losses, REFERENCE, dtype="fp32")[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails(bad):
    ok, why = trajectory_gate([*REFERENCE[:10], bad], REFERENCE)
    assert not ok and "step 11" in why


def test_the_failure_seen_with_compiled_bf16_is_rejected():
    fell = [5.5, 3.0, 1.5, 1.0, 0.8, 0.6, 0.5, 0.45, 0.4, 0.35, 0.333]
    stuck = [5.5, 5.2, 5.1, 5.0, 4.9, 4.9, 4.8, 4.8, 4.7, 4.7, 4.70]
    assert not trajectory_gate(stuck, fell)[0]


def test_a_memorised_batch_does_not_blow_up_rounding():
    fell = [9.0 * 0.5**step for step in range(16)]
    assert trajectory_gate([loss + 2e-4 for loss in fell], fell)[0]  # 2e-4 is 73 % of the last loss
    small = [0.03 - 0.001 * step for step in range(12)]  # a trained model on rows that it knows
    assert trajectory_gate([loss * 1.024 for loss in small], small)[0]
    assert not trajectory_gate([loss + 0.006 for loss in small], small)[0]


@pytest.mark.parametrize(
    ("losses", "reference"),
    [(REFERENCE[:9], REFERENCE[:9]), (REFERENCE[:10], REFERENCE), (REFERENCE, [*REFERENCE[:10], math.nan])],
)
def test_too_few_steps_or_a_broken_reference_are_no_verdict(losses, reference):
    with pytest.raises(ValueError):
        trajectory_gate(losses, reference)


# --- which kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({}, "bitwise", "same plan"),
        ({"reason": "another word"}, "bitwise", "same plan"),
        ({"device_batch": 2}, "tolerance", "device_batch"),
        ({"compiled": True, "attention": "products"}, "tolerance", "compiled, attention"),
        ({"dtype": "bf16"}, "tolerance", "dtype"),
        ({"threads": 2}, "tolerance", "threads"),
        ({"kernels": "native"}, "tolerance", "kernels"),
    ],
)
def test_the_plans_decide_how_losses_are_compared(change, kind, word):
    plans = [Choices({}, (SEGMENT,)), Choices({}, (dataclasses.replace(SEGMENT, **change),))]
    found, why = kind_of_change(*plans, is_recipe_change=False)
    assert found == kind and word in why


def test_a_later_switch_and_a_changed_recipe_are_other_kinds():
    plain = Choices({}, (SEGMENT,))
    switched = plain.with_segment(dataclasses.replace(SEGMENT, from_step=3, compiled=True))
    assert kind_of_change(plain, switched, is_recipe_change=False)[0] == "tolerance"
    assert kind_of_change(plain, plain, is_recipe_change=True)[0] == "statistical"


# --- bitwise ------------------------------------------------------------------------------------------------------


def test_equal_bits_pass():
    result = judge_bitwise(RIGHT, changed())
    assert result.passed and result.reason == "losses, weights and moments of 11 steps are bitwise equal"


def test_the_last_bit_of_one_loss_is_enough():
    losses = (*REFERENCE[:4], math.nextafter(REFERENCE[4], 9.0), *REFERENCE[5:])
    result = judge_bitwise(RIGHT, changed(losses=losses))
    assert result.passed is False and result.reason == "loss 3.1000000000000005 at step 5, the baseline's is 3.1"
    assert result.evidence["first_difference_step"] == 5


@pytest.mark.parametrize("name", ["weights", "moments"])
def test_equal_losses_with_other_tensors_are_rejected(name):
    result = judge_bitwise(RIGHT, changed(**{name: "other"}))
    assert result.passed is False and f"the {name} after them are not" in result.reason


def test_fewer_steps_are_rejected():
    assert judge_bitwise(RIGHT, changed(losses=RIGHT.losses[:10])).reason == "10 steps against the baseline's 11"


# --- how trainings end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", [judge_bitwise, lambda a, b: judge_tolerance(b, a, dtype="bf16")])
class TestEnds:
    def test_a_candidate_that_breaks_is_rejected(self, judge):
        for outcome in ("error", "not_finite", "bad_input"):
            result = judge(RIGHT, changed(outcome=outcome, message="it broke"))
            assert result.passed is False and "it broke" in result.reason

    def test_a_candidate_the_machine_ended_is_not_judged(self, judge):
        for outcome in ("killed", "out_of_memory", "disk_full"):
            result = judge(RIGHT, changed(outcome=outcome, message="it was late"))
            assert result.passed is None and "it was late" in result.reason

    def test_a_baseline_that_does_not_train_is_no_measure(self, judge):
        for broken in (changed(outcome="error"), changed(losses=()), changed(losses=(5.5, None))):
            assert judge(broken, RIGHT).passed is None

    def test_a_loss_that_is_not_finite_is_rejected_with_its_step(self, judge):
        for bad in (None, math.nan):
            result = judge(RIGHT, changed(losses=(*REFERENCE[:10], bad)))
            assert result.passed is False and "step 11 is not finite" in result.reason


# --- tolerance ----------------------------------------------------------------------------------------------------


def test_a_candidate_as_near_as_its_dtype_allows_passes():
    result = judge_tolerance(changed(losses=times(1.003)), RIGHT, dtype="bf16")
    assert result.passed and result.evidence["mean_loss_error"] == pytest.approx(0.003 * 10 / 11)
    assert "measured" in result.threshold.origin


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"losses": times(1.0, first=1.01)}, "the first loss is 5.555, fp32's 5.5"),
        ({"losses": times(1.006)}, "on average over 11 steps"),
        ({"gradient": dataclasses.replace(NEAR, gradient=0.5)}, "the gradients are 5.00e-01 off"),
        ({"gradient": dataclasses.replace(NEAR, norm=0.02)}, "the norm of the gradients is 2.00e-02 off"),
        ({"gradient": dataclasses.replace(NEAR, tensor=0.3)}, r"off fp32's (in head.weight)"),
        ({"gradient": dataclasses.replace(NEAR, gradient=math.inf)}, "the gradients are inf off"),
        ({"gradient": dataclasses.replace(NEAR, norm=math.nan)}, "the norm of the gradients is nan off"),
    ],
)
def test_losses_and_gradients_are_both_looked_at(fields, reason):
    result = judge_tolerance(changed(**fields), RIGHT, dtype="bf16")
    assert result.passed is False and reason in result.reason


def test_bf16s_gradients_are_too_far_for_fp32():
    assert judge_tolerance(RIGHT, RIGHT, dtype="fp32").passed is False
    near = GradientError(5e-7, 1e-7, 1e-6, worst="head.weight")
    assert judge_tolerance(changed(gradient=near), RIGHT, dtype="fp32").passed


def test_a_baseline_that_is_far_from_fp32_itself_lets_its_candidate_be_as_far():
    far = changed(gradient=dataclasses.replace(NEAR, gradient=0.08))
    assert judge_tolerance(far, RIGHT, dtype="bf16").passed is False
    own = dataclasses.replace(NEAR, gradient=0.06)
    assert judge_tolerance(far, RIGHT, dtype="bf16", own=own).passed
    farther = changed(gradient=dataclasses.replace(NEAR, gradient=0.1))
    assert judge_tolerance(farther, RIGHT, dtype="bf16", own=own).passed is False
    wrong = dataclasses.replace(NEAR, gradient=0.9)  # no measure for anybody
    as_wrong = changed(gradient=dataclasses.replace(NEAR, gradient=0.2))
    assert judge_tolerance(as_wrong, RIGHT, dtype="bf16", own=wrong).passed is False


def test_without_gradients_or_with_few_steps_nothing_is_shown():
    assert judge_tolerance(changed(gradient=None), RIGHT, dtype="bf16").passed is None
    short = changed(losses=RIGHT.losses[:9])
    assert judge_tolerance(short, short, dtype="bf16").passed is None


def test_every_dtype_of_a_segment_has_limits():
    assert set(LIMITS) == {"fp32", "bf16", "fp16"}
