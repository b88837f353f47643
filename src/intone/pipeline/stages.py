"""The stages of a run and its evaluation, each in a worker under supervision, and what follows from how one ended"""

import contextlib
from pathlib import Path

from intone.config import TrainJob
from intone.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, DiskFull, UserError
from intone.jobs import DEFAULT_STALL_S, Limits, devices_of, last_step, planned
from intone.log import human_count, say
from intone.paths import read_json
from intone.pipeline.horizon import Horizon, StageWatch, rewrite
from intone.pipeline.plan_files import EVAL_FOLDER
from intone.prepare import ensure_data_of
from intone.records import Answer, Choices, Outcome, read_choices, read_outcome
from intone.runs import Run, with_state
from intone.supervisor import last_save, supervise
from intone.tune.background import compiled_meanwhile
from intone.tune.lookback import look_back


def run_stage(run: Run, stage: str, horizon: Horizon | None = None) -> None:
    """Trains one stage to its end. Raises KeyboardInterrupt where it was stopped, StageFailed otherwise.

    horizon: the minutes that the run is kept within; None: its steps are fixed.
    """
    folder = run.stage_folder(stage)
    if horizon is not None and last_step(folder) is None and not last_save(folder):
        horizon.at_border(stage)
    choices: Choices = read_choices(folder)
    rewrite(folder, steps=choices.num_steps(read_json(folder / "config.json")["steps"]))
    config = read_json(folder / "config.json")
    job = TrainJob.from_json(config)
    ensure_data_of(config)
    say(f"{stage}: {job.steps:,} steps of {step_words(job)}")
    watch = None if horizon is None else StageWatch(horizon, stage)
    with compiled_meanwhile(folder):
        outcome = supervise(folder, choices.environment, review=watch)
        if outcome.outcome == "bad_input" and ensure_data_of(config):  # a shard that was damaged in mid-run
            outcome = supervise(folder, choices.environment, review=watch)
    look_back(folder)
    check_outcome(run, stage, outcome)


def step_words(job: TrainJob) -> str:
    """What an optimizer step of a stage learns from."""
    if job.rollouts is None:
        return f"{human_count(job.rows_per_step * job.context)} tokens"
    return f"{job.rollouts.prompts:,} questions with {job.rollouts.samples:,} answers each"


def run_evaluation(run: Run) -> None:
    """The evaluation job of a run, in a worker like a stage."""
    folder = run.folder / EVAL_FOLDER
    done = read_outcome(folder)
    if not (folder / "config.json").exists() or (done is not None and done.outcome == "done"):
        return
    ensure_data_of(read_json(folder / "config.json"))
    say("evaluating")
    last = run.stage_folder(run.stages[-1])
    limits = Limits(stall_s=planned(last, "stall_s", DEFAULT_STALL_S))
    check_outcome(run, "evaluation", supervise(folder, read_choices(last).environment, limits=limits))


def check_outcome(run: Run, stage: str, outcome: Outcome) -> None:
    """Records how a stage ended. Raises where that was not `done`."""
    if outcome.outcome == "done":
        return
    with contextlib.suppress(DiskFull):  # that the disk is full must not hide how the stage ended
        with_state(run, outcome.outcome)
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    raise StageFailed(stage, outcome)


class StageFailed(Exception):
    """A stage ended in another outcome than done or stopped."""

    def __init__(self, stage: str, outcome: Outcome) -> None:
        super().__init__(f"{stage} ended as {outcome.outcome}: {outcome.message}")
        self.outcome = outcome


def failed_answer(run: Run, failure: StageFailed) -> Answer:
    """What a verb returns after a stage failed: that outcome; exit 2 where the person's data or disk was the cause."""
    outcome = failure.outcome
    fix = outcome.fix or "the same command goes on from the last save"
    error = UserError(str(failure), value=outcome.outcome, fix=fix)
    say(f"intone {run.verb}: {error}")
    code = EXIT_BAD_INPUT if outcome.outcome in ("bad_input", "disk_full") else EXIT_CHECK_FAILED
    return Answer(
        {}, run=run.name, path=str(run.folder), outcome=outcome.outcome, exit=code, error=error.as_json()
    )


def start_command(folder: Path) -> str:
    """What starts the job of a folder by hand."""
    devices = devices_of(folder)
    if devices == 1:
        return f"python -m intone.worker {folder}"
    return f"torchrun --standalone --nproc-per-node {devices} -m intone.worker {folder}"
