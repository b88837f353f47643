"""`intone optimise STAGE`: the round on a stage of ours, its tables, its report, and the preset of what was kept"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intone import jobs
from intone.config import TrainJob
from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.fields import flag_of, shown
from intone.ground import Settled
from intone.hardware import environment, load_facts
from intone.log import table
from intone.optimise.against import against_stage
from intone.optimise.ledger import Ledger
from intone.optimise.report import expected_words
from intone.optimise.rounds import known_at_a_stop, new_folder, rounds, unfinished
from intone.optimise.settings import OF_STAGES, TRAINED, OptimiseSettings
from intone.optimise.stages import served
from intone.optimise.stages.plan import described
from intone.optimise.stages.preset import preset_of, preset_words
from intone.optimise.stages.report import write_stage_report
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.target import WORKER, Target, with_worker
from intone.optimise.stages.words import WIDTH, bottlenecks_text, round_text, time_text
from intone.paths import disk_errors, home, read_json, write_json
from intone.planning import plan_stage
from intone.planning_rl import plan_rl
from intone.records import Answer, choice, read_choices, write_choices
from intone.resolving import Layer, Resolved, named_fields, resolve
from intone.runs import find_stage
from intone.settings import TrainSettings
from intone.tune.settle import settle_device

DATA_STEPS = 50  # enough text for so many steps: speed does not depend on more
PRESET = "preset.json"


def optimise_stage(settings: OptimiseSettings, origins: Mapping[str, Resolved]) -> Answer:
    """The verb for a stage of ours. Raises UserError."""
    if settings.against is not None:
        return regressed(settings, origins)
    round_ = opened(settings, origins)
    if settings.analyse_only:
        with known_at_a_stop(round_.ledger, lambda: write_stage_report(round_.folder)):
            text, result = analysed(round_)
        report = write_stage_report(round_.folder)
        return Answer(result, f"{text}\n\nreport: {report.html}", path=str(round_.folder))
    with known_at_a_stop(round_.ledger, lambda: write_stage_report(round_.folder)):
        round_.run()
    return finished(round_)


def regressed(settings: OptimiseSettings, origins: Mapping[str, Resolved]) -> Answer:
    """The stage by the code of a revision against this code. Raises UserError."""
    assert settings.against is not None, "the verb looked"
    if settings.stage == "pipeline":
        fix = f"one after the other: intone optimise sft --like {settings.like}, then infer"
        raise UserError("--against takes one stage at a time", value="pipeline", fix=fix)
    with jobs.trial_folder(home() / "trials") as scratch:
        target = worked(make_target(settings, origins, scratch), settings)
        part, name = target.parts[0], str(settings.stage)
        return against_stage(target, part, settings.against, quick=settings.quick, name=name)


def finished(round_: StageRound) -> Answer:
    """What a round that came to its end says, with its preset and report written."""
    preset = preset_of(round_)
    write_json(round_.folder / PRESET, preset)
    report = write_stage_report(round_.folder)
    lines = [round_text(round_.ledger), preset_words(round_, preset), f"report: {report.html}"]
    return Answer(result_of(round_), "\n\n".join(filter(None, lines)), path=str(round_.folder))


def analysed(round_: StageRound) -> tuple[str, dict[str, Any]]:
    """The findings and the plan of every part as it is, in words and as JSON."""
    texts: list[str] = []
    found: dict[str, Any] = {"id": round_.folder.name}
    for part in round_.target.parts:
        signals, findings = round_.analyse(part)
        plan = round_.plan(part, signals, findings)
        rows = [
            [item.title[:WIDTH], item.finding or "", expected_words(item.expected), described(item)[:WIDTH]]
            for item in plan.items
        ]
        header = ["change", "finding", "expected", "how"]
        planned = "plan\n" + table(rows, header=header, left=4) if rows else "nothing to try"
        texts += [f"{part}: {time_text(signals)}", bottlenecks_text(findings), planned]
        found[part] = {
            "signals": signals.as_json(), "findings": [entry.as_json() for entry in findings],
            "plan": [item.as_json() for item in plan.items],
        }  # fmt: skip
    return "\n\n".join(texts), found


def undo_stage(folder: Path) -> Answer:
    """Takes back what a round on a stage gave: its preset. Nothing else of the person's was changed."""
    preset = folder / PRESET
    is_there = preset.exists()
    preset.unlink(missing_ok=True)
    Ledger(folder).note("undone")
    words = f"removed {preset}: what is started without it is computed as before" if is_there else "nothing was kept"
    return Answer({"id": folder.name, "undone": is_there}, words)


