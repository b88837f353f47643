"""`intone run` and `intone train`: settle what is open, write the job folders, keep them going, say what came out."""

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intone import __version__, recipe
from intone.config import TrainJob
from intone.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, DiskFull, UserError
from intone.fields import flag_of, shown
from intone.hardware import known_facts, load_facts
from intone.jobs import DEFAULT_STALL_S, Limits, devices_of, planned
from intone.log import human_bytes, human_count, human_duration, say, table, three_digits
from intone.mixture import STARTER, parse_mixture
from intone.model.cost import train_flops_per_token
from intone.paths import FolderLock, read_json, write_json
from intone.peak import CostWatch
from intone.planning import Plan, fastest_rate, plan_run, plan_stage
from intone.prepare import ensure_data_of, epochs_of, find_source
from intone.records import Answer, Choices, Outcome, choice, read_choices, read_log, read_outcome, write_choices
from intone.runs import UNFINISHED, Run, check_same, create_run, find_run, list_runs, unfinished_run, with_state
from intone.settings import Resolved, RunSettings, TrainingSettings, TrainSettings, identity, is_free, named_fields
from intone.supervisor import supervise
from intone.tune.background import compiled_meanwhile
from intone.tune.lookback import look_back

STAGES = ("base", "mid", "sft")
EVAL_FOLDER = "eval"
SPENT = "spent.json"  # what the run cost so far
FORECAST = "forecast.json"  # what was planned
MACHINE = "machine.json"  # what is known about the machine that it was planned on
LATE = 1.1  # of the planned minutes: a run that takes longer says so


def run_pipeline(settings: RunSettings, origins: Mapping[str, Resolved]) -> Answer:
    """Text -> tokenizer -> base -> mid -> SFT -> evaluation, or what is left of it. Raises UserError."""
    started_s = time.monotonic()
    with claimed_run("run", settings, origins, STAGES) as run, CostWatch(run.folder / SPENT) as cost:
        with cost.phase("planning"):
            plan_once(run, settings.like, lambda: plan_run(settings, origins, run.folder, started_s=started_s))
            move(run, origins)
        try:
            for stage in run.stages:
                if run.stage_state(stage) != "done":
                    with cost.phase(stage):
                        run_stage(run, stage)
            with cost.phase("evaluation"):
                run_evaluation(run)
        except StageFailed as failure:
            return failed_answer(run, failure)
        result = collect_result(run, seconds=cost.seconds, peak_bytes=cost.peak_bytes)
        run = with_state(run, "done", result=result)
        cost.keep()
        page = write_page(run)
        return Answer(result, run_text(run, result, page), run=run.name, path=str(run.folder))


def run_train(settings: TrainSettings, origins: Mapping[str, Resolved]) -> Answer:
    """One stage by itself: `intone train base|mid|sft`. With prepare it only writes the job folder."""
    started_s = time.monotonic()
    with claimed_run("train", settings, origins, (settings.stage,)) as run, CostWatch(run.folder / SPENT) as cost:
        with cost.phase("planning"):
            plan_once(run, settings.like, lambda: plan_stage(settings, origins, run.folder, started_s=started_s))
            move(run, origins)
        folder = run.stage_folder(settings.stage)
        if settings.prepare:
            text = f"the job is in {folder}\nnext: {start_command(folder)}"
            return Answer({"folder": str(folder)}, text, run=run.name, path=str(run.folder))
        try:
            if run.stage_state(settings.stage) != "done":
                with cost.phase(settings.stage):
                    run_stage(run, settings.stage)
        except StageFailed as failure:
            return failed_answer(run, failure)
        result: dict[str, Any] = {
            "minutes": cost.seconds / 60,
            "peak_bytes": cost.peak_bytes,
            "bpb": stage_bpb(run, settings.stage),
            "stages": [stage_summary(run, settings.stage)],
        }
        run = with_state(run, "done", result=result)
        text = f"{stages_table(result)}\nnext: intone chat --from {run.name}"
        return Answer(result, text, run=run.name, path=str(run.folder))


# --- which run ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed_run(
    verb: str, settings: TrainingSettings, origins: Mapping[str, Resolved], stages: tuple[str, ...]
) -> Iterator[Run]:
    """The run to work on, new or to be gone on with, locked against a second process.

    However it ends before its plan is complete: the run is forgotten, there is nothing to go on with.
    """
    check_like(settings, origins)
    run = choose_run(verb, settings, stages)
    try:
        lock = FolderLock(run.folder / "lock", what=f"run {run.name}")
    except DiskFull:
        forget_if_empty(run)
        raise
    with lock:
        try:
            yield run if run.state == UNFINISHED else with_state(run, UNFINISHED)
        except BaseException:
            forget_if_empty(run)
            raise


def choose_run(verb: str, settings: TrainingSettings, stages: tuple[str, ...]) -> Run:
    """--name: that run, if its settings are equal; else the newest unfinished equal one; else a new one."""
    asked = identity(settings)
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
    if settings.like is not None:
        depth = depth_of(find_like(settings.like, stages))
    else:
        check_sources(settings)
        depth = settings.depth if isinstance(settings.depth, int) else guess_depth(settings)
    return create_run(asked, verb=verb, stages=stages, name=settings.name, depth=depth)


