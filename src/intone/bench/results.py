"""BENCH.md, docs/case-study.md and README's measured lines, from bench/results: python -m intone.bench.results"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intone.bench.casestudy_page import page_text
from intone.bench.rows import ROOT
from intone.bench.targets import AREAS, TARGETS, Target, meaning
from intone.errors import EXIT_CHECK_FAILED, UserError
from intone.log import say, three_digits
from intone.paths import write_atomic
from intone.records import ResultRow, read_results
from intone.report.comparison import machine_words
from intone.report.markdown import plain

COMMAND = "python -m intone.bench.results"
BEGIN, END = f"<!-- measured: {COMMAND} writes this -->", "<!-- end of what was measured -->"
# what README.md shows of the values that were measured, in this order
HEADLINES = (
    "cpu.run.starter_skills",
    "cpu.run.minutes",
    "cpu.run.peak_gib",
    "cpu.casestudy.sft",
    "cpu.casestudy.base",
    "cpu.casestudy.inference",
    "cpu.train.d6.vs_nanochat",
    "cpu.train.d6.vs_nanochat_bf16",
    "cpu.infer.b16_prompts.vs_nanochat",
    "h200.casestudy.sft",
    "h200.casestudy.inference",
    "h200.train.d12.vs_nanochat_a",
    "h200.train.d12.vs_nanochat_b",
)
HEAD = f"""# Measured

Every value that intone sets out to reach, and what was measured. Made from `bench/results/*.jsonl` by
`{COMMAND}`; a test compares. Of several rows of one id the newest counts, the older
ones stay in the files. Brackets hold the interval of a value; it is judged by the end that hurts. *must* is the
least, *aim* what we want. A value without a row was not measured: it says so, and no estimate stands in its place.
"""
WORDS = {"aim": "aim reached", "must": "must reached", "short": "**short of must**"}


@dataclass(frozen=True)
class Results:
    """Rows by id, the newest of each, and the machines they were measured on by their numbers."""

    newest: Mapping[str, ResultRow]
    num_older: Mapping[str, int]

    @property
    def machines(self) -> dict[str, int]:
        """Machines in words -> their number, in the order of the ids."""
        words = [machine_words(self.newest[name].machine) for name in sorted(self.newest)]
        return {machine: number for number, machine in enumerate(dict.fromkeys(words), 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes these files, or with --check compares: exit 1 where one is old, 2 where a row is no row."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is not current")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout that holds bench/results and README.md")
    asked = parser.parse_args(argv)
    try:
        wanted = files(asked.root)
    except UserError as error:
        say(str(error))
        return 2
    old = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in old:
        if asked.check:
            print(f"{path.name} is not current: run {COMMAND}")
        else:
            write_atomic(path, wanted[path])
            print(f"{path.name} written")
    return EXIT_CHECK_FAILED if asked.check and old else 0


def files(root: Path) -> dict[Path, str]:
    """What BENCH.md, docs/case-study.md and README.md of a checkout should hold. Raises UserError for a bad row."""
    results = read_all(root / "bench" / "results")
    readme = root / "README.md"
    return {
        root / "BENCH.md": bench_text(results),
        root / "docs" / "case-study.md": page_text(results.newest, value_words, plain),
        readme: with_measured(readme.read_text(encoding="utf-8"), readme_lines(results)),
    }


def read_all(folder: Path) -> Results:
    """The rows of all files of a folder; a later line of the same second wins over an earlier one."""
    newest: dict[str, ResultRow] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in read_results(path):
            counts[row.id] = counts.get(row.id, 0) + 1
            if row.id not in newest or row.date >= newest[row.id].date:
                newest[row.id] = row
    return Results(newest, {name: count - 1 for name, count in counts.items()})


# --- BENCH.md -------------------------------------------------------------------------------------------------------


def bench_text(results: Results) -> str:
    """The whole of BENCH.md."""
    known = {entry.id: entry for entry in TARGETS}
    names = sorted({*known, *results.newest})
    areas = sorted({area_of(name) for name in names}, key=lambda area: (list(AREAS).index(area) if area in AREAS
                                                                        else len(AREAS), area))  # fmt: skip
    parts = [HEAD, standing(results)]
    for area in areas:
        here = [name for name in names if area_of(name) == area]
        parts.append(f"## {AREAS.get(area, area)}")
        parts += section([name for name in here if name in known], known, results)
        parts += others([name for name in here if name not in known], results)
        parts += origins(here, results)
    if results.machines:
        lines = [f"- m{number}: {plain(machine)}" for machine, number in results.machines.items()]
        parts += ["## Machines", "\n".join(lines)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def area_of(name: str) -> str:
    """The second part of an id: cpu.train.d4 is about train."""
    return name.split(".")[1] if "." in name else name


def standing(results: Results) -> str:
    """How many targets stand where, in one line."""
    states = [entry.reached(results.newest[entry.id]) for entry in TARGETS if entry.id in results.newest]
    missing = len(TARGETS) - len(states)
    return (
        f"Of {len(TARGETS)} targets {states.count('aim')} are at their aim, {states.count('must')} at their must, "
        f"{states.count('short')} short of it, {missing} not measured yet."
    )


def section(names: Sequence[str], known: Mapping[str, Target], results: Results) -> list[str]:
    """The table of an area's targets; nothing where it has none."""
    if not names:
        return []
    lines = ["| target | what | measured | must | aim | |", "| :-- | :-- | --: | --: | --: | :-- |"]
    for name in names:
        entry, row = known[name], results.newest.get(name)
        bounds = [f"{entry.op} {with_unit(bound, entry.unit)}" for bound in (entry.must, entry.aim)]
        measured = value_words(row) if row else "not measured yet"
        state = WORDS[entry.reached(row)] if row else ""
        lines.append(f"| `{name}` | {entry.what} | {measured} | {bounds[0]} | {bounds[1]} | {state} |")
    return ["\n".join(lines)]


