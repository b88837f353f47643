"""From findings to a plan: what is believed, what would change, how that is checked and undone."""

from collections.abc import Mapping, Sequence

from intone.optimise.items import How, Item
from intone.optimise.scan.finding import Finding
from intone.optimise.scan.fixes import Patch, patch_for
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import Scan
from intone.optimise.scan.shares import rank

# kind -> (what to expect, the risk, the gates that a change must pass: optimiser.md section 6)
TERMS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "copied-token": (
        "samples of one prompt become independent; no change of speed",
        "sampled text differs from before for the same seed",
        ("G2", "G5", "rows differ at T > 0 and agree at T = 0"),
    ),
    "rng": (
        "results repeat whatever else is in the batch",
        "numbers differ from before for the same seed",
        ("G2", "G3"),
    ),
    "no-kv-cache": (
        "time per token stops growing with the text; bounded by the time of one token alone",
        "positions or masks off by one",
        ("G2", "G5"),
    ),
    "cache-overflow": (
        "texts longer than the cache end with an error or the reason length",
        "callers may have relied on silence",
        ("G2", "G5"),
    ),
    "small-batch": (
        "at most the tokens/s of the best micro-batch over those of this one; not measured yet",
        "memory; other order of additions",
        ("G3", "G4b", "G7"),
    ),
    "compile": (
        "at most the share of a step that is launches and unfused traffic; not measured yet",
        "compile time; recompiles where shapes vary",
        ("G4b", "no recompile after warm-up"),
    ),
    "padding": (
        "at most 1 / (1 - share of padding) of supervised tokens/s; not measured yet",
        "texts see each other without a document mask",
        ("G3", "G4b", "mask test"),
    ),
    "host-sync": ("at most the device's idle share of a step; not measured yet", "logged values come later", ("G4a",)),
    "device-string": (
        "the branch for the device runs; what it brings is not measured yet",
        "code that never ran before runs now",
        ("G2", "G4a"),
    ),
    "async-copy": ("at most the copy's share of a step; a race ends", "memory for a second buffer", ("G3", "G4a")),
    "recast": ("at most the bytes saved over the bytes moved; not measured yet", "other rounding", ("G4b", "G5")),
    "eval-mode": (
        "less memory in evaluation, and the loss of the model as it is used",
        "measured losses differ from before",
        ("G2", "G4a"),
    ),
    "accumulation": (
        "the step that the recipe asks for",
        "the learning rate may have been tuned on the fault",
        ("G3", "G4b"),
    ),
    "checkpoint": ("a crash leaves the last good file", "needs room for a second file for a moment", ("G2", "G6")),
    "pickle": ("loading runs no code", "old files have to be converted", ("G2",)),
    "eval-output": ("text of a model cannot run code", "expressions that worked may be refused", ("G2",)),
    "packing": (
        "packing time grows with the data, not with its square; not measured yet",
        "another order of rows",
        ("G3", "same rows, same tokens"),
    ),
    "data-order": ("a resumed run sees the rows it would have seen", "another order than before", ("G3", "G6")),
}


def plan_items(findings: Sequence[Finding], scan: Scan, patch: Patch | None = None) -> list[Item]:
    """An item per finding, what is grave and likely right first. patch: where it was made already. Raises UserError."""
    made = patch if patch is not None else patch_for(findings, scan)
    items = [_item(finding, made) for finding in findings]
    order = {finding.id: (-rank(finding), finding.path, finding.line) for finding in findings}
    return sorted(items, key=lambda item: order[item.finding or ""])


def _item(finding: Finding, patch: Patch) -> Item:
    effect, risk, gates = TERMS[finding.kind]
    how: How = "code" if finding.id in patch.fixed else "instruction"
    words = finding.fix if how == "code" else patch.left.get(finding.id, finding.fix)
    change = {"words": words, "finding": finding.id}
    return Item(
        name=f"fix-{finding.id}",
        title=f"{RULES[finding.rule][0].name}: {finding.path}:{finding.line}",
        finding=finding.id,
        hypothesis=f"{finding.message}. {finding.why}",
        evidence=(f"{finding.path}:{finding.line}: {finding.excerpt}", *finding.evidence),
        expected=(1.0, None),
        how=how,
        change=change | ({"codemod": finding.rule} if how == "code" else {}),
        risk=risk,
        gate=", ".join(gates),
        undo="git apply -R of the patch" if how == "code" else "git revert of the commit that makes the change",
        place=f"{finding.path}:{finding.line}",
        effect=effect,
    )
