"""What decorators of the project put around functions: who calls the one runs the other first."""

import ast
from typing import TYPE_CHECKING

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.source import Scope

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project


def decorated_by(scope: Scope, project: "Project") -> list[Scope]:
    """The functions that a decorator puts this inner function of its own around: def deco(f): def inner(*args): ..."""
    outer = scope.outer
    around = {id(one) for one in (outer, outer.outer if outer is not None else None) if one is not None}
    found = [
        function for function, items in _decorated(project)
        if function is not scope and any(id(one) in around for item in items for one in _meant(item, function, project))
    ]  # fmt: skip
    return found[:4]


def _meant(item: ast.expr, function: Scope, project: "Project") -> list[Scope]:
    """The functions that a decorator may mean: @seeded, @seeded(17)."""
    return functions_of(item.func if isinstance(item, ast.Call) else item, function.module.top, project)[:2]


def _decorated(project: "Project") -> list[tuple[Scope, list[ast.expr]]]:
    """The functions that have decorators, with these."""
    key = ("decorated", None)
    if key not in project.remembered:
        scopes = [scope for module in project.modules for scope in module.scopes[1:]]
        project.remembered[key] = [
            (scope, items) for scope in scopes if (items := getattr(scope.node, "decorator_list", []))
        ]
    found: list[tuple[Scope, list[ast.expr]]] = project.remembered[key]
    return found
