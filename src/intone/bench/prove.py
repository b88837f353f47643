"""`intone bench prove`: rows about the measuring itself: false alarms, planted slow-downs, seconds per verdict."""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intone import jobs
from intone.bench.basics import result
from intone.bench.rows import row_path
from intone.bench.settings import BenchProveSettings
from intone.child import PACKAGE_PARENT
from intone.config import ModelConfig, OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.hardware import environment, load_facts
from intone.log import human_duration, say, table
from intone.paths import append_line, home, write_json
from intone.prove.live import LineChild, WorkerChild
from intone.prove.measure import MAX_PAIRS, Measured, Side, measure_rounds
from intone.prove.rounds import halves
from intone.prove.simulate import Noise, replicates, verdict_of
from intone.prove.verdict import Comparison
from intone.records import Answer, Choice, Choices, ResultRow, Segment, append_result, write_choices
from intone.resolving import Resolved

COMMAND = "intone bench prove"
SIMULATED = 1000
CONTEXT = 64
ROWS = 8
TEXT = "Ship {} sails past island {} to the north, with {} barrels of apples on board. "

Sides = Callable[[Path, TrainJob], tuple[Side, Side]]


@dataclass(frozen=True)
class Part:
    """What one part of the suite does: the sides of its comparisons, and the rows that come of them."""

    words: str
    sides: Sides
    rows: Callable[[Sequence[Measured]], list[ResultRow]]


