"""What a job needs before its first step: its tokenizer, its text as rows, and a model on the device"""

import os
from pathlib import Path

import torch

from intone.config import TrainJob
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.errors import Damaged
from intone.model.gpt import GPT
from intone.records import Segment
from intone.train.step import DTYPES


def open_data(job: TrainJob) -> tuple[Tokenizer, Rows, TokenSet | None]:
    """(tokenizer, training rows, validation text or None).

    Raises UserError for what is gone, Damaged for what is broken, and where the tokenizer is another one.
    """
    tokenizer = open_tokenizer(job)
    sets = [TokenSet.open(Path(folder)) for folder in job.data]
    weights = list(job.weights) if job.weights else None
    rows = Rows(sets, job.context, job.seed, weights=weights, learn_all=job.learn_all, one_text=job.one_text)
    return tokenizer, rows, TokenSet.open(Path(job.val)) if job.val else None


def open_tokenizer(job: TrainJob) -> Tokenizer:
    """The job's tokenizer. Raises UserError where it is gone, Damaged where it is another one."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    if tokenizer.hash != job.tokenizer_hash:
        raise Damaged(
            f"the tokenizer in {job.tokenizer} is not the one this job was written for",
            value=job.tokenizer,
            fix="restore the folder, or start a new run",
        )
    return tokenizer


def build_model(job: TrainJob, first: Segment, device: torch.device) -> GPT:
    """The job's model as the first segment computes it; GPT.init_weights, or a save, sets its weights.

    Sets threads and determinism of the whole process; not yet for the compiler, see train/step.py.
    """
    if device.type == "cpu":
        # compiled embedding gradients on two threads otherwise differ on every repeat; not slower (CONTRACTS)
        torch.set_deterministic_debug_mode("error")
        # filling new memory hides bugs, not rounding, and takes 7 % of an eager step (LOG.md)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    elif job.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses every product on CUDA
        torch.set_deterministic_debug_mode("error")
        torch.backends.cudnn.benchmark = False
    if first.threads:
        torch.set_num_threads(first.threads)
    model = GPT(job.model).to(device)
    model.ensure_positions(max(job.context, job.model.context))
    model.compute_dtype = DTYPES[first.dtype]
    return model
