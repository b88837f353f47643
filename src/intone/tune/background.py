"""Compiles a job's code while it trains eager: a process beside it, into the shared cache, behind the gate on losses

choices.json names the step of the swap; the worker waits there until this process is done (train/swap.py). Where the
compiled code trains otherwise or cannot be had, a segment without it is added before the worker may go on.
`python -m intone.tune.background FOLDER` is the process.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from intone import jobs
from intone.child import PACKAGE_PARENT, die_with_parent, end_group, last_line
from intone.config import TrainJob
from intone.hardware import load_facts
from intone.log import say
from intone.paths import FolderLock, read_json, write_json
from intone.records import FORMAT, Choices, Segment, read_choices, write_choices
from intone.train.swap import LOCK
from intone.tune import compiling
from intone.tune.precision import run_gate
from intone.tune.settle import compile_key, gate_key
from intone.tune.trial import TrialRunner
from intone.tune.trials import Trials

VERDICT = "compiled.json"  # in a job folder: the code that it will swap to is in the cache
NICE = 10  # training goes first where cores are short after all

Compile = Callable[[Path], dict[str, Any]]  # a job folder -> {"ok", "reason"}; blocks


def planned_swap(choices: Choices) -> Segment | None:
    """The segment that goes over to compiled code in mid-run and still counts; None: there is none."""
    for before, segment in zip(choices.segments, choices.segments[1:], strict=False):
        if segment.compiled and not before.compiled and choices.segment_at(segment.from_step) is segment:
            return segment
    return None


@contextlib.contextmanager
def compiled_meanwhile(folder: Path, compile_code: Compile | None = None) -> Iterator[None]:
    """Within it code is compiled for the swap that the job's plan names, unless that was done or passed before."""
    swap = planned_swap(read_choices(folder))
    if swap is None or not is_due(folder, swap):
        yield
        return
    child = Compiling(folder)
    lock = FolderLock(folder / LOCK, what="the code of this job")
    thread = threading.Thread(target=settle_swap, args=(folder, swap, lock, compile_code or child.run), daemon=True)
    thread.start()
    try:
        yield
    finally:
        child.end()
        thread.join()


def is_due(folder: Path, swap: Segment) -> bool:
    """Whether the job comes to the swap, was not there yet, and nobody compiled for it."""
    last = TrainJob.from_json(read_json(folder / "config.json")).steps
    return (jobs.last_step(folder) or 0) <= swap.from_step < last and not (folder / VERDICT).exists()


def settle_swap(folder: Path, swap: Segment, lock: FolderLock, compile_code: Compile) -> None:
    """Compiles, keeps the verdict where it is good, takes the swap back where it is not, and lets the worker go on."""
    with lock:
        answer = compile_code(folder)
        if answer.get("ok"):
            write_json(folder / VERDICT, {"format": FORMAT, "from_step": swap.from_step, "reason": answer["reason"]})
        elif answer.get("reason") is not None:  # none: we are ending, and the next start tries again
            stay_eager(folder, swap, answer["reason"])


def stay_eager(folder: Path, swap: Segment, reason: str) -> None:
    """Adds a segment that computes from the swap on as it was computed before."""
    choices = read_choices(folder)
    before = [segment for segment in choices.segments if segment.from_step <= swap.from_step]
    later = [segment for segment in choices.segments if segment.from_step > swap.from_step]
    eager = [segment for segment in before if not segment.compiled][-1]
    added = replace(eager, from_step=swap.from_step, reason=f"stays eager: {reason}")
    later = [replace(added, from_step=entry.from_step, device_batch=entry.device_batch, reason=entry.reason)
             if entry.compiled else entry for entry in later]  # fmt: skip
    write_choices(folder, replace(choices, segments=(*before, added, *later)))
    say(f"step {swap.from_step:,} is not compiled: {reason}")


class Compiling:
    """The process that compiles; end() may be called from another thread, also before it has begun."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_over = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    def run(self, folder: Path) -> dict[str, Any]:
        """{"ok", "reason"} of the child; {} where it was ended by end()."""
        search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(part for part in search if part)
        variables = {**os.environ, **read_choices(folder).environment, "PYTHONPATH": path}
        variables["INTONE_PARENT"] = str(os.getpid())
        with self._starting:
            if self._is_over.is_set():
                return {}
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "intone.tune.background", str(folder)], env=variables,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        output, errors = self._child.communicate()
        if self._is_over.is_set():
            return {}
        if self._child.returncode == 0:
            answer: dict[str, Any] = json.loads(last_line(output))
            return answer
        said = last_line(errors) or f"exit code {self._child.returncode}"
        return {"ok": False, "reason": f"compiling beside the run failed: {said}"}

    def end(self) -> None:
        """Kills the process where it runs."""
        self._is_over.set()
        with self._starting:
            if self._child is not None:
                with contextlib.suppress(ProcessLookupError):
                    end_group(self._child)


def compile_job(folder: Path) -> dict[str, Any]:
    """The child's work: the gate of the swap's segment, whose compiled trial fills the cache, and what it cost."""
    job, choices = TrainJob.from_json(read_json(folder / "config.json")), read_choices(folder)
    swap = planned_swap(choices)
    assert swap is not None, "compiled_meanwhile() looked"
    facts = load_facts()
    trials = Trials(facts)
    device = str(choices.settings["device"].value)
    runner = TrialRunner(
        job, device, swap.threads or 1, swap.device_batch, choices.environment, facts.folder / "trials",
        by_block=swap.by_block,
    )  # fmt: skip
    key = gate_key(facts, job.model, swap.dtype, by_block=swap.by_block)
    known = trials.find("gate", key)
    if known is not None:  # an earlier stage had the same code, which is in the cache
        return {"ok": bool(known.value), "reason": known.reason}
    gate = run_gate(swap.dtype, compiled=True, run_steps=runner.run_steps)
    if gate.origin == "measured":
        trials.record("gate", key, gate)
    compiled = next((result for key, result in runner.known.items() if key[1]), None)
    eager = next((result for key, result in runner.known.items() if key[0] == swap.dtype and not key[1]), None)
    is_cold = compiled is not None and compiled.first_step_s > 2 * compiling.WARM_S
    if gate.value and compiled is not None and eager is not None and is_cold:
        compiling.remember(
            trials, compile_key(facts, job.model, swap.dtype), eager_step_s=eager.step_s,
            compiled_step_s=compiled.step_s, compile_s=compiled.first_step_s, by_block=swap.by_block,
        )  # fmt: skip
    return {"ok": bool(gate.value), "reason": gate.reason}


if __name__ == "__main__":
    die_with_parent()
    os.nice(NICE)
    print(json.dumps(compile_job(Path(sys.argv[1]))))
