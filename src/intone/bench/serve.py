"""`intone bench serve`: tokens per second of 256 HTTP streams beside the engine alone, and 10,000 hostile requests."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from intone.bench.basics import result
from intone.bench.gpu_suites.synthetic import synthetic_tokenizer
from intone.bench.rows import row_path
from intone.bench.serve_hostile import hostile
from intone.bench.serve_settings import BenchServeSettings
from intone.child import PACKAGE_PARENT, START, ask_child
from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.chat import SPECIALS, Message, render_prompt
from intone.data.tokenizer import Tokenizer
from intone.errors import EXIT_CHECK_FAILED, UserError
from intone.hardware import load_facts, quiet
from intone.log import say
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.paths import home, read_json, write_json
from intone.records import (
    Answer,
    Choice,
    Choices,
    Outcome,
    ResultRow,
    Segment,
    append_result,
    read_choices,
    write_choices,
    write_outcome,
)
from intone.resolving import Resolved
from intone.runs import find_stage

COMMAND = "intone bench serve"
# added to special tokens: they have no text, and an answer that must not end would fall into a call without an end
WITHOUT_TEXT = -100.0
TIMEOUT_S = 300.0  # for a stream that says nothing; a step of a large model on a small machine takes seconds


def bench_serve(settings: BenchServeSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: the asked parts one after the other; each appends its row when it is complete."""
    out = Path(settings.out) if settings.out else row_path("serve")
    rows: list[ResultRow] = []
    lines: list[str] = []
    problems: list[str] = []
    for part in settings.parts:
        row, said, wrong = (streams_part if part == "streams" else hostile_part)(settings)
        problems += wrong
        lines += said
        if row is not None:
            append_result(out, row)
            rows.append(row)
            lines.append(f"{row.id}  {row.value:.4g} {row.unit}  [{row.low}, {row.high}]  n={row.n}")
    text = "\n".join([*lines, *problems, f"rows in {out}"])
    found = {"rows": [vars(row) for row in rows], "problems": problems}
    if problems:
        error = UserError(problems[0], value=len(problems), fix="the other problems stand above").as_json()
        return Answer(found, text, path=str(out), outcome="error", exit=EXIT_CHECK_FAILED, error=error)
    return Answer(found, text, path=str(out))


# --- streams --------------------------------------------------------------------------------------------------------


def streams_part(settings: BenchServeSettings) -> tuple[ResultRow | None, list[str], list[str]]:
    """cpu.serve.streams256_share: rate over HTTP by that of the engine alone, in turns -> (row, lines, problems)."""
    with model_to_serve(settings) as run, quiet(load_facts().folder, COMMAND):
        bias = {str(token): WITHOUT_TEXT for token in special_ids(run)}
        questions = [f"{number} times {number % 7 + 2}, and then?" for number in range(settings.streams)]
        with offline(run, questions, settings.tokens) as generate, serving(run) as url:
            bodies = [
                {"messages": [{"role": "user", "content": question}], "max_tokens": settings.tokens,
                 "min_tokens": settings.tokens, "seed": number, "temperature": 1, "top_k": None, "builtin_tools": [],
                 "logit_bias": bias, "stream": True, "stream_options": {"include_usage": True}}
                for number, question in enumerate(questions)
            ]  # fmt: skip
            asked = {"url": url, "bodies": bodies, "timeout_s": TIMEOUT_S}
            shares, gaps, firsts, problems = [], [], [], []
            for number in range(settings.rounds + 1):
                alone = generate()
                served = ask_child("intone.bench.serve_client", asked, timeout_s=20 * TIMEOUT_S)
                problems += served["problems"]
                rates = [entry["tokens"] / entry["seconds"] for entry in (alone, served)]
                words = "warming up" if number == 0 else f"round {number}"
                ordered = sorted(served["gaps_s"])
                middle, late = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
                say(
                    f"{words}: {rates[0]:,.0f} tokens/s alone, {rates[1]:,.0f} over HTTP: {rates[1] / rates[0]:.3f}; "
                    f"gaps {middle * 1e3:.0f} ms, 99% below {late * 1e3:.0f} ms: {late / middle:.2f} times"
                )
                if number:
                    shares.append(rates[1] / rates[0])
                    gaps.append(late / middle)
                    firsts.append(statistics.median(served["first_s"]))
    shares.sort()
    low, high = (shares[1], shares[-2]) if len(shares) >= 5 else (shares[0], shares[-1])
    row = result(
        "cpu.serve.streams256_share", statistics.median(shares), "share", low, high, len(shares), command_of(settings)
    )
    lines = [
        f"gap between events of one stream: the 99th percentile is {statistics.median(gaps):.2f} times the median",
        f"time to the first event, median over streams: {statistics.median(firsts):.2f} s",
    ]
    if statistics.median(gaps) >= 3:
        problems.append(f"99th percentile of the gaps is {statistics.median(gaps):.2f} times their median, not under 3")
    return (row if settings.streams == 256 and not problems else None), lines, problems


