"""The report of a run: what it can do, how it learned, how fast, where the time went, and what was decided and why."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from intone import settings as settings_module
from intone.fields import Checked, flag_of
from intone.log import human_bytes, human_count, human_duration
from intone.report import run_figures as figures
from intone.report.account import time_account
from intone.report.curves import coarse
from intone.report.document import Block, Commands, Document, KeyFigures, Prose, Sample, Samples, Section, Table
from intone.report.record import RunRecord, StageRecord
from intone.report.run_plan import UNDECIDED, decisions_section, fact, model_section, planned_job, segment_rows
from intone.resolving import named_fields
from intone.runs import UNFINISHED, Run
from intone.verbs import VERBS

STAGE_WORDS = {
    "base": "learns text",
    "mid": "learns text and conversations",
    "sft": "learns to answer",
    "rl": "learns from rewards",
}


def run_document(record: RunRecord) -> Document:
    """The page of a run, whatever state it is in."""
    sections = [
        use_section(record),
        skills_section(record),
        learning_section(record),
        speed_section(record),
        time_section(record),
        model_section(record),
        decisions_section(record),
        events_section(record),
    ]
    run = record.run
    name = f"{run.name}/{record.stages[0].stage}" if record.is_part else run.name
    made_by = (record.machine or {}).get("intone")
    return Document(
        kind="run",
        title=name,
        subtitle=subtitle(record),
        lead=[KeyFigures(key_figures(record)), *(Prose(problem) for problem in record.problems)],
        sections=[section for section in sections if section.blocks],
        data=as_json(record),
        footer=f"Started {run.created[:16].replace('T', ' ')} UTC{f' with intone {made_by}' if made_by else ''}. "
        f"Made from the run's folder by `intone report {name}`; this page loads nothing from elsewhere.",
    )


def subtitle(record: RunRecord) -> str:
    """One sentence: what was trained on what, on which machine, and how it stands."""
    job = planned_job(record)
    words = []
    if job is not None:
        model = job["model"]
        size = next((s.parameters["total"] for s in reversed(record.stages) if s.parameters), None)
        kind = f"A language model of {human_count(size)} parameters" if size else "A language model"
        words.append(f"{kind}, depth {model['depth']}, trained on {data_words(record.run)}")
        chip = fact(record, "gpu_name") or fact(record, "cpu_name")
        if chip:
            words.append(f"on {chip}")
    else:
        words.append("A run that has not been planned yet")
    sentence = " ".join(words) + "."
    if record.run.state == "done":
        return sentence
    state = "It is not finished" if record.run.state == UNFINISHED else f"It ended as {record.run.state}"
    return f"{sentence} {state}."


def data_words(run: Run) -> str:
    """What the run was trained on, by the names that were given."""
    data = run.settings.get("data") or ()
    if list(data) == ["starter"]:
        return "starter, data made on the spot"
    names = [str(entry).rstrip("/").rpartition("/")[2] for entry in data]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def key_figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """The few numbers at the top: those that exist."""
    entries = []
    if starter := _starter(record):
        ends = f"95% interval {100 * starter['low']:.1f} to {100 * starter['high']:.1f}"
        entries.append((f"{100 * starter['mean']:.1f}%", "held-out skills right", ends))
    with_bpb = [stage for stage in record.stages if stage.bpb]
    if with_bpb:
        stage = with_bpb[0]
        assert stage.bpb is not None, "filtered above"
        ends = f"{stage.bpb['low']:.3f} to {stage.bpb['high']:.3f}, {stage.stage} on validation text"
        entries.append((f"{stage.bpb['value']:.3f}", "bits per byte", ends))
    account = time_account(record)
    if account.total_s is not None:
        planned = (record.forecast or {}).get("minutes")
        note = f"{planned:g} min planned" if planned and not record.is_part else ""
        entries.append((human_duration(account.total_s), "time", note))
    rates = [rate for rate in map(figures.steady_rate, record.started) if rate]
    if rates:
        tokens = sum(stage.tokens for stage in record.started)
        entries.append((human_count(rates[-1]), "tokens per second", f"{human_count(tokens)} in all"))
    peak = (record.run.result or {}).get("peak_bytes") or (record.spent or {}).get("peak_bytes")
    if peak and not record.is_part:
        entries.append((human_bytes(peak), "peak memory", "all processes of the run"))
    return entries


def _starter(record: RunRecord) -> Mapping[str, Any] | None:
    return None if record.is_part else (record.evaluation or {}).get("starter")


# --- sections -------------------------------------------------------------------------------------------------------


def use_section(record: RunRecord) -> Section:
    """How to talk to it, and how to make it again."""
    run = record.run
    name = f"{run.name}/{record.stages[0].stage}" if record.is_part else run.name
    can_chat = any(stage.parameters for stage in record.stages)
    lines = [(f"intone chat --from {name}", "talk to it")] if can_chat else []
    if run.state != "done":
        lines.append((f"{command_of(run)} --name {run.name}", "goes on from the last save"))
    lines.append((command_of(run), "the same settings again, settled anew for the machine"))
    if any(stage.choices for stage in record.stages):
        verb = "run" if run.verb == "run" else f"train {run.stages[0]}"
        lines.append((f"intone {verb} --like {run.name}", "the same plan again, step for step"))
    return Section("Use it", "use", [Commands(lines)])


def command_of(run: Run) -> str:
    """The command line with every setting that differs from its default."""
    cls: type[Checked] = getattr(settings_module, VERBS[run.verb].settings)
    words = ["intone", run.verb]
    for name, entry in named_fields(cls).items():
        value = run.settings.get(name)
        value = tuple(value) if isinstance(value, list) else value
        if name not in run.settings or name in UNDECIDED or value == entry.default:
            continue
        if entry.metadata.get("positional"):
            words.insert(2, str(value))
        elif isinstance(value, bool):
            words.append(flag_of(entry) if value else f"--no-{flag_of(entry)[2:]}")
        else:
            values = value if isinstance(value, tuple) else ("none" if value is None else value,)
            words += [flag_of(entry), *map(str, values)]
    return shlex.join(words)


def skills_section(record: RunRecord) -> Section:
    """Skills, validation and what it says."""
    blocks: list[Block] = []
    starter = _starter(record)
    if starter:
        blocks.append(figures.skills_figure(starter))
    rows = [
        [stage.stage, bpb_words(stage.stage), figures.with_interval(stage.bpb), f"{stage.bpb['num_bytes']:,}"]
        for stage in record.stages
        if stage.bpb
    ]
    if rows:
        caption = "Validation at the end of each stage, with 95% intervals; lower is better."
        blocks.append(Table(["stage", "measured on", "bits per byte", "bytes"], rows, left=2, caption=caption))
    for stage in record.stages:
        if stage.answers:
            blocks.append(answers_table(stage.answers))
    for stage in reversed(record.stages):
        if stage.samples:
            blocks.append(stage_samples(stage, folded=bool(blocks) and stage is not record.stages[-1]))
    wrong = (starter or {}).get("wrong") or ()
    if wrong:
        entries = [Sample(w["question"], w["got"], w["skill"], w["expected"]) for w in wrong]
        blocks.append(Samples(f"Answers it got wrong: the first of each skill, {len(entries)} in all", entries, True))
    return Section("What it can do", "skills", blocks)


def answers_table(answers: Mapping[str, Any]) -> Table:
    """Held-out questions before and after a stage that learned from its own answers."""
    before, after = answers.get("before") or {}, answers["answers"]
    rows = []
    for name, now in {**after["skills"], "mean": after}.items():
        then = before if name == "mean" else before.get("skills", {}).get(name)
        words = [figures.share_words(entry) if entry else "unknown" for entry in (then, now)]
        rows.append([name, *words, str(now.get("num_items", ""))])
    caption = "Held-out questions before and after learning from rewards; greedy answers, 95% intervals."
    return Table(["held-out questions", "right before", "right after", "questions"], rows, caption=caption)


def bpb_words(stage: str) -> str:
    """What a stage's bits per byte are measured on."""
    return "the assistant's answers" if stage == "sft" else "text"


