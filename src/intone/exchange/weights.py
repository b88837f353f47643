"""Foreign weights under our names: every one known, of the right shape, a finite number, and nothing missing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from intone.config import ModelConfig, Preset
from intone.errors import UserError, nearest
from intone.model.gpt import GPT
from intone.records import Choice

NAMES_OF = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
PADDED_TO = 64  # nanochat pads its tables to it since 2025-12-09, and so do we


@dataclass(frozen=True)
class ForeignModel:
    """A model read from foreign files, in our terms."""

    kind: str  # what the files are, in words
    path: Path  # the file or folder that holds the weights
    config: ModelConfig
    preset: Preset
    weights: dict[str, Tensor]  # our names, float32
    trained_in: Literal["fp32", "bf16", "fp16"]
    trained_reason: str
    stage: str
    stage_reason: str
    step: int  # optimizer steps, 0 where the files do not say
    # settings of the function with the reason for each; where a file does not say, the code that wrote it does
    reasons: Mapping[str, Choice]
    notes: tuple[str, ...] = ()  # what a person should know about this import


def adopted(
    found: Mapping[str, Tensor], config: ModelConfig, their_name: Callable[[str], str], path: Path
) -> dict[str, Tensor]:
    """{our name: float32 tensor} of a model of this config; their_name gives their name for ours.

    Raises UserError that names the first key that is unknown, missing, of another shape or dtype, or not finite.
    """
    if config.depth > len(found):  # said before a model of that depth is laid out
        raise UserError(
            f"{path} holds {len(found):,} tensors, too few for the {config.depth:,} blocks that its settings name",
            value=config.depth,
            fix="the weights and the settings beside them are not of one model; copy both again",
        )
    with torch.device("meta"):
        expected = {name: value.shape for name, value in GPT(config).state_dict().items()}
    theirs = {their_name(name): name for name in expected}
    for key in found:
        if key not in theirs:
            raise _unknown(key, theirs, path)
    for key in theirs:
        if key not in found:
            raise UserError(
                f"{path} lacks {key}",
                value=key,
                fix="the file is not whole, or its settings name another model: copy it again with its settings",
            )
    return {theirs[key]: _checked(key, value, expected[theirs[key]], path) for key, value in found.items()}


def _unknown(key: str, known: Iterable[str], path: Path) -> UserError:
    guess = nearest(key, known)
    return UserError(
        f"{path} holds {key!r}, which this architecture does not have",
        value=key,
        fix=(f"the nearest name it has is {guess}; " if guess else "")
        + "a part that intone does not know would be left out of the function: ask for support of it",
    )


def _checked(key: str, value: Tensor, shape: torch.Size, path: Path) -> Tensor:
    """The tensor in float32; every float32, bfloat16 and float16 number is kept exactly."""
    if value.shape != shape:
        raise UserError(
            f"{key} in {path} has shape {tuple(value.shape)}, by the model's settings it is {tuple(shape)}",
            value=list(value.shape),
            fix="the weights and the settings beside them are not of one model; copy both again",
        )
    if value.dtype not in NAMES_OF:
        raise UserError(
            f"{key} in {path} is {value.dtype}, weights are float32, bfloat16 or float16",
            value=str(value.dtype),
            fix="import the checkpoint as it was before it was quantised",
        )
    wide = value.to(torch.float32)
    if not torch.isfinite(wide).all():
        raise UserError(
            f"{key} in {path} holds numbers that are not finite",
            value=key,
            fix="its training had failed when it was saved: import an earlier step with --step",
        )
    return wide


def trained_in(table: Tensor) -> dict[str, Any]:
    """ForeignModel's trained_in and trained_reason by the embedding table: nanochat keeps it in what it computes in."""
    name = NAMES_OF[table.dtype]
    return {"trained_in": name, "trained_reason": f"its embedding table is stored in {name}"}


def vocab_multiple(rows: int | None, vocab_size: int) -> int:
    """ModelConfig.vocab_multiple of tables with this many rows: 64, or 1 where they were never padded."""
    return 1 if rows == vocab_size and vocab_size % PADDED_TO else PADDED_TO
