"""One table of the case study: its rows as they are measured, what was published for them, and how both are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from intone.bench.rows import new_row
from intone.evals.intervals import Interval
from intone.log import human_bytes, human_duration, table, three_digits
from intone.prove.gates.result import GateResult
from intone.prove.gates.stack import Stack
from intone.prove.gates.stack import judge as judge_stack
from intone.prove.measure import Measured, Side
from intone.prove.rounds import judge_rounds
from intone.prove.verdict import Comparison
from intone.records import ResultRow

START, EVERYTHING = "start", "everything"
NANOCHAT = "nanochat"  # the row of nanochat's own code
WITHOUT = "without_"  # begins the keys of rows with one change taken out of everything
MIN_ROUNDS = 5  # behind a row that is kept


@dataclass(frozen=True)
class Published:
    """What the published page says of a row, where it says something; see docs/case-study.md."""

    speedup: str = ""
    rate: str = ""
    saved: str = ""

    @property
    def words(self) -> str:
        return ", ".join(word for word in (self.speedup, self.saved, self.rate) if word)


# (table, row) -> what was published; the totals of sft and base are products there, not measurements
PUBLISHED: Mapping[tuple[str, str], Published] = {
    ("sft", "auto_batch"): Published("1.90x", "95,337 tokens/s", "47% saved"),
    ("sft", "compile"): Published("1.67x", saved="40% saved"),
    ("sft", EVERYTHING): Published("3.17x", "159,213 tokens/s", "68% saved"),
    ("base", "auto_batch"): Published("1.04x", saved="4% saved"),
    ("base", "compile"): Published("1.67x", saved="40% saved"),
    ("base", EVERYTHING): Published("1.74x", saved="43% saved"),
    ("compile", START): Published(rate="101,654 tokens/s, 64.4 s"),
    ("compile", EVERYTHING): Published("1.67x", "169,919 tokens/s, 38.6 s", "40% saved"),
    ("inference", START): Published(rate="81.4 tokens/s, 21.41 s"),
    ("inference", "batch"): Published("10.5x", "855.7 tokens/s, 2.04 s", "90% saved"),
}


@dataclass(frozen=True)
class Way:
    """A row: what it is, and how it is measured. side None: it is not, note says why or which row it equals."""

    key: str
    words: str
    batch: str  # rows that are computed together
    side: Side | None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row that was measured."""

    way: Way
    rate: Interval  # units per second; ends: slowest and fastest round
    ratio: Comparison | None  # against the start; None for the start itself
    busy: float | None  # processor time over wall-clock time times threads
    first_s: float
    warm_first_s: float | None
    peak_bytes: int | None
    parity: str  # its losses or tokens beside the start's, in words


@dataclass(frozen=True)
class Table:
    """One measured table. work: how much the wall-clock column is about, in units."""

    part: str
    title: str
    unit: str
    work: float
    work_words: str
    ways: Sequence[Way]
    lines: Mapping[str, Line]  # by key
    measured: Measured
    # by key, everything against everything without, and against nanochat's own code
    without: Mapping[str, Comparison] = field(default_factory=dict)
    notes: Sequence[str] = ()
    gates: Sequence[GateResult] = ()

    @property
    def num_rounds(self) -> int:
        return len(self.measured.rounds)


def to_table(
    part: str, title: str, ways: Sequence[Way], measured: Measured, *, unit: str, work: float, work_words: str,
    threads: int, parity: Mapping[str, str], notes: Sequence[str] = (), gates: Sequence[GateResult] = (),
) -> Table:  # fmt: skip
    """What was measured as a table. parity: words by key."""
    sides = [way for way in ways if way.side is not None]
    ratios = [None, *measured.comparisons]
    lines = {}
    for way, result, ratio in zip(sides, measured.sides, ratios, strict=True):
        if result is None:
            continue
        rate = Interval(result.rate, result.low, result.high)
        lines[way.key] = Line(
            way, rate, ratio, busy_share(measured, way.key, threads), result.first_s, result.warm_first_s,
            result.peak_bytes, parity.get(way.key, ""),
        )  # fmt: skip
    without = {
        key: judge_rounds(measured.rounds, key, EVERYTHING)
        for key in lines
        if (key.startswith(WITHOUT) or key == NANOCHAT) and EVERYTHING in lines
    }
    return Table(part, title, unit, work, work_words, ways, lines, measured, without, notes, gates)


def busy_share(measured: Measured, side: str, threads: int) -> float | None:
    """Processor time of a side's blocks over their wall-clock time times its threads, at most 1."""
    blocks = [block for entry in measured.rounds for block in entry.of(side)]
    wall_s = sum(block.after.at_s - block.before.at_s for block in blocks)
    own_s = sum(block.after.own_s - block.before.own_s for block in blocks)
    return min(1.0, own_s / (wall_s * threads)) if wall_s else None