def others(names: Sequence[str], results: Results) -> list[str]:
    """The table of an area's measured values that have no target; nothing where it has none."""
    if not names:
        return []
    lines = ["| value | what | measured |", "| :-- | :-- | --: |"]
    lines += [f"| `{name}` | {meaning(name)} | {value_words(results.newest[name])} |" for name in names]
    return ["\n".join(lines)]


def origins(names: Sequence[str], results: Results) -> list[str]:
    """Where each measured value of an area comes from, values of one origin together; nothing where there is none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        row = results.newest.get(name)
        if row is None:
            continue
        older = results.num_older[name]
        words = [f"m{results.machines[machine_words(row.machine)]}", row.date[:10], f"code {plain(row.code)}"]
        words += [f"n {row.n:,}"] + ([f"against {plain(row.baseline)}"] if row.baseline else [])
        words += [f"{older} older row{'s' if older > 1 else ''}"] if older else []
        groups.setdefault(f"{', '.join(words)}; again with ``{row.command}``", []).append(f"`{name}`")
    return ["\n".join(f"- {', '.join(ids)}: {words}" for words, ids in groups.items())]


def value_words(row: ResultRow) -> str:
    """A value with its interval and unit: 10.6 min, or 85.5% [83.9, 86.7]."""
    ends = [number(end, row.unit) for end in (row.low, row.high) if end is not None]
    interval = f" [{ends[0]}, {ends[1]}]" if len(ends) == 2 else ""
    return f"{number(row.value, row.unit)}{interval}{suffix(row.unit)}"


def with_unit(value: float, unit: str) -> str:
    """A bound with its unit: 12 min, 80%."""
    return number(value, unit) + suffix(unit)


def suffix(unit: str) -> str:
    """What follows a value: nothing after percent and factors, which carry theirs."""
    return "" if is_share(unit) or unit == "x" else f" {unit}"


def is_share(unit: str) -> bool:
    """Whether a unit is a part of one, which people read as percent."""
    return unit == "share" or unit.startswith("share of")


def number(value: float, unit: str) -> str:
    """Three digits; percent where the unit is a share, 1.7x where it is a factor."""
    if is_share(unit):
        return f"{three_digits(100 * value)}%"
    return three_digits(value) + ("x" if unit == "x" else "")


# --- README.md ------------------------------------------------------------------------------------------------------


def readme_lines(results: Results) -> str:
    """What README.md says of the measured values; empty where none of them was measured."""
    rows = [results.newest[name] for name in HEADLINES if name in results.newest]
    if not rows:
        return ""
    lines = ["| measured | | on |", "| :-- | --: | :-- |"]
    lines += [f"| {meaning(row.id)} | {value_words(row)} | {plain(machine_words(row.machine))} |" for row in rows]
    return "\n".join([*lines, "", "All values, with intervals and the commands that make them again: `BENCH.md`."])


def with_measured(readme: str, lines: str) -> str:
    """README.md with the lines between its two marks. Raises UserError where it does not have each of them once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise UserError("README.md has no place for measured values", fix=f"put these two lines in: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}" if lines else f"{before}{BEGIN}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
