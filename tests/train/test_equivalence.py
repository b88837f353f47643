"""A split step is the same training: losses and gradients under any micro-batch beside those of the whole batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.test_step import CPU, SCALE, GradientRecorder

from intone.config import OptimConfig
from intone.data.loader import Batch
from intone.model.gpt import GPT
from intone.model.optim import Optimizer
from intone.train.step import DTYPES, TrainStep

ROWS = 7  # no multiple of any micro-batch but 1
STEPS = 50
# relative, of the first step and of fifty of them: rounding alone, in fp32 and in bf16
TOLERANCE = {"fp32": (1e-6, 1e-4), "bf16": (1e-3, 1e-2)}


def make_model(config, dtype):
    """A model past its start, where output projections are zero and hide most gradients."""
    model = GPT(config)
    model.init_weights(3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.compute_dtype = DTYPES[dtype]
    return model


def batch_at(step, config):
    """Rows that count in steps of 1 to 3, others at every step; a quarter of the targets is not learned."""
    random = np.random.default_rng(step)
    first, pace = random.integers(0, 41, (ROWS, 1)), random.integers(1, 4, (ROWS, 1))
    ids = ((first + pace * np.arange(config.context + 1)) % 41).astype(np.int32)
    targets = np.where(random.random((ROWS, config.context)) < 0.25, -1, ids[:, 1:]).astype(np.int32)
    documents = np.cumsum(random.random((ROWS, config.context)) < 0.1, axis=1).astype(np.int32)
    return Batch(ids[:, :-1].copy(), targets, documents)


def first_step(config, dtype, device_batch, *, padded):
    """(loss, norm of all gradients) of one step."""
    model = make_model(config, dtype)
    recorder = GradientRecorder(model)
    step = TrainStep(model, recorder, device=CPU, dtype=dtype, device_batch=device_batch, compiled=False)
    step.compiled = padded  # compiled code gets rows of padding; what it computes is tests/train/test_loop.py's
    loss = step.run(batch_at(0, config), SCALE).sync_loss()
    squares = sum(float(gradient.double().square().sum()) for gradient in recorder.gradients.values())
    return loss, math.sqrt(squares)


def fifty_steps(config, dtype, device_batch):
    """The losses of fifty steps of the real optimizer."""
    model = make_model(config, dtype)
    step = TrainStep(
        model, Optimizer(model, OptimConfig()), device=CPU, dtype=dtype, device_batch=device_batch, compiled=False
    )
    gentle = replace(SCALE, lr=0.3)
    return [step.run(batch_at(number, config), gentle).sync_loss() for number in range(STEPS)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_first_loss_and_gradient_norm_are_those_of_the_whole_batch(tiny_config, dtype):
    whole = first_step(tiny_config, dtype, ROWS, padded=False)
    for device_batch in range(1, ROWS):
        for padded in (False, True):
            split = first_step(tiny_config, dtype, device_batch, padded=padded)
            assert split == pytest.approx(whole, rel=TOLERANCE[dtype][0]), f"{device_batch} rows, padded {padded}"


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_fifty_steps_stay_beside_those_of_the_whole_batch_and_repeat_bit_for_bit(tiny_config, dtype):
    whole = fifty_steps(tiny_config, dtype, ROWS)
    assert whole[-1] < whole[0]  # it learns: equal losses of a model that stands still would say nothing
    for device_batch in (1, 3):
        assert fifty_steps(tiny_config, dtype, device_batch) == pytest.approx(whole, rel=TOLERANCE[dtype][1])
    assert fifty_steps(tiny_config, dtype, ROWS) == whole


def test_a_step_that_weighs_passes_instead_of_tokens_would_be_seen(tiny_config):
    """What the tolerances are for: the mean of means is another loss, far outside of them."""
    batch = batch_at(0, tiny_config)
    model = make_model(tiny_config, "fp32")
    whole, _ = first_step(tiny_config, "fp32", ROWS, padded=False)
    means = []
    for rows in (batch.rows(0, 3), batch.rows(3, ROWS)):
        loss, count = model(*(torch.from_numpy(array) for array in (rows.ids, rows.targets, rows.documents)))
        means.append(loss.item() / int(count))
    assert abs(sum(means) / 2 / whole - 1) > 10 * TOLERANCE["fp32"][0]
