"""The report of a round on our own stages: what was found, tried and kept of each part, and what moved"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.optimise.ledger import Ledger
from intone.optimise.report import (
    factors,
    findings_blocks,
    memory_blocks,
    moved_blocks,
    plan_blocks,
    ratio_words,
    shown,
    time_blocks,
    tries_blocks,
)
from intone.paths import read_json, read_lines
from intone.report.document import Block, Commands, Document, KeyFigures, Prose, Section, Table
from intone.report.write import Written, write_report

TITLES = {"train": "Training", "generate": "Generation"}


def write_stage_report(folder: Path) -> Written:
    """Writes report.html, .md and .json into the round's folder."""
    return write_report(stage_document(folder), folder, "report")


def stage_document(folder: Path) -> Document:
    """The report of the round in a folder; a pure function of its files."""
    target, ledger = read_json(folder / "target.json"), Ledger(folder)
    tries = [line["try"] for line in ledger.lines("try")]
    wholes = {line["part"]: line for line in ledger.lines("whole")}
    parts = list(dict.fromkeys(line["part"] for line in ledger.lines("signals")))
    sections = [section for part in parts for section in part_sections(part, ledger, wholes.get(part))]
    verb = "" if target["words"][0] == "bench" else "optimise "  # which sets the scene first
    again = f"intone {verb}{' '.join(target['words'])}"
    sections.append(Section("Again", "again", [Commands([(f"{again} --new", "the same round from its start")])]))
    proven = ", ".join(f"{part} {ratio_words(line['comparison'])}" for part, line in wholes.items())
    tried = [entry for entry in tries if entry["verdict"] != "told"]
    lead = [KeyFigures([
        (str(len({(line["part"], line["finding"]["detector"]) for line in ledger.lines("finding")})), "findings", ""),
        (str(len(tried)), "changes tried", ""), (str(sum(entry["kept"] for entry in tries)), "kept", ""),
        (proven or "nothing", "proven", "all together, measured in turns"),
    ])]  # fmt: skip
    data = {"format": 1, "target": target, "ledger": read_lines(folder / "ledger.jsonl")}
    return Document("round", f"Round {folder.name}", " ".join(target["words"]), sections, data, lead)


def part_sections(part: str, ledger: Ledger, whole: Mapping[str, Any] | None) -> list[Section]:
    """Everything about one part."""
    looks = [line for line in ledger.lines("signals") if line["part"] == part]
    findings = [line["finding"] for line in ledger.lines("finding") if line["part"] == part]
    plans = [line["items"] for line in ledger.lines("plan") if line["part"] == part]
    items = list({item["name"]: item for plan in plans for item in plan}.values())
    tries = [line["try"] for line in ledger.lines("try") if line["try"]["item"]["change"]["part"] == part]
    title = TITLES[part]
    after = looks[-1]["signals"] if len(looks) > 1 else None
    sections = [
        Section(f"{title}: where the time goes", f"{part}-time", time_and_memory(looks[0]["signals"], after)),
        Section(f"{title}: findings", f"{part}-findings", findings_blocks(first_seen(findings))),
        Section(f"{title}: plan", f"{part}-plan", plan_blocks(items)),
        Section(f"{title}: tries", f"{part}-tries", [*tries_blocks(tries), *moved_blocks(tries, looks)]),
    ]
    if whole:
        sections.append(Section(f"{title}: all together", f"{part}-whole", whole_blocks(whole)))
    return sections


def first_seen(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each detector's finding with the evidence that it had at first."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in findings:
        found.setdefault(entry["detector"], entry)
    return list(found.values())


def time_and_memory(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[Block]:
    """The split of a step and the memory by kind, before and where there is one after."""
    blocks = time_blocks(before, after)
    if before.get("kind") == "generate":
        looks = [look for look in (before, after) if look is not None]
        rows = [[name, *(shown(look.get(name)) for look in looks)] for name in (
            "step_s", "late_over_early", "read_share", "distinct_first", "expected_distinct",
        )]  # fmt: skip
        header = ["signal", "before", "after"] if after is not None else ["signal", "measured"]
        blocks = [Table(header, rows, caption="One token of one text, and first tokens")]
    return [*blocks, *memory_blocks(before, after)]


def whole_blocks(whole: Mapping[str, Any]) -> list[Block]:
    found = [("all together", whole["comparison"])]
    for entry in whole["without"]:
        when = ", when it was tried" if entry.get("when") == "tried" else ""
        found.append((f"over all without {entry['name']}{when}", entry["comparison"]))
    text = "Measured as a whole, and the whole against itself without each change. Factors are never multiplied."
    faults = whole["faults"]
    blocks: list[Block] = [Prose(text), factors(found, "Everything that was kept")]
    if faults:
        blocks.append(Prose(f"Kept because results were wrong without it, whatever its speed: {', '.join(faults)}."))
    blocks.append(Prose(f"Gate on the sum: {whole['stack']['reason']}. All gates: {whole['gates']['reason']}."))
    return blocks
