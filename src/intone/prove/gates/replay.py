"""The gate on results: they come from this run, are numbers, and are not those of another run shown again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.prove.gates.result import GateResult, Threshold, not_judged

NAME = "fresh results"
# file times are those of the kernel's last tick, up to 10 ms ago (Linux at 100 Hz); ten times that
CLOCK_SLACK_S = 0.1
MIN_EQUAL = 3  # losses in a row: two different trainings do not share one bit for bit, but one could be ln(V) exactly
THRESHOLD = Threshold(
    "each result was written after its run began, holds finite numbers, and no two runs that must differ (other seed, "
    f"other rows) have {MIN_EQUAL} equal losses in a row",
    "rule: fresh inputs, stale files never score (reference G8; Artemis' own list of traps)",
)


@dataclass(frozen=True)
class Written:
    """One run's results: what was asked with, the losses in order, and when the files were written.

    fresh_key: runs with different keys saw different rows or drew other numbers (seed, first step), so their losses
    must differ. began_at_s, written_at_s: time.time() when the run was started, and of the oldest file that was read.
    num_steps: how many losses were asked for.
    """

    name: str
    fresh_key: tuple[Any, ...]
    losses: tuple[float | None, ...]
    began_at_s: float
    written_at_s: float | None
    num_steps: int


def read_written(
    name: str, folder: Path, losses: Sequence[float | None], *, fresh_key: tuple[Any, ...], began_at_s: float,
    num_steps: int,
) -> Written:  # fmt: skip
    """The results of a job folder that a run has just filled. The older of a file's two times counts.

    Moving an old file here gives it a new change time, copying it a new modification time: either way one stays old,
    or its losses are somebody else's.
    """
    times = []
    for path in (folder / "log.jsonl", folder / "outcome.json"):
        if path.exists():
            state = path.stat()
            times.append(min(state.st_mtime, state.st_ctime))
    return Written(name, fresh_key, tuple(losses), began_at_s, min(times, default=None), num_steps)


def judge(runs: Sequence[Written]) -> GateResult:
    """Names the first run whose results are stale, incomplete, no numbers, or another run's."""
    evidence = {
        "runs": [run.name for run in runs], "losses": [len(run.losses) for run in runs],
        "written_after_s": [None if run.written_at_s is None else run.written_at_s - run.began_at_s for run in runs],
    }  # fmt: skip
    if not runs:
        return not_judged(NAME, "no run was recorded", "record each run with read_written")
    fix = "start from an empty folder and let the parent write the results; then run again"
    for run in runs:
        problem = own_problem(run)
        if problem:
            return GateResult(NAME, False, problem, THRESHOLD, evidence, fix=fix)
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if run.fresh_key == other.fresh_key:
                continue
            equal = num_shared(run.losses, other.losses)
            if equal:
                reason = f"{run.name} shows {equal} losses of {other.name} again, which had other rows or another seed"
                return GateResult(NAME, False, reason, THRESHOLD, evidence | {"shared_losses": equal}, fix=fix)
    reason = f"the results of {len(runs)} runs are new, complete and each their own"
    return GateResult(NAME, True, reason, THRESHOLD, evidence)


def own_problem(run: Written) -> str | None:
    """What is wrong with one run's results by themselves; None where nothing is."""
    if run.written_at_s is None:
        return f"{run.name} left no result"
    if run.written_at_s < run.began_at_s - CLOCK_SLACK_S:
        return f"a result of {run.name} is {run.began_at_s - run.written_at_s:.1f} s older than its run"
    if len(run.losses) != run.num_steps:
        return f"{run.name} has {len(run.losses)} losses, {run.num_steps} steps were asked for"
    for step, loss in enumerate(run.losses, 1):
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
            return f"the loss of {run.name} at step {step} is {loss!r}, no finite number"
    stuck = longest_run(run.losses)
    if stuck >= MIN_EQUAL:
        return f"{run.name} shows one loss {stuck} times in a row: different rows cannot have the same"
    return None


def longest_run(losses: Sequence[float | None]) -> int:
    """The most equal losses in a row."""
    most = count = 0
    for i, loss in enumerate(losses):
        count = count + 1 if i and loss == losses[i - 1] else 1
        most = max(most, count)
    return most


def num_shared(a: Sequence[float | None], b: Sequence[float | None]) -> int:
    """How many losses stand in stretches of MIN_EQUAL or more that both lists hold, wherever they begin; 0: none."""
    stretches = [
        {tuple(losses[i : i + MIN_EQUAL]) for i in range(len(losses) - MIN_EQUAL + 1)} for losses in (a, b)
    ]
    shared = stretches[0] & stretches[1]
    return len(shared) + MIN_EQUAL - 1 if shared else 0
