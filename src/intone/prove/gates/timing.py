"""The gate on time: what a child says a block took fits the parent's clock and the processor time it used."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from intone.prove.gates.result import GateResult, Threshold, not_judged

NAME = "plausible times"
AROUND_S = 0.02  # what a command, an answer and a wake-up may take beside the block itself; guess
AROUND_SHARE = 0.05  # of the block, for the same; guess
CLOCK_SHARE = 0.001  # by which two monotonic clocks of one machine may disagree; guess
# share of a block in which the process neither computed, nor waited for a core, nor said that it waited for data; guess
MAX_IDLE = 0.25
TICK_S = 0.02  # processor time is counted in ticks of 10 ms; two of them
THRESHOLD = Threshold(
    f"the child's time is at most the parent's and at least that less {AROUND_S:g} s and {AROUND_SHARE:.0%}; on a "
    f"processor it is idle for at most {MAX_IDLE:.0%} of it, waits for a core and for data aside",
    "rule: the parent holds the clock (reference G8); the shares are guesses",
)

Side = Literal["baseline", "candidate"]


@dataclass(frozen=True)
class Reading:
    """A process at one moment, seen from outside: processor time of all its threads, and of its main thread's waits.

    queued_s: time in which the main thread could run but had no core, None where the system does not tell.
    """

    at_s: float  # time.monotonic()
    cpu_s: float
    queued_s: float | None


@dataclass(frozen=True)
class Block:
    """One timed block of one side. claimed_s: what the child says; the rest is the parent's.

    cpu_s None: not known, or a device computes, so idleness is not judged. data_s: of the block, waiting for data.
    """

    side: Side
    claimed_s: float
    seen_s: float
    cpu_s: float | None = None
    queued_s: float | None = None
    data_s: float = 0.0

    @property
    def idle_share(self) -> float | None:
        """Share of the claimed time in which the process did nothing that anybody knows of; None: not known."""
        if self.cpu_s is None or impossible(self):
            return None
        known_s = self.cpu_s + (self.queued_s or 0.0) + self.data_s + TICK_S
        return max(0.0, 1 - known_s / self.claimed_s)


def read_process(pid: int) -> Reading | None:
    """The process now, children left out; None where it has ended."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return Reading(time.monotonic(), times.user + times.system, queued_seconds(pid))
    return None


def queued_seconds(pid: int) -> float | None:
    """Seconds in which the main thread waited for a core since it began; None where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return None


def block(side: Side, claimed_s: float, begin: Reading | None, end: Reading | None, *, on_cpu: bool) -> Block:
    """A block between two readings of the child. A child that ended before the second gives an empty one.

    on_cpu False: a device computes meanwhile, so the processor's idleness means nothing.
    """
    if begin is None or end is None:
        return Block(side, claimed_s, 0.0)
    queued_s = None if begin.queued_s is None or end.queued_s is None else end.queued_s - begin.queued_s
    cpu_s = end.cpu_s - begin.cpu_s if on_cpu else None
    return Block(side, claimed_s, end.at_s - begin.at_s, cpu_s, queued_s)


def judge(blocks: Sequence[Block]) -> GateResult:
    """Rejected where a claim cannot be, and for a side that hides time or is idle in most of its blocks.

    In a few of its blocks only, the machine may have held it or the parent up: not judged.
    """
    if not blocks:
        return not_judged(NAME, "no block was timed", "measure at least one block of each side")
    shares = [found.idle_share for found in blocks]
    evidence: dict[str, Any] = {
        "blocks": len(blocks), "claimed_s": [b.claimed_s for b in blocks], "seen_s": [b.seen_s for b in blocks],
        "idle_share": shares,
    }  # fmt: skip
    for number, found in enumerate(blocks, 1):
        problem = impossible(found)
        if problem:
            reason = f"block {number} ({found.side}) {problem}"
            fix = "time the whole block, by a clock that the change cannot reach"
            return GateResult(NAME, False, reason, THRESHOLD, evidence, fix=fix)
    doubt = None
    for side in ("baseline", "candidate"):
        own = [found for found in blocks if found.side == side]
        for wrong, fix in ((untimed, UNTIMED_FIX), (idle, IDLE_FIX)):
            problems = [problem for found in own if (problem := wrong(found))]
            if not problems:
                continue
            reason = f"the {side} {problems[0]}, in {len(problems)} of {len(own)} blocks"
            if 2 * len(problems) > len(own):
                return GateResult(NAME, False, reason, THRESHOLD, evidence, fix=fix)
            doubt = doubt or reason
    if doubt:
        return GateResult(NAME, None, doubt, THRESHOLD, evidence, fix="measure on a quiet machine")
    known = [share for share in shares if share is not None]
    idle_word = f"idle at most {max(known):.0%}" if known else "idleness not looked at"
    return GateResult(NAME, True, f"{len(blocks)} blocks fit the parent's clock, {idle_word}", THRESHOLD, evidence)


UNTIMED_FIX = "time the whole block, with the device idle at both ends, by a clock that the change cannot reach"
IDLE_FIX = "take the sleep or the wait out of it; a wait for data must be counted as one"


def impossible(found: Block) -> str | None:
    """Why a claimed time cannot be, whatever the machine does; None where it can."""
    if isinstance(found.claimed_s, bool) or not isinstance(found.claimed_s, int | float) or not found.claimed_s > 0:
        return f"claims {found.claimed_s!r} s, which is no time"
    if not found.claimed_s <= found.seen_s * (1 + CLOCK_SHARE) + 1e-3:
        return f"claims {found.claimed_s:.3f} s, and only {found.seen_s:.3f} s passed"
    return None


def untimed(found: Block) -> str | None:
    """What the child leaves out of its claim; None where it is no more than a command and an answer take."""
    if found.seen_s - found.claimed_s <= AROUND_S + AROUND_SHARE * found.seen_s:
        return None
    return f"claims {found.claimed_s:.3f} s where {found.seen_s:.3f} s passed: work was left out of the timing"


def idle(found: Block) -> str | None:
    """How long the process did nothing; None where that is not much, or not known."""
    share = found.idle_share
    if share is None or share <= MAX_IDLE:
        return None
    return f"did nothing for {share:.0%} of {found.claimed_s:.3f} s: it slept, waited or was stopped"
