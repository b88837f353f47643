"""Result rows of the pipeline itself: start-up of the command, packing, and finished default runs."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intone.bench.rows import code_revision, machine_facts, row_path
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.log import say
from intone.paths import read_json
from intone.records import ResultRow, append_result, utc_now
from intone.runs import find_run

HELP_RUNS = 21
COMMAND = "python -m intone.bench.basics"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures one suite and appends its rows; prints them."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("suite", choices=["cli", "data", "run"])
    parser.add_argument("--runs", nargs="+", default=["latest"], help="finished runs (suites data and run)")
    parser.add_argument("--out", type=Path, default=row_path("basics"))
    asked = parser.parse_args(argv)
    try:
        rows = SUITES[asked.suite](asked.runs)
    except UserError as error:
        say(str(error))
        return 2
    for row in rows:
        append_result(asked.out, row)
        print(f"{row.id}  {row.value:.5g} {row.unit}  [{row.low}, {row.high}]  n={row.n}")
    return 0


def cli_rows(_runs: Sequence[str]) -> list[ResultRow]:
    """Wall-clock of `intone --help` in a fresh process, median with the middle 95 % of repeats."""
    command = [sys.executable, "-m", "intone", "--help"]
    subprocess.run(command, check=True, capture_output=True)
    times = []
    for _ in range(HELP_RUNS):
        begin_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begin_s)
    low, high = sorted(times)[5], sorted(times)[-6]  # order statistics 6 and 16 of 21: 97 % interval of the median
    return [result("cpu.cli.help_s", statistics.median(times), "s", low, high, HELP_RUNS, f"{COMMAND} cli")]


def data_rows(runs: Sequence[str]) -> list[ResultRow]:
    """Dropped tokens and padded positions over one epoch of every stage's rows, the worst stage counts."""
    dropped, padded, num_rows = 0.0, 0.0, 0
    for name in runs:
        run = find_run(name)
        for stage in run.stages:
            config = read_json(run.stage_folder(stage) / "config.json")
            stats = epoch_stats(config)
            say(f"{run.name}/{stage}: dropped {stats.dropped_share:.5f}, padded {stats.padded_share:.5f}")
            dropped, padded = max(dropped, stats.dropped_share), max(padded, stats.padded_share)
            num_rows += stats.num_rows
    command = f"{COMMAND} data --runs {' '.join(runs)}"
    return [
        result("cpu.data.dropped_share", dropped, "share of tokens", None, None, num_rows, command),
        result("cpu.data.padded_share", padded, "share of positions", None, None, num_rows, command),
    ]


def epoch_stats(config: dict[str, Any]) -> Any:
    """RowStats of a job's rows after one whole epoch was planned."""
    sets = [TokenSet.open(Path(folder)) for folder in config["data"]]
    rows = Rows(sets, config["context"], config["seed"], weights=config.get("weights"))
    row = 0
    while rows.epochs(row + 1) < 1.0:
        rows.rows(row, 1)
        row += 256
    return rows.stats()


def run_rows(runs: Sequence[str]) -> list[ResultRow]:
    """Minutes, memory and skills of finished default runs; with several the worst is the side that hurts."""
    results = [dict(find_run(name).result or {}) for name in runs]
    if not all(entry.get("starter") for entry in results):
        raise UserError("a run without starter skills cannot be counted", value=", ".join(runs))
    command = f"intone run && {COMMAND} run --runs {' '.join(runs)}"

    def over_runs(name: str, unit: str, of: Callable[[dict[str, Any]], float]) -> ResultRow:
        values = [of(entry) for entry in results]
        low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
        return result(name, statistics.median(values), unit, low, high, len(values), command)

    return [
        over_runs("cpu.run.minutes", "min", lambda entry: entry["minutes"]),
        over_runs("cpu.run.peak_gib", "GiB", lambda entry: entry["peak_bytes"] / 2**30),
        over_runs("cpu.run.starter_skills", "share", lambda entry: entry["starter"]["mean"]),
        over_runs(
            "cpu.run.starter_skills_worst",
            "share",
            lambda entry: min(skill["score"] for skill in entry["starter"]["skills"].values()),
        ),
    ]


def result(
    name: str, value: float, unit: str, low: float | None, high: float | None, n: int, command: str
) -> ResultRow:
    """A row with this machine and this code."""
    return ResultRow(
        id=name, value=value, unit=unit, low=low, high=high, n=n, baseline=None, machine=machine_facts(),
        command=command, code=code_revision(), date=utc_now(),
    )  # fmt: skip


SUITES: dict[str, Callable[[Sequence[str]], list[ResultRow]]] = {"cli": cli_rows, "data": data_rows, "run": run_rows}

if __name__ == "__main__":
    sys.exit(main())
