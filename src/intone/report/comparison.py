"""The report of measurements in a file: comparisons with their verdicts, or result rows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.errors import Damaged, UserError
from intone.log import three_digits
from intone.paths import read_lines
from intone.records import ResultRow, read_results
from intone.report.charts import Axis, Bar, Ratio, bar_chart, both, ratio_chart
from intone.report.document import Block, Commands, Document, Figure, KeyFigures, Prose, Section, Table

VERDICTS = ("faster", "slower", "same", "not proven", "rejected")
NEEDED = ("ratio", "low", "high", "verdict")  # what makes an object of JSON a comparison
COLOURS = {"faster": 3, "slower": 5, "same": 6, "not proven": 2, "rejected": 5}


def read_measured(path: Path) -> Document:
    """The report of a .json or .jsonl file. Raises UserError for one that holds neither comparisons nor rows."""
    values = _objects(path)
    found = [entry for value in values for entry in comparisons(value)]
    if found:
        return comparison_document(path.stem, values, found)
    if values and all("id" in value and "value" in value for value in values):
        return results_document(path.stem, read_results(path))
    raise UserError(
        f"{path} holds neither comparisons nor result rows",
        value=str(path),
        fix="give what intone bench --json printed, or a file of bench/results",
    )


def _objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file: one document of JSON, or one a line. Raises Damaged where it is neither."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = read_lines(path)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, dict) for entry in values):
        raise Damaged(f"{path} holds something that is no object", value=str(path))
    return values


def comparisons(value: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every comparison inside a JSON value with its name: its own "name" or "label", else the keys that lead to it."""
    if isinstance(value, list):
        for number, entry in enumerate(value, 1):
            yield from comparisons(entry, f"{name} {number}".strip() if len(value) > 1 else name)
    elif isinstance(value, dict):
        own = str(value.get("name") or value.get("label") or name)
        if all(key in value for key in NEEDED):
            yield own or "B against A", value
            return
        for key, entry in value.items():
            if isinstance(entry, (dict, list)):
                inner = key if key not in ("result", "comparison", "comparisons", "rows") else ""
                yield from comparisons(entry, " ".join(part for part in (own, inner) if part))


def comparison_document(
    title: str, values: Sequence[Mapping[str, Any]], found: Sequence[tuple[str, Mapping[str, Any]]]
) -> Document:
    """Factors with their intervals and verdicts, what they rest on, and the measured values of both sides."""
    for name, entry in found:
        _check(name, entry)
    figure = ratios_figure(found)
    blocks: list[Block] = [*([figure] if figure else []), verdict_table(found)]
    sides = [block for name, entry in found if (block := sides_figure(name, entry))]
    counts = {verdict: sum(entry["verdict"] == verdict for _, entry in found) for verdict in VERDICTS}
    figures = [(str(number), verdict, "") for verdict, number in counts.items() if number]
    sections = [Section("Factors", "factors", blocks)]
    if sides:
        sections.append(Section("Before and after", "sides", sides))
    commands = [str(value["command"]) for value in values if value.get("command")]
    if commands:
        sections.append(Section("Measure again", "again", [Commands([(command, "") for command in commands])]))
    return Document(
        kind="comparison",
        title=title,
        subtitle=headline(found),
        lead=[KeyFigures(figures)] if len(found) > 1 else [],
        sections=sections,
        data={"format": 1, "kind": "comparison", "comparisons": [{"name": n, **entry} for n, entry in found]},
        footer="A verdict is given only where the interval clears what this machine's noise could make.",
    )


def _check(name: str, entry: Mapping[str, Any]) -> None:
    """Raises Damaged for a comparison that no measurement could have given.

    A thing that failed, or was not measured, has no ratio; its verdict then is rejected or not proven.
    """
    if entry["verdict"] not in VERDICTS:
        raise Damaged(f"{name}: {entry['verdict']!r} is no verdict", value=entry["verdict"], fix=", ".join(VERDICTS))
    if entry["ratio"] is None and entry["verdict"] in ("rejected", "not proven"):
        return
    numbers = [entry[key] for key in ("low", "ratio", "high")]
    are_factors = all(isinstance(n, (int, float)) and not isinstance(n, bool) and n > 0 for n in numbers)
    if not are_factors or numbers != sorted(numbers):
        raise Damaged(f"{name}: ratio {numbers[1]} with interval [{numbers[0]}, {numbers[2]}]", value=name)


