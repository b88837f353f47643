"""Settles the micro-batch of a run: searched where that pays, remembered while it still holds, or by rule."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.hardware import Facts, quiet
from intone.log import human_bytes, say
from intone.records import Choice, Segment
from intone.resolving import Resolved
from intone.tune.batch import Method, passes_of, search_batch
from intone.tune.found import Found, ProbeFailed, Size
from intone.tune.paying import expected, remember, search_key
from intone.tune.probing import WorkerProbe
from intone.tune.settle import available_bytes, settle_device_batch
from intone.tune.trials import Trials, code_fingerprint

QUESTION = "question"  # beside a search's numbers: the key that it is kept under


@dataclass(frozen=True)
class BatchQuestion:
    """What a micro-batch is searched for: a job on this machine, and how its steps are computed."""

    job: TrainJob
    segment: Segment  # its device_batch does not matter
    device: str
    devices: int  # processes that share a step
    environment: dict[str, str]
    scratch: Path

    @property
    def rows_per_device(self) -> int:
        return -(-self.job.rows_per_step // self.devices)

    def probe(
        self, *, first_rows: int = 1, first_batch: int | None = None, compiled: bool | None = None,
    ) -> WorkerProbe:  # fmt: skip
        """The real worker. compiled None: as planned."""
        segment = self.segment if compiled is None else replace(self.segment, compiled=compiled)
        if self.segment.compiled and not segment.compiled:
            segment = replace(segment, attention="sdpa")  # mask and softmax fuse in compiled code only
        return WorkerProbe(
            self.job, segment, self.device, self.environment, self.scratch, first_rows=first_rows,
            first_batch=first_batch,
        )  # fmt: skip


def settle_batch(
    asked: Resolved, facts: Facts, trials: Trials, question: BatchQuestion, *, run_s: float | None,
    method: Method = "line", probe: Callable[..., WorkerProbe] | None = None, start_s: float | None = None,
) -> tuple[Choice, Found | None]:  # fmt: skip
    """(the choice, the search behind it or None). run_s: expected seconds of training; None: search in any case.

    A number that was asked for is checked and kept. A search must pay for itself within run_s; start_s: what the start
    of a worker took here. A kept answer is taken where it fits in the memory that is free: the first steps of the run
    show whether it still holds (lookback.py). Raises UserError as settle_device_batch does.
    """
    rule = settle_device_batch(
        asked, facts, question.job.model, rows_per_step=question.rows_per_device, dtype=question.segment.dtype,
        compiled=question.segment.compiled,
    )  # fmt: skip
    if asked.value != "auto":
        return rule, None
    make_probe = probe or question.probe
    key = batch_key(facts, question, method)
    kept = trials.find("device_batch", key)
    found = None if kept is None else found_in(kept)
    if kept is not None and found is not None:
        refused = no_room(found, question, facts)
        if refused is None:
            return kept, found
        say(f"the micro-batch kept for this question is searched again: {refused}")
    if question.device == "mps":
        return replace(rule, reason=f"{rule.reason}; not measured: MPS does not tell its peak memory"), None
    paying_key = search_key(facts, question.segment, question.device)
    if run_s is not None:
        expects = expected(trials, paying_key, question.device, start_s=start_s)
        if not expects.pays(run_s):
            return replace(rule, reason=f"{rule.reason}; {expects.why_not(run_s)}"), None
    with quiet(facts.folder, "the search for a micro-batch"):
        try:
            found = search(question, facts, method, make_probe)
        except ProbeFailed as error:
            return replace(rule, reason=f"{rule.reason}; by rule, since a probe failed: {error}"), None
    settled = as_choice(found, key)
    trials.record("device_batch", key, settled)
    remember(trials, paying_key, found, rule.value)
    return settled, found


def search(
    question: BatchQuestion, facts: Facts, method: Method, make_probe: Callable[..., WorkerProbe]
) -> Found:  # fmt: skip
    """Probes in a child. Compiled code is compiled for the chosen size only, since each compile costs more than the
    search may: sizes are then compared eager, whose passes have the larger overhead and need the more memory.
    Raises ProbeFailed.
    """
    begin_s = time.monotonic()
    rows = question.rows_per_device
    with make_probe(compiled=False) as worker:
        free = free_bytes(worker, question, facts)
        found = search_batch(worker, rows, free, method=method)
        if free is not None and (size_of(found).growth_bytes or 0) > free / 2:
            found = with_moments(found, worker, free)
        found = replace(found, seconds=time.monotonic() - begin_s, start_bytes=worker.start_bytes)
    if not question.segment.compiled:
        return found
    with make_probe(first_rows=found.rows, compiled=True) as worker:
        passes = min(2, passes_of(rows, found.rows))
        sample = worker(found.rows, passes, 3)
    step_s = passes_of(rows, found.rows) * sample.pass_s + sample.update_s
    reason = f"{found.reason}, compared eager; compiled {step_s:.3g} s, {human_bytes(sample.growth_bytes)}"
    return replace(
        found, method=f"{found.method}, eager", step_s=step_s, predicted_bytes=sample.growth_bytes, line_bytes=None,
        reason=reason,
    )


def size_of(found: Found) -> Size:
    """The chosen size on the curve."""
    return next(size for size in found.curve if size.rows == found.rows)


def with_moments(found: Found, worker: WorkerProbe, free: int) -> Found:
    """The choice after its evaluation and save were measured too: the next smaller sizes where those do not fit."""
    for size in sorted(found.curve, key=lambda size: size.rows, reverse=True):
        if size.rows > found.rows or size.step_s is None:
            continue
        try:
            growth = worker(size.rows, min(2, size.passes), 1, moments=True).growth_bytes
        except ProbeFailed as error:
            if not error.out_of_memory:
                raise
            continue
        if growth is None or growth <= free - (found.margin_bytes or 0):
            note = f"{found.reason}; with an evaluation and a save {human_bytes(growth)}"
            return replace(
                found, rows=size.rows, step_s=size.step_s, predicted_bytes=growth, line_bytes=None, reason=note
            )  # fmt: skip
    return found


def free_bytes(worker: WorkerProbe, question: BatchQuestion, facts: Facts) -> int | None:
    """What the memory of one process may grow by: the least free of all devices; a CPU's memory is shared by all."""
    free = worker.free_bytes
    if free is None or question.devices == 1:
        return free
    if question.device == "cpu":
        return (free - (question.devices - 1) * worker.start_bytes) // question.devices
    least = facts.gpu_memory_free_bytes  # of the fullest GPU, before anything of ours was there
    return free if least is None else min(free, least - worker.start_bytes)


