"""Generation on a GPU beside nanochat: one text at a time, and an evaluation's many prompts; bytes per step"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from intone.bench.gpu_suites.bench import Bench
from intone.bench.infer_grid import step_bytes
from intone.bench.infer_side import shape_of
from intone.config import ModelConfig
from intone.errors import UserError
from intone.evals.intervals import ratio
from intone.log import say
from intone.prove.live import LineChild, LiveFailed

DRIVER = Path(__file__).parents[1] / "foreign" / "nanochat_infer.py"
REVISION = "nanochat 92d63d4"
ROUNDS = 5
EVALUATION_ROUNDS = 3  # nanochat takes seconds for each of its texts
COLD_STARTS = 3
COPY_BYTES_PER_S = 4.3e12  # measured on an H200 (inference.md section 8): the roof of MBU
DEPTHS = {False: (12, 24), True: (2,)}  # by is_tiny
SECONDS = {2: 1.0, 12: 170.0, 24: 90.0}  # an H200 was cut off at 126 s of depth 12; 24: guess
# prompt and new tokens of one text; prompts, longest prompt, new tokens of an evaluation, and what nanochat is given
ONE = {False: (64, 128), True: (5, 4)}
EVALUATION = {False: (1319, 160, 256, 1), True: (7, 9, 4, 1)}


def infer(bench: Bench) -> None:
    """Rows infer.dN.b1.vs_nanochat, infer.dN.b1.mbu, infer.gsm8k_loop.vs_nanochat and infer.cold_start_s."""
    beside_nanochat(bench)
    if bench.may("cold starts", "infer.cold_start_s", seconds=20.0 * COLD_STARTS):
        cold_start(bench)


def beside_nanochat(bench: Bench) -> None:
    """Both depths, and an evaluation's prompts at the first."""
    for depth in DEPTHS[bench.is_tiny]:
        names = [f"infer.d{depth}.b1.vs_nanochat", f"infer.d{depth}.b1.mbu"]
        is_loop = depth == DEPTHS[bench.is_tiny][0]
        names += ["infer.gsm8k_loop.vs_nanochat"] if is_loop else []
        if bench.nanochat is None:
            bench.lacks(
                "generation beside nanochat: give --nanochat CHECKOUT, and --nanochat-python where it needs one"
            )
            return
        if bench.may(f"depth {depth} beside nanochat", *names, seconds=SECONDS[depth]):
            beside(bench, depth, is_loop=is_loop)


def beside(bench: Bench, depth: int, *, is_loop: bool) -> None:
    """The rows of one depth. Raises UserError where a side fails."""
    asked = description(bench, depth)
    config = shape_of(asked)
    words = [sys.executable, "-m", "intone.bench.infer_side", json.dumps(asked)]
    try:
        with (
            bench.quiet(),
            LineChild(words, bench.environment, name="intone") as ours,
            LineChild(command(bench, config), {"HF_HUB_OFFLINE": "1"}, name="nanochat") as theirs,
        ):
            ours.wait_ready()
            facts = theirs.wait_ready().facts
            baseline = f"{REVISION}, {facts.get('dtype')}, one process a side, in turns"
            one_text(bench, config, str(asked["dtype"]), ours, theirs, baseline)
            if is_loop:
                evaluation(bench, config, ours, theirs, baseline)
    except LiveFailed as failure:
        raise UserError(failure.outcome.message, value=failure.outcome.outcome, fix=failure.outcome.fix) from failure


def description(bench: Bench, depth: int) -> dict[str, Any]:
    """What infer_side.py is asked for."""
    return {
        "preset": "modern", "depth": depth, "vocab_size": 300 if bench.is_tiny else 32_768,
        "context": 64 if bench.is_tiny else 2048, "dtype": "fp32" if bench.device == "cpu" else "bf16",
        "weights": "auto", "threads": 0, "device": bench.device, "slots": None,
    }  # fmt: skip