def special_ids(run: str) -> list[int]:
    """Ids of a run's tokens that are no text."""
    tokenizer = Tokenizer.load(Path(read_json(find_stage(run).folder / "config.json")["tokenizer"]))
    return [tokenizer.special(name) for name in SPECIALS]


def command_of(settings: BenchServeSettings) -> str:
    """The command that makes the row again."""
    model = f"--random-depth {settings.random_depth}" if settings.random_depth else f"--from {settings.from_run}"
    return f"{COMMAND} --parts streams {model} --tokens {settings.tokens} --rounds {settings.rounds}"


@contextlib.contextmanager
def offline(run: str, questions: Sequence[str], num_tokens: int) -> Iterator[Any]:
    """A function that has an engine of its own process answer all questions -> {tokens, seconds}."""
    place = find_stage(run)
    tokenizer = Tokenizer.load(Path(read_json(place.folder / "config.json")["tokenizer"]))
    shared = {"max_tokens": num_tokens, "min_tokens": num_tokens, "temperature": 1.0, "logprobs": False, "tools": False,
              "logit_bias": {token: WITHOUT_TEXT for token in special_ids(run)}}  # fmt: skip
    requests = [
        {"prompt": render_prompt([Message("user", question)], tokenizer), "seed": number, **shared}
        for number, question in enumerate(questions)
    ]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", START, "intone.bench.serve_offline"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=environment() | dict(read_choices(place.folder).environment),
        start_new_session=True,  # as the served engine: Linux shares a busy processor out by session
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"run": run, "arguments": {}, "requests": requests}) + "\n")
    process.stdin.flush()

    def generate() -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        found: dict[str, Any] = json.loads(process.stdout.readline())
        return found

    try:
        assert json.loads(process.stdout.readline())["ready"]
        yield generate
    finally:
        process.stdin.close()
        process.wait(60)


@contextlib.contextmanager
def serving(run: str, *flags: str) -> Iterator[str]:
    """`intone serve` as a process of its own -> its address."""
    command = [sys.executable, "-P", "-m", "intone", "serve", "--from", run, "--port", "0", "--json", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UserError("the server did not start", value=run, fix="what it said stands above")
        yield json.loads(line)["result"]["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def environment() -> dict[str, str]:
    """Variables with which a child finds this package."""
    search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "INTONE_PARENT": str(os.getpid())}


@contextlib.contextmanager
def model_to_serve(settings: BenchServeSettings) -> Iterator[str]:
    """The run of the settings, or the folder of a throw-away stage with random weights."""
    if settings.random_depth is None:
        yield settings.from_run
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch()) as folder:
        yield random_stage(Path(folder) / "sft", depth=settings.random_depth, vocab_size=4096, context=512)


def scratch() -> Path:
    """The folder for what is thrown away."""
    home().mkdir(parents=True, exist_ok=True)
    return home()


def random_stage(folder: Path, *, depth: int, vocab_size: int, context: int) -> str:
    """A finished stage whose weights are random, for speed does not depend on them -> its path."""
    config = model_config("modern", depth=depth, vocab_size=vocab_size, context=context)
    tokenizer = synthetic_tokenizer(vocab_size)
    tokenizer.save(folder / "tokenizer")
    job = TrainJob(
        stage="sft", model=config, tokenizer=str(folder / "tokenizer"), tokenizer_hash=tokenizer.hash, data=("none",),
        val=None, context=context, steps=1, rows_per_step=1, optim=OptimConfig(), schedule=ScheduleConfig(), seed=0,
        eval_tokens=context, save_every_s=60.0,
    )  # fmt: skip
    write_json(folder / "config.json", job.as_json())
    segment = Segment(0, device_batch=1, compiled=False, dtype="fp32", attention="sdpa", reason="random weights")
    write_choices(folder, Choices({"device": Choice("cpu", "random weights", "default")}, (segment,)))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.02 for name, value in GPT(config).state_dict().items()
    }
    save_checkpoint(
        folder, 1, model=config, weights=weights, optimizer={}, state={}, tokenizer_hash=tokenizer.hash
    )
    write_outcome(folder, Outcome("done", 1))
    return str(folder)


# --- hostile --------------------------------------------------------------------------------------------------------


def hostile_part(settings: BenchServeSettings) -> tuple[ResultRow | None, list[str], list[str]]:
    """cpu.serve.hostile_wrong_status, against a small model with random weights -> (row, lines, problems)."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch()) as folder:
        run = random_stage(Path(folder) / "sft", depth=1, vocab_size=265, context=256)
        flags = ["--client-timeout-s", "2", "--max-body-mib", "0.25", "--device", "cpu"]
        with serving(run, *flags) as url:
            found = asyncio.run(hostile(url, settings.requests, seed=settings.seed))
    command = f"{COMMAND} --parts hostile --requests {settings.requests} --seed {settings.seed}"
    row = result("cpu.serve.hostile_wrong_status", len(found.wrong), "answers", None, None, settings.requests, command)
    problems = [*found.wrong[:10], *found.leaks]
    return (row if not found.leaks else None), found.lines, problems
