"""Planted faults: changes that are fast and wrong, each a single slip in training or generation, for the self-test."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from intone.data.loader import Batch, Prefetcher, Rows
from intone.engine.requests import Completion, Request
from intone.model import gpt
from intone.model.gpt import GPT, Block
from intone.model.optim import Optimizer
from intone.prove.gates.decode import Generate
from intone.train.step import TrainStep

Fault = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def replaced(owner: Any, name: str, wrong: Callable[..., Any]) -> Iterator[None]:
    """owner.name is wrong(real, *args) inside the with block."""
    real = getattr(owner, name)

    def planted(*args: Any, **options: Any) -> Any:
        return wrong(real, *args, **options)

    setattr(owner, name, planted)
    try:
        yield
    finally:
        setattr(owner, name, real)


# --- training ---------------------------------------------------------------------------------------------------


def halved_gradients(real: Callable[..., None], optimizer: Optimizer, *args: Any) -> None:
    """As where micro-batches are averaged twice: Muon and AdamW hardly notice, so losses look right."""
    for group in optimizer.groups:
        for parameter in group.params:
            if parameter.grad is not None:
                parameter.grad *= 0.5
    real(optimizer, *args)


def loss_too_large(real: Callable[..., tuple[Tensor, Tensor]], *args: Any) -> tuple[Tensor, Tensor]:
    """One percent, on the loss and on every gradient."""
    loss_sum, num_supervised = real(*args)
    return loss_sum * 1.01, num_supervised


def skipped_block(real: Callable[..., Tensor], block: Block, x: Tensor, *args: Any) -> Tensor:
    """The first block passes its input on."""
    return x if block.block == 0 else real(block, x, *args)


def unrotated_head(real: Callable[..., Tensor], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One head has no positions. x (B, T, H, C)."""
    return torch.cat((x[:, :, :1], real(x, cos, sin)[:, :, 1:]), dim=2)


def left_out_row(real: Callable[..., Any], step: TrainStep, batch: Batch, *args: Any) -> Any:
    """The last row of every step is dropped, which is faster by its share."""
    return real(step, batch.rows(0, len(batch) - 1), *args)


def row_twice(real: Callable[..., Batch], rows: Rows, first: int, count: int) -> Batch:
    """The first row of every batch stands in place of its second."""
    batch = real(rows, first, count)
    for array in (batch.ids, batch.targets, batch.documents):
        array[1] = array[0]
    return batch


def lazy_update(real: Callable[..., None], optimizer: Optimizer, *args: Any) -> None:
    """Every second update is left out."""
    if optimizer.num_steps % 2 == 0:
        return real(optimizer, *args)
    optimizer.num_steps += 1
    for group in optimizer.groups:
        for parameter in group.params:
            parameter.grad = None
    return None


def loss_without_end(real: Callable[..., tuple[Tensor, Tensor]], *args: Any) -> tuple[Tensor, Tensor]:
    """Losses are not finite, as after an overflow that nobody scales back."""
    loss_sum, num_supervised = real(*args)
    return loss_sum * float("inf"), num_supervised


TRAINING: dict[str, Fault] = {
    "gradients halved, losses right": lambda: replaced(Optimizer, "step", halved_gradients),
    "loss times 1.01": lambda: replaced(GPT, "forward", loss_too_large),
    "first block skipped": lambda: replaced(Block, "forward", skipped_block),
    "one head without positions": lambda: replaced(gpt, "rotate", unrotated_head),
    "last row of each step left out": lambda: replaced(TrainStep, "run", left_out_row),
    "every second update left out": lambda: replaced(Optimizer, "step", lazy_update),
    "losses not finite": lambda: replaced(GPT, "forward", loss_without_end),
}


def double_rows() -> contextlib.AbstractContextManager[None]:
    """The fault of row_twice, planted."""
    return replaced(Rows, "rows", row_twice)


# --- resuming ---------------------------------------------------------------------------------------------------


def repeated_batch(
    real: Callable[..., None], prefetcher: Prefetcher, rows: Rows, count: int, first_step: int = 0, **share: int
) -> None:
    """A run that goes on begins with the rows of the step before."""
    real(prefetcher, _Shifted(rows, count) if first_step else rows, count, first_step, **share)


class _Shifted:
    """Rows that come one step late."""

    def __init__(self, rows: Rows, rows_per_step: int) -> None:
        self._rows, self._late = rows, rows_per_step

    def rows(self, first: int, count: int) -> Batch:
        return self._rows.rows(first - self._late, count)


def lost_moments(real: Callable[..., None], optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Only the step count comes back, the moments begin at zero again."""
    optimizer.num_steps = int(tensors["num_steps"])


RESUMING: dict[str, Fault] = {
    "a batch repeated after the restart": lambda: replaced(Prefetcher, "__init__", repeated_batch),
    "moments lost in the restart": lambda: replaced(Optimizer, "load_state_tensors", lost_moments),
}


# --- generation -------------------------------------------------------------------------------------------------


def with_config(model: GPT, **changes: Any) -> GPT:
    """The model's weights under other settings, as an engine's own idea of the model."""
    other = GPT(dataclasses.replace(model.config, **changes)).to(model.embedding.weight.dtype)
    other.load_state_dict(model.state_dict())
    other.compute_dtype = model.compute_dtype
    return other


def window_off_by_one(model: GPT) -> GPT:
    """The cache shows every windowed query one token too many."""
    assert model.config.short_window is not None, "the self-test's model has windows"
    return with_config(model, short_window=model.config.short_window + 1)


def positions_off(model: GPT) -> GPT:
    """Positions turn a thousandth too slowly: right at the start of a text, wrong far into it."""
    return with_config(model, rope_base=model.config.rope_base * 1.05)


def cached_skip(model: GPT) -> GPT:
    """The last block's MLP is left out."""
    other = with_config(model)
    with torch.no_grad():
        other.get_submodule(f"blocks.{model.config.depth - 1}.mlp.down").weight.zero_()  # type: ignore[operator]
    return other


def forgotten_token(generate: Generate) -> Generate:
    """The last token of every prompt never reaches the cache."""

    def wrong(requests: Sequence[Request]) -> list[list[Completion]]:
        shorter = [dataclasses.replace(r, prompt=r.prompt[:-1] if len(r.prompt) > 1 else r.prompt) for r in requests]
        return generate(shorter)

    return wrong


def copied_first_token(generate: Generate) -> Generate:
    """The first token of a request's first sample is copied over all its samples (the case study's fifth fault)."""

    def wrong(requests: Sequence[Request]) -> list[list[Completion]]:
        answers = generate(requests)
        return [
            [dataclasses.replace(sample, ids=[samples[0].ids[0], *sample.ids[1:]]) for sample in samples]
            for samples in answers
        ]

    return wrong


def cooler(generate: Generate) -> Generate:
    """Samples are drawn at two thirds of the temperature that was asked for."""

    def wrong(requests: Sequence[Request]) -> list[list[Completion]]:
        return generate([dataclasses.replace(request, temperature=request.temperature / 1.5) for request in requests])

    return wrong


MODELS: dict[str, Callable[[GPT], GPT]] = {
    "window off by one": window_off_by_one,
    "positions off": positions_off,
    "last MLP left out while decoding": cached_skip,
}
