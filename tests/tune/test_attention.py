"""The attention backend: timed where code is eager, by rule elsewhere, and rejected where it trains otherwise."""

from dataclasses import replace

import pytest

from intone.child import ChildFailed
from intone.tune.attention import COST_S, SAVES, settle_attention
from intone.tune.precision import NoTrial
from intone.tune.trial import TrialResult

GOOD = [4.0 - 0.1 * step for step in range(12)]


class Runner:
    """Stands in for trials: fp32 with the fused kernel has GOOD losses, products have these."""

    def __init__(self, losses=GOOD, failure=None):
        self.losses, self.failure, self.asked = losses, failure, []

    def run(self, dtype, *, compiled, num_steps, attention=None):
        self.asked.append((dtype, attention))
        if self.failure:
            raise NoTrial(self.failure)
        return TrialResult(self.losses if attention == "products" else GOOD, 0.1, 0.1, None)


@pytest.fixture
def settled(facts, config, trials):
    """settled(sdpa_s, products_s, ...) -> (choice, cases that were timed, runner)."""

    def ask(
        sdpa_s=1.0, products_s=1.0, *, device="cpu", compiled=False, kernels="torch", runner=None, run_s=None
    ):
        timed, runner = [], runner or Runner()

        def time_steps(config, cases, facts):
            timed.extend(cases)
            return [[sdpa_s] * 3, [products_s] * 3]

        choice = settle_attention(
            replace(facts, device=device), config, trials, dtype="bf16", threads=2, compiled=compiled, kernels=kernels,
            runner=runner, run_s=run_s, time_steps=time_steps,
        )  # fmt: skip
        return choice, timed, runner

    return ask


def test_the_fused_kernel_stays_unless_products_are_clearly_faster(settled):
    choice, timed, runner = settled(1.0, 0.97)
    assert (choice.value, choice.origin, runner.asked) == ("sdpa", "measured", [])
    assert [(case.attention, case.threads, case.dtype) for case in timed] == [
        ("sdpa", 2, "bf16"), ("products", 2, "bf16")
    ]  # fmt: skip
    assert choice.beat[0]["value"] == "products" and "1.03x" in choice.reason


def test_products_that_are_faster_and_train_alike_are_taken_and_remembered(settled):
    choice, _, runner = settled(1.0, 0.5)
    assert choice.value == "products" and choice.reason.startswith("2.00x as fast as the fused kernel; products accept")
    assert runner.asked == [("fp32", None), ("bf16", "products")]
    again, timed, _ = settled(1.0, 2.0)
    assert (again.value, again.origin, timed) == ("products", "cached", [])


def test_products_that_train_otherwise_are_rejected(settled):
    choice, _, _ = settled(1.0, 0.5, runner=Runner([4.0] * 12))
    assert choice.value == "sdpa" and "rejected" in choice.reason and "2.00x as fast, but" in choice.beat[0]["why"]


def test_products_that_could_not_be_checked_are_asked_again_next_time(settled):
    choice, _, _ = settled(1.0, 0.5, runner=Runner(failure="memory ran out"))
    assert (choice.value, choice.origin) == ("sdpa", "default") and "memory ran out" in choice.reason
    assert settled(1.0, 0.5)[0].value == "products"


@pytest.mark.parametrize(
    ("how", "value", "why"),
    [
        ({"kernels": "native"}, "native", "bring their own"),
        ({"compiled": True}, "products", "would compile twice"),
        ({"device": "mps"}, "sdpa", "nothing was measured on MPS"),
    ],
)
def test_where_nothing_is_timed_the_reason_says_so(settled, how, value, why):
    choice, timed, _ = settled(1.0, 0.1, **how)
    assert (choice.value, choice.origin, timed) == (value, "default", []) and why in choice.reason


def test_a_short_run_is_not_made_longer_by_the_comparison(settled):
    choice, timed, _ = settled(1.0, 0.1, run_s=COST_S / SAVES - 1)
    assert (choice.value, choice.origin, timed) == ("sdpa", "default", []) and "more than it is likely" in choice.reason
    assert settled(1.0, 0.1, run_s=COST_S / SAVES + 1)[0].value == "products"
    assert settled(run_s=1.0)[0].origin == "cached"


def test_a_step_that_cannot_be_timed_leaves_the_rule(facts, config, trials):
    def fail(*_):
        raise ChildFailed("ended by SIGILL")

    choice = settle_attention(
        facts, config, trials, dtype="fp32", threads=1, compiled=False, kernels="torch", runner=Runner(),
        run_s=None, time_steps=fail,
    )  # fmt: skip
    assert (choice.value, choice.origin) == ("sdpa", "default") and "SIGILL" in choice.reason
