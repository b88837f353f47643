"""`intone bench train`: our training against nanochat's on the same text; a case appends its rows when it is done."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intone.bench.rows import code_revision, machine_facts, row_path
from intone.bench.train_launch import LAUNCH_ROW, launch_case
from intone.bench.train_nanochat import CLONE, REVISION, Checkout, find_checkout
from intone.bench.train_ours import Kept, make_bench_home
from intone.bench.train_quality import TIMED_ROWS, TOKEN_ROW, timed_case, timed_dtype, token_case
from intone.bench.train_settings import BenchTrainSettings, command_line
from intone.bench.train_speed import SUFFIX, speed_case
from intone.errors import UserError
from intone.log import say, table, three_digits
from intone.prepare import find_source
from intone.records import Answer, ResultRow, append_result, read_results
from intone.resolving import Resolved

ROW_IDS = {"first50": LAUNCH_ROW, "tokens": TOKEN_ROW}
Case = Callable[[BenchTrainSettings, Checkout], list[ResultRow]]


def d4(settings: BenchTrainSettings, checkout: Checkout) -> list[ResultRow]:
    return speed_case(settings, checkout, "d4", 4)


def d6(settings: BenchTrainSettings, checkout: Checkout) -> list[ResultRow]:
    return speed_case(settings, checkout, "d6", 6)


# what to expect on two cores with bf16 products; nanochat's fastest way and the losses at step 50 are kept for the next
# time, which is then a third of it
ABOUT = {
    "d4": "about 25 minutes",
    "d6": "about an hour",
    "first50": "about 5 minutes a pair of launches",
    "bpb10": "twice --minutes a pair of runs, and --minutes for each further batch of nanochat",
    "tokens": "hours: nanochat in fp32 takes half an hour for 10M tokens at depth 4",
}
CASES: dict[str, Case] = {"d4": d4, "d6": d6, "first50": launch_case, "bpb10": timed_case, "tokens": token_case}


def bench_train(settings: BenchTrainSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """Measures the cases one after the other. Cases whose rows exist for this very code and machine are left out.

    Raises UserError where nanochat is not the baseline, or a case does not compare the same training.
    """
    if settings.nanochat is None:
        raise UserError("there is no checkout of nanochat to compare with", fix=f"--nanochat PATH, after: {CLONE}")
    checkout = find_checkout(settings.nanochat, settings.nanochat_python, any_revision=settings.any_revision)
    find_source("documents", settings.data, settings.val)
    others = [case for case in settings.cases if case not in ("d4", "d6")]
    if settings.scalar_rates != 1 and others:
        raise UserError(
            f"--scalar-rates {settings.scalar_rates:g} is for d4 and d6, not for {others[0]}",
            value=settings.scalar_rates,
            fix="ask for those cases in a call of their own",
        )
    path = Path(settings.out).absolute() if settings.out else row_path("train")
    make_bench_home()
    if checkout.revision != REVISION:
        say(f"this is not nanochat at {REVISION}: the rows say so")
    rows: list[ResultRow] = []
    for case in dict.fromkeys(settings.cases):
        known = (
            []
            if settings.again or settings.fresh
            else known_rows(path, row_ids(case, settings), command_line(settings, case))
        )
        if known:
            say(f"{case}: measured with this code already; --again measures it again")
            rows += known
            continue
        say(f"{case}: {ABOUT[case]}")
        measured = CASES[case](settings, checkout)
        for row in measured:
            append_result(path, row)
        Kept(case, settings, checkout.revision).forget()
        rows += measured
    text = f"{rows_table(rows)}\nrows are in {path}"
    return Answer({"rows": [dataclasses.asdict(row) for row in rows]}, text, path=str(path))


def row_ids(case: str, settings: BenchTrainSettings) -> list[str]:
    """The ids of the rows that a case writes."""
    if case in ("d4", "d6"):
        return [f"cpu.train.{case}.vs_nanochat{SUFFIX[dtype]}" for dtype in settings.their_dtypes]
    return [TIMED_ROWS[timed_dtype(settings)] if case == "bpb10" else ROW_IDS[case]]


def known_rows(path: Path, ids: list[str], command: str) -> list[ResultRow]:
    """The newest rows of this command by this code on this machine; none where one is missing or files were changed."""
    code, machine = code_revision(), identity(machine_facts())
    if code.endswith("+") or not path.exists():
        return []
    found = (
        row for row in read_results(path) if (row.code, identity(row.machine), row.command) == (code, machine, command)
    )
    rows = {row.id: row for row in found}
    return [rows[name] for name in ids] if all(name in rows for name in ids) else []


def identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a machine without its measured rates, which are measured again where others were at work."""
    return {name: value for name, value in machine.items() if not name.endswith("_per_s")}


def rows_table(rows: list[ResultRow]) -> str:
    lines = [
        [row.id, three_digits(row.value), f"[{row.low:.3g}, {row.high:.3g}]", str(row.n), row.unit] for row in rows
    ]
    return table(lines, header=["row", "value", "95% interval", "n", "unit"])
