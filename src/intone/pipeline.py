"""`intone run` and `intone train`: settle what is open, write the job folders, keep them going, say what came out."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intone import recipe
from intone.config import ModelConfig, TrainJob, model_config
from intone.errors import UserError
from intone.hardware import load_facts
from intone.log import human_bytes, human_count, human_duration, say, table, three_digits
from intone.paths import FolderLock, read_json, write_json
from intone.peak import PeakWatch
from intone.planning import Plan, fastest_rate, plan_run, plan_stage
from intone.records import Answer, Choices, Outcome, read_choices, read_log, read_outcome, write_choices
from intone.runs import Run, check_same, create_run, find_run, list_runs, unfinished_run, with_state
from intone.settings import Resolved, RunSettings, TrainingSettings, TrainSettings, identity
from intone.supervisor import supervise
from intone.tune import memory

STAGES = ("base", "mid", "sft")
EVAL_FOLDER = "eval"


def run_pipeline(settings: RunSettings, origins: Mapping[str, Resolved]) -> Answer:
    """Text -> tokenizer -> base -> mid -> SFT -> evaluation, or what is left of it. Raises UserError."""
    with claimed_run("run", settings, STAGES) as run, PeakWatch() as peak:
        started_s = time.monotonic()
        if not is_planned(run):
            say(f"run {run.name} in {run.folder}")
            write_plan(run, plan_run(settings, origins, run.folder, started_s=started_s))
        else:
            say(f"going on with run {run.name}")
        for stage in run.stages:
            if run.stage_state(stage) != "done":
                run_stage(run, stage)
        run_evaluation(run)
        result = collect_result(run, seconds=spent(run, time.monotonic() - started_s), peak_bytes=peak.peak_bytes)
        run = with_state(run, "done", result=result)
        return Answer(result, run_text(run, result), run=run.name, path=str(run.folder))


def run_train(settings: TrainSettings, origins: Mapping[str, Resolved]) -> Answer:
    """One stage by itself: `intone train base|mid|sft`. With prepare it only writes the job folder."""
    with claimed_run("train", settings, (settings.stage,)) as run, PeakWatch() as peak:
        started_s = time.monotonic()
        if not is_planned(run):
            write_plan(run, plan_stage(settings, origins, run.folder, started_s=started_s))
        folder = run.stage_folder(settings.stage)
        if settings.prepare:
            text = f"the job is in {folder}\nnext: python -m intone.worker {folder}"
            return Answer({"folder": str(folder)}, text, run=run.name, path=str(run.folder))
        if run.stage_state(settings.stage) != "done":
            run_stage(run, settings.stage)
        result: dict[str, Any] = {
            "minutes": spent(run, time.monotonic() - started_s) / 60,
            "peak_bytes": peak.peak_bytes,
            "bpb": stage_bpb(run, settings.stage),
            "stages": [stage_summary(run, settings.stage)],
        }
        run = with_state(run, "done", result=result)
        text = f"{stages_table(result)}\nnext: intone chat --from {run.name}"
        return Answer(result, text, run=run.name, path=str(run.folder))


# --- which run ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed_run(verb: str, settings: TrainingSettings, stages: tuple[str, ...]) -> Iterator[Run]:
    """The run to work on, new or to be gone on with, locked against a second process."""
    run = choose_run(verb, settings, stages)
    lock = FolderLock(run.folder / "lock", what=f"run {run.name}")
    with lock:
        try:
            yield run
        except UserError:
            forget_if_empty(run)
            raise


def choose_run(verb: str, settings: TrainingSettings, stages: tuple[str, ...]) -> Run:
    """--name: that run, if its settings are equal; else the newest unfinished equal one; else a new one."""
    asked = identity(settings)
    if settings.like is not None:
        like = find_run(settings.like)
        run = create_run(asked, verb=verb, stages=like.stages, name=settings.name, depth=depth_of(like))
        copy_plan(like, run)
        return run
    if settings.name is not None and any(run.name == settings.name for run in list_runs()[0]):
        run = find_run(settings.name)
        if settings.new:
            raise UserError(
                f"run {run.name!r} exists already", value=run.name, fix="choose another --name, or leave out --new"
            )
        check_same(run, asked)
        if run.state == "done":
            raise UserError(
                f"run {run.name} is finished", value=run.name, fix=f"intone chat --from {run.name}, or another --name"
            )
        return run
    if not settings.new and settings.name is None:
        found = unfinished_run(verb, asked)
        if found is not None and not is_locked(found):
            return found
    depth = settings.depth if isinstance(settings.depth, int) else guess_depth(settings)
    return create_run(asked, verb=verb, stages=stages, name=settings.name, depth=depth)


def guess_depth(settings: TrainingSettings) -> int:
    """The depth that planning will settle on: the name of a run is given before."""
    if isinstance(settings, TrainSettings) and settings.from_run is not None:
        return depth_of(find_run(settings.from_run.split("/")[0]))
    facts = load_facts()
    minutes = recipe.default_minutes(facts.device or "cpu") if settings.minutes == "auto" else settings.minutes
    return recipe.auto_depth(fastest_rate(facts), 45 * minutes, is_starter="starter" in settings.data)[0]  # type: ignore[attr-defined]


def depth_of(run: Run) -> int:
    """The depth of a planned run. Raises UserError where nothing is planned yet."""
    return TrainJob.from_json(read_json(run.stage_folder(run.stages[0]) / "config.json")).model.depth


def is_locked(run: Run) -> bool:
    """Whether another process works on this run now."""
    try:
        FolderLock(run.folder / "lock").close()
    except UserError:
        return True
    return False


def forget_if_empty(run: Run) -> None:
    """Removes the folder of a run that failed on the person's input before anything was planned."""
    if not any((run.folder / stage).exists() for stage in run.stages):
        shutil.rmtree(run.folder, ignore_errors=True)