def headline(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One comparison in a sentence, or how many there are."""
    if len(found) > 1:
        return f"{len(found)} comparisons."
    name, entry = found[0]
    return f"{name}: {entry['verdict']}, {factor(entry)}{pairs(entry)}."


def factor(entry: Mapping[str, Any]) -> str:
    """1.32x [1.27, 1.36]"""
    if entry["ratio"] is None:
        return "not measured"
    return f"{entry['ratio']:.3g}x [{entry['low']:.3g}, {entry['high']:.3g}]"


def pairs(entry: Mapping[str, Any]) -> str:
    """How many pairs a comparison rests on, where it says."""
    number = entry.get("num_pairs")
    return f", {number} pairs" if number else ""


def ratios_figure(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure | None:
    """All factors on one axis around 1; None where nothing was measured."""
    ratios = [
        Ratio(name, e["ratio"], e["low"], e["high"], f"{factor(e)} {e['verdict']}", _noise(e), COLOURS[e["verdict"]])
        for name, e in found
        if e["ratio"] is not None
    ]
    if not ratios:
        return None
    axis = Axis("factor; right of 1: B is faster")
    words = "Lines: intervals. Grey: the factors that two equal sides gave on this machine, its noise."
    shown = ", ".join(f"{ratio.name} {ratio.shown}" for ratio in ratios)
    return Figure("", both(lambda width: ratio_chart(ratios, axis=axis, width=width, description=shown)), words)


def _noise(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = entry.get("noise_low"), entry.get("noise_high")
    return None if low is None or high is None else (low, high)


def verdict_table(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Every comparison with what led to its verdict."""
    rows = []
    for name, entry in found:
        noise = _noise(entry)
        more = entry.get("more_pairs")
        reason = str(entry.get("reason") or "")
        if more and "more pairs" not in reason:
            reason += f"; about {more} more pairs would tell"
        shown_noise = "unknown" if noise is None else f"{noise[0]:.3g} to {noise[1]:.3g}"
        rows.append([name, entry["verdict"], factor(entry), shown_noise, str(entry.get("num_pairs") or ""), reason])
    header = ["comparison", "verdict", "factor", "noise", "pairs", "why"]
    return Table(header, rows, left=6, stacked=True)


def sides_figure(name: str, entry: Mapping[str, Any]) -> Figure | None:
    """Before and after as bars, where a comparison holds both sides as {name, value, low, high, unit}."""
    sides = [entry.get(key) for key in ("before", "after")]
    if not all(isinstance(side, dict) and isinstance(side.get("value"), (int, float)) for side in sides):
        return None
    bars, unit = [], ""
    for side, word, colour in zip(sides, ("before", "after"), (6, 1), strict=True):
        assert isinstance(side, dict), "checked above"
        unit = str(side.get("unit") or "")
        bars.append(
            Bar(str(side.get("name") or word), side["value"], side.get("low"), side.get("high"),
                with_ends(side["value"], side.get("low"), side.get("high"), ""), colour)
        )  # fmt: skip
    svg = both(lambda width: bar_chart(bars, axis=Axis(unit, 0.0), width=width, description=f"{name}: both sides"))
    return Figure(name, svg, "Lines: intervals over the measured blocks.")


def with_ends(value: float, low: float | None, high: float | None, unit: str) -> str:
    """A value with its interval and unit: 12.3 [11.9, 12.8] ms."""
    ends = "" if low is None or high is None else f" [{three_digits(low)}, {three_digits(high)}]"
    return f"{three_digits(value)}{ends} {unit}".strip()


# --- result rows ----------------------------------------------------------------------------------------------------


def results_document(title: str, rows: Sequence[ResultRow]) -> Document:
    """Measured rows, the newest of each id first, with what each rests on."""
    newest: dict[str, ResultRow] = {}
    for row in sorted(rows, key=lambda row: row.date):
        newest[row.id] = row
    table = Table(
        ["id", "value", "n", "against", "date", "code"],
        [
            [row.id, with_ends(row.value, row.low, row.high, row.unit), f"{row.n:,}", row.baseline or "", row.date[:10],
             row.code]
            for row in newest.values()
        ],
        left=6,
        stacked=True,
    )  # fmt: skip
    commands = list(dict.fromkeys(row.command for row in newest.values()))
    machines = list(dict.fromkeys(machine_words(row.machine) for row in newest.values()))
    earlier = len(rows) - len(newest)
    words = f"{len(newest)} measured values" + (f", and {earlier} earlier ones of the same names" if earlier else "")
    return Document(
        kind="results",
        title=title,
        subtitle=f"{words}.",
        sections=[
            Section("Values", "values", [table]),
            Section("Measured on", "machines", [Prose(words) for words in machines]),
            Section("Measure again", "again", [Commands([(command, "") for command in commands])]),
        ],
        data={"format": 1, "kind": "results", "rows": [row.__dict__ for row in newest.values()]},
    )


def machine_words(machine: Mapping[str, Any]) -> str:
    """A machine of a result row in one line."""
    chip = machine.get("gpu_name") or machine.get("cpu_name") or "unknown machine"
    words = [str(chip)]
    if cores := machine.get("cores_physical"):
        words.append(f"{cores} cores")
    if size := machine.get("memory_bytes"):
        words.append(f"{size / 2**30:.0f} GiB")
    if not machine.get("gpu_name") and "has_avx512_bf16" in machine:  # what the same name may or may not have
        with_bf16 = machine["has_avx512_bf16"] or machine.get("has_amx_bf16")
        words.append("bf16 products" if with_bf16 else "no bf16 products")
    words += [f"{name} {machine[key]}" for name, key in (("torch", "torch_version"), ("Python", "python_version"))
              if machine.get(key)]  # fmt: skip
    return ", ".join(words)


