"""Starts a probe in a child process with a time limit, and makes findings of the faults that it saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intone.child import ChildFailed, ask_child
from intone.errors import UserError
from intone.optimise.scan.finding import Finding, Rule, number_findings

OWN = "intone.optimise.scan.probes.own:target"


def _probe(number: str, name: str, kind: str, severity: Any, why: str, fix: str) -> Rule:
    return Rule(number, name, kind, severity, why, fix, "optimiser.md D22, D23, D8, D16")


PROBES = {
    rule.id: rule
    for rule in (
        _probe(
            "B01",
            "first tokens of rows",
            "copied-token",
            "high",
            "Samples of one prompt are not independent.",
            "Draw each row's first token from the expanded logits of the prompt.",
        ),
        _probe(
            "B02",
            "a row's own random stream",
            "rng",
            "medium",
            "A seed does not reproduce an answer once the batch changes.",
            "Derive one stream per row from (seed, row, position).",
        ),
        _probe(
            "B03",
            "time per token by length",
            "no-kv-cache",
            "high",
            "The work for n tokens grows with n squared.",
            "Keep keys and values, feed only the newest token.",
        ),
        _probe(
            "B04",
            "rows that come twice",
            "rng",
            "high",
            "The same rows are learned more often than others.",
            "Draw without replacement, or from one permutation per epoch.",
        ),
        _probe(
            "B05",
            "rows on several ranks",
            "rng",
            "high",
            "More devices see no more data.",
            "Give each rank its own share.",
        ),
        _probe(
            "B06",
            "order of rows after a resume",
            "data-order",
            "high",
            "A resumed training sees other rows.",
            "Make the order a function of (seed, step), or save the loader's state.",
        ),
        _probe(
            "B07",
            "rows with nothing to learn",
            "padding",
            "high",
            "The mean loss of such a row is 0/0, which is NaN.",
            "Leave such rows out, and divide by the supervised tokens of the whole step.",
        ),
        _probe(
            "B08",
            "share of padding",
            "padding",
            "medium",
            "Padding is computed and thrown away.",
            "Pack several texts into a row.",
        ),
        _probe(
            "B09",
            "supervised tokens per second",
            "padding",
            "medium",
            "The rate that counts is that of supervised tokens; what is computed for padding is no progress.",
            "Pack several texts into a row, and report supervised tokens/s.",
        ),
    )
}


def run_probes(target: str, root: Path, seconds: float) -> list[dict[str, Any]]:
    """What every probe of a target says, as JSON. target: auto, or module:function. Raises UserError."""
    if target != "auto" and ":" not in target:
        raise UserError(
            f"--probe {target} is not module:function",
            value=target,
            fix="name the function that returns the parts to probe",
        )
    folder = root if root.is_dir() else root.parent
    question = {"target": OWN if target == "auto" else target, "search": [str(folder.absolute())], "seconds": seconds}
    try:
        answer = ask_child("intone.optimise.scan.probes.child", question, timeout_s=seconds)
    except ChildFailed as error:
        raise UserError(
            f"the probe gave no answer: {error}", value=target, fix="try it by hand, or give more --probe-s"
        ) from None
    looks: list[dict[str, Any]] = answer["looks"]
    return looks


def findings_of(looks: Sequence[dict[str, Any]], target: str) -> list[Finding]:
    """The faults among what probes say, as findings; their place is the target."""
    words = OWN if target == "auto" else target
    module, _, function = words.partition(":")
    found = []
    for look in looks:
        if look["outcome"] != "fault":
            continue
        rule = PROBES[look["rule"]]
        found.append(Finding(
            id=rule.id, rule=rule.id, kind=rule.kind, severity=rule.severity, confidence="high",
            path=module.replace(".", "/") + ".py", line=1, end_line=1, column=1, function=function, excerpt=words,
            message=look["message"], evidence=tuple(look["evidence"]), why=rule.why, fix=rule.fix,
        ))  # fmt: skip
    return number_findings(found, [finding.rule for finding in found])


def looks_text(looks: Sequence[dict[str, Any]]) -> str:
    """One line per probe, with what it saw under it."""
    lines = []
    for look in looks:
        name = PROBES[look["rule"]].name
        lines.append(f"{look['outcome']:<8} {look['rule']}  {name}: {look['message']}"[:100])
        lines += [f"         {fact}"[:100] for fact in look["evidence"]]
    return "\n".join(lines) or "the target names nothing that can be probed"