# --- plan on disk ---------------------------------------------------------------------------------------------------


def is_planned(run: Run) -> bool:
    """Whether every stage has its config.json, the last file that planning writes."""
    return all((run.stage_folder(stage) / "config.json").exists() for stage in run.stages)


def write_plan(run: Run, plan: Plan) -> None:
    """choices.json and config.json of every stage, and of the evaluation; config.json of the last stage last."""
    if plan.evaluation is not None:
        write_json(run.folder / EVAL_FOLDER / "config.json", plan.evaluation)
    write_json(run.folder / "forecast.json", plan.forecast)
    for stage, (job, choices) in plan.stages.items():
        write_choices(run.stage_folder(stage), choices)
        write_json(run.stage_folder(stage) / "config.json", job.as_json())


def copy_plan(like: Run, run: Run) -> None:
    """The same settled plan for a new run: only the folders that stages start from are renamed."""
    for stage in like.stages:
        source, target = like.stage_folder(stage), run.stage_folder(stage)
        job = TrainJob.from_json(read_json(source / "config.json"))
        if job.init_from and Path(job.init_from).parent == like.folder:
            job = replace(job, init_from=str(run.folder / Path(job.init_from).name))
        write_choices(target, read_choices(source))
        write_json(target / "config.json", job.as_json())
    if (like.folder / EVAL_FOLDER / "config.json").exists():
        evaluation = read_json(like.folder / EVAL_FOLDER / "config.json")
        evaluation["from"] = str(run.folder / Path(evaluation["from"]).name)
        write_json(run.folder / EVAL_FOLDER / "config.json", evaluation)


# --- stages ---------------------------------------------------------------------------------------------------------


class StageFailed(UserError):
    """A stage ended in another outcome than done; the message is that outcome's."""


def run_stage(run: Run, stage: str) -> None:
    """Trains one stage to its end. Raises KeyboardInterrupt where it was stopped, StageFailed otherwise."""
    folder = run.stage_folder(stage)
    choices: Choices = read_choices(folder)
    job = TrainJob.from_json(read_json(folder / "config.json"))
    say(f"{stage}: {job.steps:,} steps of {human_count(job.rows_per_step * job.context)} tokens")
    check_outcome(run, stage, supervise(folder, choices.environment))


def check_outcome(run: Run, stage: str, outcome: Outcome) -> None:
    """Records how a stage ended. Raises where that was not `done`."""
    if outcome.outcome == "done":
        return
    with_state(run, outcome.outcome)
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    fix = outcome.fix or "the same command goes on from the last save"
    raise StageFailed(f"{stage} ended as {outcome.outcome}: {outcome.message}", value=outcome.outcome, fix=fix)


def run_evaluation(run: Run) -> None:
    """The evaluation job of a run, in a worker like a stage."""
    folder = run.folder / EVAL_FOLDER
    done = read_outcome(folder)
    if not (folder / "config.json").exists() or (done is not None and done.outcome == "done"):
        return
    say("evaluating")
    last = run.stage_folder(run.stages[-1])
    check_outcome(run, "evaluation", supervise(folder, read_choices(last).environment))


# --- result ---------------------------------------------------------------------------------------------------------


def spent(run: Run, seconds: float) -> float:
    """Adds the seconds of this call to those of earlier ones -> seconds of the whole run."""
    path = run.folder / "spent.json"
    before = read_json(path)["seconds"] if path.exists() else 0.0
    write_json(path, {"format": 1, "seconds": before + seconds})
    return float(before + seconds)


def collect_result(run: Run, *, seconds: float, peak_bytes: int) -> dict[str, Any]:
    """The result object of `run --json`."""
    evaluation = read_json(run.folder / EVAL_FOLDER / "eval.json")
    skills = evaluation.get("starter")
    if skills is not None:
        skills = {key: value for key, value in skills.items() if key != "wrong"}
    return {
        "minutes": seconds / 60,
        "peak_bytes": peak_bytes,
        "bpb": stage_bpb(run, "base"),
        "starter": skills,
        "stages": [stage_summary(run, stage) for stage in run.stages],
        "chat": f"intone chat --from {run.name}",
    }


