"""Training jobs that last a second, for tests that need real workers."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.model.checkpoint import list_checkpoints, saved_step
from intone.paths import write_json
from intone.records import Choice, Choices, Segment, read_log, write_choices

CONTEXT = 32
CONFIG = model_config("modern", depth=1, vocab_size=265, context=CONTEXT)
SEGMENT = Segment(0, device_batch=3, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
WAIT_S = 60.0  # for something that takes a second on a quiet machine


def make_data(folder: Path) -> TrainJob:
    """A byte tokenizer, a training and a validation set below folder -> the job of five rows a step on them."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    tokenizer.save(folder / "tokenizer")
    texts = {
        "train": [f"{n} birds sat on the roof of house {n * n % 97}. " * (1 + n % 7) for n in range(150)],
        "val": [f"Then {n} of them flew away. " for n in range(20)],
    }
    for name, documents in texts.items():
        ensure_token_set(folder / name, tokenizer, kind="documents", documents=lambda _, d=documents: d)
    return TrainJob(
        stage="base", model=CONFIG, tokenizer=str(folder / "tokenizer"), tokenizer_hash=tokenizer.hash,
        data=(str(folder / "train"),), val=str(folder / "val"), context=CONTEXT, steps=9, rows_per_step=5,
        optim=OptimConfig(), schedule=ScheduleConfig(warmup_steps=2), seed=7, eval_tokens=8 * CONTEXT,
        save_every_s=0.0,
    )  # fmt: skip


def write_job(
    folder: Path, job: TrainJob, *segments: Segment, fallbacks: tuple[int, ...] = (3, 2, 1), **changes: Any
) -> Path:
    """config.json and choices.json of the job with some settings changed -> folder."""
    choices = Choices(
        {"device": Choice("cpu", "test", "default")}, segments or (SEGMENT,), {"device_batch": fallbacks}, ENVIRONMENT
    )
    write_choices(folder, choices)
    write_json(folder / "config.json", replace(job, **changes).as_json())
    return folder


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step row of a job's log, in its order."""
    return [(row["step"], row["loss"]) for row in read_log(folder / "log.jsonl", "step")]


def events(folder: Path) -> list[tuple[int, str]]:
    """(step, event) of what happened to a job besides saving and going on."""
    rows = read_log(folder / "log.jsonl", "event")
    return [(row["step"], row["event"]) for row in rows if row["event"] not in ("save", "resumed")]


def steps_saved(folder: Path) -> list[int]:
    """The steps of a job's saves, ascending."""
    return [saved_step(path) for path in list_checkpoints(folder)]


def wait_for(happened: Callable[[], Any], what: str) -> Any:
    """The first true answer, asked a hundred times a second. Raises AssertionError where none comes."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        answer = happened()
        if answer:
            return answer
        time.sleep(0.01)  # between two looks at what another process does
    raise AssertionError(f"{what} did not happen within {WAIT_S:g} s")


def worker_of(pid: int) -> psutil.Process | None:
    """The worker below a process, None where it has none now."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "intone.worker" in child.cmdline():
                    return child
    return None