def stack_gate(found: Table) -> GateResult | None:
    """The gate on the whole: is the total measured, and does every change gain something within it? None: no total."""
    total = found.lines.get(EVERYTHING)
    if total is None or total.ratio is None:
        return None
    alone = {
        key: line.ratio.ratio
        for key, line in found.lines.items()
        if line.ratio is not None and line.ratio.ratio is not None and key in ("auto_batch",)
    }
    without = {
        key.removeprefix(WITHOUT): interval_of(ratio) for key, ratio in found.without.items() if key != NANOCHAT
    }
    return judge_stack(Stack(interval_of(total.ratio), without, alone))


def interval_of(found: Comparison) -> Interval | None:
    """The measured ratio with its ends; None where there is none."""
    if found.ratio is None or found.low is None or found.high is None:
        return None
    return Interval(found.ratio, found.low, found.high)


# --- for people -----------------------------------------------------------------------------------------------------


def table_text(found: Table) -> str:
    """The table as people read it, and what it does not say by itself."""
    header = [found.title, "batch", found.work_words, f"{found.unit}/s", "speed-up", "saved", "busy", "published"]
    rows = [table_row(found, way) for way in found.ways]
    text = [table(rows, header=header)]
    text += [f"{way.words}: {way.note}" for way in found.ways if way.note]
    text += [line_text(line) for line in found.lines.values()]
    for key, ratio in found.without.items():
        words = found.lines[key].way.words
        is_theirs = key == NANOCHAT
        text.append(f"everything against {words}: {ratio.times}" if is_theirs else
                    f"{words} is worth {ratio.times} within everything")  # fmt: skip
    alone = any(key.startswith(WITHOUT) for key in found.without)
    gates = [*found.gates, *([stack] if alone and (stack := stack_gate(found)) else [])]
    text += [f"{gate.name}: {gate.word}: {gate.reason}" for gate in gates]
    text += found.notes
    if found.measured.unsteady:
        text.append(f"the machine was unsteady: {found.measured.unsteady}")
    return "\n".join(text)


def line_text(line: Line) -> str:
    """What stands below the table about one row: its results beside the start's, its first step, its memory."""
    again = "" if line.warm_first_s is None else f", {line.warm_first_s:.1f} s in later processes"
    words = [line.parity] if line.parity else []
    words += [f"first step {line.first_s:.1f} s{again}"]
    words += [f"peak {human_bytes(line.peak_bytes)}"] if line.peak_bytes else []
    return f"{line.way.words}: {'; '.join(words)}"


def table_row(found: Table, way: Way) -> list[str]:
    """The cells of one row."""
    published = PUBLISHED.get((found.part, way.key), Published())
    line = found.lines.get(way.key)
    if line is None:
        return [way.words, way.batch, *["-"] * 5, published.speedup or "-"]
    speedup, saved = "1x", "-"
    if line.ratio is not None:
        speedup = line.ratio.times
        saved = f"{100 * (1 - 1 / line.ratio.ratio):.0f}%" if line.ratio.ratio else "-"
    return [
        way.words, way.batch, human_duration(found.work / line.rate.value), three_digits(line.rate.value), speedup,
        saved, "unknown" if line.busy is None else f"{100 * line.busy:.0f}%", published.speedup or "-",
    ]  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """One measured value on its way to a row. name: without the machine in front."""

    name: str
    interval: Interval
    unit: str
    n: int
    baseline: str | None


def values_of(found: Table) -> list[Value]:
    """The values of a table that was measured in enough rounds; none where it was not.

    On an unsteady machine the intervals allow for the worst that interfered (judge_rounds); a ratio without an interval
    has no value, and rates have none then.

    casestudy.PART is everything against the start, other rows have the row's key behind it; with one change taken out
    it is everything against that.
    """
    disturbed = sum(bool(entry.disturbed) for entry in found.measured.rounds)
    unsteady = 2 * disturbed > found.num_rounds
    if found.num_rounds < MIN_ROUNDS or START not in found.lines:
        return []
    start = found.lines[START]
    baseline = f"{start.way.words}, batch {start.way.batch}: {three_digits(start.rate.value)} {found.unit}/s"
    ratios = {key: line.ratio for key, line in found.lines.items() if line.ratio is not None} | dict(found.without)
    values = []
    for key, ratio in ratios.items():
        interval = interval_of(ratio)
        if interval is None or ratio.verdict == "rejected":
            continue
        name = f"casestudy.{found.part}" + ("" if key == EVERYTHING else f".{key}")
        against = found.lines[key].way.words if key in found.without else baseline
        values.append(Value(name, interval, "x", ratio.num_pairs, against))
    for key in (START, EVERYTHING):
        if key in found.lines and not unsteady:
            name = f"casestudy.{found.part}.{key}.per_s"
            values.append(Value(name, found.lines[key].rate, f"{found.unit}/s", found.num_rounds, None))
    return values


def result_rows(found: Table, *, prefix: str, command: str) -> list[ResultRow]:
    """The rows of a table, see values_of. prefix: of this machine."""
    return [
        new_row(f"{prefix}.{value.name}", value.interval, value.unit, n=value.n, baseline=value.baseline,
                command=command)
        for value in values_of(found)
    ]  # fmt: skip
