"""What a rule knows and what it reports: findings with place, evidence and confidence."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Severity = Literal["low", "medium", "high", "critical"]
Confidence = Literal["low", "medium", "high"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
CONFIDENCES: tuple[Confidence, ...] = ("low", "medium", "high")
LEAST: Confidence = "medium"  # below it a finding is held back

# class of fault -> what it is, in words; a rule belongs to one of them
CLASSES = {
    "copied-token": "a sampled token is copied over rows",
    "rng": "random numbers are shared or seeded wrongly",
    "no-kv-cache": "generation computes every earlier token again",
    "cache-overflow": "what does not fit into a cache is dropped in silence",
    "small-batch": "a small micro-batch is written into the code and made up for by accumulation",
    "compile": "training is not compiled, or compiled with shapes that change",
    "padding": "rows are padded where they could be packed",
    "host-sync": "a hot loop waits for the device",
    "device-string": "a torch.device is compared with a string",
    "async-copy": "a copy that cannot be asynchronous, or that races",
    "recast": "logits or weights are cast again at every step",
    "eval-mode": "an evaluation keeps a graph, or runs in the wrong mode",
    "accumulation": "gradient accumulation steps, scales or reduces wrongly",
    "checkpoint": "a checkpoint can be half written",
    "pickle": "a file is loaded in a way that can run code",
    "eval-output": "text of a model is run as code",
    "packing": "packing takes time that grows with the square of the data",
    "data-order": "the order of the data cannot be resumed or repeated",
}


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for. why: what it costs; fix: what to do; source: where the knowledge comes from."""

    id: str  # S01: never reused for something else
    name: str  # a few words
    kind: str  # a key of CLASSES
    severity: Severity
    why: str
    fix: str
    source: str


@dataclass(frozen=True)
class Finding:
    """One place where a rule applies. id stays the same while the code around it moves."""

    id: str
    rule: str
    kind: str
    severity: Severity
    confidence: Confidence
    path: str  # relative to the scanned folder, with /
    line: int
    end_line: int
    column: int  # of the first letter, from 1
    function: str  # qualified name, or <module>
    excerpt: str  # the line of code
    message: str  # what is wrong here
    evidence: tuple[str, ...]
    why: str
    fix: str
    also: tuple[tuple[str, int, str], ...] = ()  # (path, line, function) of others that have a share in it

    def as_json(self) -> dict[str, Any]:
        """Every field, for boards and `--json`."""
        return asdict(self) | {"evidence": list(self.evidence), "also": [list(place) for place in self.also]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Finding":
        """The finding that as_json wrote."""
        also = tuple((str(path), int(line), str(function)) for path, line, function in value.get("also", ()))
        return Finding(**{**value, "evidence": tuple(value["evidence"]), "also": also})


def number_findings(findings: Sequence[Finding], codes: Sequence[str]) -> list[Finding]:
    """The findings with their ids: from rule, path, function and code, not from lines.

    codes: the code of each finding without its layout. Equal ones in one function are told apart by their order.
    """
    seen: dict[tuple[str, ...], int] = {}
    numbered = []
    for finding, code in zip(findings, codes, strict=True):
        key = (finding.rule, finding.path, finding.function, code)
        seen[key] = seen.get(key, 0) + 1
        digest = hashlib.sha256("\0".join([*key, str(seen[key])]).encode()).hexdigest()
        numbered.append(replace(finding, id=f"{finding.rule}-{digest[:8]}"))
    return numbered