def guess_depth(settings: TrainingSettings) -> int:
    """The depth that planning will settle on: the name of a run is given before."""
    if isinstance(settings, TrainSettings) and settings.from_run is not None:
        return depth_of(find_run(settings.from_run))
    facts = load_facts()
    minutes = recipe.default_minutes() if settings.minutes == "auto" else settings.minutes
    is_starter = all(portion.name == STARTER for portion in parse_mixture(settings.data).portions)  # type: ignore[attr-defined]
    return recipe.auto_depth(fastest_rate(facts), 45 * minutes, is_starter=is_starter)[0]


def check_sources(settings: TrainingSettings) -> None:
    """Raises UserError for data that is not there, before a run is made and the machine measured."""
    if isinstance(settings, RunSettings):
        find_source("documents", settings.data, settings.val)
        find_source("conversations", settings.sft, settings.sft_val)
    elif isinstance(settings, TrainSettings):
        find_source("conversations" if settings.stage == "sft" else "documents", settings.data, settings.val)
        find_source("conversations", settings.sft, ())


def check_like(settings: TrainingSettings, origins: Mapping[str, Resolved]) -> None:
    """Raises UserError for a setting that is asked for beside --like, which brings all of them."""
    if settings.like is None:
        return
    if settings.settings is not None:
        fix = "leave out --settings, or --like"
        raise UserError("--like brings its own settings, and so does --settings", value=settings.settings, fix=fix)
    fields = named_fields(type(settings))
    for name, entry in origins.items():
        if entry.origin == "flag" and name not in ("like", "stage") and not is_free(fields[name]):
            raise UserError(
                f"{flag_of(fields[name])} cannot be given with --like: run {settings.like} brings its own {name}",
                value=shown(entry.value),
                fix=f"leave out {flag_of(fields[name])}, or --like",
            )


def find_like(reference: str, stages: tuple[str, ...]) -> Run:
    """The run of --like. Raises UserError where it lacks one of these stages, or a plan."""
    like = find_run(reference)
    if like.verb == "import":
        raise UserError(
            f"run {like.name} was imported: it has no plan of a training to repeat",
            value=reference,
            fix=f"start from its weights: intone train STAGE --from {like.name}",
        )
    missing = [stage for stage in stages if stage not in like.stages]
    if missing:
        raise UserError(
            f"run {like.name} has no stage {missing[0]}, it has: {', '.join(like.stages)}",
            value=reference,
            fix=f"name another run, or use intone train {like.stages[0]} --like {like.name}",
        )
    if not is_planned(like):
        raise UserError(
            f"run {like.name} has no settled plan yet",
            value=reference,
            fix="let it get to its first step, with the command that started it, or name another run",
        )
    return like


def depth_of(run: Run) -> int:
    """The depth of a planned run."""
    return TrainJob.from_json(read_json(run.stage_folder(run.stages[0]) / "config.json")).model.depth


def is_locked(run: Run) -> bool:
    """Whether another process works on this run now."""
    try:
        FolderLock(run.folder / "lock").close()
    except UserError:
        return True
    return False


def forget_if_empty(run: Run) -> None:
    """Removes the folder of a run whose plan is not complete and that never saved anything."""
    if not is_planned(run) and not any(run.folder.glob("*/checkpoints/step_*")):
        shutil.rmtree(run.folder, ignore_errors=True)


# --- plan on disk ---------------------------------------------------------------------------------------------------


def is_planned(run: Run) -> bool:
    """Whether every stage has its config.json, the last file that planning writes."""
    return all((run.stage_folder(stage) / "config.json").exists() for stage in run.stages)


def write_plan(run: Run, plan: Plan) -> None:
    """choices.json and config.json of every stage, and of the evaluation; config.json of the last stage last."""
    if plan.evaluation is not None:
        write_json(run.folder / EVAL_FOLDER / "config.json", plan.evaluation)
    write_json(run.folder / FORECAST, plan.forecast)
    for stage, (job, choices) in plan.stages.items():
        write_choices(run.stage_folder(stage), choices)
        write_json(run.stage_folder(stage) / "config.json", job.as_json())


def plan_once(run: Run, like: str | None, make_plan: Callable[[], Plan]) -> None:
    """Writes the plan of a run that has none yet, a copy where it shall be like another; says which run is at work."""
    if is_planned(run):
        say(f"going on with run {run.name}")
        return
    say(f"run {run.name} in {run.folder}")
    write_json(run.folder / MACHINE, {"format": 1, "intone": __version__, "facts": known_facts().as_json()})
    write_plan(run, make_plan() if like is None else copy_plan(find_run(like), run))


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


def start_command(folder: Path) -> str:
    """What starts the job of a folder by hand."""
    devices = devices_of(folder)
    if devices == 1:
        return f"python -m intone.worker {folder}"
    return f"torchrun --standalone --nproc-per-node {devices} -m intone.worker {folder}"


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
    return Plan(stages, evaluation, read_json(like.folder / FORECAST))