def stage_samples(stage: StageRecord, *, folded: bool) -> Samples:
    """What the model wrote at the stage's last evaluation."""
    last = max(row["step"] for row in stage.samples)
    entries = [Sample(row["prompt"], row["text"]) for row in stage.samples if row["step"] == last]
    return Samples(f"What it says after {stage.stage}, always taking the likeliest token", entries, folded)


def learning_section(record: RunRecord) -> Section:
    """The curves of learning."""
    found = (figures.loss_figure(record), figures.reward_figure(record), figures.bpb_figure(record))
    return Section("How it learned", "learning", [figure for figure in found if figure])


def speed_section(record: RunRecord) -> Section:
    """Speed and memory, by stage and over the steps."""
    if not record.started:
        return Section("Speed and memory", "speed", [])
    mfu = {entry["stage"]: entry.get("mfu") for entry in (record.run.result or {}).get("stages", ())}
    rows = []
    for stage in record.started:
        rate, share = figures.steady_rate(stage), mfu.get(stage.stage)
        rows.append(
            [
                stage.stage,
                STAGE_WORDS.get(stage.stage, ""),
                f"{len(stage.steps):,}",
                human_count(stage.tokens),
                "unknown" if rate is None else f"{rate:,.0f}",
                "unknown" if share is None else f"{100 * share:.1f}%",
                human_bytes(stage.steps[-1]["peak_bytes"]),
                figures.shown_loss(stage.steps[-1]["loss"]),
            ]
        )
    header = ["stage", "", "steps", "tokens", "tokens/s", "MFU", "peak memory", "last loss"]
    caption = (
        "Without the slow first steps of a process. MFU: operations of the model's products, by count, over the rate "
        "of large products measured on this machine."
    )
    found = (figures.speed_figure(record), figures.memory_figure(record))
    table = Table(header, rows, left=2, caption=caption)
    return Section("Speed and memory", "speed", [table, *(figure for figure in found if figure)])


