"""A step: however its rows are split, the update is that of the mean over all supervised tokens."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intone.config import OptimConfig
from intone.data.loader import Batch
from intone.model.gpt import GPT
from intone.model.optim import Optimizer, StepScale
from intone.train.step import FIRST_LOSS_SCALE, GROW_EVERY, TrainStep, micro_batches

SCALE = StepScale(lr=1.0, momentum=0.9, weight_decay=1.0)
CPU = torch.device("cpu")


class GradientRecorder:
    """Stands where the optimizer stands, keeps the gradients of the last step."""

    def __init__(self, model):
        self.model = model
        self.gradients = {}
        self.finite = None

    def step(self, scale, finite):
        self.finite = finite
        for name, parameter in self.model.named_parameters():
            self.gradients[name] = parameter.grad
            parameter.grad = None


@pytest.fixture
def model(tiny_config):
    model = GPT(tiny_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def run(model, batch, *, device_batch, padded=False):
    """Gradients and result of a step; padded: as compiled code splits it, without compiling."""
    recorder = GradientRecorder(model)
    step = TrainStep(model, recorder, device=CPU, dtype="fp32", device_batch=device_batch, compiled=False)
    step.compiled = padded
    return recorder.gradients, step.run(batch, SCALE)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("device_batch", [1, 2, 3, 4, 6])
def test_a_split_step_has_the_gradients_of_the_whole_one(model, batch_of, device_batch, padded):
    batch = batch_of(7)
    batch.targets[2, 5:] = -1
    expected, whole = run(model, batch, device_batch=7)
    gradients, result = run(model, batch, device_batch=device_batch, padded=padded)
    assert result.num_supervised == whole.num_supervised == 7 * 32 - 27
    assert result.sync_loss() == pytest.approx(whole.sync_loss(), rel=1e-6)
    for name, gradient in gradients.items():
        size = expected[name].abs().max()
        assert_close(gradient, expected[name], atol=1e-6 * max(1.0, float(size)), rtol=1e-5, msg=name)


def test_tokens_weigh_the_same_in_a_full_and_in_an_almost_empty_micro_batch(model, batch_of):
    """One row with 1 supervised token, four with 25 each: the mean is over 101 tokens, not over two passes."""
    batch = batch_of(5)
    batch.targets[0, 1:] = -1
    batch.targets[1:, 25:] = -1
    loss, count = model(*(torch.from_numpy(a) for a in (batch.ids, batch.targets, batch.documents)))
    assert count == 101
    (loss / 101).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    gradients, result = run(model, batch, device_batch=1)
    assert result.sync_loss() == pytest.approx(loss.item() / 101, rel=1e-6)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_step_with_nothing_to_learn_changes_nothing(model, batch_of):
    batch = batch_of(3)
    batch.targets[:] = -1
    optimizer = Optimizer(model, OptimConfig())
    step = TrainStep(model, optimizer, device=CPU, dtype="fp32", device_batch=2, compiled=False)
    step.run(batch_of(3), SCALE)  # the moments are not zero any more
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in optimizer.state_tensors().items()}
    result = step.run(batch, SCALE)
    assert (result.num_supervised, result.sync_loss(), bool(result.finite)) == (0, None, True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, state[name]) for name, value in optimizer.state_tensors().items())


def test_a_loss_that_is_not_finite_leaves_the_weights_and_is_told(model, batch_of):
    optimizer = Optimizer(model, OptimConfig())
    step = TrainStep(model, optimizer, device=CPU, dtype="fp32", device_batch=2, compiled=False)
    batch = batch_of(3)
    with torch.no_grad():
        model.embedding.weight[int(batch.ids[2, 7])] = float("nan")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = step.run(batch, SCALE)
    assert (result.sync_loss(), bool(result.finite)) == (None, False)
    for name, value in model.state_dict().items():
        assert_close(value, weights[name], atol=0, rtol=0, equal_nan=True)


def test_gradients_that_are_not_finite_leave_the_weights_though_the_loss_is(model, batch_of):
    optimizer = Optimizer(model, OptimConfig())
    step = TrainStep(model, optimizer, device=CPU, dtype="fp32", device_batch=3, compiled=False)
    model.head.weight.register_hook(lambda grad: grad * float("inf"))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = step.run(batch_of(3), SCALE)
    assert result.sync_loss() is not None
    assert not bool(result.finite)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_step_lowers_the_loss_of_its_own_rows(model, batch_of):
    optimizer = Optimizer(model, OptimConfig())
    step = TrainStep(model, optimizer, device=CPU, dtype="fp32", device_batch=4, compiled=False)
    losses = [step.run(batch_of(6), dataclasses.replace(SCALE, lr=0.3)).sync_loss() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_the_compiler_hears_of_determinism_with_the_first_plan_that_compiles(model, is_deterministic, monkeypatch):
    settings = importlib.import_module("torch._inductor.config")
    monkeypatch.setattr(settings, "deterministic", False)
    torch.set_deterministic_debug_mode("error" if is_deterministic else "default")
    for compiled in (False, True):
        TrainStep(model, Optimizer(model, OptimConfig()), device=CPU, dtype="fp32", device_batch=4, compiled=compiled)
        assert settings.deterministic is (compiled and is_deterministic)
    assert torch.are_deterministic_algorithms_enabled() is is_deterministic


# --- the loss scale of fp16 -----------------------------------------------------------------------


def test_the_loss_scale_leaves_the_gradients_as_they_are(model, batch_of):
    expected, _ = run(model, batch_of(3), device_batch=2)
    recorder = GradientRecorder(model)
    step = TrainStep(model, recorder, device=CPU, dtype="fp16", device_batch=2, compiled=False)
    assert step.loss_scale == FIRST_LOSS_SCALE
    step.run(batch_of(3), SCALE)
    assert bool(recorder.finite)
    for name, gradient in recorder.gradients.items():
        assert_close(gradient, expected[name], atol=1e-7, rtol=1e-5, msg=name)


def test_an_overflow_skips_the_step_and_halves_the_loss_scale(model, batch_of):
    optimizer = Optimizer(model, OptimConfig())
    step = TrainStep(model, optimizer, device=CPU, dtype="fp16", device_batch=2, compiled=False)
    step.loss_scale = 2.0**127
    with torch.no_grad():
        model.head.weight.mul_(1e3)  # gradients of the trunk beyond float32's range at this scale
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = step.run(batch_of(3), SCALE)
    assert result.sync_loss() is not None and not bool(result.finite)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    step.note_finite(False)
    assert (step.loss_scale, step.good_steps) == (2.0**126, 0)


def test_the_loss_scale_doubles_after_many_good_steps_and_never_falls_below_two(model):
    step = TrainStep(model, None, device=CPU, dtype="fp16", device_batch=2, compiled=False)
    for _ in range(GROW_EVERY):
        assert step.loss_scale == FIRST_LOSS_SCALE
        step.note_finite(True)
    assert (step.loss_scale, step.good_steps) == (2 * FIRST_LOSS_SCALE, 0)
    for _ in range(40):
        step.note_finite(False)
    assert step.loss_scale == 2.0


def test_other_dtypes_have_no_loss_scale(model):
    step = TrainStep(model, None, device=CPU, dtype="bf16", device_batch=2, compiled=False)
    step.note_finite(False)
    assert step.loss_scale == 1.0


# --- micro-batches --------------------------------------------------------------------------------


@given(rows=st.integers(1, 40), device_batch=st.integers(1, 45), padded=st.booleans())
def test_micro_batches_are_balanced_and_hold_every_row_once(rows, device_batch, padded):
    ids = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    parts = micro_batches(Batch(ids, ids, ids), device_batch, padded=padded)
    sizes = [len(part) for part in parts]
    assert len(parts) == -(-rows // device_batch)  # no more passes than needed
    assert max(sizes) <= device_batch
    assert max(sizes) - min(sizes) <= (0 if padded else 1)
    for name in ("ids", "targets", "documents"):
        joined = np.concatenate([getattr(part, name)[part.targets[:, 0] >= 0] for part in parts])
        assert np.array_equal(joined, ids)
    filled = np.concatenate([part.targets[part.targets[:, 0] < 0] for part in parts])
    assert len(filled) == sum(sizes) - rows and (filled == -1).all()


def test_ten_rows_by_four_are_three_three_and_four():
    ids = np.zeros((10, 3), np.int32)
    assert [len(part) for part in micro_batches(Batch(ids, ids, ids), 4, padded=False)] == [3, 3, 4]
