"""Of which class the entries of a list or dict are: by its type, by what is put in, or by how it makes new ones."""

import ast
from typing import TYPE_CHECKING

from intone.optimise.scan.classes import ClassPlace, class_methods, classes_of_annotation
from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.source import Scope, target_name

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project

GIVES = ("setdefault", "get", "pop", "popleft", "popitem", "values", "items")


def classes_inside(node: ast.expr, scope: Scope, project: "Project", depth: int) -> list[ClassPlace]:
    """The classes of the entries of a container that a name or attribute holds; empty where nothing says them."""
    from intone.optimise.scan.calls import classes_of  # asks this file in turn

    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in GIVES:
            return classes_inside(node.func.value, scope, project, depth)
        walks = isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "list", "reversed", "iter", "zip")
        return classes_inside(node.args[0], scope, project, depth) if walks and node.args else []
    name = target_name(node)
    if name is None or depth <= 0:
        return []
    found: list[ClassPlace] = []
    for value, at in _given(node, name, scope, project):
        if isinstance(value, ast.Subscript):  # a type: dict[str, Meter], Sequence[Guard]
            inside = value.slice.elts[-1] if isinstance(value.slice, ast.Tuple) else value.slice
            found += classes_of_annotation(inside, at, project)
        else:
            found += classes_of(value, at, project, depth - 1)
    return list(dict.fromkeys(found))


def _given(node: ast.expr, name: str, scope: Scope, project: "Project") -> list[tuple[ast.expr, Scope]]:
    """(type of the container, or one of its entries, and where) of what is known of a container."""
    from intone.optimise.scan.calls import classes_of

    places = [scope]
    if name.startswith("self.") and (owner := project.owner_of(scope)) is not None:
        places = class_methods(owner, project)
    elif isinstance(node, ast.Name):
        at: Scope | None = scope
        while at is not None and name not in at.bindings and name not in at.parameters:
            at = at.outer
        places = [at] if at is not None else []
    given: list[tuple[ast.expr, Scope]] = []
    for place in places:
        if name in place.parameters and (written := place.parameters[name].annotation) is not None:
            given += [(written, place)] if isinstance(written, ast.Subscript) else []
        for binding in place.bindings.get(name, []):
            if isinstance(binding.node, ast.AnnAssign) and isinstance(binding.node.annotation, ast.Subscript):
                given.append((binding.node.annotation, place))
            if binding.how == "add":
                given.append((binding.value, place))
            elif binding.how == "=":
                given += [(value, place) for value in _entries(binding.value)]
                handed = isinstance(binding.value, ast.Name) and binding.value.id in place.parameters
                written = place.parameters[binding.value.id].annotation if handed else None  # type: ignore[attr-defined]
                given += [(written, place)] if isinstance(written, ast.Subscript) else []
    last = name.rpartition(".")[2]
    for owner_place in classes_of(node.value, scope, project, 2) if isinstance(node, ast.Attribute) else ():
        given += [
            (part.annotation, owner_place[0].top) for part in owner_place[1].body
            if isinstance(part, ast.AnnAssign) and target_name(part.target) == last
            and isinstance(part.annotation, ast.Subscript)
        ]  # fmt: skip
    return given[:12]


def _entries(value: ast.expr) -> list[ast.expr]:
    """What is written in a container as it is made, or what it makes new entries of: defaultdict(Meter)."""
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return value.elts[:4]
    if isinstance(value, ast.Dict):
        return value.values[:4]
    if isinstance(value, (ast.ListComp, ast.GeneratorExp)):
        return [value.elt]
    if isinstance(value, ast.DictComp):
        return [value.value]
    if isinstance(value, ast.Call) and last_name(value.func) == "defaultdict" and value.args:
        made = value.args[0]
        return [made.body] if isinstance(made, ast.Lambda) else [ast.Call(made, [], [])]
    return []
