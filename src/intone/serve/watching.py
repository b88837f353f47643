"""Run folders as a page watches them: what stands still in one answer, what grows from where the reader left off."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.errors import UserError
from intone.model.cost import train_flops_per_token
from intone.paths import read_json, runs_folder
from intone.report.curves import coarse
from intone.report.record import RunRecord, StageRecord, read_record
from intone.report.run_page import command_of, subtitle
from intone.report.run_plan import machine_rows, model_rows, ordered_choices, planned_job, recipe_rows, written
from intone.runs import NAME, Run, list_runs, read_run

PIECE_BYTES = 1 << 20  # of a log in one answer: 10 ms to read, and 5,000 steps
TAIL_BYTES = 1 << 13  # of a log hold some 40 steps, enough for the time a step takes
NUM_SAMPLED = 5  # evaluations whose samples are shown
SAVE = re.compile(r"step_(\d+)")


def find_watched(name: str) -> Run:
    """The run of this name under INTONE_HOME, and nothing else: no path, no `latest`. Raises UserError."""
    folder = runs_folder() / name
    if not NAME.fullmatch(name) or not (folder / "run.json").exists():
        raise UserError(f"there is no run {name!r} on this machine", value=name, fix="GET /api/runs lists them")
    return read_run(folder)


def overview() -> dict[str, Any]:
    """Every run in a few words, newest first; what could not be read is named."""
    runs, problems = list_runs()
    entries = []
    for run in runs:
        try:
            entries.append(run_entry(run))
        except (UserError, OSError) as error:
            problems.append(error if isinstance(error, UserError) else UserError(f"{run.name}: {error}"))
    return {"runs": entries, "not_readable": [problem.message for problem in problems], "folder": str(runs_folder())}


def run_entry(run: Run) -> dict[str, Any]:
    """One run as the list shows it. status: live, or how it stands; version changes with every file but the logs."""
    stage = next((name for name in reversed(run.stages) if run.stage_folder(name).exists()), None)
    is_live = run.state != "done" and is_held(run.folder / "lock", run.stage_folder(stage) if stage else None)
    starter = ((run.result or {}).get("starter") or {}).get("mean")
    now = _stage_now(run.stage_folder(stage)) if stage else {}
    ended = run.stage_state(stage) if stage else "planned"
    return {
        "name": run.name,
        "verb": run.verb,
        "state": run.state,
        "is_live": is_live,
        "created": run.created,
        "stages": list(run.stages),
        "stage": stage,
        "stage_state": ended,
        **now,
        "starter": starter,
        "can_chat": any(newest_save(run.stage_folder(name)) is not None for name in run.stages),
        "version": _version(run),
    }


def _stage_now(folder: Path) -> dict[str, Any]:
    """Where a stage is: step, steps, loss, tokens_per_s, left_s by the time of its last steps."""
    steps = (read_json(folder / "config.json") if (folder / "config.json").exists() else {}).get("steps")
    rows = last_steps(folder / "log.jsonl")
    if not rows:
        return {"step": 0, "steps": steps, "loss": None, "tokens_per_s": None, "left_s": None}
    seconds = [row["step_s"] for row in rows[-20:]]
    typical_s = sorted(seconds)[len(seconds) // 2]
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    return {
        "step": rows[-1]["step"],
        "steps": steps,
        "loss": losses[-1] if losses else None,
        "tokens_per_s": rows[-1]["tokens_per_s"],
        "left_s": None if steps is None else (steps - rows[-1]["step"]) * typical_s,
    }


def last_steps(path: Path) -> list[dict[str, Any]]:
    """The step rows in the last few kilobytes of a log, in order; none where there is no log."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            piece = file.read()
    except FileNotFoundError:
        return []
    rows, _ = _parsed(piece.split(b"\n")[1 if size > TAIL_BYTES else 0 :])
    return [row for row in rows if row["kind"] == "step"]


