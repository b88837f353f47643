"""What the gates on losses are given: gradients out of a worker's own saves, right ones and broken ones."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from intone.model.checkpoint import newest_checkpoint, optimizer_file
from intone.model.gpt import GPT
from intone.prove.gates import faults, parity, recipe, training
from intone.prove.gates.result import NotJudged
from intone.prove.gates.tiny import ENVIRONMENT, SEGMENT
from intone.prove.trial import Side, run_worker, trial
from intone.records import Outcome, read_choices, write_choices

# Python runs it before the worker's own code; planted keeps the fault alive
SITE = """
from intone.prove.gates import faults
planted = faults.TRAINING["{name}"]()
planted.__enter__()
"""


@pytest.fixture
def faulty_worker(tmp_path):
    """faulty_worker(name) -> runs jobs in a real worker whose code has that fault."""

    def run_with(name):
        site = tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(name=name))
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])

        def run(folder):
            choices = read_choices(folder)
            write_choices(folder, dataclasses.replace(choices, environment={**ENVIRONMENT, "PYTHONPATH": path}))
            return run_worker(folder)

        return run

    return run_with


def test_gradients_come_out_of_the_first_moments_as_autograd_has_them(jobs, run_here):
    side = jobs.side(run_here)
    found = training.gradients(side, jobs.scratch, training.plain(side))
    model = GPT(jobs.job.model)
    model.init_weights(jobs.job.seed)
    rows = recipe.first_rows(jobs.job).rows(0, 6)
    loss_sum, count = model(*(torch.from_numpy(a) for a in (rows.ids, rows.targets, rows.documents)))
    (loss_sum / count).backward()
    right = {name: p.grad.double().numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(dict(model.named_parameters()))
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, right[name], rtol=1e-4, atol=1e-9, err_msg=name)


def test_a_step_that_was_not_taken_has_no_gradients(jobs, run_here):
    side = jobs.side(lambda folder: Outcome("out_of_memory", 0, "too large"))
    assert training.gradients(side, jobs.scratch, training.plain(side)) is None
    assert training.gradient_error(None, {"a": np.ones(300)}) is None


def test_the_distance_of_gradients_is_that_of_vectors_and_of_the_worst_large_one():
    right = {"big": np.full(400, 3.0), "small": np.full(400, 1e-5), "scalar": np.array([50.0])}
    found = {"big": right["big"] * 1.1, "small": right["small"] * 9, "scalar": right["scalar"] * 0.5}
    error = training.gradient_error(found, right)
    whole = (60.0**2 + 50.0**2) ** 0.5
    assert error.gradient == pytest.approx((6.0**2 + 25.0**2) ** 0.5 / whole, rel=1e-6)
    assert error.norm == pytest.approx(abs((66.0**2 + 25.0**2) ** 0.5 / whole - 1), rel=1e-6)
    assert (error.tensor, error.worst) == (pytest.approx(0.1), "big")  # the others are too small to be looked at
    found["big"] = found["big"] * np.nan
    assert training.gradient_error(found, right).gradient == np.inf
    with pytest.raises(NotJudged, match="gradients of the reference are zero"):
        training.gradient_error(found, {name: value * 0 for name, value in right.items()})


@pytest.mark.long
def test_a_real_worker_with_half_the_gradients_is_told_from_a_right_one(jobs, run_here, faulty_worker):
    base = jobs.side(run_here)
    split = (dataclasses.replace(SEGMENT, device_batch=4, attention="products"),)
    errors = []
    with training.reference(base, jobs.scratch) as right:
        for run in (run_worker, faulty_worker("gradients halved, losses right")):
            found = training.gradients(dataclasses.replace(base, run=run), jobs.scratch, split, **right.after)
            errors.append(training.gradient_error(found, right.gradients))
    assert 0 < errors[0].gradient < parity.LIMITS["fp32"].gradient
    assert errors[1].gradient == pytest.approx(0.5, abs=1e-4)


def test_half_the_gradients_are_found_although_the_losses_look_right(jobs, run_here):
    base = jobs.side(run_here)

    def wrong(folder):
        with faults.TRAINING["gradients halved, losses right"]():
            return run_here(folder)

    result = training.gate(base, dataclasses.replace(base, run=wrong), jobs.scratch, kind="tolerance").run()
    assert result.passed is False and result.reason.startswith("the gradients are 5.0")
    assert result.evidence["mean_loss_error"] < parity.LIMITS["bf16"].mean_loss  # losses alone would have passed it


def test_a_bf16_baseline_is_measured_against_fp32_too(jobs, run_here):
    segments = [dataclasses.replace(SEGMENT, dtype="bf16")]
    with training.reference(jobs.side(run_here, segments=segments), jobs.scratch) as right:
        assert 1e-4 < right.own.gradient < parity.LIMITS["bf16"].gradient
        assert right.losses.weights is not None


def test_a_baseline_that_does_not_train_is_not_judged(jobs, run_here):
    broken = jobs.side(lambda folder: Outcome("error", 0, "no such kernel"))
    result = training.gate(broken, jobs.side(run_here), jobs.scratch, kind="tolerance").run()
    assert result.passed is None and "no such kernel" in result.reason


def test_a_seed_that_does_not_end_is_not_judged(jobs, run_here):
    calls = []

    def run(folder):
        calls.append(folder)
        return run_here(folder) if len(calls) < 2 else Outcome("killed", 3, "ended by SIGKILL")

    side = Side(jobs.side(run_here).folder, run)
    with pytest.raises(NotJudged, match="seed 2 gave no final loss: ended by SIGKILL"):
        training.gather_seeds(side, dataclasses.replace(side, run=run_here), jobs.scratch, numbers=(1, 2), steps=2)


def test_the_end_of_a_training_is_the_mean_of_its_last_tenth(jobs, run_here):
    side = jobs.side(run_here)
    with trial(side, jobs.scratch, seed=5, steps=20) as found:
        losses = found.losses
    pairs = training.gather_seeds(side, side, jobs.scratch, numbers=(5,), steps=20)
    assert pairs.baseline == pairs.candidate == (pytest.approx(sum(losses[-2:]) / 2),)


def test_a_change_of_the_recipe_is_trained_over_seeds(jobs, run_here):
    base, other = jobs.side(run_here, steps=2), jobs.side(run_here, steps=2, rows_per_step=7)
    result = training.gate(base, other, jobs.scratch, declared=["rows_per_step"], numbers=(1, 2, 3)).run()
    assert result.evidence["kind"] == "statistical" and result.evidence["seeds"] == (1, 2, 3)


def test_checksums_of_the_last_save_are_part_of_a_trial(jobs, run_here):
    side = jobs.side(run_here)
    with trial(side, jobs.scratch, steps=2, keep=1) as found:
        losses = training.losses_of(found)
        save = newest_checkpoint(found.folder)[0].folder
        assert losses.moments and (save / optimizer_file(0)).exists()
    with trial(side, jobs.scratch, steps=2) as found:
        assert training.losses_of(found).weights is None
