"""The records that outlive a process: outcomes, choices, log rows, results of verbs and of measurements.

Every file carries a format number; unknown keys raise, since a key that is ignored is a wrong number later.
"""

import dataclasses
import datetime
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from intone.config import fits, words_for
from intone.errors import OUTCOMES, Damaged, UserError, unknown_name
from intone.fields import Checked
from intone.paths import append_line, read_json, read_lines, write_atomic, write_json
from intone.resolving import Layer, Origin, Resolved, named_fields

FORMAT = 1
ORIGINS = ("default", "preset", "from", "flag", "measured", "cached")
LOG_KINDS = ("step", "eval", "sample", "event")

T = TypeVar("T")


def from_json(cls: type[T], value: Mapping[str, Any], *, what: str) -> T:
    """A dataclass from a JSON object of its fields. Raises Damaged for a key or a value that cannot be there."""
    if not isinstance(value, Mapping):
        raise Damaged(f"{what} is {value!r}, it must be an object of names and values", value=value)
    entries = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = [entry.name for entry in entries]
    for key in value:
        if key not in known:
            raise Damaged(
                f"{what}: {unknown_name('key', key, known).message}", value=key, fix=f"known: {', '.join(known)}"
            )
    for entry in entries:
        if entry.name not in value and entry.default is entry.default_factory is dataclasses.MISSING:
            raise Damaged(f"{what}: key {entry.name!r} is missing", value=entry.name)
    hints = typing.get_type_hints(cls)
    for key, item in value.items():
        if not fits(hints[key], item):
            raise Damaged(f"{what}: {key!r} is {item!r}, it must be {words_for(hints[key])}", value=item)
    return cls(**value)


def read_format(path: Path) -> dict[str, Any]:
    """The JSON object at path without its format number. Raises Damaged where the number is not ours."""
    value = read_json(path)
    number = value.pop("format", None) if isinstance(value, dict) else None
    if number != FORMAT:
        raise Damaged(
            f"{path} has format {number}, this version reads {FORMAT}",
            value=number,
            fix="read it with the version of intone that wrote it",
        )
    return value


def settings_layer(cls: type[Checked], path: Path) -> Layer:
    """The settings in a JSON file {"format": 1, "settings": {...}}, as --settings takes them; other keys are notes.

    Raises UserError where there is none, for a name that cls does not have, and for one that says what a call is
    about and not how it computes; values are checked where layers are resolved.
    """
    values = read_format(path).get("settings")
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings", value=str(path), fix='it must be {"format": 1, "settings": {...}}')
    fields = {
        name: entry for name, entry in named_fields(cls).items()
        if not entry.metadata.get("positional") and not entry.metadata.get("aside")
    }  # fmt: skip
    for name in values:
        if name not in fields:
            raise unknown_name(f"setting in {path}", str(name), fields)
    return Layer("preset", str(path), values)


@dataclass(frozen=True)
class Outcome:
    """How one job ended: exactly one per job, written last."""

    outcome: str  # one of errors.OUTCOMES
    step: int | None = None  # optimizer steps that were done
    message: str = ""
    fix: str | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise unknown_name("outcome", str(self.outcome), OUTCOMES)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Writes FOLDER/outcome.json atomically, over an earlier one."""
    write_json(folder / "outcome.json", {"format": FORMAT, **dataclasses.asdict(outcome)})


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome of the job in folder, or None where it has not ended."""
    path = folder / "outcome.json"
    return from_json(Outcome, read_format(path), what=str(path)) if path.exists() else None


@dataclass(frozen=True)
class Choice:
    """One settled setting: its value, why, and what it was better than."""

    value: Any
    reason: str
    origin: Origin
    beat: tuple[Mapping[str, Any], ...] = ()  # {value, why} of the alternatives that lost
    measured: Mapping[str, Any] | None = None  # the numbers behind it, with units in their names

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise unknown_name("origin", str(self.origin), ORIGINS)


def choice(resolved: Resolved) -> Choice:
    """A setting that needed no measurement, as choices.json holds it."""
    return Choice(resolved.value, resolved.reason, resolved.origin)


@dataclass(frozen=True)
class Segment:
    """How the steps from from_step on are computed, until the next segment begins."""

    from_step: int
    device_batch: int  # rows that go through the model at once
    compiled: bool
    dtype: Literal["fp32", "bf16", "fp16"]
    attention: str  # name of the attention backend
    reason: str
    threads: int | None = None  # CPU threads; None: the library's own choice
    trials: tuple[str, ...] = ()  # ids of the trials that decided
    kernels: Literal["torch", "native"] = "torch"  # native: our own on a CPU, for the training step and the update
    head_pieces: int = 1  # parts of a pass whose logits are computed one after the other; 1: all at once
    # what is compiled where compiled says so: one block for all of them, with eager code around; False: the whole model
    by_block: bool = False
    steps: int | None = None  # of the whole stage, as planned when the segment began; None: those of config.json
    num_slots: int | None = None  # answers that a reinforcement stage writes at once; None: as suits the device


