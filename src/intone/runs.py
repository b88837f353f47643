"""Run folders: their names, what is in run.json, which run a person means, and the list of `intone runs`.

runs/NAME/run.json says what was asked and how it stands; how a stage ended is in that stage's outcome.json alone.
"""

import datetime
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.errors import OUTCOMES, Damaged, UserError, nearest
from intone.fields import shown
from intone.log import human_bytes, human_duration, table, three_digits
from intone.paths import disk_errors, read_lines, runs_folder, write_json
from intone.records import FORMAT, Answer, from_json, read_format, read_outcome
from intone.settings import RunsSettings

STAGES = ("base", "mid", "sft", "rl")
UNFINISHED = "unfinished"  # no outcome yet: at work now, or cut off and ready to go on
STATES = (UNFINISHED, *OUTCOMES)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Run:
    """One run folder and the content of its run.json."""

    folder: Path
    verb: str  # run | train | import
    stages: tuple[str, ...]  # planned, in the order of training
    state: str  # unfinished, or an outcome
    created: str  # ISO 8601, UTC
    settings: Mapping[str, Any]  # what was asked, as resolving.identity gives it
    result: Mapping[str, Any] | None = None  # the result object of `--json`, once there is one

    @property
    def name(self) -> str:
        return self.folder.name

    def stage_folder(self, stage: str) -> Path:
        """The job folder of a stage; need not exist."""
        return self.folder / stage

    def stage_state(self, stage: str) -> str:
        """planned (no folder yet), unfinished, or the outcome of the stage."""
        folder = self.stage_folder(stage)
        if not folder.exists():
            return "planned"
        outcome = read_outcome(folder)
        return outcome.outcome if outcome else UNFINISHED

    def finished_stage(self) -> str | None:
        """The last stage in the order of training that is done, or None."""
        done = [stage for stage in self.stages if self.stage_state(stage) == "done"]
        return done[-1] if done else None


@dataclass(frozen=True)
class Place:
    """Where RUN or RUN/STAGE points: the job folder of a stage, and its run where it lies in one."""

    folder: Path
    stage: str
    run: Run | None


def create_run(
    settings: Mapping[str, Any], *, verb: str, stages: Sequence[str], name: str | None = None, depth: int | None = None
) -> Run:
    """A new run folder with its run.json. name None: d{depth}-{n} with the first free n.

    settings is what resolving.identity gives. Raises UserError for a name that is taken or cannot be a folder.
    """
    if name is not None:
        check_name(name)
    for candidate in [name] if name is not None else free_names(depth):
        folder = runs_folder() / candidate
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # taken since it was looked up
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")  # orders runs of one second
        run = Run(folder, verb, tuple(stages), UNFINISHED, created, dict(settings))
        try:
            save_run(run)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk must not leave a folder that is no run
            raise
        return run
    raise UserError(f"run {name!r} exists already", value=name, fix="choose another --name")


def check_name(name: str) -> None:
    """Raises UserError for a name that is no plain folder name, or that means something else."""
    if not NAME.fullmatch(name) or name == "latest":
        raise UserError(
            f"{name!r} cannot be the name of a run",
            value=name,
            fix="use letters, digits, dots, dashes and underscores, for example --name first-try",
        )


def free_names(depth: int | None) -> Iterator[str]:
    """d{depth}-1, d{depth}-2, ... without those that are taken now."""
    number = 0
    while True:
        number += 1
        name = f"d{depth}-{number}"
        if not (runs_folder() / name).exists():
            yield name


def save_run(run: Run) -> None:
    """Writes run.json atomically."""
    content = {key: getattr(run, key) for key in ("verb", "stages", "state", "created", "settings", "result")}
    write_json(run.folder / "run.json", {"format": FORMAT, **content, "stages": list(run.stages)})


