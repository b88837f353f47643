"""`intone bench A -- B`: two ways to train the same thing, measured in turns, and the verdict on the second."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone import jobs
from intone.bench.settings import BenchSettings
from intone.config import TrainJob
from intone.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.fields import flag_of, shown
from intone.log import human_bytes, human_duration, table, three_digits
from intone.paths import home, write_json
from intone.planning import plan_stage
from intone.prove.live import WorkerChild
from intone.prove.measure import MAX_PAIRS, Measured, Side, SideFailed, SideResult, measure_rounds
from intone.prove.rounds import Round
from intone.prove.verdict import Comparison
from intone.records import Answer, Choices, write_choices
from intone.resolving import Layer, Resolved, named_fields, resolve
from intone.settings import TrainSettings

NUM_STEPS = 1_000_000  # of the measured jobs: more than any block needs
# enough text for this many steps: more would only make the preparing longer, speed does not depend on it
DATA_STEPS = 50
# parts of a job that say what is computed; where they differ a step is another amount of work
WORK = ("model", "tokenizer_hash", "data", "weights", "context", "rows_per_step", "learn_all")
LABELS = {"rows_per_step": "rows per step (--batch-tokens)", "tokenizer_hash": "tokenizer"}
# parts that a comparison of speed does not depend on
BESIDE = (
    "tokenizer", "val", "deterministic", "eval_every", "eval_tokens", "samples", "save_every_s", "keep", "peak_flops",
    "steps",
)  # fmt: skip

Asked = tuple[BenchSettings, Mapping[str, Resolved]]


@dataclass(frozen=True)
class Planned:
    """One side, settled: what to train, and how."""

    name: str
    job: TrainJob
    choices: Choices


def bench_stage(settings: BenchSettings, origins: Mapping[str, Resolved], other: Asked | None) -> Answer:
    """The verb: A is settings, B is other. Raises UserError for a missing B, and for sides that do different work."""
    if other is None:
        raise UserError(
            "there is nothing to compare with",
            fix="write what B does otherwise behind --, for example: intone bench --compile off -- --compile on",
        )
    sides = [plan_side("A", settings, origins), plan_side("B", *other)]
    notes = check_work(*sides, allowed=settings.different_work)
    try:
        measured = measure_sides(sides, quick=settings.quick, max_pairs=settings.pairs)
    except SideFailed as failure:
        return failed_answer(failure)
    comparison = measured.comparisons[0]
    result = {"stage": settings.stage, **result_json(measured, sides, notes)}
    code = EXIT_DONE if settings.expect in (None, comparison.verdict) else EXIT_CHECK_FAILED
    return Answer(result, text_of(measured, describe(settings, other[0]), notes, settings.expect), exit=code)


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], *, stage: str = "base", quick: bool = False, pairs: int = MAX_PAIRS,
    different_work: bool = False,
) -> Comparison:  # fmt: skip
    """Whether training as in b is faster than as in a, measured here.

    a and b: settings as the flags of `intone bench` name them; b has those of a but for what it gives itself.
    Raises UserError for unknown settings and sides that do different work, SideFailed where a cannot be measured.
    """
    about = {"stage": stage, "quick": quick, "pairs": pairs, "different_work": different_work}
    first, second = (
        resolve(BenchSettings, [Layer("flag", "intone.compare", {**about, **values})]) for values in (a, {**a, **b})
    )
    sides = [plan_side("A", *first), plan_side("B", *second)]
    check_work(*sides, allowed=different_work)
    return measure_sides(sides, quick=quick, max_pairs=pairs).comparisons[0]


# --- what is measured -----------------------------------------------------------------------------------------------


def plan_side(name: str, settings: BenchSettings, origins: Mapping[str, Resolved]) -> Planned:
    """The job and plan that `intone train` would make of these settings, with steps for as long as we measure."""
    fields = named_fields(TrainSettings)
    layers = [
        Layer(entry.origin, entry.reason, {key: entry.value}) for key, entry in origins.items() if key in fields
    ]
    layers.append(Layer("default", "enough to measure", {"steps": DATA_STEPS}))
    asked, resolved = resolve(TrainSettings, layers)
    plan = plan_stage(asked, resolved, home() / "trials", started_s=0.0)  # no time is shared out: the steps are given
    job, choices = plan.stages[settings.stage]
    job = replace(job, steps=NUM_STEPS, keep=0, eval_every=None, samples=(), val=None)
    return Planned(name, job, choices)


def check_work(a: Planned, b: Planned, *, allowed: bool) -> list[str]:
    """What differs in the recipe, in words for the report. Raises UserError where that makes a step other work.

    allowed: the person wants rates of different work compared all the same.
    """
    work: list[str] = []
    other: list[str] = []
    for entry in dataclasses.fields(TrainJob):
        one, two = getattr(a.job, entry.name), getattr(b.job, entry.name)
        if entry.name in BESIDE or one == two:
            continue
        (work if entry.name in WORK else other).extend(differences(LABELS.get(entry.name, entry.name), one, two))
    if work and not allowed:
        raise UserError(
            f"A and B do different work: {'; '.join(work)}",
            value=work[0],
            fix="give both the same, or add --different-work to compare tokens per second all the same",
        )
    notes = [f"different work, only tokens per second are compared: {'; '.join(work)}"] if work else []
    if other:
        notes.append(f"the recipes differ, which a comparison of speed says nothing about: {'; '.join(other)}")
    return notes


def differences(name: str, a: Any, b: Any) -> list[str]:
    """model.depth: 2 and 4; one entry per field that differs."""
    if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
        return [
            found
            for entry in dataclasses.fields(a)
            for found in differences(f"{name}.{entry.name}", getattr(a, entry.name), getattr(b, entry.name))
        ]
    return [] if a == b else [f"{name}: {shown(a)} and {shown(b)}"]


def measure_sides(planned: Sequence[Planned], *, unit: str = "tokens", **options: Any) -> Measured:
    """Measures planned trainings in turns, each replicate in throw-away folders; options of measure_rounds."""
    with jobs.trial_folder(home() / "trials") as folder:
        return measure_rounds([as_side(entry, folder, unit) for entry in planned], **options)


def as_side(planned: Planned, folder: Path, unit: str) -> Side:
    """A side whose every start is a new job folder below folder."""
    numbers = itertools.count(1)

    def start() -> WorkerChild:
        place = folder / f"{planned.name}-{next(numbers)}"
        place.mkdir()
        write_choices(place, planned.choices)
        write_json(place / "config.json", planned.job.as_json())
        return WorkerChild(place, planned.choices.environment, name=planned.name)

    return Side(planned.name, start, unit=unit)


# --- what came out --------------------------------------------------------------------------------------------------


def result_json(measured: Measured, planned: Sequence[Planned], notes: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured, as JSON holds it."""
    return {
        "comparison": measured.comparisons[0].as_json() | ends(measured),
        "sides": [
            {**dataclasses.asdict(side), "plan": dataclasses.asdict(entry.choices.segments[-1])}
            for side, entry in zip(measured.sides, planned, strict=True)
            if side is not None
        ],
        "num_replicates": measured.num_replicates,
        "quick": measured.quick,
        "seconds": measured.seconds,
        "unsteady": measured.unsteady,
        "notes": list(notes),
        "rounds": [round_json(entry) for entry in measured.rounds],
    }


