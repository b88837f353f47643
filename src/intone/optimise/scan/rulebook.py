"""The rules and how they report: a rule is a function over one file that yields places; this makes findings of them."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from intone.optimise.scan.expressions import text_of
from intone.optimise.scan.finding import CLASSES, Confidence, Finding, Rule, Severity
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Module, Scope


@dataclass(frozen=True, eq=False)
class Place:
    """What a rule yields. evidence: facts that were read in the code. severity: where it differs from the rule's.

    scope: the function that the node stands in, where it is in another file than the one that was looked at.
    also: other nodes with their functions that have a share in the fault: the helper that a loop calls.
    """

    node: ast.AST
    message: str
    evidence: tuple[str, ...] = ()
    confidence: Confidence = "high"
    severity: Severity | None = None
    scope: Scope | None = None
    also: tuple[tuple[ast.AST, Scope], ...] = ()


Check = Callable[[Module, Project], Iterator[Place]]
RULES: dict[str, tuple[Rule, Check]] = {}


def rule(
    number: str, name: str, *, kind: str, severity: Severity, why: str, fix: str, source: str
) -> Callable[[Check], Check]:
    """Enters a check into the rulebook."""
    assert number not in RULES, f"rule {number} is there twice"
    assert kind in CLASSES, f"rule {number} is of no known class: {kind}"

    def enter(check: Check) -> Check:
        RULES[number] = (Rule(number, name, kind, severity, why, fix, source), check)
        return check

    return enter


def told_lines(kind: str, module: Module, project: Project, before: str) -> list[int]:
    """The lines of a file in which rules of a class with lower numbers tell something.

    For broad rules, which leave a fault to the narrow rule that has its name.
    """
    key = (f"told {kind} {before}", module)
    if key not in project.remembered:
        numbers = [number for number in RULES if number < before and RULES[number][0].kind == kind]
        places = [place for number in numbers for place in RULES[number][1](module, project)]
        project.remembered[key] = [
            getattr(node, "lineno", 0)
            for place in places
            for node, at in [(place.node, place.scope), *place.also]
            if at is None or at.module is module
        ]
    found: list[int] = project.remembered[key]
    return found


def finding_of(rule_: Rule, module: Module, place: Place) -> tuple[Finding, str]:
    """(a place as a finding without its final id, its code without layout)."""
    node = place.node
    module = place.scope.module if place.scope is not None else module
    scope = module.scope_of.get(node, module.top)
    line = getattr(node, "lineno", 1)
    finding = Finding(
        id=rule_.id,
        rule=rule_.id,
        kind=rule_.kind,
        severity=place.severity or rule_.severity,
        confidence=place.confidence,
        path=module.path,
        line=line,
        end_line=_end_of(node, line),
        column=getattr(node, "col_offset", 0) + 1,
        function=next((inner.name for inner in module.scopes if inner.node is node), scope.name),
        excerpt=module.line_of(node),
        message=place.message,
        evidence=place.evidence,
        why=rule_.why,
        fix=rule_.fix,
        also=tuple((at.module.path, getattr(other, "lineno", 1), at.name) for other, at in place.also),
    )
    return finding, _code(node)


def _end_of(node: ast.AST, line: int) -> int:
    """The last line of an expression; of a block only its first."""
    if isinstance(node, (ast.For, ast.While, ast.If, ast.With, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return line
    return getattr(node, "end_lineno", None) or line


def _code(node: ast.AST) -> str:
    """The code that a finding is recognised by: of a block its head only, so that a change inside keeps the id."""
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return f"for {text_of(node.target)} in {text_of(node.iter)}"
    if isinstance(node, (ast.While, ast.If)):
        return f"{type(node).__name__} {text_of(node.test)}"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return f"def {node.name}"
    if isinstance(node, ast.With):
        return "with " + ", ".join(text_of(item) for item in node.items)
    return text_of(node)
