"""Our side of a comparison of training: jobs as `intone train` settles them, matched to theirs, and their rows."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intone import jobs
from intone.bench.train_settings import BenchTrainSettings
from intone.child import PACKAGE_PARENT
from intone.config import OptimConfig, ScheduleConfig, TrainJob
from intone.data.loader import Rows, validation_rows
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.log import say
from intone.paths import home, read_json, write_json
from intone.prepare import short_hash
from intone.records import Choices, read_choices, read_log, write_choices
from intone.resolving import as_json
from intone.tune.trials import code_fingerprint

CHUNK_ROWS = 1024
# what a plan depends on: where one of these changed, our side is settled anew
PLANNING_CODE = (
    "config.py", "planning.py", "ground.py", "recipe.py", "prepare.py", "hardware.py", "model", "data", "train", "tune"
)  # fmt: skip


def bench_home() -> Path:
    """An INTONE_HOME of its own inside the person's, so that comparisons leave their runs alone; not created here."""
    return home() / "bench" / "train"


def make_bench_home() -> Path:
    """bench_home(), in which only the runs are its own: facts, trials, compiled code, tokenizers, text are shared."""
    folder = bench_home()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("machine", "tokenizers", "text"):
        (home() / name).mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(Path("..", "..", name))
    return folder


def prepare(flags: Sequence[str]) -> Path:
    """The job folder that `intone train base FLAGS --prepare` writes; found again while code and flags are the same.

    Raises UserError with the verb's own words where it fails.
    """
    name = f"plan-{short_hash([list(flags), code_fingerprint(*PLANNING_CODE)])}"
    folder = make_bench_home() / "runs" / name / "base"
    if (folder / "config.json").exists():
        return folder
    words = ["train", "base", *flags, "--name", name, "--prepare", "--json"]
    say(f"settling our side: intone {' '.join(words)}")
    search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    variables = {"INTONE_HOME": str(bench_home()), "PYTHONPATH": os.pathsep.join(part for part in search if part)}
    done = subprocess.run(
        [sys.executable, "-m", "intone", *words], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
    )
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode or answer.get("outcome") != "done":
        error = answer.get("error") or {"message": f"exit code {done.returncode}"}
        raise UserError(f"our side could not be settled: {error['message']}", value=name, fix=error.get("fix"))
    return Path(answer["result"]["folder"])


def plan_flags(settings: BenchTrainSettings, *, depth: int, **fixed: int | float) -> list[str]:
    """The flags of `intone train` for our side: what is compared, and what the person asked for; the rest it settles.

    fixed: further flags, for example batch_tokens and steps.
    """
    values: dict[str, Any] = {
        "preset": "modern", "depth": depth, "context": settings.context, "vocab_size": settings.vocab_size, **fixed,
        "dtype": settings.dtype, "threads": settings.threads, "kernels": settings.kernels,
        "compile": settings.compile, "device_batch": settings.device_batch,
    }  # fmt: skip
    words: list[str] = []
    for name, value in values.items():
        words += [] if value == "auto" else [f"--{name.replace('_', '-')}", str(value)]
    words += ["--data", *settings.data]
    return [*words, "--val", *settings.val] if settings.val else words


def read_job(folder: Path) -> tuple[TrainJob, Choices]:
    return TrainJob.from_json(read_json(folder / "config.json")), read_choices(folder)


def write_job(folder: Path, job: TrainJob, choices: Choices) -> Path:
    """A job folder for a worker that is to begin at the start, without anything that an earlier try left."""
    shutil.rmtree(folder, ignore_errors=True)
    write_choices(folder, choices)
    write_json(folder / "config.json", job.as_json())
    return folder


