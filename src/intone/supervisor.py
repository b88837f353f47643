"""Keeps one job going: starts its worker, reads how it ended, goes down a size or starts again, until it is over."""

from collections.abc import Mapping
from pathlib import Path

from intone import jobs
from intone.log import say
from intone.model.checkpoint import list_checkpoints
from intone.records import Choices, EventRow, Outcome, Segment, log_row, read_choices, read_outcome, write_choices

MAX_RESTARTS = 3  # in a row without a new save in between


def supervise(folder: Path, env: Mapping[str, str], *, limits: jobs.Limits | None = None) -> Outcome:
    """Runs a training job to its end and returns its last outcome.

    A worker that was killed starts again from the last save. One that ran out of memory starts again with a new
    segment and the next smaller micro-batch of choices.json. Without progress this is given up after three tries.
    An outcome `done` on disk is returned as it is.
    """
    done = read_outcome(folder)
    if done is not None and done.outcome == "done":
        return done
    restarts, saved = 0, last_save(folder)
    while True:
        outcome = jobs.start(folder, env, limits).wait()
        if outcome.outcome not in ("killed", "out_of_memory"):
            return outcome
        restarts = 1 if last_save(folder) > saved else restarts + 1
        saved = last_save(folder)
        if outcome.outcome == "out_of_memory":
            if not go_smaller(folder, saved, outcome):
                return outcome
            restarts = 0  # the list of sizes is finite
        elif restarts > MAX_RESTARTS:
            return outcome
        else:
            note(folder, saved, "restart", f"{outcome.message}; going on from step {saved:,}")


def last_save(folder: Path) -> int:
    """The step of the newest complete save, 0 where there is none."""
    saves = list_checkpoints(folder)
    return int(saves[-1].name.split("_")[1]) if saves else 0


def go_smaller(folder: Path, from_step: int, outcome: Outcome) -> bool:
    """Appends a segment with the next fall-back micro-batch to choices.json; False where there is none left."""
    choices: Choices = read_choices(folder)
    current: Segment = choices.segment_at(max(from_step, choices.segments[-1].from_step))
    smaller = choices.next_fallback("device_batch", current.device_batch)
    if smaller is None:
        return False
    reason = f"device_batch {current.device_batch} -> {smaller}: {outcome.message}"
    segment = Segment(
        from_step=from_step,
        device_batch=smaller,
        compiled=current.compiled,
        dtype=current.dtype,
        attention=current.attention,
        reason=reason,
        threads=current.threads,
    )
    kept = tuple(entry for entry in choices.segments if entry.from_step <= from_step)
    write_choices(folder, Choices(choices.settings, (*kept, segment), choices.fallbacks, choices.environment))
    note(folder, from_step, "smaller micro-batch", reason)
    return True


def note(folder: Path, step: int, event: str, message: str) -> None:
    """One line for people and one row in the job's log."""
    say(f"{event}: {message}")
    log_row(folder / "log.jsonl", EventRow(step, event, message))
