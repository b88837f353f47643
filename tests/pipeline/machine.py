"""A machine on which planning and training are over at once, and the verbs on it."""

from dataclasses import replace

from intone.paths import write_json
from intone.pipeline.verb import run_pipeline, run_train
from intone.planning import Plan
from intone.records import Choices, EvalRow, Outcome, StepRow, log_row, write_outcome
from intone.resolving import Layer, resolve
from intone.runs import list_runs
from intone.settings import RunSettings, TrainSettings
from tests.tiny_jobs import ENVIRONMENT, SEGMENT

SKILL = {"score": 0.95, "low": 0.9, "high": 0.98, "num_items": 200}
STARTER = {"mean": 0.95, "low": 0.93, "high": 0.97, "skills": {"facts": SKILL, "story": SKILL}}
WRONG = {"skill": "facts", "question": "Who?", "expected": "Ada.", "got": "Bo.", "reason": "stop"}
BPB = {"value": 1.25, "low": 1.2, "high": 1.3, "num_bytes": 4096}


class Machine:
    """Stands in for planning and supervising; remembers what was asked of it."""

    def __init__(self, job):
        self.job = job
        self.planned = []
        self.started = []
        self.outcomes = {}  # stage -> outcome instead of done
        self.error = None  # of planning

    def plan_run(self, settings, origins, folder, *, started_s):
        self.planned.append(settings)
        if self.error is not None:
            raise self.error
        choices = Choices({}, (SEGMENT,), {"device_batch": (3, 1)}, ENVIRONMENT)
        jobs = {
            "base": self.job,
            "mid": replace(self.job, stage="mid", init_from=str(folder / "base")),
            "sft": replace(self.job, stage="sft", init_from=str(folder / "mid")),
        }
        evaluation = {"format": 1, "job": "evaluate", "from": str(folder / "sft")}
        forecast = {"format": 1, "steps": 27, "step_s": 0.5, "minutes": 2.0}
        return Plan({stage: (job, choices) for stage, job in jobs.items()}, evaluation, forecast)

    def plan_stage(self, settings, origins, folder, *, started_s):
        whole = self.plan_run(settings, origins, folder, started_s=started_s)
        return Plan({settings.stage: whole.stages[settings.stage]}, None, whole.forecast)

    def supervise(self, folder, env, limits=None, review=None):
        assert env == ENVIRONMENT
        self.limits = limits
        self.started.append(folder.name)
        outcome = self.outcomes.pop(folder.name, Outcome("done", 2))
        if outcome.outcome == "done" and folder.name == "eval":
            write_json(folder / "eval.json", {"format": 1, "starter": {**STARTER, "wrong": [WRONG]}})
        elif outcome.outcome == "done":
            for step in (1, 2):
                log_row(folder / "log.jsonl", StepRow(step, 160 * step, 3.0 / step, 1.0, 0.5, 0.0, 320.0, 7, False))
            log_row(folder / "log.jsonl", EvalRow(2, 0.1, {"bpb": BPB["value"]}))
            write_json(folder / "eval.json", {"format": 1, "step": 2, "bpb": BPB})
        write_outcome(folder, outcome)
        return outcome


def run(**flags):
    """`intone run` with these flags; a depth, so that nothing is measured for the name of the run."""
    given = flags if "like" in flags else {"depth": 1, **flags}
    return run_pipeline(*resolve(RunSettings, [Layer("flag", "test", given)]))


def train(**flags):
    given = flags if "like" in flags else {"depth": 1, **flags}
    return run_train(*resolve(TrainSettings, [Layer("flag", "test", given)]))


def names() -> set[str]:
    return {run.name for run in list_runs()[0]}