# --- the target -----------------------------------------------------------------------------------------------------


def opened(settings: OptimiseSettings, origins: Mapping[str, Resolved]) -> StageRound:
    """The unfinished round of these very settings, or a new one."""
    facts = load_facts()
    aside = ("json", "analyse_only", "minutes", "new", "id", "undo")
    asked = {name: value for name, value in dataclasses.asdict(settings).items() if name not in aside}
    asked = json.loads(json.dumps(asked))
    options: dict[str, Any] = {"minutes": settings.minutes, "measure": {"quick": settings.quick}}
    folder = None if settings.new else unfinished({"kind": "stage", "asked": asked})
    if folder is not None:
        return StageRound(folder, facts, **options)
    with disk_errors(rounds()), jobs.trial_folder(home() / "trials") as scratch:
        target = worked(make_target(settings, origins, scratch), settings)
        folder = new_folder(str(settings.stage))
        try:
            return StageRound.begin(folder, target, facts, words=command_of(settings), asked=asked, **options)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def make_target(settings: OptimiseSettings, origins: Mapping[str, Resolved], scratch: Path) -> Target:
    """The job folders of what was asked for, below scratch. Raises UserError."""
    if settings.stage in ("infer", "serve", "pipeline"):
        run = settings.like or settings.from_run or "latest"
        stage = find_stage(run).folder
        if settings.stage == "pipeline":
            copy_training(stage, scratch / "train")
        variables = write_generation(settings, origins, stage, scratch / "generate")
        return Target(scratch, served.MODULE if settings.stage == "serve" else WORKER, variables)
    assert settings.stage in TRAINED, f"unknown stage {settings.stage}"
    if settings.like is not None:
        copy_training(stage_of(settings.like, str(settings.stage)), scratch / "train")
        return Target(scratch)
    names = named_fields(TrainSettings)
    layers = [
        Layer(entry.origin, entry.reason, {name: entry.value}) for name, entry in origins.items()
        if name in names and name in ("stage", *OF_STAGES) and name != "like"
    ]  # fmt: skip
    layers.append(Layer("default", "enough to look at", {"steps": DATA_STEPS}))
    asked, resolved = resolve(TrainSettings, layers)
    make_plan = plan_rl if settings.stage == "rl" else plan_stage
    job, choices = make_plan(asked, resolved, scratch, started_s=0.0).stages[str(settings.stage)]
    write_choices(made(scratch / "train"), choices)
    write_json(scratch / "train" / "config.json", job.as_json())
    return Target(scratch)


def worked(target: Target, settings: OptimiseSettings) -> Target:
    """The target run by the worker that was asked for. Raises UserError."""
    if settings.worker == WORKER:
        return target
    if settings.stage == "serve":
        fix = "leave out --worker"
        raise UserError("serve is run by the server, not by a --worker", value=settings.worker, fix=fix)
    return with_worker(target, settings.worker)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def stage_of(reference: str, stage: str) -> Path:
    """The job folder of a stage of a run, which need not be finished. Raises UserError where RUN means another one."""
    if "/" not in reference:
        with contextlib.suppress(UserError):  # which run has no such stage is said below
            return find_stage(f"{reference}/{stage}").folder
    folder = find_stage(reference).folder
    found = read_json(folder / "config.json").get("stage")
    if found != stage:
        first = "RUN, with --prepare to stop before it begins" if stage == "rl" else "RUN" if stage != "base" else ""
        words = f"intone train {stage}{f' --from {first}' if first else ''}"
        fix = f"name a run that has the stage, or make one: {words}"
        raise UserError(f"{reference} is a stage {found}, not {stage}", value=reference, fix=fix)
    return folder


