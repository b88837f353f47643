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
from intone.fields import flag_of, shown
from intone.hardware import Facts, load_facts
from intone.log import human_duration, say
from intone.optimise.rounds import known_at_a_stop, new_folder, unfinished
from intone.optimise.stages.report import write_stage_report
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.verb import finished
from intone.records import Answer, ResultRow, append_result
from intone.resolving import Resolved, named_fields

# its memory settings are this machine's, unlike those of the table of `intone bench casestudy`
START = "the case study's starting point, with this machine's settings of memory"


def bench_optimise(settings: OptimiseSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: prepares the starting point as `intone bench casestudy` does, and hands it to a round.

    A call that was stopped goes on with the same settings, whatever --minutes say then.
    """
    facts = load_facts()
    round_ = opened(settings, facts)
    with known_at_a_stop(round_.ledger, lambda: write_stage_report(round_.folder)):
        round_.run()
    found = found_of(round_, [NAMES[part] for part in settings.parts])
    rows: list[ResultRow] = []
    if not settings.quick:  # before anything else can fail: this took an hour
        prefix = "cpu" if (facts.device or "cpu") == "cpu" else short_name(facts, facts.device or "cpu")
        path = Path(settings.out).absolute() if settings.out else row_path("optimise")
        rows = rows_of(round_, found, prefix=prefix, command=command_line("optimise", settings))
        for row in rows:
            append_result(path, row)
    answer = finished(round_)
    text = f"{faults_text(found)}\n\n{answer.text}"
    text += f"\n\n{len(rows)} rows are in {path}" if rows else "\n\nquick: no row is kept" if settings.quick else ""
    code = EXIT_DONE if all(entry.entry is not None for entry in found) else EXIT_CHECK_FAILED
    result = {**answer.result, "faults": [fault_json(entry) for entry in found]}
    return Answer(result, text, path=str(round_.folder), exit=code)


def opened(settings: OptimiseSettings, facts: Facts) -> StageRound:
    """The unfinished round of these settings, or a new one with its starting point prepared."""
    aside = ("out", "json", "minutes", "new")
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in aside}
    asked = {"bench": json.loads(json.dumps(values))}
    options: dict[str, Any] = {"minutes": settings.minutes, "measure": {"quick": settings.quick}}
    folder = None if settings.new else unfinished({"kind": "stage", "asked": asked})
    if folder is not None:
        return StageRound(folder, facts, **options)
    with prepared(settings, facts) as ready:
        say(f"{ready.words}\nready after {human_duration(ready.seconds)}")
        folder = new_folder("casestudy")
        target = start_target(folder / "start", ready.kit, texts_of(ready, settings), settings.parts)
        return StageRound.begin(folder, target, facts, words=words_of(settings), asked=asked, **options)


def words_of(settings: OptimiseSettings) -> list[str]:
    """The words that ask for the same again."""
    words = ["bench", "optimise"]
    for name, entry in named_fields(OptimiseSettings).items():
        value = getattr(settings, name)
        if name not in ("json", "new", "out") and value != entry.default:
            words += [flag_of(entry)] if value is True else [flag_of(entry), shown(value)]
    return words


def fault_json(found: Found) -> dict[str, Any]:
    return {
        "fault": found.name, "part": found.part, "evidence": found.evidence, "measured": found.measured,
        "kept": found.entry.item.name if found.entry else None,
    }  # fmt: skip


def rows_of(round_: StageRound, found: Sequence[Found], *, prefix: str, command: str) -> list[ResultRow]:
    """The share of a part's faults that were mended, what the changes bring together, and each within the whole.

    A part of which something was left when the minutes were over has no share: it would count what was not tried.
    """
    rows = []
    left = {line["part"] for line in round_.ledger.lines("left")}
    for name, part in NAMES.items():
        faults = [entry for entry in found if entry.part == part]
        if faults and part not in left:
            mended = sum(entry.entry is not None for entry in faults)
            rows.append(new_row(f"{prefix}.optimise.{name}.mended", proportion(mended, len(faults)), "share",
                                n=len(faults), baseline=START, command=command))  # fmt: skip
    for name, interval, pairs in totals_of(round_):
        of_all = ".without_" in name
        rows.append(new_row(f"{prefix}.optimise.{name}", interval, "x", n=pairs, command=command,
                            baseline="everything but this change" if of_all else START))  # fmt: skip
    return rows