def matched(job: TrainJob, nanochat: Mapping[str, Any], start: Path, *, scalar_rates: float = 1.0) -> TrainJob:
    """The job with nanochat's start, rates and schedules at this size, as its driver derived them, and its whole rows.

    nanochat: the driver's facts. scalar_rates: factor on the rates of scalars and gates, which its driver is told too.
    The decay falls by a line where nanochat's is a cosine; they part by less than 0.1 % of it in the first 1 % of the
    steps, which is what is compared.
    """
    scale = nanochat["rate_scale"]
    optim = OptimConfig(
        matrix_lr=0.02, embedding_lr=0.3, value_embedding_lr=0.15, head_lr=0.008,
        residual_scale_lr=scalar_rates * 0.005, embedding_scale_lr=scalar_rates * 0.5,
        gate_lr=scalar_rates * 0.2 / scale, weight_decay=nanochat["weight_decay"],
    )  # fmt: skip
    schedule = ScheduleConfig(
        lr_scale=scale, warmup_steps=39, warmdown_share=0.65, final_share=0.05,
        momentum_from=0.85, momentum_to=0.97, momentum_steps=400,
    )  # fmt: skip
    return replace(
        job, optim=optim, schedule=schedule, steps=nanochat["steps"], one_text=True, init_from=str(start), keep=0,
        samples=(),
    )  # fmt: skip


def run_job(folder: Path, choices: Choices) -> list[dict[str, Any]]:
    """Trains a job folder to its end in a worker, or on from its newest save -> its step rows.

    Raises UserError where it ends otherwise.
    """
    outcome = jobs.start(folder, choices.environment).wait()
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    if outcome.outcome != "done":
        raise UserError(f"our training ended as {outcome.outcome}: {outcome.message}", value=str(folder))
    return read_log(folder / "log.jsonl", "step")


class Kept:
    """Parts of a case that take minutes, on disk: a case that was cut goes on behind the last one that was done."""

    def __init__(self, case: str, settings: BenchTrainSettings, revision: str) -> None:
        """revision: of the other side. A changed setting or line of our training begins a case anew."""
        asked = {
            name: value for name, value in as_json(settings).items() if name not in ("cases", "json", "fresh", "out")
        }
        key = short_hash([case, asked, revision, code_fingerprint(*PLANNING_CODE, "bench/foreign")])
        self.folder = bench_home() / "cases" / f"{case}-{key}"
        if settings.fresh:
            self.forget()

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What make returned, now or before."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        else:
            say(f"{name}: kept from the measurement before")
        value: dict[str, Any] = read_json(path)
        return value

    def forget(self) -> None:
        """The case is done: the next time it is measured, all of it is."""
        shutil.rmtree(self.folder, ignore_errors=True)


# --- rows for the other side ------------------------------------------------------------------------------------------


def export_rows(job: TrainJob, num_rows: int, val_tokens: int) -> Path:
    """A folder with the first rows that this job trains on, and its validation rows, as plain arrays.

    ids.npy, targets.npy (N, T), val_ids.npy, val_targets.npy, val_documents.npy (M, T), token_bytes.npy (V,), all
    int32; rows.json, written last, says what they are. Found again where they are there already, or more of them.
    """
    identity = [job.data, job.val, job.tokenizer_hash, job.context, job.seed, val_tokens]
    folder = bench_home() / "rows" / short_hash(identity)
    path = folder / "rows.json"
    if path.exists() and read_json(path)["num_rows"] >= num_rows:
        return folder
    say(f"writing {num_rows:,} rows of {job.context:,} tokens for both sides to {folder}")
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows([TokenSet.open(Path(name)) for name in job.data], job.context, job.seed)
    shape = (num_rows, job.context)
    ids, targets = (
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.int32, shape=shape)
        for name in ("ids", "targets")
    )
    for first in range(0, num_rows, CHUNK_ROWS):
        batch = rows.rows(first, min(CHUNK_ROWS, num_rows - first))
        ids[first : first + len(batch)], targets[first : first + len(batch)] = batch.ids, batch.targets
    ids.flush()
    targets.flush()
    assert job.val is not None, "a prepared job has validation text"
    val = list(validation_rows(TokenSet.open(Path(job.val)), job.context, val_tokens))
    for name in ("ids", "targets", "documents"):
        np.save(folder / f"val_{name}.npy", np.concatenate([getattr(batch, name) for batch in val]))
    token_bytes = Tokenizer.load(Path(job.tokenizer)).token_bytes
    np.save(folder / "token_bytes.npy", token_bytes.astype(np.int32))
    facts = {"num_rows": num_rows, "context": job.context, "vocab_size": len(token_bytes)}
    source = {"data": list(job.data), "val": job.val, "seed": job.seed, "epochs": rows.epochs(num_rows)}
    write_json(path, {"format": 1, **facts, **source})
    return folder