def copy_training(stage: Path, folder: Path) -> None:
    """A stage's job as its run settled it. Raises UserError where it is no training."""
    config = read_json(stage / "config.json")
    if config.get("job") != "train":
        raise UserError(f"{stage} is no training", value=str(stage), fix="name a stage: NAME/sft")
    TrainJob.from_json(config)
    choices = read_choices(stage)
    # how many steps the stage had in the end would hold for every short training too
    segments = tuple(dataclasses.replace(segment, steps=None) for segment in choices.segments)
    write_choices(made(folder), dataclasses.replace(choices, segments=segments))
    write_json(folder / "config.json", config)
    if (stage / "log.jsonl").exists():  # which tells of evaluations and saves
        shutil.copy2(stage / "log.jsonl", folder / "log.jsonl")


def write_generation(
    settings: OptimiseSettings, origins: Mapping[str, Resolved], stage: Path, folder: Path
) -> dict[str, str]:
    """config.json of the generation of random prompts by a stage's model -> the variables of its worker."""
    facts = load_facts()
    training = read_json(stage / "config.json")
    segment = read_choices(stage).segments[-1] if (stage / "choices.json").exists() else None
    settled = Settled(facts, {name: choice(value) for name, value in origins.items()})
    device = settled.put("device", settle_device(origins["device"], facts))
    tokenizer = Tokenizer.load(Path(training["tokenizer"]))
    context = int(training["model"]["context"])
    if settings.prompt_tokens + settings.new_tokens > context:
        raise UserError(
            f"{settings.prompt_tokens} and {settings.new_tokens} tokens do not fit into the context of {context}",
            value=settings.new_tokens, fix="ask for fewer --new-tokens or --prompt-tokens",
        )  # fmt: skip
    ordinary = tokenizer.vocab_size - len(SPECIALS)
    prompts = np.random.default_rng(settings.seed).integers(0, ordinary, (settings.rows, settings.prompt_tokens))
    sampling = {"max_tokens": settings.new_tokens, "min_tokens": settings.new_tokens, "temperature": 0.0,
                "tools": False, "logprobs": False}  # fmt: skip
    dtype = settings.dtype if settings.dtype != "auto" else segment.dtype if segment is not None else "fp32"
    threads = settings.threads if settings.threads != "auto" else segment.threads if segment is not None else None
    engine = {} if settings.num_slots == "auto" else {"num_slots": settings.num_slots}
    write_json(folder / "config.json", {
        "format": 1, "job": "generate", "from": str(stage), "tokenizer": training["tokenizer"],
        "prompts": prompts.tolist(), "dtype": dtype, "device": device,
        "threads": threads if device == "cpu" else None, "sampling": sampling, "engine": engine,
    })  # fmt: skip
    return {name: entry.value for name, entry in environment(facts, threads=threads).items()}


def command_of(settings: OptimiseSettings) -> list[str]:
    """The words that ask for the same again."""
    words = [str(settings.stage)]
    for name, entry in named_fields(OptimiseSettings).items():
        value = getattr(settings, name)
        if name not in ("stage", "json", "new") and value != entry.default:
            words += [flag_of(entry)] if value is True else [flag_of(entry), shown(value)]
    return words


def result_of(round_: StageRound) -> dict[str, Any]:
    """The result for machines."""
    ledger = round_.ledger
    keep = ("part", "kept", "comparison", "gates", "stack", "without", "faults")
    return {
        "id": round_.folder.name,
        "findings": [line["finding"] | {"part": line["part"]} for line in ledger.lines("finding")],
        "tries": [entry.as_json() for entry in ledger.tries()],
        "whole": [{name: line[name] for name in keep} for line in ledger.lines("whole")],
        "preset": read_json(round_.folder / PRESET),
    }  # fmt: skip
