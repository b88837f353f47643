"""Functions that reduce() and its like call again and again with what they gave before: loops without a loop."""

import ast

from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope

FOLDS = ("reduce", "accumulate", "foldl", "scan", "fori_loop")


def is_folded(scope: Scope, project: Project) -> bool:
    """Whether reduce() or accumulate() calls a function again and again with what it gave before."""
    if isinstance(scope.node, ast.Lambda):
        above = scope.module.parents.get(scope.node)
        return isinstance(above, ast.Call) and last_name(above.func) in FOLDS and scope.node in above.args
    return any(
        any(last_name(arg) == scope.simple_name for arg in site.call.args[:2])
        for fold in FOLDS for site in project.sites.get(fold, [])
    )  # fmt: skip
