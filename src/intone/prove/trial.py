"""Short trainings in throw-away folders by the same worker that trains: what gates judge and tuning compares."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone import jobs
from intone.config import TrainJob
from intone.paths import read_json, write_json
from intone.records import Choices, Outcome, Segment, read_choices, read_log, write_choices

TIMEOUT_S = 300.0  # six times the slowest cold compile we have seen: 46 s, d4 on two busy cores

Run = Callable[[Path], Outcome]  # runs the job in a folder to its end, which must be its only effect


@dataclass(frozen=True)
class Side:
    """One of two ways to do the same: a job folder that is only read, and what runs copies of it."""

    folder: Path
    run: Run

    @classmethod
    def of(cls, folder: Path, *, timeout_s: float = TIMEOUT_S) -> "Side":
        """The folder's job under the installed code, by the worker."""
        return cls(folder, lambda copy: run_worker(copy, timeout_s=timeout_s))


@dataclass(frozen=True)
class Trial:
    """How a short training ended and its step rows; folder holds its log and saves while the trial is open."""

    folder: Path
    outcome: Outcome
    rows: Sequence[dict[str, Any]]

    @property
    def losses(self) -> tuple[float | None, ...]:
        """Nats per supervised token and step; None where not finite."""
        return tuple(row["loss"] for row in self.rows)


def run_worker(folder: Path, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Runs the job in a worker with the environment of its choices. Raises KeyboardInterrupt where it was stopped."""
    outcome = jobs.start(folder, read_choices(folder).environment, jobs.Limits(seconds=timeout_s)).wait()
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    return outcome


def run_job(folder: Path, job: TrainJob, choices: Choices, run: Run) -> Trial:
    """Writes a job into an empty folder and runs it there."""
    write_choices(folder, choices)
    write_json(folder / "config.json", job.as_json())
    outcome = run(folder)
    return Trial(folder, outcome, read_log(folder / "log.jsonl", "step"))


@contextlib.contextmanager
def trial(side: Side, scratch: Path, *, segments: tuple[Segment, ...] | None = None, **changes: Any) -> Iterator[Trial]:
    """A copy of the side's job below scratch with some settings changed, run; its folder is deleted at the end.

    It neither evaluates nor saves, unless changes say so (TrainJob's fields). segments replace those of the plan.
    Of held-out questions one of each kind is asked where it evaluates: answers are no part of what is looked at.
    Raises UserError for a folder that is no training job.
    """
    quiet: dict[str, Any] = {"keep": 0, "eval_every": None, "samples": (), "val": None, "save_every_s": 1e9}
    whole = TrainJob.from_json(read_json(side.folder / "config.json"))
    if whole.rollouts is not None:
        quiet["rollouts"] = dataclasses.replace(whole.rollouts, num_items=1)
    job = dataclasses.replace(whole, **(quiet | changes))
    choices = read_choices(side.folder)
    if segments is not None:
        choices = dataclasses.replace(choices, segments=segments)
    with jobs.trial_folder(scratch) as folder:
        yield run_job(folder, job, choices, side.run)
