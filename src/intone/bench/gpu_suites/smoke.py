"""First look at a machine: trains fifty steps, is killed and goes on bitwise, generates; every check is said."""

import time
from pathlib import Path

import torch

from intone import jobs
from intone.bench.gpu_suites.bench import Bench
from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data import starter
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.engine.load import load_model
from intone.engine.naive import generate_naive
from intone.engine.requests import Request
from intone.errors import UserError
from intone.log import say
from intone.model.checkpoint import list_checkpoints
from intone.paths import read_json, write_json
from intone.records import Choice, Choices, Segment, read_log, write_choices

STEPS = 50
KILL_AFTER = 20  # steps in the log
WORKER_S = 120.0  # a worker's whole life: ten times what it needs
NUM_TOKENS = 24
PROMPTS = ("One day Anna walked to the", "One metre is")


def smoke(bench: Bench) -> None:
    """The row smoke.checks: which share of the checks passed. Raises UserError that names those which did not."""
    name = "smoke.checks"
    if not bench.may("checks", name, seconds=30.0):
        return
    say(f"Python {bench.machine.get('python_version')}, torch {torch.__version__}, device {bench.device}")
    folders = [write_smoke_job(bench, part) for part in ("whole", "parts")]
    train_whole(folders[0], bench)
    train_killed(folders[1], bench)
    losses = [read_losses(folder) for folder in folders]
    saves = [final_hashes(folder) for folder in folders]
    checks = {
        f"{STEPS} steps in order, once each": all(sorted(part) == list(range(1, STEPS + 1)) for part in losses),
        "the loss falls by half": losses[0][STEPS] < 0.5 * losses[0][1],
        "a killed worker goes on with the same losses": losses[0] == losses[1],
        "and to the same weights and moments": saves[0] == saves[1],
        **generation_checks(folders[0], bench),
    }
    for words, passed in checks.items():
        say(f"{'passed' if passed else 'FAILED'}: {words}")
    num_passed = sum(checks.values())
    bench.row(name, num_passed / len(checks), "share of checks", n=len(checks))
    if num_passed < len(checks):
        raise UserError("; ".join(words for words, passed in checks.items() if not passed))


def write_smoke_job(bench: Bench, name: str) -> Path:
    """A job folder that trains a small model on stories, byte by byte, and saves after every step."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    tokenizer.save(bench.scratch / "tokenizer")
    data = bench.scratch / "stories"
    ensure_token_set(data, tokenizer, kind="documents", documents=lambda _: starter.documents(0, 400))
    depth, context, rows = (1, 64, 4) if bench.is_tiny else (4, 256, 32)
    config = model_config("modern", depth=depth, vocab_size=tokenizer.vocab_size, context=context)
    job = TrainJob(
        stage="base", model=config, tokenizer=str(bench.scratch / "tokenizer"), tokenizer_hash=tokenizer.hash,
        data=(str(data),), val=None, context=context, steps=STEPS, rows_per_step=rows, optim=OptimConfig(),
        schedule=ScheduleConfig(warmup_steps=5), seed=1, deterministic=True, save_every_s=0.0, keep=2,
    )  # fmt: skip
    segment = Segment(
        0, device_batch=rows, compiled=False, dtype="bf16" if bench.device == "cuda" else "fp32", attention="sdpa",
        reason="smoke test", threads=None if bench.device == "cuda" else 1,
    )  # fmt: skip
    folder = bench.scratch / name
    write_choices(folder, Choices({"device": Choice(bench.device, "smoke test", "flag")}, (segment,), {}, {}))
    write_json(folder / "config.json", job.as_json())
    return folder


def train_whole(folder: Path, bench: Bench) -> None:
    """Trains a job to its end. Raises UserError where it ends otherwise."""
    outcome = jobs.start(folder, bench.environment, jobs.Limits(seconds=WORKER_S)).wait()
    if outcome.outcome != "done":
        raise UserError(f"training ended as {outcome.outcome}: {outcome.message}", value=outcome.outcome)


def train_killed(folder: Path, bench: Bench) -> None:
    """Kills a job's worker in the middle, and trains it to its end. Raises UserError where it ended before."""
    job = jobs.start(folder, bench.environment, jobs.Limits(seconds=WORKER_S))
    while len(read_losses(folder)) < KILL_AFTER and job.process.poll() is None:
        time.sleep(0.01)  # between two looks at what another process writes
    job.process.kill()
    outcome = job.wait()
    if outcome.outcome != "killed":
        raise UserError(f"the worker ended as {outcome.outcome} before it was killed: {outcome.message}")
    say(f"killed after step {max(read_losses(folder))}, newest save {list_checkpoints(folder)[-1].name}")
    train_whole(folder, bench)


def read_losses(folder: Path) -> dict[int, float]:
    """Step -> loss of a job's log."""
    return {row["step"]: row["loss"] for row in read_log(folder / "log.jsonl", "step")}


def final_hashes(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the weights and moments in a job's last save."""
    files = read_json(list_checkpoints(folder)[-1] / "manifest.json")["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def generation_checks(folder: Path, bench: Bench) -> dict[str, bool]:
    """Whether the engine writes, twice the same, and what a model without a cache writes, in fp32."""
    device = torch.device(bench.device)
    model = load_model(folder, dtype="fp32", device=device)
    tokenizer = Tokenizer.load(bench.scratch / "tokenizer")
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in PROMPTS]
    requests = [Request(prompt, max_tokens=NUM_TOKENS, temperature=0.0) for prompt in prompts]
    with Engine(model, tokenizer) as engine:
        first, second = ([c[0].ids for c in engine.generate(requests)] for _ in range(2))
    naive = [generate_naive(model, prompt, max_tokens=NUM_TOKENS).ids for prompt in prompts]
    say(f"writes: {PROMPTS[0]}{tokenizer.decode(first[0])!r}")
    return {
        "the engine writes as many tokens as asked for": all(len(ids) == NUM_TOKENS for ids in first),
        "and the same ones again": first == second,
        "and those that a model without a cache writes": first == naive,
    }
