"""The report of a round: what was found, what was tried, what holds; from its ledger alone"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.log import human_bytes, human_duration
from intone.paths import read_json, read_lines
from intone.prove.verdict import Comparison
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
    looks = [line for line in lines if line["kind"] == "signals"]
    signals = looks[0]["signals"] if looks else {}
    whole = newest.get("whole")
    findings = [line["finding"] for line in lines if line["kind"] == "finding"]
    items = newest.get("plan", {}).get("items", [])
    tries = [line["try"] for line in lines if line["kind"] == "try"]
    sections = [
        Section("Where the time goes", "time", [
            *time_blocks(signals, (whole or {}).get("signals")), *memory_blocks(signals, (whole or {}).get("signals")),
        ]),
        Section("Findings", "findings", findings_blocks(findings)),
        Section("Plan", "plan", plan_blocks(items)),
        Section("Tries", "tries", [*tries_blocks(tries), *moved_blocks(tries, looks)]),
    ]  # fmt: skip
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
        shares = [Share(part, share, PART_COLOURS.get(part), f"{share:.1%}") for part, share in found["parts"].items()]
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
    blocks += [Prose(f"Not measured: {note}.") for note in before.get("notes", [])]
    facts = [[name, shown(value)] for name, value in before.items() if not isinstance(value, (dict, list))]
    blocks.append(Table(["signal", "measured"], facts, caption="All signals", folded=True))
    return blocks


def memory_blocks(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[Block]:
    """The memory at the peak by kind."""
    kinds, now = before.get("memory_kinds", {}), (after or {}).get("memory_kinds", {})
    if not kinds:
        return []
    if after is None:
        rows = [[kind, human_bytes(size)] for kind, size in kinds.items()]
        return [Table(["at the peak", "memory"], rows, caption="Memory by kind")]
    rows = [[kind, human_bytes(kinds.get(kind)), human_bytes(now.get(kind))] for kind in dict.fromkeys([*kinds, *now])]
    return [Table(["at the peak", "before", "after"], rows, caption="Memory by kind")]


# --- what a change moved ----------------------------------------------------------------------------------------------


def moved_blocks(tries: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]]) -> list[Block]:
    """For every kept change its finding's own signal and the profile, as looked at right before and right after it."""
    by_kept = {tuple(line["kept"]): line["signals"] for line in looks}
    kept: list[str] = []
    rows = []
    for entry in tries:
        if not entry["kept"]:
            continue
        before = by_kept.get(tuple(kept))
        kept = [*kept, entry["item"]["name"]]
        after = by_kept.get(tuple(kept))
        if before is not None and after is not None:
            rows += [[entry["item"]["title"], *row] for row in moved(before, after, entry["item"]["signal"])]
    if not rows:
        return []
    return [Table(["change", "signal", "before", "after"], rows, left=2, caption="What each kept change moved")]


def moved(before: Mapping[str, Any], after: Mapping[str, Any], signal: str | None) -> list[list[str]]:
    """(words, before, after) of the finding's signal and of everything in the profile that either side knows."""
    pairs: list[tuple[str, str, str]] = []
    if signal and signal.partition(".")[0] not in ("parts", *PROFILE):
        pairs.append((signal, shown(before.get(signal)), shown(after.get(signal))))
    was, now = profile_of(before), profile_of(after)
    pairs += [(name, was.get(name, UNKNOWN), now.get(name, UNKNOWN)) for name in dict.fromkeys([*was, *now])]
    return [list(pair) for pair in pairs if set(pair[1:]) != {UNKNOWN}]


def profile_of(signals: Mapping[str, Any]) -> dict[str, str]:
    """The profile in words: seconds of a step by kind, busy share, operators per step, memory at the peak by kind."""
    found = {words: put(signals[name]) for name, (words, put) in PROFILE.items() if signals.get(name) is not None}
    step_s = signals.get("step_s")
    if step_s is not None:
        found |= {f"{part}, a step": human_duration(share * step_s) for part, share in signals.get("parts", {}).items()}
    return found | {f"memory: {kind}": human_bytes(size) for kind, size in signals.get("memory_kinds", {}).items()}


def percent(share: float) -> str:
    return f"{share:.1%}"


UNKNOWN = "unknown"
# signal -> its name in the table, and how it is shown
PROFILE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "step_s": ("time of a step", human_duration),
    "idle_share": ("busy share", lambda idle: percent(1 - idle)),
    "ops_per_step": ("operators a step", lambda count: f"{count:,.0f}"),
    "flop_share": ("of the device's rate of products", percent),
    "pad_share": ("positions that are padding", percent),
    "late_over_early": ("a late token over an early one", lambda ratio: f"{ratio:.2f}x"),
    "read_share": ("of the bandwidth, for weights", percent),
    "peak_bytes": ("memory at the peak", human_bytes),
}


def shown(value: Any) -> str:
    """A signal as people read it; a mapping part by part."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


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
    rows = [
        [item["title"], item["finding"] or "none: worth a try", item["hypothesis"],
         "; ".join(item["evidence"]) or "none yet", expected_words(item["expected"]), change_words(item),
         item["risk"], item["gate"], item["undo"]]
        for item in items
    ]  # fmt: skip
    header = ["change", "finding", "hypothesis", "evidence", "expected", "how", "risk", "gate", "undo"]
    return [Table(header, rows, left=len(header), stacked=True)]


def change_words(item: Mapping[str, Any]) -> str:
    """What is changed: by a codemod, variables, settings, or what a person is told."""
    how, change = item["how"], item["change"]
    if how == "instruction":
        return f"by hand: {change['words']}"
    if how == "code":
        return f"codemod {change['codemod']}"
    if how == "environment":
        return " ".join(f"{name}={value}" for name, value in change.items())
    values = [pair for place, values in change.items() if place != "part" for pair in values.items()]
    return ", ".join(f"{name} {value}" for name, value in values)


def expected_words(expected: Sequence[float | None]) -> str:
    """The range in which the result should lie: 1.00x to 1.67x."""
    low, high = expected
    return f"{low:.2f}x to {high:.2f}x" if high is not None else "not bounded"


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


def factors(found: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> Block:
    """Ratios with their intervals; those whose interval says nothing stand in the table only."""
    known = [(name, entry, Comparison(**entry)) for name, entry in found if entry.get("ratio")]
    ratios = [
        Ratio(name, entry["ratio"], entry["low"], entry["high"], entry["verdict"],
              (entry["noise_low"], entry["noise_high"]) if entry.get("noise_low") else None,
              COLOURS.get(entry["verdict"], 6))
        for name, entry, comparison in known if comparison.has_interval
    ]  # fmt: skip

    def draw(width: int) -> str:
        return ratio_chart(ratios, axis=Axis("steps per second, after over before"), width=width, description=title)

    rows = [
        [name, f"{entry['ratio']:.3f}",
         f"{entry['low']:.3f} to {entry['high']:.3f}" if comparison.has_interval else "says nothing",
         str(entry["num_pairs"]), entry["verdict"]]
        for name, entry, comparison in known
    ]  # fmt: skip
    header = ["change", "factor", "interval", "pairs", "verdict"]
    return Figure(title, both(draw), "", Table(header, rows)) if ratios else Table(header, rows, caption=title)