def time_section(record: RunRecord) -> Section:
    """Where the time went."""
    account = time_account(record)
    if not account.parts:
        return Section("Where the time went", "time", [])
    restarts = any(event["event"] == "restart" for stage in record.stages for event in stage.events)
    return Section("Where the time went", "time", [figures.time_figure(account, has_restarts=restarts)])


def events_section(record: RunRecord) -> Section:
    """What happened besides steps: restarts, skipped steps, segments, how stages ended."""
    rows = []
    for stage in record.stages:
        for event in stage.events:
            if event["event"] != "save":
                rows.append([stage.stage, f"{event['step']:,}", event["event"], event["message"]])
        skipped = [row["step"] for row in stage.steps if row.get("skipped")]
        if skipped:
            places = ", ".join(f"{step:,}" for step in skipped[:8]) + (" ..." if len(skipped) > 8 else "")
            rows.append([stage.stage, f"{skipped[0]:,}", "skipped", f"{len(skipped)} updates left out: {places}"])
        if stage.outcome is not None and stage.outcome.outcome != "done":
            step = "" if stage.outcome.step is None else f"{stage.outcome.step:,}"
            rows.append([stage.stage, step, stage.outcome.outcome, stage.outcome.message])
    segments = segment_rows(record)
    blocks: list[Block] = []
    if rows:
        blocks.append(Table(["stage", "step", "event", ""], rows, left=4, stacked=True))
    elif record.started:
        blocks.append(Prose("No restart, no skipped step, no change of plan."))
    if segments:
        header = ["stage", "from step", "micro-batch", "dtype", "compiled", "attention", "threads", "why"]
        caption = "How the steps were computed; none of this changes what is learned."
        blocks.append(Table(header, segments, left=8, caption=caption, stacked=True))
    return Section("What happened", "events", blocks)


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_json(record: RunRecord) -> dict[str, Any]:
    """Everything the page shows, for machines; curves as a few hundred points each."""
    account = time_account(record)
    run = record.run
    return {
        "format": 1,
        "kind": "run",
        "run": run.name,
        "verb": run.verb,
        "state": run.state,
        "created": run.created,
        "settings": dict(run.settings),
        "command": command_of(run),
        "result": dict(run.result) if run.result else None,
        "machine": dict(record.machine) if record.machine else None,
        "time": {"total_s": account.total_s, "parts_s": dict(account.parts), "not_explained_s": account.unexplained_s},
        "stages": [stage_json(stage) for stage in record.stages],
        "starter": _starter(record),
        "problems": list(record.problems),
    }


def stage_json(stage: StageRecord) -> dict[str, Any]:
    """One stage for machines."""
    return {
        "stage": stage.stage,
        "state": stage.state,
        "outcome": dataclasses.asdict(stage.outcome) if stage.outcome else None,
        "config": stage.config,
        "choices": dataclasses.asdict(stage.choices) if stage.choices else None,
        "parameters": stage.parameters,
        "steps": len(stage.steps),
        "tokens": stage.tokens,
        "tokens_per_s": figures.steady_rate(stage),
        "bpb": stage.bpb,
        "curve": coarse(stage.steps),
        "evaluations": list(stage.evals),
        "events": list(stage.events),
        "samples": list(stage.samples),
    }


