"""The form of head and loss: timed where code is eager, by rule elsewhere, rejected where it trains otherwise."""

from dataclasses import replace

import pytest
from tests.tune.test_attention import GOOD

from intone.child import ChildFailed
from intone.tune.head import COST_S, PIECES, SAVES, settle_head
from intone.tune.trial import TrialResult


class Runner:
    """Stands in for trials: with the loss in pieces it has these losses."""

    def __init__(self, losses=GOOD):
        self.losses, self.asked = losses, []

    def run(self, dtype, *, compiled, num_steps, head_pieces=1):
        self.asked.append((dtype, head_pieces))
        return TrialResult(self.losses if head_pieces > 1 else GOOD, 0.1, 0.1, None)


@pytest.fixture
def settled(facts, config, trials):
    """settled({pieces: seconds}) -> (choice, pieces that were timed, runner)."""

    def ask(step_s=None, *, device="cpu", compiled=False, kernels="torch", runner=None, run_s=None, failure=None):
        timed, runner = [], runner or Runner()

        def time_steps(config, cases, facts):
            if failure:
                raise ChildFailed(failure)
            timed.extend(case.head_pieces for case in cases)
            return [[(step_s or {}).get(case.head_pieces, 1.0)] * 3 for case in cases]

        choice = settle_head(
            replace(facts, device=device), config, trials, dtype="bf16", threads=2, compiled=compiled, kernels=kernels,
            runner=runner, run_s=run_s, time_steps=time_steps,
        )  # fmt: skip
        return choice, timed, runner

    return ask


def test_all_logits_at_once_stay_unless_pieces_are_clearly_faster(settled):
    choice, timed, runner = settled({4: 0.97, 16: 1.3})
    assert (choice.value, choice.origin, timed, runner.asked) == (1, "measured", list(PIECES), [])
    assert {entry["value"] for entry in choice.beat} == {4, 16}


def test_the_fastest_number_of_pieces_that_trains_alike_is_taken_and_remembered(settled):
    choice, _, runner = settled({4: 0.5, 16: 0.8})
    assert choice.value == 4 and choice.reason.startswith("2.00x as fast as all logits at once; pieces accepted")
    assert runner.asked == [("fp32", 1), ("bf16", 4)]
    assert {entry["value"] for entry in choice.beat} == {1, 16}
    assert settled({1: 0.1})[0].origin == "cached"


def test_pieces_that_train_otherwise_are_rejected(settled):
    choice, _, _ = settled({4: 0.5}, runner=Runner([4.0] * 12))
    assert choice.value == 1 and "4 pieces are faster, but pieces rejected" in choice.reason


def test_a_step_that_cannot_be_timed_leaves_the_rule_and_is_not_kept(settled):
    choice, _, _ = settled(failure="ended by SIGILL")
    assert (choice.value, choice.origin) == (1, "default") and "SIGILL" in choice.reason
    assert settled({4: 0.5})[0].value == 4


def test_a_short_run_is_not_made_longer_by_the_comparison(settled):
    choice, timed, _ = settled({4: 0.5}, run_s=COST_S / SAVES - 1)
    assert (choice.value, timed) == (1, []) and "more than it is likely to save" in choice.reason
    assert settled({4: 0.5}, run_s=COST_S / SAVES + 1)[0].value == 4


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"kernels": "native"}, "in pieces by themselves"),
        ({"compiled": True}, "fuses the passes"),
        ({"device": "mps"}, "nothing was measured on MPS"),
    ],
)
def test_where_nothing_is_timed_the_reason_says_so(settled, how, why):
    choice, timed, _ = settled({4: 0.1}, **how)
    assert (choice.value, choice.origin, timed) == (1, "default", []) and why in choice.reason
