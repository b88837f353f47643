"""A round on a stage of ours in words for people: where the time goes, findings, tries, and what holds in the end"""

from collections.abc import Mapping, Sequence
from typing import Any

from intone.log import human_duration, table
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.ledger import Ledger, Try
from intone.optimise.signals import Signals
from intone.optimise.stages.plan import part_of
from intone.prove.verdict import Comparison

WIDTH = 56


def time_text(signals: Signals) -> str:
    """Where the time goes, how near the hardware's limit it is, and what the memory holds."""
    if signals.kind == "generate":
        took = "unknown" if signals.step_s is None else human_duration(signals.step_s)
        near = "" if signals.read_share is None else f"; {signals.read_share:.1%} of the bandwidth for reading weights"
        return f"a token of one text takes {took}{near}"
    rows = [[part, f"{share:.1%}"] for part, share in sorted(signals.parts.items(), key=lambda entry: -entry[1])]
    assert signals.step_s is not None, "steps were timed"
    near = "" if signals.flop_share is None else f", {signals.flop_share:.1%} of the device's rate of products"
    head = f"a step takes {human_duration(signals.step_s)} (median of {signals.num_steps}){near}"
    return head + "\n" + table(rows, header=["where the time goes", "share"])


def bottlenecks_text(findings: Sequence[Bottleneck]) -> str:
    if not findings:
        return "no finding"
    lines = ["findings"]
    for entry in findings:
        bound = f"at most {entry.bound:.2f}x" if entry.bound else "no bound known"
        lines += [f"{entry.detector:<4} {entry.title} ({bound})", *(f"     {words}" for words in entry.evidence)]
    return "\n".join(lines)


def findings_text(ledger: Ledger) -> str:
    """Every finding of the round once, with the evidence it had when it was first seen."""
    found: dict[str, Bottleneck] = {}
    for line in ledger.lines("finding"):
        found.setdefault(f"{line['part']} {line['finding']['detector']}", Bottleneck.from_json(line["finding"]))
    return bottlenecks_text(list(found.values()))


def tries_text(tries: Sequence[Try]) -> str:
    rows = [[part_of(entry.item), entry.item.title[:WIDTH], entry.verdict, "kept" if entry.kept else ""]
            for entry in tries]  # fmt: skip
    text = "tries\n" + table(rows, header=["part", "change", "verdict", ""], left=4) if rows else "nothing was tried"
    return text + "".join(f"\n{entry.item.title}: {entry.reason}" for entry in tries)


def whole_text(line: Mapping[str, Any]) -> str:
    """What holds in the end for one part."""
    found = line["comparison"]
    interval = f" {Comparison(**found).times}" if found["ratio"] else ""
    lines = [f"{line['part']}, all together, measured: {found['verdict']}{interval}; gates: {line['gates']['reason']}"]
    for entry in line["without"]:
        share = Comparison(**entry["comparison"]).times
        when = ", measured when it was tried" if entry.get("when") == "tried" else ""
        lines.append(f"  over the same without {entry['name']}: {share}{when}")
    lines += [f"  {name} is kept because results are wrong without it, whatever its speed" for name in line["faults"]]
    lines.append(f"  whole stack: {line['stack']['reason']}")
    return "\n".join(lines)


def round_text(ledger: Ledger) -> str:
    """Everything that a finished round says, but for where its files are."""
    lines = [findings_text(ledger), tries_text(ledger.tries()), *map(whole_text, ledger.lines("whole"))]
    lines += [f"left when the minutes were over, {line['part']}: {line['title']}" for line in ledger.lines("left")]
    if not ledger.lines("whole"):
        lines.append("nothing proven: no setting made it faster beyond doubt and passed the gates")
    return "\n\n".join(lines)