def is_held(lock: Path, stage_folder: Path | None) -> bool:
    """Whether a process works on a run. Looks only: taking the lock to try it could fail a worker that starts.

    Linux tells who holds a lock (the inode decides: the device number differs on stacked file systems). Elsewhere a
    log that grew in the last two minutes counts (guess: a slow step and an evaluation).
    """
    try:
        inode = lock.stat().st_ino
    except FileNotFoundError:
        return False
    try:
        held = Path("/proc/locks").read_text()
    except OSError:
        return stage_folder is not None and _age_s(stage_folder / "log.jsonl") < 120
    words = (line.split() for line in held.splitlines())
    return any("FLOCK" in line and any(word.endswith(f":{inode}") for word in line) for line in words)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime if path.exists() else float("inf")


def newest_save(folder: Path) -> int | None:
    """The step of a job's newest complete save. Equal to model.checkpoint's answer, which would import torch."""
    names = (SAVE.fullmatch(path.parent.name) for path in (folder / "checkpoints").glob("step_*/manifest.json"))
    return max((int(name[1]) for name in names if name), default=None)


def _version(run: Run) -> str:
    """A word that changes when a file that a view is made of does; logs, which grow with every step, do not count."""
    paths = [run.folder / name for name in ("run.json", "forecast.json", "eval/eval.json")]
    for stage in run.stages:
        kept = ("config.json", "choices.json", "outcome.json", "eval.json", "samples.jsonl", "checkpoints")
        paths += [run.stage_folder(stage) / name for name in kept]
    return f"{hash(tuple(_stamp(path) for path in paths)) & 0xFFFFFFFFFF:x}"


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# --- one run ---------------------------------------------------------------------------------------------------------


def run_view(name: str) -> dict[str, Any]:
    """Everything about a run but its logs. Raises UserError where there is no such run."""
    run = find_watched(name)
    record = read_record(str(run.folder), with_logs=False)
    go_on = None if run.state == "done" or run.verb == "import" else f"{command_of(run)} --name {run.name}"
    return {
        **run_entry(run),
        "folder": str(run.folder),
        "subtitle": subtitle(record),
        "command": command_of(run) if run.verb != "import" else None,
        "go_on": go_on,
        "minutes": {"planned": (record.forecast or {}).get("minutes"), "taken": (run.result or {}).get("minutes")},
        "train": [stage_view(record.run, stage) for stage in record.stages],
        "samples": _samples(record),
        "skills": ((record.evaluation or {}).get("starter") or {}).get("skills"),
        **_plan(record),
        "problems": list(record.problems),
    }


def stage_view(run: Run, stage: StageRecord) -> dict[str, Any]:
    """One stage without its curve. mfu_per_rate times tokens per second is MFU; None where the peak is unknown."""
    config = stage.config or {}
    per_rate = None
    if config.get("peak_flops"):
        job = TrainJob.from_json(dict(config))
        per_rate = train_flops_per_token(job.model, job.context) / config["peak_flops"]
    outcome = stage.outcome
    return {
        "stage": stage.stage,
        "state": stage.state,
        "outcome": {"message": outcome.message, "fix": outcome.fix} if outcome else None,
        "steps": config.get("steps"),
        "tokens_per_step": config["rows_per_step"] * config["context"] if config else None,
        "mfu_per_rate": per_rate,
        "bpb": stage.bpb,
        "newest_save": newest_save(run.stage_folder(stage.stage)),
    }


def _samples(record: RunRecord) -> list[dict[str, Any]]:
    """What the model said at the last evaluations, newest first."""
    shown: list[dict[str, Any]] = []
    for stage in reversed(record.stages):
        steps = sorted({row["step"] for row in stage.samples}, reverse=True)
        for step in steps[: NUM_SAMPLED - len(shown)]:
            said = [{"prompt": r["prompt"], "text": r["text"]} for r in stage.samples if r["step"] == step]
            shown.append({"stage": stage.stage, "step": step, "said": said})
    return shown


