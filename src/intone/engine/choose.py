"""What an engine computes with where it is: our kernels or PyTorch's, steps one by one or captured, and why"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from intone.engine.decoder import Decoder, GPTDecoder
from intone.engine.native_decoder import NativeDecoder, Weights, as_stored, native_obstacle
from intone.engine.sandbox.box import Sandbox
from intone.errors import UserError
from intone.log import human_bytes
from intone.model.gpt import GPT, Kernels

Steps = Literal["auto", "eager", "captured"]


@dataclass(frozen=True)
class Setup:
    """What Engine was asked for, checked; None: to be settled."""

    device: torch.device | str | None
    dtype: torch.dtype | None
    context: int
    num_slots: int | None
    cache_bytes: int | None
    deterministic: bool
    share_prefixes: bool
    num_guesses: int | None
    sandbox: Sandbox | None
    weights: Weights
    kernels: Kernels | Literal["auto"]
    steps: Steps


def decoder_of(model: Any, setup: Setup) -> tuple[Decoder, torch.device, dict[str, tuple[Any, str]]]:
    """The model as the runner needs it, its device, and what was settled about it.

    Raises UserError where what was asked for cannot be had here.
    """
    if not isinstance(model, GPT):
        return model, torch.device(setup.device or "cpu"), {}
    device = torch.device(setup.device if setup.device is not None else model.embedding.weight.device)
    dtype = model.compute_dtype if setup.dtype is None else setup.dtype
    obstacle = native_obstacle(model.config, device=device, dtype=dtype)
    stored_as = as_stored(setup.weights, dtype)
    is_needed = setup.kernels == "native" or stored_as != as_stored("auto", dtype)
    if is_needed and (setup.kernels == "torch" or obstacle is not None):
        what = "weights" if setup.kernels != "native" else "kernels"
        reason = obstacle or "kernels torch was asked for"
        raise UserError(f"{what} {getattr(setup, what)} cannot be had: {reason}", value=getattr(setup, what))
    if setup.kernels == "torch" or obstacle is not None:
        decoder: Decoder = GPTDecoder.of(model, device=device, dtype=dtype, deterministic=setup.deterministic)
        reason = "as asked" if setup.kernels == "torch" else str(obstacle)
        return decoder, device, {"kernels": ("torch", reason), "weights": (stored_as, "as computed in")}
    try:
        native = NativeDecoder.of(model, dtype=dtype, stored_as=setup.weights)
    except UserError as error:  # a compiler that does not compile
        if is_needed:
            raise
        decoder = GPTDecoder.of(model, device=device, dtype=dtype, deterministic=setup.deterministic)
        return decoder, device, {"kernels": ("torch", str(error)), "weights": (stored_as, "as computed in")}
    how = {
        "kernels": ("native", "the processor can, and a step is one call"),
        "weights": stored_weights(native, setup.weights),
    }
    return native, device, how


def stored_weights(decoder: NativeDecoder, asked: Weights) -> tuple[str, str]:
    """How our kernels keep the matrices, and why."""
    why = "as asked" if asked != "auto" else "as computed in"
    return decoder.stored_as, f"{why}; a step reads {human_bytes(decoder.num_weight_bytes)}"


def steps_of(decoder: Decoder, device: torch.device, setup: Setup) -> tuple[Literal["eager", "captured"], str]:
    """How steps of growing texts are launched, and why. Raises UserError where captured ones cannot be had."""
    obstacle = None
    if not isinstance(decoder, GPTDecoder):
        obstacle = "a step on our kernels is one call already"
    elif setup.deterministic:
        obstacle = "deterministic steps are cut into tiles by the host"
    elif setup.num_guesses:
        obstacle = "guessed tokens are the host's"
    elif device.type not in ("cpu", "cuda"):
        obstacle = f"{device.type} lacks the numbers of 64 bits that they are made of"
    if setup.steps == "captured" and obstacle is not None:
        raise UserError(f"steps captured cannot be had: {obstacle}", value="captured", fix="use steps auto")
    if setup.steps == "eager" or obstacle is not None:
        return "eager", obstacle or "as asked"
    if setup.steps == "captured":
        return "captured", "as asked"
    if device.type == "cuda":
        return "captured", "one launch a step, and results are read while the next one runs"
    return "eager", f"a step on {device.type} has no launches to save"