def with_state(run: Run, state: str, *, result: Mapping[str, Any] | None = None) -> Run:
    """The run in another state, written to disk; result None keeps the one it has."""
    assert state in STATES, f"unknown state {state!r}"
    changed = replace(run, state=state, result=run.result if result is None else result)
    save_run(changed)
    return changed


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UserError where there is no run.json, Damaged where it is not one."""
    path = folder / "run.json"
    value = read_format(path)
    run = from_json(Run, {**value, "folder": folder, "stages": tuple(value.get("stages", ()))}, what=str(path))
    if run.state not in STATES or not run.stages or not isinstance(run.settings, dict):
        raise Damaged(f"{path} has no known state, stages or settings", value=str(path))
    _age_s(run.created)
    return run


def list_runs() -> tuple[list[Run], list[UserError]]:
    """The runs under INTONE_HOME, newest first, and one error for each run.json that cannot be read."""
    runs, problems = [], []
    root = runs_folder()
    for path in sorted(root.glob("*/run.json")) if root.exists() else []:
        if not NAME.fullmatch(path.parent.name):
            continue  # a folder that is being made
        try:
            runs.append(read_run(path.parent))
        except UserError as error:
            problems.append(error)
    return sorted(runs, key=lambda run: (run.created, run.folder.stat().st_mtime_ns), reverse=True), problems


def find_run(reference: str) -> Run:
    """The run that NAME, NAME/STAGE, a path or `latest` means. Raises UserError with the nearest name."""
    return find_part(reference)[0]


def find_stage(reference: str) -> Place:
    """The job folder of a stage that RUN means; without a stage the last finished one.

    `latest` without a stage is the newest run that has a finished stage. A stage that is named need not be finished.
    Raises UserError where there is no such run or stage, or none is finished.
    """
    path = Path(reference).expanduser()
    if "/" in reference and (path / "config.json").exists() and not (path.parent / "run.json").exists():
        return Place(path.absolute(), path.name, None)  # a stage that was copied out of its run
    run, stage = find_part(reference)
    if reference == "latest":
        run = next((run for run in list_runs()[0] if run.finished_stage()), run)
    if stage is None:
        stage = run.finished_stage()
    elif run.stage_state(stage) == "planned":
        have = [known for known in run.stages if run.stage_state(known) != "planned"]
        raise UserError(
            f"run {run.name} has no stage {stage!r} on disk",
            value=reference,
            fix=f"it has: {', '.join(have)}" if have else f"it has none yet; start it with intone {run.verb}",
        )
    if stage is None:
        raise UserError(
            f"run {run.name} has no finished stage",
            value=reference,
            fix="let it finish, with the command that started it, or name a stage that has a save: "
            f"{run.name}/{run.stages[0]}",
        )
    return Place(run.stage_folder(stage), stage, run)


def find_part(reference: str) -> tuple[Run, str | None]:
    """RUN as a person writes it -> (run, the stage it names or None; not checked). Raises UserError."""
    name, _, stage = reference.rstrip("/").partition("/")
    if name == "latest":
        runs, _ = list_runs()
        if not runs:
            raise _no_runs(reference)
        return runs[0], stage or None
    folder = runs_folder() / name
    if NAME.fullmatch(name) and (folder / "run.json").exists():
        return read_run(folder), stage or None
    path = Path(reference).expanduser().absolute()
    if (path / "run.json").exists():
        return read_run(path), None
    if (path.parent / "run.json").exists():
        return read_run(path.parent), path.name
    raise _unknown_run(reference)


def _no_runs(reference: str) -> UserError:
    return UserError(
        f"there is no run under {runs_folder()}", value=reference, fix="make one with intone run, or set INTONE_HOME"
    )


def _unknown_run(reference: str) -> UserError:
    names = [run.name for run in list_runs()[0]]
    if not names:
        return _no_runs(reference)
    guess = nearest(reference.split("/")[0], names)
    if ("/" in reference or guess is None) and Path(reference).expanduser().exists():
        return UserError(
            f"{reference} is no run: it has no run.json", value=reference,
            fix="name a run or the folder of one; `intone runs` lists them",
        )  # fmt: skip
    fix = f"did you mean {guess!r}?" if guess else f"known: {', '.join(names[:10])}; `intone runs` lists all"
    return UserError(f"unknown run {reference!r}", value=reference, fix=fix)


def unfinished_run(verb: str, settings: Mapping[str, Any]) -> Run | None:
    """The newest unfinished run of this verb with equal settings: the one that the same command goes on with."""
    runs, _ = list_runs()
    for run in runs:
        if run.verb == verb and run.state != "done" and first_difference(run.settings, settings) is None:
            return run
    return None


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting, in the order of new, that the two do not share with equal values; None: all equal."""
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in old or name not in new or old[name] != new[name]:
            return name
    return None