def no_room(found: Found, question: BatchQuestion, facts: Facts) -> str | None:
    """Why a kept answer cannot be used now: less memory is free than it needs; None: it can.

    Whether its steps still are what they were shows in the first steps of the run that takes it (lookback.py).
    """
    available = available_bytes(facts)
    if available is None or found.predicted_bytes is None:
        return None
    on_cpu = question.devices if question.device == "cpu" else 1
    need = ((found.start_bytes or 0) + found.predicted_bytes) * on_cpu
    return None if need <= available else f"{human_bytes(need)} are needed and {human_bytes(available)} free"


def as_choice(found: Found, key: dict[str, Any]) -> Choice:
    """What choices.json keeps of a search that answered this question."""
    beat = []
    for size in found.curve:
        if size.rows == found.rows:
            continue
        if size.step_s is None:
            beat.append({"value": size.rows, "why": "memory ran out"})
            continue
        rate = found.step_s / size.step_s
        need = "" if size.growth_bytes is None else f", {human_bytes(size.growth_bytes)}"
        beat.append({"value": size.rows, "why": f"{rate:.1%} of its speed{need} ({size.how})"})
    return Choice(found.rows, found.reason, "measured", tuple(beat), found.as_json() | {QUESTION: key})


def found_in(choice: Choice) -> Found | None:
    """The search behind a choice; None where it comes from a rule, or the search no longer holds."""
    if not choice.measured or QUESTION not in choice.measured:
        return None
    return Found.from_json({name: value for name, value in choice.measured.items() if name != QUESTION})


def batch_key(facts: Facts, question: BatchQuestion, method: Method) -> dict[str, Any]:
    """What a micro-batch depends on (training.md 3.2, item 10); torch's version is in every key of a trial."""
    gib = None if facts.memory_bytes is None else round(facts.memory_bytes / 2**30)
    free = facts.gpu_memory_free_bytes if question.device == "cuda" else None
    segment = question.segment
    return {
        "device": question.device, "gpu": facts.gpu_name, "sms": facts.gpu_sms, "memory_gib": gib,
        "gpu_free_gib": None if free is None else round(free / 2**30), "devices": question.devices,
        "config": question.job.model.as_json(), "context": question.job.context,
        "rows_per_step": question.job.rows_per_step, "optim": question.job.optim.__dict__, "stage": question.job.stage,
        "dtype": segment.dtype, "attention": segment.attention, "kernels": segment.kernels,
        "compiled": segment.compiled, "by_block": segment.by_block, "threads": segment.threads,
        "head_pieces": segment.head_pieces, "method": method,
        "code": code_fingerprint("model", "train", "tune/batch.py", "tune/found.py", "tune/probing.py"),
    }  # fmt: skip
