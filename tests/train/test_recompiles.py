"""Compiled training compiles once: whatever a step's rows and targets are, later steps find the code of the first."""

import functools
from dataclasses import replace

import pytest
import torch
from tests.train.test_equivalence import ROWS, batch_at, make_model
from tests.train.test_step import CPU, SCALE

from intone.config import OptimConfig
from intone.model.optim import Optimizer
from intone.train.step import TrainStep


@pytest.fixture
def traced(monkeypatch):
    """torch.compile as far as its tracing, which is what compiles anew; a second time in one process is an error."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def make_step(config, device_batch, *, by_block=False, compiled=True):
    model = make_model(config, "fp32")
    optimizer = Optimizer(model, OptimConfig())
    return TrainStep(
        model, optimizer, device=CPU, dtype="fp32", device_batch=device_batch, compiled=compiled, by_block=by_block
    )


def test_steps_with_uneven_passes_and_other_targets_do_not_compile_again(tiny_config, traced):
    step = make_step(tiny_config, 3)
    losses = []
    for number in range(4):
        batch = batch_at(number, tiny_config)  # 7 rows in passes of 3: one of them is filled up
        if number == 2:
            batch.targets[:3] = -1  # a pass in which nothing is learned
        losses.append(step.run(batch, SCALE).sync_loss())
    assert all(loss is not None for loss in losses)


def test_blocks_share_what_is_compiled_and_train_as_eager_ones(tiny_config, traced):
    """One graph for blocks with a value embedding and one for those without, however many there are."""
    deep = replace(tiny_config, depth=5)
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=False):
        step, eager = make_step(deep, 3, by_block=True), make_step(deep, 3, compiled=False)
        for number in range(2):
            losses = [way.run(batch_at(number, deep), SCALE).sync_loss() for way in (step, eager)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_later_plan_without_compiling_finds_no_compiled_block(tiny_config, traced):
    step = make_step(tiny_config, 3, by_block=True)
    model = step._model
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    TrainStep(model, step._optimizer, device=CPU, dtype="fp32", device_batch=3, compiled=False)
    assert all(block._compiled_call_impl is None for block in model.blocks)


def test_passes_that_are_not_filled_up_would_be_an_error_here(tiny_config, traced):
    step = make_step(tiny_config, 3)
    step.compiled = False  # now 7 rows are 2, 2 and 3
    with pytest.raises(Exception, match="[Rr]ecompil"):
        for number in range(2):
            step.run(batch_at(number, tiny_config), SCALE)
    assert ROWS % 3
