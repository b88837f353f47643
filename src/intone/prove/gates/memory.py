"""The gate on memory: what a plan needs at its worst moment leaves a margin of what is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intone.errors import OUTCOMES
from intone.hardware import Facts
from intone.log import human_bytes
from intone.prove.gates.result import GateResult, Threshold, not_judged
from intone.prove.trial import Trial

NAME = "memory margin"
MARGIN = 0.15  # of what is available, where nothing better is known (the case study's; DESIGN, Tune)


@dataclass(frozen=True)
class Memory:
    """The worst moment of a run against what it may use.

    available_bytes: what the run can have in all, its own share included. num_retries: how often the allocator had
    to give memory back and try again, None where it does not tell. what: the runs or shapes that were looked at.
    """

    peak_bytes: int | None
    available_bytes: int | None
    outcome: str = "done"
    num_retries: int | None = None
    what: str = "a training"


def of_trial(found: Trial, facts: Facts) -> Memory:
    """The memory of a trial on this machine. CUDA: allocated bytes of the device; else resident bytes of the worker."""
    peaks = [row["peak_bytes"] for row in found.rows if row["peak_bytes"] is not None]
    available = facts.gpu_memory_free_bytes if facts.device == "cuda" else facts.memory_available_bytes
    what = f"a training of {len(found.rows)} steps"
    return Memory(max(peaks, default=None), available, found.outcome.outcome, what=what)


def judge(memory: Memory, *, margin: float = MARGIN) -> GateResult:
    """Passed where the peak leaves the margin free and the allocator never had to try twice."""
    assert memory.outcome in OUTCOMES, memory.outcome
    threshold = Threshold(
        f"the peak leaves {margin:.0%} of the available memory free, and no allocation had to be tried again",
        "the case study's margin" if margin == MARGIN else "margin given by the caller",
    )
    peak, available = memory.peak_bytes, memory.available_bytes
    evidence: dict[str, Any] = {
        "peak_bytes": peak, "available_bytes": available, "margin": margin, "retries": memory.num_retries,
    }  # fmt: skip
    fix = "use a smaller --device-batch; the same recipe then takes more, smaller passes"
    if memory.outcome == "out_of_memory":
        return GateResult(NAME, False, f"memory ran out in {memory.what}", threshold, evidence, fix=fix)
    if memory.outcome != "done":
        reason = f"{memory.what} ended with {memory.outcome.replace('_', ' ')}: its peak is not the plan's"
        return not_judged(NAME, reason, "run it to its end")
    if memory.num_retries:
        reason = f"the allocator had to try {memory.num_retries} times again in {memory.what}"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if peak is None or available is None or available <= 0:
        unknown = "the peak" if peak is None else "the available memory"
        return not_judged(NAME, f"{unknown} is unknown here", "run where the system tells (Linux, or a CUDA device)")
    free = 1 - peak / available
    evidence["free_share"] = free
    measured = f"peak {human_bytes(peak)} of {human_bytes(available)} available in {memory.what}"
    if free < margin:
        left = f"leaves {free:.1%}" if free >= 0 else f"is {-free:.1%} more than there is"
        return GateResult(NAME, False, f"{measured} {left}, asked are {margin:.0%}", threshold, evidence, fix=fix)
    return GateResult(NAME, True, f"{measured}, {free:.0%} free", threshold, evidence)


def worst(memories: Sequence[Memory]) -> Memory:
    """The memory with the highest peak, or the first that did not end well: what a gate has to judge of several."""
    assert memories, "no memory was recorded"
    failed = [memory for memory in memories if memory.outcome != "done" or memory.peak_bytes is None]
    return failed[0] if failed else max(memories, key=lambda memory: memory.peak_bytes or 0)