@dataclass(frozen=True)
class Choices:
    """choices.json: settings, segments in the order of their steps, fall-backs and environment variables."""

    settings: Mapping[str, Choice]
    segments: tuple[Segment, ...]
    fallbacks: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = [segment.from_step for segment in self.segments]
        if not steps or steps[0] != 0 or steps != sorted(steps):
            raise Damaged(f"segments begin at steps {steps}: the first must be 0 and none may go back", value=steps)

    def segment_at(self, step: int) -> Segment:
        """The segment that computes this step; of two that begin at the same step the later one."""
        return [segment for segment in self.segments if segment.from_step <= step][-1]

    def with_segment(self, segment: Segment) -> "Choices":
        """The same plan with one more segment at its end. Raises Damaged where it begins before the last."""
        return dataclasses.replace(self, segments=(*self.segments, segment))

    def horizons(self, configured: int) -> list[tuple[int, int]]:
        """(from which step on, how many steps the stage shall have) of every segment; configured: of config.json."""
        return [(segment.from_step, segment.steps or configured) for segment in self.segments]

    def num_steps(self, configured: int) -> int:
        """Optimizer steps of the stage, as planned last."""
        return self.horizons(configured)[-1][1]

    def with_steps(self, from_step: int, steps: int, configured: int, reason: str) -> "Choices":
        """The same plan with so many steps from from_step on: one more segment, and the later ones go on with it."""
        known = [dataclasses.replace(segment, steps=segment.steps or configured) for segment in self.segments]
        before = [segment for segment in known if segment.from_step <= from_step]
        later = [dataclasses.replace(segment, steps=steps) for segment in known if segment.from_step > from_step]
        added = dataclasses.replace(before[-1], from_step=from_step, steps=steps, reason=reason)
        return dataclasses.replace(self, segments=(*before, added, *later))

    def next_fallback(self, name: str, current: Any) -> Any | None:
        """The entry of fallbacks[name] after the current value, or None where there is no further one."""
        entries = self.fallbacks.get(name, ())
        position = entries.index(current) + 1 if current in entries else len(entries)
        return entries[position] if position < len(entries) else None


def write_choices(folder: Path, choices: Choices) -> None:
    """Writes FOLDER/choices.json atomically."""
    write_json(folder / "choices.json", {"format": FORMAT, **dataclasses.asdict(choices)})


def read_choices(folder: Path) -> Choices:
    """FOLDER/choices.json. Raises UserError where it is missing, Damaged where it is not a plan."""
    path = folder / "choices.json"
    value = read_format(path)
    shape = {"settings": Mapping, "segments": tuple[Any, ...], "fallbacks": Mapping}
    for name, hint in shape.items():
        if not fits(hint, value.get(name, () if name == "segments" else {})):
            raise Damaged(f"{path}: {name!r} is {value[name]!r}, it must be {words_for(hint)}", value=value[name])
    settings = {
        name: _tuples(from_json(Choice, entry, what=f"{path}: {name}"), "beat")
        for name, entry in value.get("settings", {}).items()
    }
    segments = [
        _tuples(from_json(Segment, entry, what=f"{path}: segment"), "trials") for entry in value.get("segments", [])
    ]
    fallbacks = {}
    for name, entries in value.get("fallbacks", {}).items():
        if not isinstance(entries, list):
            raise Damaged(f"{path}: the fall-backs of {name} are {entries!r}, they must be a list", value=entries)
        fallbacks[name] = tuple(entries)
    whole = {**value, "settings": settings, "segments": tuple(segments), "fallbacks": fallbacks}
    return from_json(Choices, whole, what=str(path))


def _tuples(record: T, name: str) -> T:
    return dataclasses.replace(record, **{name: tuple(getattr(record, name))})  # type: ignore[type-var]


@dataclass(frozen=True)
class Rollouts:
    """What a reinforcement step learned from: the model's answers to its questions, in groups of one question each."""

    reward: float  # mean over all answers
    right: float  # share of the answers that got the full reward
    groups: int  # questions
    even_groups: int  # of them those whose answers all got the same reward: they say nothing about the direction
    answers: int
    tokens: int  # that the model wrote
    cut: int  # answers that ran out of tokens
    rollout_s: float  # of the step went into writing and judging answers; the rest is training


