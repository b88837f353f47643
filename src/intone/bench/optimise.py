"""`intone bench optimise`: the case study's starting point handed to optimise: which of its faults it mends"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.bench.casestudy import prepared, texts_of
from intone.bench.casestudy_round import NAMES, Found, faults_text, found_of, start_target, totals_of
from intone.bench.casestudy_settings import OptimiseSettings, command_line
from intone.bench.gpu import short_name
from intone.bench.rows import new_row, row_path
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE
from intone.evals.intervals import proportion
from intone.hardware import load_facts
from intone.optimise.rounds import new_folder, unfinished
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.verb import finished
from intone.records import Answer, ResultRow, append_result
from intone.settings import Resolved


def bench_optimise(settings: OptimiseSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: prepares the starting point as `intone bench casestudy` does, and hands it to a round."""
    facts = load_facts()
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("out", "json")}
    asked = json.loads(json.dumps(values))
    same = {"kind": "stage", "asked": {"bench": asked}}
    options: dict[str, Any] = {"minutes": settings.minutes, "measure": {"quick": settings.quick}}
    folder = unfinished(same)
    if folder is None:
        with prepared(settings, facts) as ready:
            folder = new_folder("casestudy")
            texts = texts_of(ready, settings)
            target = start_target(folder / "start", ready.kit, texts, settings.parts)
            words = command_line("optimise", settings).removeprefix("intone ").split()
            round_ = StageRound.begin(folder, target, facts, words=words, asked={"bench": asked}, **options)
    else:
        round_ = StageRound(folder, facts, **options)
    round_.run()
    answer = finished(round_)
    found = found_of(round_, [NAMES[part] for part in settings.parts])
    text = f"{faults_text(found)}\n\n{answer.text}"
    if not settings.quick:
        prefix = "cpu" if (facts.device or "cpu") == "cpu" else short_name(facts, facts.device or "cpu")
        path = Path(settings.out).absolute() if settings.out else row_path("optimise")
        for row in rows_of(round_, found, prefix=prefix, command=command_line("optimise", settings)):
            append_result(path, row)
        text += f"\n\nrows are in {path}"
    code = EXIT_DONE if all(entry.entry is not None for entry in found) else EXIT_CHECK_FAILED
    result = {**answer.result, "faults": [fault_json(entry) for entry in found]}
    return Answer(result, text, path=str(folder), exit=code)


def fault_json(found: Found) -> dict[str, Any]:
    return {
        "fault": found.name, "part": found.part, "evidence": found.evidence,
        "kept": found.entry.item.name if found.entry else None,
    }  # fmt: skip


def rows_of(round_: StageRound, found: Sequence[Found], *, prefix: str, command: str) -> list[ResultRow]:
    """The share of faults that were mended, and what the changes bring together, measured."""
    mended = sum(entry.entry is not None for entry in found)
    rows = [new_row(f"{prefix}.optimise.mended", proportion(mended, len(found)), "share", n=len(found),
                    baseline="the case study's starting point", command=command)]  # fmt: skip
    for name, interval, pairs in totals_of(round_):
        rows.append(new_row(f"{prefix}.optimise.{name}", interval, "x", n=pairs,
                            baseline="the case study's starting point", command=command))  # fmt: skip
    return rows
