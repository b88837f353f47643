"""A training job and a model that take a second, made on the spot: what the gates' self-test breaks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.shards import write_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.prove.trial import Run, Side
from intone.records import Choice, Choices, Segment, write_choices

CONTEXT = 32  # of training rows
TEXT_CONTEXT = 96  # of generated texts: a page of 64 and several windows end inside
WINDOW = 29  # odd, and no divisor of anything
SEGMENT = Segment(0, device_batch=6, compiled=False, dtype="fp32", attention="sdpa", reason="self-test", threads=1)
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class TinyJobs:
    """Job folders on one small text below a folder; the first one is the baseline of every comparison."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "trials"
        self.tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
        self.tokenizer.save(folder / "tokenizer")
        texts = [f"{n} birds sat on the roof of house {n * n % 97}. " * (1 + n % 7) for n in range(150)]
        write_token_set(folder / "text", texts, self.tokenizer, kind="documents")
        self.job = TrainJob(
            stage="base", model=model_config("modern", depth=1, vocab_size=265, context=CONTEXT, head_width=32),
            tokenizer=str(folder / "tokenizer"), tokenizer_hash=self.tokenizer.hash, data=(str(folder / "text"),),
            val=None, context=CONTEXT, steps=12, rows_per_step=6, optim=OptimConfig(),
            schedule=ScheduleConfig(warmup_steps=2), seed=7,
        )  # fmt: skip
        self._count = 0

    def side(self, run: Run, *, segments: Sequence[Segment] = (SEGMENT,), **changes: Any) -> Side:
        """A job folder with some settings changed, and what runs it."""
        self._count += 1
        folder = self.folder / f"job-{self._count}"
        folder.mkdir()
        write_json(folder / "config.json", dataclasses.replace(self.job, **changes).as_json())
        device = {"device": Choice("cpu", "self-test", "default")}
        write_choices(folder, Choices(device, tuple(segments), {}, ENVIRONMENT))
        return Side(folder, run)


def random_model(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A model in which every weight is random and no part of the function is silent."""
    config = model_config("modern", depth=2, vocab_size=265, context=TEXT_CONTEXT)
    model = GPT(dataclasses.replace(config, short_window=WINDOW))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)  # wide enough for few near ties
    model.compute_dtype = dtype
    return model