def check_same(run: Run, settings: Mapping[str, Any]) -> None:
    """Raises UserError that names the first setting in which a named run differs from what is asked now."""
    name = first_difference(run.settings, settings)
    if name is None:
        return
    old, new = shown(run.settings.get(name)), shown(settings.get(name))
    raise UserError(
        f"run {run.name} was started with {name} {old}, now it is {new}",
        value=name,
        fix=f"use the same {name} to go on with it, or another --name for a new run",
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count as nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def summary(run: Run) -> dict[str, Any]:
    """One run as `intone runs --json` shows it; what is not known is None."""
    result = run.result or {}
    return {
        "name": run.name,
        "path": str(run.folder),
        "verb": run.verb,
        "state": run.state,
        "stages": {stage: run.stage_state(stage) for stage in run.stages},
        "minutes": result.get("minutes"),
        "bpb": (result.get("bpb") or {}).get("value"),
        "starter_mean": (result.get("starter") or {}).get("mean"),
        "created": run.created,
        "size_bytes": folder_bytes(run.folder),
    }


def runs_verb(settings: RunsSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone runs`: the table of all runs, or one run in full."""
    if settings.run is not None:
        run = find_run(settings.run)
        whole = {**summary(run), "settings": dict(run.settings), "result": run.result}
        return Answer({"run": whole}, _describe(run), run=run.name, path=str(run.folder))
    runs, problems = list_runs()
    summaries = []
    for run in runs:
        try:
            summaries.append(summary(run))
        except UserError as error:
            problems.append(error)
    text = _table(summaries) if summaries else f"no runs yet under {runs_folder()}; make one with: intone run"
    for problem in problems:
        text += f"\nnot readable: {problem.message}"
    damaged = [problem.as_json() for problem in problems]
    return Answer({"runs": summaries, "not_readable": damaged}, text, path=str(runs_folder()))


def _table(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in summaries:
        done = [stage for stage, state in entry["stages"].items() if state == "done"]
        skill = "-" if entry["starter_mean"] is None else f"{100 * entry['starter_mean']:.1f}%"
        age = human_duration(_age_s(entry["created"]))
        numbers = [_or_dash(entry["minutes"]), _or_dash(entry["bpb"]), skill, age, human_bytes(entry["size_bytes"])]
        rows.append([entry["name"], entry["state"], " ".join(done) or "-", *numbers])
    header = ["name", "state", "finished", "minutes", "bpb", "starter", "age", "size"]
    return table(rows, header=header, left=3)


def _describe(run: Run) -> str:
    lines = [f"run      {run.name}", f"folder   {run.folder}", f"state    {run.state}", f"created  {run.created}"]
    for stage in run.stages:
        folder = run.stage_folder(stage)
        last = [row["step"] for row in read_lines(folder / "log.jsonl") if row.get("kind") == "step"][-1:]
        outcome = read_outcome(folder) if folder.exists() else None
        steps = f"  {last[0]:,} steps" if last else ""
        why = f"  {outcome.message}" if outcome and outcome.outcome != "done" and outcome.message else ""
        lines.append(f"{stage:<8} {run.stage_state(stage)}{steps}{why}")
    lines += [f"{name:<14} {shown(value)}" for name, value in run.settings.items()]
    if run.state == "done":
        lines.append(f"next: intone chat --from {run.name}")
    else:
        lines.append(f"next: the command that started it goes on from the last save (--name {run.name})")
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def _age_s(created: str) -> float:
    """Seconds since then. Raises Damaged where it is no date with a time zone."""
    try:
        then = datetime.datetime.fromisoformat(created)
        return (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    except (TypeError, ValueError):
        raise Damaged(f"{created!r} is not a date of a run", value=created) from None
