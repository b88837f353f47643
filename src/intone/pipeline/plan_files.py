"""The plan of a run on disk: written whole once, copied from another run, changed later only where a person may"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from intone import __version__
from intone.config import TrainJob
from intone.fields import shown
from intone.hardware import known_facts
from intone.jobs import planned
from intone.log import say
from intone.paths import read_json, write_json
from intone.planning import Plan
from intone.records import choice, read_choices, write_choices
from intone.resolving import Resolved, named_fields
from intone.runs import Run, find_run
from intone.settings import TrainingSettings

EVAL_FOLDER = "eval"
FORECAST = "forecast.json"  # what was planned
MACHINE = "machine.json"  # what is known about the machine that it was planned on


def plan_once(run: Run, like: str | None, make_plan: Callable[[], Plan]) -> None:
    """Writes the plan of a run that has none yet, a copy where it shall be like another; says which run is at work."""
    if is_planned(run):
        say(f"going on with run {run.name}")
        return
    say(f"run {run.name} in {run.folder}")
    write_json(run.folder / MACHINE, {"format": 1, "intone": __version__, "facts": known_facts().as_json()})
    write_plan(run, make_plan() if like is None else copy_plan(find_run(like), run))


def write_plan(run: Run, plan: Plan) -> None:
    """choices.json and config.json of every stage, and of the evaluation; config.json of the last stage last."""
    if plan.evaluation is not None:
        write_json(run.folder / EVAL_FOLDER / "config.json", plan.evaluation)
    write_json(run.folder / FORECAST, plan.forecast)
    for stage, (job, choices) in plan.stages.items():
        write_choices(run.stage_folder(stage), choices)
        write_json(run.stage_folder(stage) / "config.json", job.as_json())


def copy_plan(like: Run, run: Run) -> Plan:
    """The settled plan of like for the stages of run: only the folders that stages start from are renamed."""
    stages = {}
    for stage in run.stages:
        source = like.stage_folder(stage)
        job = TrainJob.from_json(read_json(source / "config.json"))
        before = Path(job.init_from) if job.init_from else None
        if before is not None and before.parent == like.folder and before.name in run.stages:
            job = replace(job, init_from=str(run.folder / before.name))
        stages[stage] = (job, read_choices(source))
    evaluation = None
    if (like.folder / EVAL_FOLDER / "config.json").exists() and run.stages == like.stages:
        evaluation = read_json(like.folder / EVAL_FOLDER / "config.json")
        evaluation["from"] = str(run.folder / Path(evaluation["from"]).name)
    forecast = read_json(like.folder / FORECAST)
    for name in ("stages", "beside"):  # its steps are given: they do not follow the clock
        forecast.pop(name, None)
    return Plan(stages, evaluation, forecast)


def is_planned(run: Run) -> bool:
    """Whether every stage has its config.json, the last file that planning writes."""
    return all((run.stage_folder(stage) / "config.json").exists() for stage in run.stages)


def depth_of(run: Run) -> int:
    """The depth of a planned run."""
    return TrainJob.from_json(read_json(run.stage_folder(run.stages[0]) / "config.json")).model.depth


def move(run: Run, origins: Mapping[str, Resolved]) -> None:
    """What a person asks for anew of a planned run, and may: the stages that are left go on with it."""
    fields = named_fields(TrainingSettings)
    asked = {
        name: entry for name, entry in origins.items()
        if name in fields and fields[name].metadata.get("movable") and entry.origin == "flag" and entry.value != "auto"
    }  # fmt: skip
    for stage in run.stages:
        folder = run.stage_folder(stage)
        choices = read_choices(folder)
        before = {name: choices.settings[name].value if name in choices.settings else None for name in asked}
        changed = {name: choice(entry) for name, entry in asked.items() if entry.value != before[name]}
        if changed and run.stage_state(stage) != "done":
            for name, new in changed.items():
                say(f"{stage}: {name} {shown(before[name])} -> {shown(new.value)}")
            write_choices(folder, replace(choices, settings={**choices.settings, **changed}))
            if "devices" in changed and planned(folder, "device", "cpu") == "cuda":
                share = changed["devices"].value / (before["devices"] or 1)
                job = TrainJob.from_json(read_json(folder / "config.json"))
                if job.peak_flops is not None:  # the rate of all of them, which only MFU asks for
                    write_json(folder / "config.json", replace(job, peak_flops=job.peak_flops * share).as_json())
