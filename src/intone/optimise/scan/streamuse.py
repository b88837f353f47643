"""Where a random stream goes: the names, parameters and fields that hold it, and the calls that draw from it."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.origins import is_static
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.seeds import SEEDING
from intone.optimise.scan.source import Scope, target_name

DEPTH = 4  # names, arguments and fields from where a stream is made to a draw; guess
STATES = ("get_state", "set_state", "getstate", "setstate", "initial_seed", "seed", "spawn", "device")


def draws_from(made: ast.expr, scope: Scope, project: Project) -> list[tuple[ast.Call, Scope]]:
    """The calls that draw from a stream, with their functions, wherever the stream is handed.

    made: what makes or seeds it: torch.Generator().manual_seed(1), default_rng(0), gen.manual_seed(1). A call of code
    that is not seen counts as a draw where it is handed the stream: torch.randint(..., generator=g).
    """
    found: list[tuple[ast.Call, Scope]] = []
    seen: set[tuple[int, str]] = set()
    held = target_name(made.func.value) if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) else None
    if held is not None and SEEDING.search("." + made.func.attr):  # type: ignore[attr-defined]
        todo = [(held, scope, DEPTH)]
    else:
        todo = [(name, at, DEPTH) for name, at in _given_to(made, scope, project, found)]
    while todo:
        name, at, left = todo.pop(0)
        if (id(at), name) in seen:
            continue
        seen.add((id(at), name))
        for place in _readers(name, at, project):
            for call in place.calls:
                draw, handed = _use(call, name, place, project)
                if draw:
                    found.append((call, place))
                todo += [(other, inner, left - 1) for other, inner in handed if left]
            for other, bindings in place.bindings.items():
                if left and any(b.how == "=" and target_name(b.value) == name for b in bindings):
                    todo.append((other, place, left - 1))
            if left and any(target_name(value) == name for value in place.returns):
                for site in project.callers(place)[:6]:
                    todo += [(one, there, left - 1) for one, there in _given_to(site.call, site.scope, project, found)]
    return found


def _given_to(
    made: ast.expr, scope: Scope, project: Project, found: list[tuple[ast.Call, Scope]]
) -> Iterator[tuple[str, Scope]]:
    """(name, function) of what holds a stream right where it is made; a draw in the same breath goes into `found`."""
    below: ast.AST = made
    for above in scope.module.up(made):
        if isinstance(above, ast.Call) and below is not above.func:
            if not isinstance(below, ast.keyword) and below not in above.args:
                return
            value = below.value if isinstance(below, ast.keyword) else below
            handed = list(_parameters_for(above, value, scope, project))
            if not handed and not _is_unknown_class(above):
                found.append((above, scope))
            yield from handed
            return
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Attribute):
            if not SEEDING.search("." + above.func.attr) and above.func.attr not in STATES:
                found.append((above, scope))
                return
        elif isinstance(above, (ast.Assign, ast.AnnAssign)):
            targets = above.targets if isinstance(above, ast.Assign) else [above.target]
            yield from ((name, scope) for target in targets if (name := target_name(target)) is not None)
            return
        elif isinstance(above, ast.Return):
            for site in project.callers(scope)[:6]:
                yield from _given_to(site.call, site.scope, project, found)
            return
        elif isinstance(above, ast.stmt):
            return
        below = above


def _is_unknown_class(call: ast.Call) -> bool:
    """list(rng), print(rng), State(rng): what keeps or shows a stream of which no draw is seen."""
    name = last_name(call.func) or ""
    return name in ("print", "list", "tuple", "dict", "id", "repr", "str") or name == name.capitalize() != ""


def _readers(name: str, scope: Scope, project: Project) -> list[Scope]:
    """The functions that may read a name: its own and those inside it, all of a file's, or an object's methods."""
    if name.startswith("self.") and scope.owner is not None:
        return project.class_scopes(scope.owner)
    inside = [one for one in scope.module.scopes if one is scope or _is_around(scope, one)]
    return [one for one in inside if one is scope or name not in one.parameters and name not in one.bindings]


def _is_around(scope: Scope, inner: Scope) -> bool:
    at = inner.outer
    while at is not None:
        if at is scope:
            return True
        at = at.outer
    return False


def _use(call: ast.Call, name: str, scope: Scope, project: Project) -> tuple[bool, list[tuple[str, Scope]]]:
    """(whether a call draws from what a name holds, the parameters that it hands it to)."""
    if isinstance(call.func, ast.Attribute) and target_name(call.func.value) == name:
        return not SEEDING.search("." + call.func.attr) and call.func.attr not in STATES, []
    for value in [*call.args, *(word.value for word in call.keywords)]:
        if target_name(value) == name:
            handed = list(_parameters_for(call, value, scope, project))
            return not handed and not _is_unknown_class(call), handed
    return False, []


def _parameters_for(call: ast.Call, value: ast.AST, scope: Scope, project: Project) -> Iterator[tuple[str, Scope]]:
    """(parameter, function) under which the project's own functions and constructors get an argument."""
    inits = [
        method for _, node in project.classes.get(last_name(call.func) or "", [])
        for method in project.class_scopes(node) if method.simple_name == "__init__"
    ]  # fmt: skip
    for function in [*project.callees(call, scope)[:3], *inits[:2]]:
        for name in function.parameters:
            if project.argument(Site(call, scope), function, name) is value and not (
                name == "self" and not is_static(function)
            ):
                yield name, function
