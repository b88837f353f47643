"""Keeps one job going: starts its worker, reads how it ended, goes down a size or starts again, until it is over."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from intone import jobs
from intone.log import say
from intone.model.checkpoint import list_checkpoints, saved_step
from intone.records import EventRow, Outcome, cut_log, log_row, read_choices, read_outcome, write_choices

MAX_RESTARTS = 3  # in a row without a new save in between
KILLS_FOR_SMALLER = 2  # in a row without a save: one may be a person's, a second looks like want of memory


class Review(Protocol):
    """Looks at a job while it trains, and may plan the rest of it anew (pipeline/horizon.py)."""

    def wants_end(self) -> bool:
        """Whether the worker shall save and end for a new plan; asked twice a second."""

    def plan_anew(self, from_step: int) -> bool:
        """Writes the new plan from a save's step on; False where none was wanted: the worker was stopped by others."""


def supervise(
    folder: Path, env: Mapping[str, str], *, limits: jobs.Limits | None = None, review: Review | None = None
) -> Outcome:
    """Runs a job to its end and returns its last outcome.

    A worker that was killed starts again from the last save, and so does one that no longer gave a sign of life for
    the planned stall_s. One that ran out of memory, or is about to (train/guard.py), starts again with a new segment
    and the next smaller micro-batch of choices.json; so does one that was killed or aborted again before it
    could save: so ends who takes too much where nobody says why (containers, libraries). Without progress this is
    given up after three tries. One that the review asked to end starts again with the review's new plan. An outcome
    `done` on disk is returned as it is.
    """
    done = read_outcome(folder)
    if done is not None and done.outcome == "done":
        return done
    limits = limits or jobs.Limits(stall_s=jobs.planned(folder, "stall_s", jobs.DEFAULT_STALL_S))
    restarts, saved = 0, last_save(folder)
    while True:
        job = jobs.start(folder, env, limits)
        outcome = job.wait() if review is None else job.wait(review.wants_end)
        is_asked = review is not None and outcome.outcome == "stopped" and not job.interrupted
        if is_asked and review is not None and review.plan_anew(last_save(folder)):
            continue
        if outcome.outcome not in ("killed", "out_of_memory"):
            return outcome
        restarts = 1 if last_save(folder) > saved else restarts + 1
        saved = last_save(folder)
        if outcome.outcome == "out_of_memory":
            if not go_smaller(folder, saved, outcome):
                return outcome
            restarts = 0  # the list of sizes is finite
        elif restarts >= KILLS_FOR_SMALLER and jobs.may_want_memory(outcome) and go_smaller(folder, saved, outcome):
            continue
        elif restarts > MAX_RESTARTS:
            return outcome
        else:
            note(folder, saved, "restart", f"{outcome.message}; going on from step {saved:,}")


def last_save(folder: Path) -> int:
    """The step of the newest complete save, 0 where there is none."""
    saves = list_checkpoints(folder)
    return saved_step(saves[-1]) if saves else 0


def go_smaller(folder: Path, from_step: int, outcome: Outcome) -> bool:
    """Adds a segment with the next fall-back micro-batch from from_step on; False where there is none left.

    Segments that were planned for later steps stay, with at most that micro-batch. A job without a plan (an
    evaluation) has nothing to go down.
    """
    if not (folder / "choices.json").exists():
        return False
    choices = read_choices(folder)
    failed = choices.segment_at(max(from_step, jobs.last_step(folder) or 0))
    smaller = choices.next_fallback("device_batch", failed.device_batch)
    if smaller is None:
        return False
    reason = f"device_batch {failed.device_batch} -> {smaller}: {outcome.message}"
    before = [segment for segment in choices.segments if segment.from_step <= from_step]
    later = [segment for segment in choices.segments if segment.from_step > from_step]
    added = replace(before[-1], from_step=from_step, device_batch=min(before[-1].device_batch, smaller), reason=reason)
    later = [replace(segment, device_batch=min(segment.device_batch, smaller)) for segment in later]
    write_choices(folder, replace(choices, segments=(*before, added, *later)))
    note(folder, from_step, "smaller micro-batch", reason)
    return True


def note(folder: Path, step: int, event: str, message: str) -> None:
    """One line for people and one row in the job's log."""
    say(f"{event}: {message}")
    cut_log(folder / "log.jsonl", sys.maxsize)  # a row that the end of the worker tore in two
    log_row(folder / "log.jsonl", EventRow(step, event, message))
