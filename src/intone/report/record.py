"""Reads a run folder back into what a report is made of; a file that is missing or damaged is named, never guessed."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from intone.errors import Damaged, UserError
from intone.paths import read_json, read_lines
from intone.records import Choices, Outcome, read_choices, read_log, read_outcome
from intone.runs import Run, find_part

T = TypeVar("T")
MAX_HEADER_BYTES = 100 * 2**20  # of a safetensors file, as its own library limits it


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run as its folder tells it; empty where it has not begun."""

    stage: str
    state: str
    outcome: Outcome | None
    config: Mapping[str, Any] | None  # config.json
    choices: Choices | None
    steps: Sequence[Mapping[str, Any]]  # step rows in order
    evals: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    bpb: Mapping[str, Any] | None  # {value, low, high, num_bytes} at the last evaluation
    answers: Mapping[str, Any] | None  # of a reinforcement stage: {before, answers} to held-out questions
    parameters: Mapping[str, int] | None  # by kind, of the newest save

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return int(self.steps[-1]["tokens"]) if self.steps else 0


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it. problems: one sentence for each file that could not be read."""

    run: Run
    stages: Sequence[StageRecord]
    is_part: bool  # one stage was asked for, not the run
    evaluation: Mapping[str, Any] | None  # eval.json of the run
    spent: Mapping[str, Any] | None  # seconds, peak_bytes and phases
    forecast: Mapping[str, Any] | None
    machine: Mapping[str, Any] | None  # {"intone", "facts"} at the start
    problems: Sequence[str] = field(default=())

    @property
    def started(self) -> list[StageRecord]:
        """The stages that have trained a step."""
        return [stage for stage in self.stages if stage.steps]


class _Reader:
    """Calls functions that read a file, and keeps what they complain about."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, path: Path, read: Callable[[Path], T], otherwise: T) -> T:
        """read(path), or otherwise where there is no such file or it is damaged."""
        if not path.exists():
            return otherwise
        try:
            return read(path)
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.problems.append(f"{path.name} of {path.parent.name} could not be read: {error}".splitlines()[0])
            return otherwise


def read_record(reference: str, *, with_logs: bool = True) -> RunRecord:
    """The run, or the one stage of a run, that RUN means. Raises UserError where there is none.

    with_logs False leaves out what grows with every step: steps, evaluations and events are then empty.
    """
    run, stage = find_part(reference)
    if stage is not None and stage not in run.stages:
        raise UserError(
            f"run {run.name} has no stage {stage!r}", value=reference, fix=f"it has: {', '.join(run.stages)}"
        )
    read = _Reader()
    stages = [_read_stage(run, name, read, with_logs) for name in run.stages if stage in (None, name)]
    folder = run.folder
    return RunRecord(
        run=run,
        stages=stages,
        is_part=stage is not None,
        evaluation=read(folder / "eval" / "eval.json", _read_object, None),
        spent=read(folder / "spent.json", _read_object, None),
        forecast=read(folder / "forecast.json", _read_object, None),
        machine=read(folder / "machine.json", _read_object, None),
        problems=read.problems,
    )


def _read_stage(run: Run, stage: str, read: _Reader, with_logs: bool) -> StageRecord:
    folder = run.stage_folder(stage)
    log: list[dict[str, Any]] = read(folder / "log.jsonl", lambda path: read_log(path), []) if with_logs else []
    evaluation = read(folder / "eval.json", _read_object, None)
    saves = sorted((folder / "checkpoints").glob("step_*/model.safetensors"))

    def rows(kind: str) -> list[dict[str, Any]]:
        return [row for row in log if row["kind"] == kind]

    return StageRecord(
        stage=stage,
        state=read(folder, lambda _: run.stage_state(stage), "planned"),
        outcome=read(folder / "outcome.json", lambda path: read_outcome(path.parent), None),
        config=read(folder / "config.json", _read_object, None),
        choices=read(folder / "choices.json", lambda path: read_choices(path.parent), None),
        steps=rows("step"),
        evals=rows("eval"),
        events=rows("event"),
        samples=read(folder / "samples.jsonl", read_lines, []),
        bpb=(evaluation or {}).get("bpb"),
        answers=evaluation if (evaluation or {}).get("answers") else None,
        parameters=read(saves[-1], parameters_by_kind, None) if saves else None,
    )


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} holds no object", value=str(path))
    return value


def parameters_by_kind(path: Path) -> dict[str, int]:
    """Counts of the numbers in a saved model: matrices, tables, head, scalars, and their total.

    Read from the header of the safetensors file: the first 8 bytes are the size of a JSON object of names and shapes.
    Raises ValueError where it is none.
    """
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0] if path.stat().st_size > 8 else 0
        if not 0 < size <= MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} has no header")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    counts = {"matrices": 0, "tables": 0, "head": 0, "scalars": 0}
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for side in entry["shape"]:
                count *= side
            counts[_kind_of(name)] += count
    return {"total": sum(counts.values()), **counts}


def _kind_of(name: str) -> str:
    """Where a weight of our models belongs, by its name."""
    if name.startswith("blocks."):
        return "matrices"
    if name.startswith(("embedding.", "value_embeddings.")):
        return "tables"
    return "head" if name.startswith("head.") else "scalars"
