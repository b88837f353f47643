"""A trained model, ready to generate: weights of a job's newest good save in the dtype they are used in."""

from pathlib import Path

import torch

from intone.errors import unknown_name
from intone.model.checkpoint import load_weights
from intone.model.gpt import GPT

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(job_folder: Path, *, dtype: str, device: torch.device) -> GPT:
    """The model of a training job in evaluation mode. Raises UserError where it has no save, Damaged where bad."""
    return load_newest(job_folder, dtype=dtype, device=device)[0]


def load_newest(job_folder: Path, *, dtype: str, device: torch.device) -> tuple[GPT, int]:
    """load_model(), and the step of the save that it comes from."""
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    config, weights, save = load_weights(job_folder)
    with torch.device("meta"):  # nothing is made only to be written over
        model = GPT(config)
    model.cos = model.sin = torch.empty(0)
    model.load_state_dict(weights, assign=True)
    model.ensure_positions(config.context)
    model.to(device).eval().requires_grad_(False)
    model.compute_dtype = DTYPES[dtype]
    return model, save.step
