"""From launch to the end of step 50: what starting, compiling and warming up cost beside the steps themselves."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from intone.bench.rows import new_row
from intone.bench.train_losses import LOSS_STEP, TIMEOUT_S
from intone.bench.train_nanochat import Checkout, NanochatChild, best_way, describe, readable
from intone.bench.train_ours import bench_home, export_rows, plan_flags, prepare, read_job, run_job, write_job
from intone.bench.train_settings import BenchTrainSettings, command_line
from intone.bench.train_speed import our_plan
from intone.evals.intervals import ratio
from intone.hardware import load_facts, quiet
from intone.log import human_duration, say, table
from intone.records import ResultRow

LAUNCH_ROW = "cpu.train.first_50_steps.vs_nanochat"
NUM_STEPS = LOSS_STEP


def launch_case(settings: BenchTrainSettings, checkout: Checkout) -> list[ResultRow]:
    """Seconds from starting the process to the end of step 50: ours over nanochat's, launched in turns.

    Ours is the worker with the plan that `intone train --steps 50` settles for a run of that length; nanochat is its
    own compiled step in fp32, as shipped. Both read rows that were tokenised before, neither saves or evaluates.
    With launch_cache cold every launch compiles anew, as the first one on a machine does.
    """
    facts = load_facts()
    flags = plan_flags(settings, depth=settings.depth, batch_tokens=settings.batch_tokens, steps=NUM_STEPS)
    job, choices = read_job(prepare(flags))
    job = replace(job, steps=NUM_STEPS, keep=0, samples=())
    rows = export_rows(job, (NUM_STEPS + 1) * job.rows_per_step, settings.val_tokens)
    way = best_way(
        checkout, job.model, rows, facts, dtype="fp32", batch_tokens=settings.batch_tokens, sizes=settings.their_rows,
        fresh=settings.fresh,
    )  # fmt: skip

    def launch_ours(cache: Path) -> None:
        folder = write_job(bench_home() / "live" / "launch", job, choices)
        # where compiled code and built kernels are kept
        variables = {**choices.environment, "TORCHINDUCTOR_CACHE_DIR": str(cache), "INTONE_HOME": str(cache)}
        run_job(folder, replace(choices, environment=variables))

    def launch_theirs(cache: Path) -> None:
        child = NanochatChild(
            checkout, job.model, rows, way, facts, dtype="fp32", batch_tokens=settings.batch_tokens, warm=0, cache=cache
        )
        with child, readable(child):
            child.wait_ready()
            child.block(steps=NUM_STEPS, timeout_s=TIMEOUT_S)

    with quiet(facts.folder):
        ours, theirs = launches(launch_ours, launch_theirs, pairs=settings.launches, cache=settings.launch_cache)
    their_plan = f"fp32, {describe(way)}"
    lines = [
        [name, words, f"{np.median(seconds):.1f} s", f"{min(seconds):.1f}-{max(seconds):.1f} s"]
        for name, words, seconds in (("intone", our_plan(choices), ours), ("nanochat", their_plan, theirs))
    ]
    print(table(lines, header=["side", "plan", f"to step {NUM_STEPS}", "range"], left=2))
    cache = f"{settings.launch_cache} cache"
    baseline = f"nanochat {checkout.revision}, {their_plan}, {cache}: {np.median(theirs):.1f} s"
    return [
        new_row(
            LAUNCH_ROW,
            ratio(np.array(ours), np.array(theirs)),
            "ratio of seconds",
            n=settings.launches,
            baseline=baseline,
            command=command_line(settings, "first50"),
        )  # fmt: skip
    ]


def launches(
    ours: Callable[[Path], None], theirs: Callable[[Path], None], *, pairs: int, cache: str
) -> tuple[list[float], list[float]]:
    """Seconds of every launch of both sides, in the order A B B A. cache warm: one launch of each goes before."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    sides = [("ours", ours), ("theirs", theirs)]
    with tempfile.TemporaryDirectory(prefix="launches-", dir=bench_home()) as kept:
        if cache == "warm":
            for name, launch in sides:
                launch(Path(kept) / name)
        began_s = time.monotonic()
        for number in range(pairs):
            for name, launch in reversed(sides) if number % 2 else sides:
                folder = Path(kept) / (name if cache == "warm" else f"{name}-{number}")
                begin_s = time.perf_counter()
                launch(folder)
                seconds[name].append(time.perf_counter() - begin_s)
            left_s = (time.monotonic() - began_s) / (number + 1) * (pairs - number - 1)
            last = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items())
            say(f"launch {number + 1}/{pairs}   {last}   left {human_duration(left_s)}")
    return seconds["ours"], seconds["theirs"]
