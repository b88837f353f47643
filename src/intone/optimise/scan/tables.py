"""Tables of functions: dicts, lists and registries in which a program looks up what it calls."""

import ast
from typing import TYPE_CHECKING

from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.source import Module, Scope

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project

MANY = 12  # entries of one table; more are not looked at


def table_of(node: ast.expr) -> ast.expr | None:
    """What a function is looked up in: TOOLS[name], TOOLS.get(name) -> TOOLS; None for anything else."""
    if isinstance(node, ast.Subscript):
        return node.value
    looks_up = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and bool(node.args)
    if looks_up and node.func.attr in ("get", "pop", "setdefault"):  # type: ignore[attr-defined]
        return node.func.value  # type: ignore[attr-defined]
    return None


def entries(table: ast.expr, scope: Scope, project: "Project") -> list[tuple[ast.expr, Scope]]:
    """(value, function) of what stands in a table: written out, put in later, or entered by a decorator."""
    found: list[tuple[ast.expr, Scope]] = []
    for origin in project.origins(table, scope, depth=3):
        found += [(value, origin.scope) for value in written(origin.node)]
    name = last_name(table)
    modules = [scope.module]
    full = scope.module.imports.get(name or "")
    if full is not None and (home := project.home_of(full)) is not None:
        modules.append(home)
    for module in modules if name is not None else ():
        found += _put_in(name or "", module)
    return found[:MANY]


def written(node: ast.AST) -> list[ast.expr]:
    """The values of a dict, list or tuple that is written out; none for anything else."""
    if isinstance(node, ast.Dict):
        return node.values[:MANY]
    return node.elts[:MANY] if isinstance(node, (ast.List, ast.Tuple)) else []


def _put_in(name: str, module: Module) -> list[tuple[ast.expr, Scope]]:
    """TOOLS[key] = function somewhere in a file; in a decorator: the functions that it stands on."""
    found: list[tuple[ast.expr, Scope]] = []
    for scope in module.scopes:
        for bound, bindings in scope.bindings.items():
            if bound.rpartition(".")[2] != name:
                continue
            for binding in bindings:
                if binding.how != "add" or not isinstance(binding.node, ast.Assign):
                    continue
                if isinstance(binding.value, ast.Name) and binding.value.id in scope.parameters:
                    marks = {scope.simple_name, scope.outer.simple_name if scope.outer is not None else ""}
                    entered = marked(module, marks)
                    found += [(ast.Name(one.simple_name, ast.Load()), one.outer or one) for one in entered]
                else:
                    found.append((binding.value, scope))
    return found


def marked(module: Module, decorators: set[str]) -> list[Scope]:
    """The functions of a file that one of some decorators stands on: @tool, @tool("name")."""
    return [
        scope for scope in module.scopes if scope.owner is None
        for item in getattr(scope.node, "decorator_list", [])
        if last_name(item.func if isinstance(item, ast.Call) else item) in decorators
    ]  # fmt: skip


def registries(module: Module) -> dict[str, set[str]]:
    """Name of a function -> the names of the tables into which a decorator enters it."""
    found: dict[str, set[str]] = {}
    for scope in module.scopes:
        for bound, bindings in scope.bindings.items():
            for binding in bindings:
                enters = binding.how == "add" and isinstance(binding.node, ast.Assign)
                if enters and isinstance(binding.value, ast.Name) and binding.value.id in scope.parameters:
                    marks = {scope.simple_name, scope.outer.simple_name if scope.outer is not None else ""}
                    for one in marked(module, marks):
                        found.setdefault(one.simple_name, set()).add(bound.rpartition(".")[2])
    return found