def stage_bpb(run: Run, stage: str) -> dict[str, Any] | None:
    """Bits per byte at the end of a stage on its validation text, with its interval."""
    path = run.stage_folder(stage) / "eval.json"
    bpb = read_json(path).get("bpb") if path.exists() else None
    return {key: bpb[key] for key in ("value", "low", "high")} if bpb else None


def stage_summary(run: Run, stage: str) -> dict[str, Any]:
    """What a stage did: seconds in steps, tokens, tokens per second, steps."""
    rows = read_log(run.stage_folder(stage) / "log.jsonl", "step")
    seconds = sum(row["step_s"] for row in rows)
    tokens = rows[-1]["tokens"] if rows else 0
    return {
        "stage": stage,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "steps": len(rows),
        "loss": next((row["loss"] for row in reversed(rows) if row["loss"] is not None), None),
        "skipped": sum(row["skipped"] for row in rows),
    }


def run_text(run: Run, result: Mapping[str, Any]) -> str:
    """What a person reads at the end: stages, skills, an honest word, and the next command."""
    lines = [stages_table(result), ""]
    bpb = result["bpb"]
    if bpb:
        span = f"[{bpb['low']:.3f}, {bpb['high']:.3f}]"
        lines.append(f"base model: {bpb['value']:.3f} bits per byte {span} on validation text")
    if result["starter"]:
        lines += [skills_table(result["starter"]), "", honest_word(result["starter"])]
    lines += [
        f"{three_digits(result['minutes'])} minutes, peak memory {human_bytes(result['peak_bytes'])}, in {run.folder}",
        f"next: {result['chat']}",
    ]
    return "\n".join(lines)


def stages_table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            entry["stage"],
            f"{entry['steps']:,}",
            human_count(entry["tokens"]),
            "unknown" if entry["tokens_per_s"] is None else f"{entry['tokens_per_s']:,.0f}",
            "-" if entry["loss"] is None else f"{entry['loss']:.3f}",
            human_duration(entry["seconds"]),
        ]
        for entry in result["stages"]
    ]
    return table(rows, header=["stage", "steps", "tokens", "tokens/s", "last loss", "time"])


def skills_table(starter: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{100 * skill['score']:.1f}%", f"[{100 * skill['low']:.0f}, {100 * skill['high']:.0f}]", str(skill["num_items"])]
        for name, skill in starter["skills"].items()
    ]
    mean = f"[{100 * starter['low']:.0f}, {100 * starter['high']:.0f}]"
    rows.append(["mean", f"{100 * starter['mean']:.1f}%", mean, ""])
    return table(rows, header=["held-out skill", "right", "interval", "questions"])


def honest_word(starter: Mapping[str, Any]) -> str:
    """What the model can and cannot do, from its scores alone."""
    skills = starter["skills"]
    good = [name for name, skill in skills.items() if skill["score"] >= 0.9]
    middling = [name for name, skill in skills.items() if 0.5 <= skill["score"] < 0.9]
    poor = [name for name, skill in skills.items() if skill["score"] < 0.5]
    parts = []
    if good:
        parts.append(f"It is reliable at {', '.join(good)}.")
    if middling:
        parts.append(f"It is often right at {', '.join(middling)}.")
    if poor:
        parts.append(f"It is mostly wrong at {', '.join(poor)}: train longer (--minutes).")
    parts.append("It knows a small world only: other topics get confident nonsense.")
    return " ".join(parts)


def forecast(settings: RunSettings, origins: Mapping[str, Resolved]) -> tuple[str, dict[str, Any]]:
    """Minutes, memory and disk of `intone run` with these settings, without starting anything."""
    facts = load_facts()
    minutes = recipe.default_minutes(facts.device or "cpu") if settings.minutes == "auto" else float(settings.minutes)
    is_starter = "starter" in settings.data
    depth = settings.depth if isinstance(settings.depth, int) else guess_depth(settings)
    context = recipe.auto_context(is_starter=is_starter) if settings.context == "auto" else settings.context
    vocab = recipe.auto_vocab_size(depth, is_starter=is_starter) if settings.vocab_size == "auto" else settings.vocab_size
    config: ModelConfig = model_config(settings.preset, depth=depth, vocab_size=vocab, context=context)
    rows = max(1, 2048 // context)
    dtype = "bf16" if settings.dtype == "auto" else settings.dtype
    memory_bytes = memory.training_bytes(config, rows, dtype=dtype, compiled=settings.compile != "off") + 2**29
    # the newest keep + best saves of three stages, each weights and moments: three times the weights
    disk_bytes = len(STAGES) * (settings.keep + 1) * 3 * memory.weight_bytes(config) + 64 * 2**20
    values = {"minutes": minutes, "depth": depth, "memory_bytes": memory_bytes, "disk_bytes": disk_bytes}
    text = (
        f"forecast: about {three_digits(minutes)} minutes, {human_bytes(memory_bytes)} of memory, "
        f"{human_bytes(disk_bytes)} of disk; depth {depth}"
    )
    return text, values