def cold_start(bench: Bench) -> None:
    """Seconds from the launch of a process to the first token, each time with an empty INTONE_HOME."""
    asked, folder = description(bench, DEPTHS[bench.is_tiny][0]), bench.scratch / "cold"

    def run(name: str, *words: str, **variables: str) -> str:
        command = [sys.executable, "-m", f"intone.bench.{name}", *words]
        environment = {**os.environ, **bench.environment, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout

    run("infer_side", "--save", str(folder), json.dumps(asked))
    seconds = []
    with bench.quiet():
        for number in range(COLD_STARTS):
            home = str(bench.scratch / f"home-{number}")
            said = run(
                "infer_cold", str(folder), str(asked["dtype"]), "auto", bench.device, INTONE_HOME=home,
                INTONE_BENCH_BEGIN=repr(time.monotonic()),
            )  # fmt: skip
            found = json.loads(said.splitlines()[-1])
            seconds.append(float(found["seconds"]))
            say("cold: " + ", ".join(f"{name} {value:.2f} s" for name, value in found["parts"].items()))
    seconds.sort()
    bench.row(
        "infer.cold_start_s", statistics.median(seconds), "s", low=seconds[0], high=seconds[-1], n=len(seconds),
        baseline=f"depth {asked['depth']}, nothing kept from earlier starts but what the system caches of files",
    )  # fmt: skip


def one_text(bench: Bench, config: ModelConfig, dtype: str, ours: LineChild, theirs: LineChild, baseline: str) -> None:
    """Seconds per token of one text, its prompt's taken off by a text of one token."""
    prompt_tokens, new_tokens = ONE[bench.is_tiny]
    steps: dict[str, list[float]] = {"ours": [], "theirs": []}
    for child in (ours, theirs):  # captures, and whatever libraries make at their first call
        for number, tokens in enumerate((1, new_tokens)):
            child.block(prompts=make_prompts(config, 1, prompt_tokens, seed=ROUNDS + number), new_tokens=tokens)
    for number in range(ROUNDS):
        for name, child in (("ours", ours), ("theirs", theirs)):
            prompts = make_prompts(config, 2, prompt_tokens, seed=number)
            first = child.block(prompts=prompts[:1], new_tokens=1)["seconds"]
            whole = child.block(prompts=prompts[1:], new_tokens=new_tokens)["seconds"]
            steps[name].append(max(whole - first, 1e-6) / (new_tokens - 1))
    found = ratio(np.array(steps["theirs"]), np.array(steps["ours"]))
    name = f"infer.d{config.depth}.b1"
    bench.row(f"{name}.vs_nanochat", found.value, "x", low=found.low, high=found.high, n=ROUNDS, baseline=baseline)
    num_bytes = step_bytes(config, 1, prompt_tokens + new_tokens // 2, dtype, dtype)
    shares = sorted(num_bytes / step / COPY_BYTES_PER_S for step in steps["ours"])
    bench.row(
        f"{name}.mbu", statistics.median(shares), "share", low=shares[0], high=shares[-1], n=ROUNDS,
        baseline=f"{num_bytes:,} bytes a step (matrices, seen keys and values, table rows) over 4.3 TB/s",
    )  # fmt: skip
    say(f"per token: intone {1e3 * min(steps['ours']):.3f} ms, nanochat {1e3 * min(steps['theirs']):.3f} ms")


def evaluation(bench: Bench, config: ModelConfig, ours: LineChild, theirs: LineChild, baseline: str) -> None:
    """Tokens per second of an evaluation's prompts, all of them together against some of them one by one."""
    num_prompts, longest, new_tokens, share = EVALUATION[bench.is_tiny]
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours.block(prompts=make_prompts(config, num_prompts, longest, seed=99, is_mixed=True), new_tokens=2)
    for number in range(EVALUATION_ROUNDS):
        prompts = make_prompts(config, num_prompts, longest, seed=100 + number, is_mixed=True)
        for name, child, part in (("ours", ours, prompts), ("theirs", theirs, prompts[:share])):
            found: dict[str, Any] = child.block(prompts=part, new_tokens=new_tokens)
            say(f"{name}: {len(part):,} prompts, {found['tokens'] / found['seconds']:,.0f} tokens/s")
            rates[name].append(found["tokens"] / found["seconds"])
    found_ratio = ratio(np.array(rates["ours"]), np.array(rates["theirs"]))
    bench.row(
        "infer.gsm8k_loop.vs_nanochat", found_ratio.value, "x", low=found_ratio.low, high=found_ratio.high,
        n=EVALUATION_ROUNDS,
        baseline=f"{baseline}; {num_prompts:,} prompts of up to {longest} tokens, {new_tokens} new ones, greedy; "
        f"nanochat on {share} of them",
    )  # fmt: skip


def make_prompts(config: ModelConfig, count: int, length: int, *, seed: int, is_mixed: bool = False) -> list[list[int]]:
    """Random prompts of one length, or of lengths from a quarter of it on."""
    rng = np.random.default_rng([seed, count])
    lengths = rng.integers(max(1, length // 4), length + 1, count) if is_mixed else [length] * count
    return [rng.integers(0, config.vocab_size - 9, size).tolist() for size in lengths]


def command(bench: Bench, config: ModelConfig) -> list[str]:
    """The words that start nanochat's driver with the same shapes."""
    assert bench.nanochat_python is not None and bench.nanochat is not None, "a comparison has a checkout"
    numbers = {
        "depth": config.depth, "context": config.context, "vocab-size": config.vocab_size,
        "aspect-ratio": config.width // config.depth, "head-width": config.head_width,
    }  # fmt: skip
    words = [bench.nanochat_python, str(DRIVER), "--nanochat", str(bench.nanochat), "--device", bench.device]
    words += ["--window-pattern", config.window_pattern]
    return words + [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