# --- stages ---------------------------------------------------------------------------------------------------------


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


def run_stage(run: Run, stage: str) -> None:
    """Trains one stage to its end. Raises KeyboardInterrupt where it was stopped, StageFailed otherwise."""
    folder = run.stage_folder(stage)
    choices: Choices = read_choices(folder)
    config = read_json(folder / "config.json")
    job = TrainJob.from_json(config)
    ensure_data_of(config)
    say(f"{stage}: {job.steps:,} steps of {human_count(job.rows_per_step * job.context)} tokens")
    with compiled_meanwhile(folder):
        outcome = supervise(folder, choices.environment)
        if outcome.outcome == "bad_input" and ensure_data_of(config):  # a shard that was damaged in mid-run
            outcome = supervise(folder, choices.environment)
    look_back(folder)
    check_outcome(run, stage, outcome)


def check_outcome(run: Run, stage: str, outcome: Outcome) -> None:
    """Records how a stage ended. Raises where that was not `done`."""
    if outcome.outcome == "done":
        return
    with contextlib.suppress(DiskFull):  # that the disk is full must not hide how the stage ended
        with_state(run, outcome.outcome)
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    raise StageFailed(stage, outcome)


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


# --- result ---------------------------------------------------------------------------------------------------------


def collect_result(run: Run, *, seconds: float, peak_bytes: int) -> dict[str, Any]:
    """The result object of `run --json`."""
    path = run.folder / EVAL_FOLDER / "eval.json"
    skills = read_json(path).get("starter") if path.exists() else None
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
    """What a stage did: seconds in steps, tokens, tokens per second, steps, and its share of the machine's rate."""
    rows = read_log(run.stage_folder(stage) / "log.jsonl", "step")
    job = TrainJob.from_json(read_json(run.stage_folder(stage) / "config.json"))
    seconds = sum(row["step_s"] for row in rows)
    tokens = rows[-1]["tokens"] if rows else 0
    mfu = None
    if job.peak_flops and rows:
        typical_s = statistics.median(row["step_s"] for row in rows)
        flops = train_flops_per_token(job.model, job.context) * job.rows_per_step * job.context
        mfu = flops / typical_s / job.peak_flops
    return {
        "stage": stage,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "steps": len(rows),
        "loss": next((row["loss"] for row in reversed(rows) if row["loss"] is not None), None),
        "data": epochs_of(read_json(run.stage_folder(stage) / "config.json"), tokens),
        "skipped": sum(row["skipped"] for row in rows),
        "mfu": mfu,  # at the median step
    }


def write_page(run: Run) -> Path | None:
    """The run's report.html, with its Markdown and JSON; None where it could not be written, which is said."""
    try:
        from intone.report.write import write_run_report  # here: a package that is missing must not fail a run either

        return write_run_report(run.folder).html
    except Exception as error:  # a finished run must not fail for the sake of its page, whatever is wrong with it
        say(f"the report was not written ({type(error).__name__}: {error}); try: intone report {run.name}")
        return None


def run_text(run: Run, result: Mapping[str, Any], page: Path | None) -> str:
    """What a person reads at the end: stages, skills, an honest word, its page, and the next command."""
    lines = [stages_table(result), ""]
    bpb = result["bpb"]
    if bpb:
        span = f"[{bpb['low']:.3f}, {bpb['high']:.3f}]"
        lines.append(f"base model: {bpb['value']:.3f} bits per byte {span} on validation text")
    if result["starter"]:
        lines += [skills_table(result["starter"]), "", honest_word(result["starter"])]
    elif answers := stage_bpb(run, "sft"):
        lines += [
            f"chat model: {answers['value']:.3f} bits per byte of the answers in the validation conversations",
            "Starter skills were not asked: its conversations were your own. A model of this size trained for minutes "
            "picks up form and frequent words, not facts.",
        ]
    lines += late_word(run, result["minutes"])
    lines += [
        f"{three_digits(result['minutes'])} minutes, peak memory {human_bytes(result['peak_bytes'])}, in {run.folder}",
        *([] if page is None else [f"report: {page}"]),
        f"next: {result['chat']}",
    ]
    return "\n".join(lines)


def late_word(run: Run, minutes: float) -> list[str]:
    """One line where a run took clearly longer than was planned, else none."""
    forecast = read_json(run.folder / FORECAST)
    planned = forecast["minutes"]
    if minutes - forecast.get("fetch_s", 0.0) / 60 <= LATE * planned:
        return []
    return [
        f"{three_digits(minutes)} minutes instead of {planned:g}: its steps were slower than in the trial before, "
        "or it was started more than once"
    ]


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
        [name, f"{100 * skill['score']:.1f}%", interval(skill), str(skill["num_items"])]
        for name, skill in starter["skills"].items()
    ]
    rows.append(["mean", f"{100 * starter['mean']:.1f}%", interval(starter), ""])
    return table(rows, header=["held-out skill", "right", "interval", "questions"])


def interval(score: Mapping[str, Any]) -> str:
    """The ends of a score's interval in percent: [81, 93]."""
    return f"[{100 * score['low']:.0f}, {100 * score['high']:.0f}]"


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