def bench_prove(settings: BenchProveSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: runs the asked parts one after the other; each appends its rows when it is complete."""
    out = Path(settings.out) if settings.out else row_path("prove")
    raw = Path(settings.raw) if settings.raw else None
    rows: list[ResultRow] = []
    seconds: list[float] = []
    for name in settings.parts:
        if name == "sim":
            made = simulated_rows()
        else:
            part = PARTS[name]
            rounds = settings.small_rounds if name == "small" else settings.rounds
            measured = measured_part(part, rounds, raw)
            seconds += [entry.seconds for entry in measured]
            made = part.rows(measured)
        for row in made:
            append_result(out, row)
        rows += made
    if seconds:
        row = seconds_row(seconds)
        append_result(out, row)
        rows.append(row)
    lines = [[row.id, f"{row.value:.4g}", row.unit, str(row.n)] for row in rows]
    text = table(lines, header=["row", "value", "unit", "n"]) + f"\nrows in {out}"
    return Answer({"rows": [vars(row) for row in rows]}, text, path=str(out))


# --- simulation -----------------------------------------------------------------------------------------------------


def simulated_rows() -> list[ResultRow]:
    """Made-up noise of 1 % per side and round: how often a change of 5 % is found, and nothing where nothing is."""
    rng = np.random.default_rng(0)
    noise = Noise(round=0.01)
    found = [verdict_of(replicates(1.05, noise, rng)).verdict == "faster" for _ in range(SIMULATED)]
    equal = [verdict_of(replicates(1.0, noise, rng)).verdict for _ in range(SIMULATED)]
    wrong = sum(word in ("faster", "slower") for word in equal)
    command = f"{COMMAND} --parts sim"
    return [
        result("cpu.prove.power_sim", sum(found) / SIMULATED, "share of rounds", None, None, SIMULATED, command),
        result("cpu.prove.aa_false_sim", wrong, "wrong verdicts", None, None, SIMULATED, command),
    ]


# --- measured -------------------------------------------------------------------------------------------------------


def measured_part(part: Part, rounds: int, raw: Path | None) -> list[Measured]:
    """rounds comparisons of the part's sides, with a line about each; their pairs are kept in raw."""
    found = []
    with jobs.trial_folder(home() / "trials") as folder:
        job = tiny_job(folder)
        for number in range(1, rounds + 1):
            place = folder / f"round-{number}"
            place.mkdir()
            measured = measure_rounds(part.sides(place, job))
            found.append(measured)
            comparison = measured.comparisons[0]
            left = human_duration((rounds - number) * statistics.fmean(entry.seconds for entry in found))
            say(f"{part.words} {number} of {rounds}: {comparison.text()}, {measured.seconds:.0f} s; left {left}")
            if raw is not None:
                append_line(raw, pairs_json(measured))
    return found


def tiny_job(folder: Path) -> TrainJob:
    """A training whose step takes some 50 ms on one core: byte tokens, two blocks, text made here."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    tokenizer.save(folder / "tokenizer")
    texts = [TEXT.format(n, n * 7 % 31, n * n % 97) * (1 + n % 5) for n in range(400)]
    ensure_token_set(folder / "text", tokenizer, kind="documents", documents=lambda _: texts)
    config: ModelConfig = model_config("modern", depth=2, vocab_size=tokenizer.vocab_size, context=CONTEXT)
    return TrainJob(
        stage="base", model=config, tokenizer=str(folder / "tokenizer"), tokenizer_hash=tokenizer.hash,
        data=(str(folder / "text"),), val=None, context=CONTEXT, steps=1_000_000, rows_per_step=ROWS,
        optim=OptimConfig(), schedule=ScheduleConfig(), seed=0, keep=0,
    )  # fmt: skip


def tiny_choices() -> Choices:
    """Eager, in fp32, on one thread: the other core is left to whatever else the machine does."""
    segment = Segment(0, ROWS, compiled=False, dtype="fp32", attention="sdpa", reason="bench prove", threads=1)
    variables = {name: item.value for name, item in environment(load_facts(), threads=1).items()}
    return Choices({"device": Choice("cpu", "bench prove", "default")}, (segment,), {}, variables)


def sides_of(share: float) -> Sides:
    """A against the same with every step this share longer; 0: the very same."""

    def made(folder: Path, job: TrainJob) -> tuple[Side, Side]:
        choices = tiny_choices()
        numbers = itertools.count(1)

        def prepared() -> Path:
            place = folder / str(next(numbers))
            place.mkdir()
            write_choices(place, choices)
            write_json(place / "config.json", job.as_json())
            return place

        def plain() -> LineChild:
            return WorkerChild(prepared(), choices.environment)

        def slowed() -> LineChild:
            words = [sys.executable, "-P", "-m", "intone.bench.planted", str(prepared()), str(share)]
            return LineChild(words, {**choices.environment, "PYTHONPATH": str(PACKAGE_PARENT)}, name="the slowed one")

        return Side("A", plain), Side("B", slowed if share else plain)

    return made


def pairs_json(measured: Measured) -> dict[str, Any]:
    """The pairs of a comparison by replicate, the rates of A's two blocks and of B's, and which were disturbed."""
    replicates_: dict[int, list[list[tuple[float, float]]]] = {}
    disturbed = []
    for entry in measured.rounds:
        pair = [halves(entry.of(name)) for name in ("A", "B")]
        replicates_.setdefault(entry.replicate, []).append(pair)
        disturbed.append([found.words for found in entry.disturbed])
    comparison = measured.comparisons[0].as_json()
    return {"replicates": list(replicates_.values()), "disturbed": disturbed, "comparison": comparison}


# --- rows -----------------------------------------------------------------------------------------------------------


def aa_rows(measured: Sequence[Measured]) -> list[ResultRow]:
    """How often A was called faster or slower than itself."""
    words = [entry.comparisons[0].verdict for entry in measured]
    command = f"{COMMAND} --parts aa --rounds {len(words)}"
    return [
        result("cpu.prove.aa_false_positives", words.count("faster"), "verdicts", None, None, len(words), command),
        result("cpu.prove.aa_false_slower", words.count("slower"), "verdicts", None, None, len(words), command),
    ]


def planted_rows(measured: Sequence[Measured]) -> list[ResultRow]:
    """The share of slow-downs of 30 % that were named within ten pairs."""
    found = [is_named(entry.comparisons[0]) for entry in measured]
    command = f"{COMMAND} --parts planted --rounds {len(found)}"
    share = sum(found) / len(found)
    return [result("cpu.prove.power_30pct", share, "share of rounds", None, None, len(found), command)]


def is_named(comparison: Comparison) -> bool:
    return comparison.verdict == "slower" and comparison.num_pairs <= MAX_PAIRS


def small_rows(measured: Sequence[Measured]) -> list[ResultRow]:
    """How often a slow-down of 5 % was called faster or the same: it must be slower, or not proven with a count."""
    words = [entry.comparisons[0].verdict for entry in measured]
    wrong = sum(word in ("faster", "same", "rejected") for word in words)
    command = f"{COMMAND} --parts small --small-rounds {len(words)}"
    return [result("cpu.prove.wrong_5pct", wrong, "verdicts", None, None, len(words), command)]


def seconds_row(seconds: Sequence[float]) -> ResultRow:
    """The median time of a verdict, starts of processes included, with the order statistics of its 95 % interval."""
    ordered = sorted(seconds)
    spread = 0.98 * math.sqrt(len(ordered))  # half of 1.96 standard deviations of the median's rank
    low = ordered[max(0, math.floor(len(ordered) / 2 - spread))]
    high = ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + spread) - 1)]
    middle = statistics.median(ordered)
    return result("cpu.prove.seconds_per_verdict", middle, "s", low, high, len(ordered), COMMAND)


PARTS = {
    "aa": Part("A against A", sides_of(0.0), aa_rows),
    "planted": Part("30 % slower", sides_of(0.3), planted_rows),
    "small": Part("5 % slower", sides_of(0.05), small_rows),
}
