"""What a job's plan needs to be computable here: names that some code knows, and a device that is there."""

from itertools import pairwise

import torch

from intone.config import ModelConfig
from intone.dist import World
from intone.errors import UserError, unknown_name
from intone.model.attention import BACKENDS
from intone.model.native.build import library, variant_for
from intone.model.native.shapes import shape_obstacle
from intone.records import Choices, Segment
from intone.train.step import DTYPES

KERNELS = ("torch", "native")


def check_segments(choices: Choices) -> None:
    """Raises UserError for a segment that no code here can compute: a typing error must not become another plan."""
    for segment in choices.segments:
        if segment.dtype not in DTYPES:
            raise unknown_name("dtype", segment.dtype, DTYPES)
        if segment.kernels not in KERNELS:
            raise unknown_name("kernels", segment.kernels, KERNELS)
        if segment.kernels == "native":
            check_native(segment)
        elif segment.attention not in BACKENDS:
            raise unknown_name("attention backend", segment.attention, BACKENDS)
        if segment.attention == "flex" and (not segment.compiled or segment.by_block):
            how = f"compiled {segment.compiled}, by_block {segment.by_block}"
            raise UserError(f"attention flex is for a model compiled as a whole; the plan says {how}", value=how)
        if segment.head_pieces < 1 or (segment.head_pieces > 1 and (segment.compiled or segment.kernels == "native")):
            how = f"{segment.head_pieces} pieces, compiled {segment.compiled}, kernels {segment.kernels}"
            raise UserError(f"the loss in pieces is for eager code of PyTorch; the plan says {how}", value=how)
        if segment.device_batch < 1:
            rows = segment.device_batch
            raise UserError(f"device_batch is {rows}, it must be at least 1", value=rows)
        if segment.num_slots is not None and segment.num_slots < 1:
            slots = segment.num_slots
            raise UserError(f"num_slots is {slots}, it must be at least 1", value=slots)
    for before, segment in pairwise(choices.segments):
        if segment.steps not in (None, before.steps) and segment.steps <= segment.from_step:
            words = f"from step {segment.from_step:,} on the plan has {segment.steps:,} steps"
            raise UserError(f"{words}: they would be over before", value=segment.steps)


def check_native(segment: Segment) -> None:
    """Raises UserError where our kernels cannot do what the segment says."""
    if variant_for(segment.dtype) is None or segment.compiled or segment.attention != "native":
        how = f"{segment.dtype}, compiled {segment.compiled}, attention {segment.attention}"
        raise UserError(f"our kernels run bf16 or fp32, not compiled, attention native; the plan says {how}", value=how)


def check_kernels(model: ModelConfig, device: torch.device, dtype: str) -> None:
    """Raises UserError where our kernels are planned and cannot be had on this machine for this model and dtype."""
    obstacle, variant = shape_obstacle(model), variant_for(dtype)
    if device.type != "cpu" or obstacle is not None:
        raise UserError(obstacle or "our kernels need the model on the CPU", fix="use --kernels torch")
    assert variant is not None, "check_native() looked"
    library(variant)


def pick_device(choices: Choices, world: World) -> torch.device:
    """The device that was settled for the job; of several GPUs the one of this process.

    Raises UserError where it is not here.
    """
    name = choices.settings["device"].value if "device" in choices.settings else "cpu"
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise UserError("this job was settled for a CUDA device and there is none here", value=name)
    count = torch.cuda.device_count()
    if world.local_size > count:
        raise UserError(
            f"{world.local_size} processes were started for {count} GPUs here",
            value=world.local_size,
            fix=f"use --devices {count}, or torchrun --nproc-per-node {count}",
        )
    if world.size == 1:
        return torch.device(name)
    torch.cuda.set_device(world.local_rank)
    return torch.device(name, world.local_rank)