def _plan(record: RunRecord) -> dict[str, Any]:
    """The settled choices with their reasons, and model, recipe and machine as tables."""
    stage = next((stage for stage in record.stages if stage.choices), None)
    decided: list[dict[str, Any]] = []
    defaults: list[dict[str, Any]] = []
    for name, choice, is_plain in ordered_choices(stage.choices) if stage and stage.choices else []:
        beat = [{"value": written(entry["value"]), "why": entry["why"]} for entry in choice.beat]
        entry = {"name": name, "value": written(choice.value), "origin": choice.origin}
        (defaults if is_plain else decided).append(entry | {"reason": choice.reason, "beat": beat})
    segments = [
        {"stage": stage.stage, "from_step": s.from_step, "how": _how(s), "reason": s.reason}
        for stage in record.stages
        for s in (stage.choices.segments if stage.choices else ())
    ]
    job = planned_job(record)
    tables: list[dict[str, Any]] = []
    if job is not None:
        tables.append({"title": "Model", "header": [], "rows": model_rows(job["model"], record)})
        names = [stage.stage for stage in record.stages if stage.config]
        tables.append({"title": "Recipe", "header": ["", *names], "rows": recipe_rows(record)})
    if facts := machine_rows(record):
        tables.append({"title": "Machine", "header": [], "rows": facts})
    return {"decided": decided, "defaults": defaults, "segments": segments, "tables": tables}


def _how(segment: Any) -> str:
    """How the steps of a segment are computed, in one line."""
    words = [f"{segment.device_batch:,} rows at a time", segment.dtype, "compiled" if segment.compiled else "eager"]
    words += [f"attention {segment.attention}", f"kernels {segment.kernels}"]
    return ", ".join([*words, *([] if segment.threads is None else [f"{segment.threads} threads"])])


# --- what grows ------------------------------------------------------------------------------------------------------


def log_since(name: str, stage: str, *, file: str = "", offset: int = 0) -> dict[str, Any]:
    """What a stage's log has behind a byte offset: at most 1 MiB of it, steps thinned to a few hundred points.

    file and offset come from the answer before. A resumed run writes its log anew, without the rows after its save:
    the file is then another one, and the answer begins at its start with is_new True. more: ask again at once.
    Raises UserError for a run or stage that is not there.
    """
    run = find_watched(name)
    if stage not in run.stages:
        raise UserError(f"run {name} has no stage {stage!r}", value=stage, fix=f"it has: {', '.join(run.stages)}")
    if offset < 0:
        raise UserError(f"offset is {offset}, it must be at least 0", value=offset)
    try:
        with open(run.stage_folder(stage) / "log.jsonl", "rb") as log:
            status = os.fstat(log.fileno())
            is_new = str(status.st_ino) != file or offset > status.st_size
            start = 0 if is_new else offset
            log.seek(start)
            piece = log.read(PIECE_BYTES)
    except FileNotFoundError:
        return {"file": "", "offset": 0, "is_new": file != "", "more": False, **_rows([], 0)}
    whole = piece[: piece.rfind(b"\n") + 1]  # a line that is being written is read the next time
    rows, num_damaged = _parsed(whole.split(b"\n"))
    end = start + len(whole)
    more = bool(whole) and end < status.st_size and len(piece) == PIECE_BYTES
    return {"file": str(status.st_ino), "offset": end, "is_new": is_new, "more": more, **_rows(rows, num_damaged)}


def _rows(rows: Sequence[Mapping[str, Any]], num_damaged: int) -> dict[str, Any]:
    steps = [row for row in rows if row["kind"] == "step"]
    evals = [{"step": row["step"], "values": row["values"]} for row in rows if row["kind"] == "eval"]
    events = [
        {"step": row["step"], "event": row["event"], "message": row["message"]}
        for row in rows
        if row["kind"] == "event" and row["event"] != "save"
    ]
    skipped = sum(bool(row.get("skipped")) for row in steps)
    return {"steps": coarse(steps), "evals": evals, "events": events, "skipped": skipped, "damaged": num_damaged}


def _parsed(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], int]:
    """(log rows, how many lines were none)."""
    rows, num_damaged = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "kind" in row and "step" in row:
            rows.append(row)
        else:
            num_damaged += 1
    return rows, num_damaged
