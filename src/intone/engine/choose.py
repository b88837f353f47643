"""What an engine computes with where it is: our kernels or PyTorch's, captured steps, how much at once, and why"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from intone.engine import fixed
from intone.engine.decoder import Decoder, GPTDecoder
from intone.engine.fused_decoder import StepKernels, fused_obstacle
from intone.engine.native_decoder import NativeDecoder, Weights, as_stored, native_obstacle
from intone.engine.pages import PAGE
from intone.engine.sandbox.box import Sandbox
from intone.engine.scheduler import Limits
from intone.errors import UserError
from intone.log import human_bytes
from intone.model.gpt import GPT, Kernels

Steps = Literal["auto", "eager", "captured"]
Reasons = dict[str, tuple[Any, str]]  # setting -> (value, why)

# what suits a device that nobody measured (tune/engine.py does). More rows than this no longer make a token cheaper
# (guess: a CPU's products are compute-bound from 16 rows on)
MOST_SLOTS = {"cpu": 64, "other": 256}
# prompt tokens per step: enough for fast products, few enough to bound the activations. On a CPU 64 rows reach nine
# tenths of the products' speed at 512 (one core of an EPYC 9004, torch 2.13); other: guess. MIXED_TOKENS: the least
# while texts grow that somebody reads, however long that takes
ALONE_TOKENS = {"cpu": 512, "other": 8192}
MIXED_TOKENS = {"cpu": 64, "other": 2048}
BY_RULE = "by rule; intone tune infer measures it"


@dataclass(frozen=True)
class Setup:
    """What Engine was asked for, checked; None: to be settled."""

    device: torch.device | str | None
    dtype: torch.dtype | None
    context: int
    num_slots: int | None
    prompt_tokens: int | None
    buckets: tuple[int, ...] | None
    cache_bytes: int | None
    deterministic: bool
    share_prefixes: bool
    num_guesses: int | None
    sandbox: Sandbox | None
    weights: Weights
    kernels: Kernels | Literal["auto"]
    steps: Steps
    step_kernels: StepKernels


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


def step_kernels_of(
    decoder: Decoder, device: torch.device, setup: Setup, steps: Literal["eager", "captured"]
) -> tuple[Literal["torch", "triton"], str]:
    """What computes captured steps, and why. Raises UserError where Triton's kernels cannot be had."""
    asked = setup.step_kernels
    if asked == "torch":
        return "torch", "as asked"
    if steps == "eager":
        obstacle: str | None = "steps are eager"
    elif asked == "auto" and device.type != "cuda":
        obstacle = f"{device.type} has no launches to save"
    else:
        obstacle = fused_obstacle(decoder, device)
    if obstacle is None:
        return "triton", "as asked" if asked == "triton" else "five launches a block for up to 16 rows, not 45"
    if asked == "triton":
        raise UserError(f"step_kernels triton cannot be had: {obstacle}", value="triton", fix="use step_kernels auto")
    return "torch", obstacle


def limits_of(setup: Setup, device: torch.device, steps: str) -> tuple[Limits, tuple[int, ...], Reasons]:
    """(how much is computed at once, lengths that captured steps are made for, both with reasons)."""
    kind = kind_of(device)
    limits = Limits(
        num_slots=setup.num_slots or MOST_SLOTS[kind], alone_tokens=setup.prompt_tokens or ALONE_TOKENS[kind],
        mixed_tokens=MIXED_TOKENS[kind], num_guesses=setup.num_guesses or 0, most_guessing=1,
        whole_pages=setup.deterministic,
    )  # fmt: skip
    if setup.buckets is not None and steps != "captured":
        raise UserError("buckets are lengths of captured steps, and these are eager", value=list(setup.buckets))
    buckets = fixed.CONTEXTS if setup.buckets is None else setup.buckets
    asked = {"num_slots": setup.num_slots, "prompt_tokens": setup.prompt_tokens, "buckets": setup.buckets}
    used: dict[str, Any] = {"num_slots": limits.num_slots, "prompt_tokens": limits.alone_tokens}
    used |= {"buckets": buckets} if steps == "captured" else {}
    reasons = {name: (value, BY_RULE if asked[name] is None else "as asked") for name, value in used.items()}
    return with_prompts(limits, limits.alone_tokens, device), buckets, reasons


def with_prompts(limits: Limits, prompt_tokens: int, device: torch.device) -> Limits:
    """The limits with so many tokens of prompts a step, and the least while texts grow."""
    mixed = min(MIXED_TOKENS[kind_of(device)], prompt_tokens)
    return replace(limits, alone_tokens=prompt_tokens, mixed_tokens=mixed)


def kind_of(device: torch.device) -> str:
    """The column of the rules above."""
    return "cpu" if device.type == "cpu" else "other"


def checked_sizes(
    num_slots: int | None, prompt_tokens: int | None, buckets: Sequence[int] | None
) -> tuple[int, ...] | None:
    """buckets as a tuple. Raises UserError for a size that no engine can have."""
    for name, value, low in (("num_slots", num_slots, 1), ("prompt_tokens", prompt_tokens, PAGE)):
        if value is not None and value < low:
            raise UserError(f"{name} is {value}, it must be at least {low}", value=value)
    if buckets is None:
        return None
    lengths = tuple(buckets)
    if any(length < 1 for length in lengths) or list(lengths) != sorted(set(lengths)):
        raise UserError("buckets are lengths in tokens, each larger than the one before it", value=list(lengths))
    return lengths
