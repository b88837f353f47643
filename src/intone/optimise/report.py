"""The report of a round: what was found, what was tried, what holds; from its ledger alone"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.log import human_duration
from intone.paths import read_json, read_lines
from intone.report.charts import Axis, Ratio, Share, both, ratio_chart, share_chart
from intone.report.document import Block, Commands, Document, Figure, KeyFigures, Prose, Section, Table
from intone.report.write import Written, write_report

COLOURS = {"faster": 3, "slower": 5, "same": 6, "not proven": 2, "rejected": 5}
PART_COLOURS = {"data": 1, "copy": 1, "forward": 2, "backward": 3, "optimizer": 4, "sync": 5, "own code": 6}


def write_round_report(folder: Path) -> Written:
    """Writes report.html, .md and .json into the round's folder."""
    return write_report(round_document(folder), folder, "report")


def round_document(folder: Path) -> Document:
    """The report of the round in a folder; a pure function of its files."""
    target, lines = read_json(folder / "target.json"), read_lines(folder / "ledger.jsonl")
    newest = {line["kind"]: line for line in lines}
    signals = newest.get("signals", {}).get("signals", {})
    whole = newest.get("whole")
    findings = [line["finding"] for line in lines if line["kind"] == "finding"]
    items = newest.get("plan", {}).get("items", [])
    tries = [line["try"] for line in lines if line["kind"] == "try"]
    sections = [
        Section("Where the time goes", "time", time_blocks(signals, (whole or {}).get("signals"))),
        Section("Findings", "findings", findings_blocks(findings)),
        Section("Plan", "plan", plan_blocks(items)),
        Section("Tries", "tries", tries_blocks(tries)),
    ]
    if whole:
        sections.append(Section("All together", "whole", whole_blocks(whole)))
    again = "intone optimise --new -- " + " ".join(target["words"])
    sections.append(Section("Again", "again", [Commands([(again, "")])]))
    kept = sum(entry["kept"] for entry in tries)
    lead: list[Block] = [KeyFigures([
        (str(len(findings)), "findings", ""), (str(len(tries)), "changes tried", ""), (str(kept), "kept", ""),
        (ratio_words(whole["comparison"]) if whole else "nothing", "proven", "all together, measured in turns"),
    ])]  # fmt: skip
    lead += [Prose(note) for note in target["notes"]]
    data = {"format": 1, "target": target, "ledger": lines}
    words = " ".join(target["words"])
    return Document("round", f"Round {folder.name}", words, sections, data, lead)


def ratio_words(found: Mapping[str, Any]) -> str:
    return f"{found['ratio']:.2f}x" if found.get("verdict") == "faster" else str(found.get("verdict"))


def time_blocks(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[Block]:
    """The split of a step, before and where there is one after; and the program's own hottest lines."""
    if not before.get("parts"):
        return [Prose("No step of training was looked at.")]
    blocks: list[Block] = []
    for name, found in (("Before", before), ("After", after)):
        if not found or not found.get("parts"):
            continue
        shares = [
            Share(part, share, PART_COLOURS.get(part), f"{share:.1%}") for part, share in found["parts"].items()
        ]
        title = f"{name}: a step of {human_duration(found['step_s'])}"

        def draw(width: int, shares: list[Share] = shares, title: str = title) -> str:
            return share_chart(shares, width=width, description=title)

        rows = [[part, f"{share:.1%}"] for part, share in found["parts"].items()]
        blocks.append(Figure(title, both(draw), "Shares of sampled time; what no look fell into is unexplained.",
                             Table(["part", "share"], rows)))  # fmt: skip
    rows = [[f"{line['path']}:{line['line']}", line["function"], line["part"], f"{line['share']:.1%}"]
            for line in before.get("lines", [])]  # fmt: skip
    if rows:
        blocks.append(Table(["line", "function", "part", "share"], rows, left=3, caption="Lines of the program itself"))
    facts = [[name, shown(value)] for name, value in before.items() if not isinstance(value, (dict, list))]
    blocks.append(Table(["signal", "measured"], facts, caption="All signals", folded=True))
    return blocks


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def findings_blocks(findings: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not findings:
        return [Prose("No detector fired.")]
    rows = [
        [entry["detector"], entry["title"], "; ".join(entry["evidence"]),
         f"{entry['bound']:.2f}x" if entry["bound"] else "not bounded", entry["place"] or ""]
        for entry in findings
    ]  # fmt: skip
    return [Table(["detector", "finding", "evidence", "worth at most", "place"], rows, left=5, stacked=True)]


def plan_blocks(items: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not items:
        return [Prose("There was nothing to try.")]
    rows = [[item[name] for name in ("title", "hypothesis", "how", "risk", "gate", "undo")] for item in items]
    return [Table(["change", "hypothesis", "how", "risk", "gate", "undo"], rows, left=6, stacked=True)]


def tries_blocks(tries: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Every try with its verdict, and the factors of those that were measured."""
    if not tries:
        return [Prose("Nothing was tried.")]
    blocks: list[Block] = []
    measured = [entry for entry in tries if (entry["comparison"] or {}).get("ratio")]
    found = [(entry["item"]["title"], entry["comparison"]) for entry in measured]
    if found:
        blocks.append(factors(found, "Against what was kept before"))
    rows = [[entry["item"]["title"], entry["verdict"], "kept" if entry["kept"] else "not kept", entry["reason"],
             human_duration(entry["seconds"])] for entry in tries]  # fmt: skip
    blocks.append(Table(["change", "verdict", "", "why", "took"], rows, left=4, stacked=True))
    words = {True: "passed", False: "rejected"}
    gates = [[entry["item"]["title"], gate["name"], words.get(gate["passed"], "not judged"), gate["reason"]]
             for entry in tries for gate in (entry["gates"] or {}).get("gates", [])]  # fmt: skip
    if gates:
        blocks.append(Table(["change", "gate", "result", "reason"], gates, left=4, caption="Gates", folded=True))
    return blocks


def whole_blocks(whole: Mapping[str, Any]) -> list[Block]:
    found = [("all together", whole["comparison"])]
    found += [(f"without {entry['name']}: what it adds", entry["comparison"]) for entry in whole["without"]
              if entry["comparison"]]  # fmt: skip
    text = "Measured as a whole, and against the whole without each change. Factors are never multiplied."
    return [Prose(text), factors(found, "Everything that was kept")]


def factors(found: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> Figure:
    """Ratios with their intervals."""
    ratios = [
        Ratio(name, entry["ratio"], entry["low"], entry["high"], entry["verdict"],
              (entry["noise_low"], entry["noise_high"]) if entry.get("noise_low") else None,
              COLOURS.get(entry["verdict"], 6))
        for name, entry in found if entry.get("ratio")
    ]  # fmt: skip

    def draw(width: int) -> str:
        return ratio_chart(ratios, axis=Axis("steps per second, after over before"), width=width, description=title)

    rows = [[name, f"{entry['ratio']:.3f}", f"{entry['low']:.3f} to {entry['high']:.3f}", str(entry["num_pairs"]),
             entry["verdict"]] for name, entry in found if entry.get("ratio")]  # fmt: skip
    return Figure(title, both(draw), "", Table(["change", "factor", "interval", "pairs", "verdict"], rows))
