"""Findings as SARIF 2.1.0, the format in which code hosts show them beside the lines of a change."""

from collections.abc import Sequence
from typing import Any

import intone
from intone.optimise.scan.board import Issue
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import Scan
from intone.optimise.scan.shares import certainty, rank, share_of

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note"}
# what code hosts sort by, 0 to 10; our own scale, a guess that keeps the order
SCORES = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "2.0"}


def to_sarif(scan: Scan, groups: Sequence[Sequence[Issue]]) -> dict[str, Any]:
    """One run with all rules and the issues as results; dismissed ones carry a suppression with their reason.

    groups: of issues that are one fault; the first is the result, the others are its related places.
    """
    numbers = {number: index for index, number in enumerate(RULES)}
    known = [group for group in groups if group[0].finding.rule in numbers]
    run = {
        "tool": {
            "driver": {
                "name": "intone scan",
                "semanticVersion": intone.__version__,
                "rules": [_rule(number) for number in RULES],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"SRCROOT": {"uri": scan.root.absolute().as_uri() + "/"}},
        "results": [_result(issue, copies, numbers[issue.finding.rule]) for issue, *copies in known],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(number: str) -> dict[str, Any]:
    rule = RULES[number][0]
    name = "".join(word.capitalize() for word in rule.name.replace("-", " ").replace("(", "").split())
    return {
        "id": number,
        "name": "".join(letter for letter in name if letter.isalnum()),
        "shortDescription": {"text": rule.name},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\nFix: {rule.fix}\n\nSource: {rule.source}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
        "properties": {
            "tags": [rule.kind],
            "problem.severity": LEVELS[rule.severity],
            "security-severity": SCORES[rule.severity],
        }
        if rule.kind in ("pickle", "eval-output")
        else {"tags": [rule.kind]},
    }


def _result(issue: Issue, copies: Sequence[Issue], index: int) -> dict[str, Any]:
    finding = issue.finding
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.message}. {finding.fix}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": finding.path, "uriBaseId": "SRCROOT"},
                    "region": {
                        "startLine": finding.line,
                        "startColumn": finding.column,
                        "endLine": finding.end_line,
                        "snippet": {"text": finding.excerpt},
                    },
                },
                "logicalLocations": [{"fullyQualifiedName": finding.function, "kind": "function"}],
            }
        ],
        "partialFingerprints": {"intoneIssue/v1": finding.id},
        "rank": round(rank(finding), 1),
        "properties": {
            "confidence": certainty(finding),
            "held": share_of(finding.rule).held,
            "judged": share_of(finding.rule).judged,
            "evidence": list(finding.evidence),
            "state": issue.state,
        },
    }
    related = [("has a share in it", *place) for place in finding.also]
    for one in copies:
        related.append(("the same", one.finding.path, one.finding.line, one.finding.function))
    if related:
        result["relatedLocations"] = [_related(number, *place) for number, place in enumerate(related)]
    if issue.state == "dismissed":
        kind = "inSource" if issue.reason.startswith("in the code: ") else "external"
        result["suppressions"] = [{"kind": kind, "status": "accepted", "justification": issue.reason}]
    return result


def _related(number: int, word: str, path: str, line: int, function: str) -> dict[str, Any]:
    return {
        "id": number,
        "message": {"text": f"{word}: {function}"},
        "physicalLocation": {
            "artifactLocation": {"uri": path, "uriBaseId": "SRCROOT"},
            "region": {"startLine": line},
        },
    }