def ends(measured: Measured) -> dict[str, Any]:
    """The rates before and after, where there are both: what a report draws beside the verdict."""
    before, after = measured.sides
    if before is None or after is None:
        return {}
    return {
        word: {"name": side.name, "value": side.rate, "low": side.low, "high": side.high, "unit": f"{side.unit}/s"}
        for word, side in (("before", before), ("after", after))
    }


def round_json(entry: Round) -> dict[str, Any]:
    """A round with its blocks in the order of time, and what interfered."""
    return {
        "replicate": entry.replicate,
        "disturbed": [found.words for found in entry.disturbed],
        "blocks": [{"side": block.side, "work": block.work, "seconds": block.seconds} for block in entry.blocks],
    }


def text_of(measured: Measured, what: Sequence[str], notes: Sequence[str], expect: str | None) -> str:
    """What a person reads: the sides, their rates, and the verdict last."""
    comparison = measured.comparisons[0]
    rows = [side_row(side) for side in measured.sides if side is not None]
    header = ["side", "tokens/s", "slowest to fastest round", "first step", "again", "peak memory"]
    kind = "quick: " if measured.quick else ""
    aside = f"; {measured.unsteady}" if measured.unsteady and measured.unsteady not in comparison.reason else ""
    lines = [*what, "", table(rows, header=header), "", *notes]
    lines.append(
        f"{kind}{measured.num_replicates} replicates of fresh processes, {len(measured.rounds)} rounds in "
        f"{human_duration(measured.seconds)}{aside}"
    )
    lines.append(f"B is {comparison.text()}" if comparison.verdict in ("faster", "slower") else comparison.text())
    if comparison.verdict in ("faster", "slower", "same"):
        lines.append(comparison.reason)
    if expect not in (None, comparison.verdict):
        lines.append(f"expected was: {expect}")
    return "\n".join(lines)


def side_row(side: SideResult) -> list[str]:
    """name, rate, its range, first step of the first and of later processes, peak memory."""
    span = f"{three_digits(side.low)} to {three_digits(side.high)}"
    again = "-" if side.warm_first_s is None else human_duration(side.warm_first_s)
    first = human_duration(side.first_s)
    return [side.name, three_digits(side.rate), span, first, again, human_bytes(side.peak_bytes)]


def describe(a: BenchSettings, b: BenchSettings) -> list[str]:
    """One line per side with the settings in which they differ; A against itself where they do not."""
    fields = named_fields(BenchSettings)
    names = [name for name in fields if getattr(a, name) != getattr(b, name)]
    if not names:
        return ["A and B have the same settings"]
    return [
        f"{side}: {' '.join(f'{flag_of(fields[name])} {shown(getattr(settings, name))}' for name in names)}"
        for side, settings in (("A", a), ("B", b))
    ]


def failed_answer(failure: SideFailed) -> Answer:
    """What the verb returns where A could not be measured."""
    outcome = failure.outcome
    error = UserError(str(failure), value=outcome.outcome, fix=outcome.fix)
    code = EXIT_BAD_INPUT if outcome.outcome in ("bad_input", "disk_full") else EXIT_CHECK_FAILED
    return Answer({}, outcome=outcome.outcome, exit=code, error=error.as_json(), text=str(error))
