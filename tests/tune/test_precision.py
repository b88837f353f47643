"""The gate on loss trajectories, and the choice of a dtype behind it."""

import dataclasses
import math

from intone.child import ChildFailed
from intone.records import Choice
from intone.tune.precision import NoTrial, candidates, choose, guess, run_gate

PASS = Choice(True, "eager bf16 accepted", "measured")
FAIL = Choice(False, "eager bf16 rejected: loss 4.7 against 0.333", "measured")


def test_the_gate_runs_eager_fp32_and_the_candidate():
    asked = []

    def run_steps(dtype, compiled, num_steps):
        asked.append((dtype, compiled, num_steps))
        return [math.nan] * num_steps if compiled else [2.0] * num_steps

    choice = run_gate("bf16", compiled=True, run_steps=run_steps)
    assert asked == [("fp32", False, 12), ("bf16", True, 12)]
    assert choice.value is False and choice.origin == "measured"
    assert choice.reason == "compiled bf16 rejected: loss nan at step 1"
    assert choice.measured == {"losses": [None] * 12, "losses_fp32": [2.0] * 12}
    assert run_gate("bf16", compiled=False, run_steps=run_steps).value is True


def test_a_trial_without_losses_is_no_finding_about_the_dtype():
    def run_steps(dtype, compiled, num_steps):
        raise NoTrial("killed by SIGKILL")

    choice = run_gate("bf16", compiled=False, run_steps=run_steps)
    assert choice.value is False and choice.origin == "default" and "SIGKILL" in choice.reason


def decided(times, *, gate=PASS, rates=None, names=("fp32", "bf16")):
    rates = {"fp32": 100.0, "bf16": 200.0, "fp16": None} if rates is None else rates
    return choose(
        names, rates=rates, time_steps=lambda asked: {name: times[name] for name in asked}, gate=lambda name: gate
    )


def test_a_faster_dtype_that_passes_is_taken():
    choice = decided({"fp32": [0.4, 0.8, 0.4], "bf16": [0.2, 0.4, 0.3]})
    assert (choice.value, choice.origin) == ("bf16", "measured")
    assert choice.reason == "2.00x as fast as fp32 in a training step; eager bf16 accepted"
    assert choice.beat == ({"value": "fp32", "why": "bf16 steps are 2.00x as fast"},)


def test_a_faster_dtype_that_trains_wrongly_is_not_taken_and_the_reason_is_kept():
    choice = decided({"fp32": [0.4] * 3, "bf16": [0.2] * 3}, gate=FAIL)
    assert (choice.value, choice.origin) == ("fp32", "measured")
    assert choice.beat == ({"value": "bf16", "why": f"2.00x as fast as fp32, but {FAIL.reason}"},)


def test_a_gate_that_could_not_run_leaves_fp32_for_this_time_only():
    choice = decided({"fp32": [0.4] * 3, "bf16": [0.2] * 3}, gate=dataclasses.replace(FAIL, origin="default"))
    assert (choice.value, choice.origin) == ("fp32", "default")


def test_a_dtype_that_gains_little_is_not_worth_its_rounding():
    choice = decided({"fp32": [0.4] * 3, "bf16": [0.39] * 3})
    assert choice.value == "fp32"
    assert choice.beat == ({"value": "bf16", "why": "1.03x as fast as fp32 in a training step"},)


def test_a_dtype_whose_products_are_slower_is_neither_timed_nor_tried():
    def fails(asked):
        raise AssertionError("nothing to time")

    choice = choose(("fp32", "bf16"), rates={"fp32": 100.0, "bf16": 20.0}, time_steps=fails, gate=fails)
    assert (choice.value, choice.origin) == ("fp32", "measured")
    assert choice.beat[0]["why"] == "its products run at 0.20x the rate of fp32 here"


def test_an_unknown_rate_is_no_reason_to_leave_a_dtype_out():
    assert decided({"fp32": [0.4] * 3, "bf16": [0.2] * 3}, rates={"fp32": 100.0, "bf16": None}).value == "bf16"


def test_a_step_that_cannot_be_timed_leaves_fp32_by_default():
    def fails(asked):
        raise ChildFailed("no answer within 60 s")

    choice = choose(("fp32", "bf16"), rates={}, time_steps=fails, gate=lambda name: PASS)
    assert (choice.value, choice.origin) == ("fp32", "default") and "60 s" in choice.reason


def test_gpus_without_fast_bf16_try_fp16(facts):
    assert candidates(facts) == ("fp32", "bf16")
    assert candidates(dataclasses.replace(facts, device="cuda", gpu_capability="7.5")) == ("fp32", "fp16")
    assert candidates(dataclasses.replace(facts, device="cuda", gpu_capability="9.0")) == ("fp32", "bf16")
    assert candidates(dataclasses.replace(facts, device="cuda", gpu_capability="10.0")) == ("fp32", "bf16")


def test_the_guess_before_the_choice_is_a_dtype_that_the_machine_computes_fast(facts):
    def with_rates(fp32, bf16, **changes):
        return dataclasses.replace(facts, fp32_flops_per_s=fp32, bf16_flops_per_s=bf16, **changes)

    assert guess(with_rates(150e9, 400e9)) == "bf16"
    assert guess(with_rates(150e9, 1e9)) == "fp32"
    assert guess(with_rates(150e9, 151e9)) == "fp32", "not worth its rounding"
    assert guess(with_rates(None, None)) == "bf16"
    assert guess(with_rates(8e12, 8e12, device="cuda", gpu_capability="7.5", fp16_flops_per_s=6e13)) == "fp16"