@dataclass(frozen=True)
class StepRow:
    """One optimizer step. loss is None where it was not finite, which JSON cannot hold."""

    step: int  # 1 after the first step
    tokens: int  # tokens seen since the stage began
    loss: float | None  # nats per supervised token
    lr: float  # multiplier of the learning rates
    step_s: float
    data_s: float  # waiting for data, part of step_s
    tokens_per_s: float
    peak_bytes: int | None  # None where the platform does not tell
    skipped: bool = False  # the update was left out, the loss was not finite
    rollouts: Rollouts | None = None  # of a reinforcement step, whose tokens are those that the model wrote


@dataclass(frozen=True)
class EvalRow:
    """An evaluation after a step: names with their numbers."""

    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class SampleRow:
    """What the model wrote after a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class EventRow:
    """Something that happened to the job: a save, a restart, a fall-back."""

    step: int
    event: str
    message: str
    seconds: float | None = None  # how long it took, where that was measured


LogRow = StepRow | EvalRow | SampleRow | EventRow
KIND_OF = {StepRow: "step", EvalRow: "eval", SampleRow: "sample", EventRow: "event"}


def log_row(path: Path, row: LogRow) -> None:
    """Appends one row to a log.jsonl, in one write."""
    values = dataclasses.asdict(row)
    if isinstance(row, StepRow) and row.rollouts is None:
        del values["rollouts"]
    append_line(path, {"kind": KIND_OF[type(row)], **values})


def read_log(path: Path, kind: Literal["step", "eval", "sample", "event"] | None = None) -> list[dict[str, Any]]:
    """The rows of a log.jsonl, all or of one kind. Raises Damaged for a kind that no log has."""
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        if row.get("kind") not in LOG_KINDS:
            raise Damaged(f"{path}: row {number} has kind {row.get('kind')!r}", value=row.get("kind"))
    return [row for row in rows if kind is None or row["kind"] == kind]


def cut_log(path: Path, step: int) -> int:
    """Takes out the rows after this step, and a torn last line, so that a resumed job logs every step once.

    Returns how many rows were taken out. A missing file is left missing.
    """
    if not path.exists():
        return 0
    rows = read_log(path)
    kept = [row for row in rows if row["step"] <= step]
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in kept)
    if lines.encode() != path.read_bytes():
        write_atomic(path, lines)
    return len(rows) - len(kept)


@dataclass(frozen=True)
class Answer:
    """What a verb returns: its result for machines, its text for people, and how it ended."""

    result: Mapping[str, Any]
    text: str = ""  # printed on stdout without --json
    run: str | None = None
    path: str | None = None
    outcome: str = "done"
    exit: int = 0
    error: Mapping[str, Any] | None = None  # {message, value, fix} where the outcome is not done
    is_said: bool = False  # printed already, by a verb that goes on after its result


def json_line(verb: str, answer: Answer) -> str:
    """The result object of `--json`: one line."""
    value: dict[str, Any] = {"format": FORMAT, "verb": verb, "outcome": answer.outcome, "exit": answer.exit}
    if answer.error is None or answer.result:
        value |= {"run": answer.run, "path": answer.path, "result": dict(answer.result)}
    if answer.error is not None:
        value["error"] = dict(answer.error)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


@dataclass(frozen=True)
class ResultRow:
    """One measured number with everything needed to measure it again."""

    id: str  # device.area.case
    value: float
    unit: str
    low: float | None  # interval around the value; None where one was not measured
    high: float | None
    n: int  # repeats behind the value
    baseline: str | None  # what a ratio is against
    machine: Mapping[str, Any]
    command: str  # makes this row again
    code: str  # git revision
    date: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise UserError(f"{self.id}: {name} {number!r} is not a finite number", value=repr(number))
        if (self.low is not None and self.low > self.value) or (self.high is not None and self.high < self.value):
            raise UserError(f"{self.id}: value {self.value} is outside its interval [{self.low}, {self.high}]")
        for name in ("id", "unit", "command", "code"):
            if not getattr(self, name):
                raise UserError(f"{self.id}: {name} is empty", fix="a number without its origin is not counted")
        if self.n < 1:
            raise UserError(f"{self.id}: n is {self.n}, at least one measurement is needed", value=self.n)
        _check_date(self.id, self.date)


def _check_date(name: str, date: str) -> None:
    try:
        offset = datetime.datetime.fromisoformat(date).utcoffset()
    except ValueError:
        offset = None
    if offset != datetime.timedelta(0):
        raise UserError(f"{name}: date {date!r} is not ISO 8601 in UTC", value=date, fix=f"for example {utc_now()}")


def utc_now() -> str:
    """This second as ISO 8601 in UTC: 2026-01-31T12:00:00+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def append_result(path: Path, row: ResultRow) -> None:
    """Appends a measured row to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, dataclasses.asdict(row))


def read_results(path: Path) -> list[ResultRow]:
    """The rows of a results file, checked. Raises Damaged or UserError for a row that is not one."""
    return [from_json(ResultRow, row, what=f"{path}:{number}") for number, row in enumerate(read_lines(path), 1)]
