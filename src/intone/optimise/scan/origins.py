"""Where a value comes from: followed back through names, parameters, returns and attributes, over all files."""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intone.optimise.scan.calls import classes_of, functions_started
from intone.optimise.scan.classes import class_field, class_methods
from intone.optimise.scan.expressions import dotted, keyword, last_name, text_of
from intone.optimise.scan.source import Binding, FunctionNode, Module, Scope, target_name

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project

# how far a value is followed back through names, parameters and returns; guess: deeper chains were never needed
DEPTH = 7
Passes = Callable[[ast.expr], Sequence[ast.expr]]


@dataclass(frozen=True, eq=False)
class Origin:
    """An expression that a value was followed back to; annotation: it is the type of a parameter."""

    node: ast.expr
    scope: Scope
    is_annotation: bool = False


def origins(
    project: "Project",
    node: ast.expr,
    scope: Scope,
    passes: Passes | None = None,
    *,
    depth: int = DEPTH,
    stops: Callable[[Origin], bool] | None = None,
) -> list[Origin]:
    """Where a value may come from: the expressions at the ends of all ways back, at most a few hundred.

    passes: expression -> the parts of it through which the value came, where there is nothing to follow by name.
    depth: how many names and calls are followed. stops: where to go no further.
    """
    found: list[Origin] = []
    todo = [(Origin(node, scope), depth)]
    seen: set[int] = set()
    while todo and len(seen) < 400:
        at, left = todo.pop(0)
        if id(at.node) in seen:
            continue
        seen.add(id(at.node))
        ends = at.is_annotation or left < 0 or (stops is not None and stops(at))
        ways = [] if ends else list(_back(project, at, passes))
        if not ways:
            found.append(at)
        # taking an expression apart costs nothing, following a name does
        cost = 1 if isinstance(at.node, (ast.Name, ast.Attribute)) else 0
        todo.extend((way, left - cost - (way.scope is not at.scope)) for way in ways)
    return found


def _back(project: "Project", at: Origin, passes: Passes | None) -> Iterator[Origin]:
    """One step back along a value."""
    node, scope = at.node, at.scope
    if isinstance(node, ast.IfExp):
        yield from (Origin(part, scope) for part in (node.body, node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (Origin(part, scope) for part in node.values)
    elif isinstance(node, (ast.Await, ast.Starred, ast.NamedExpr)):
        yield Origin(node.value, scope)
    elif passes is not None and (parts := passes(node)):
        yield from (Origin(part, scope) for part in parts)
    elif isinstance(node, ast.Name):
        yield from _back_from_name(project, node.id, scope, node)
    elif isinstance(node, ast.Attribute) and target_name(node) is not None:
        yield from _back_from_attribute(project, node, scope)
    elif isinstance(node, ast.Call):
        for function in project.callees(node, scope) or functions_started(node, scope, project):
            yield from (Origin(value, function) for value in [*function.returns, *function.yields])


def _back_from_name(project: "Project", name: str, scope: Scope, node: ast.Name | None = None) -> Iterator[Origin]:
    at: Scope | None = scope
    while at is not None:
        bindings = at.bindings.get(name, [])
        if node is not None and len(bindings) > 1:
            bindings = _seen_from(node, bindings, scope)
        if name in at.parameters:
            yield from _back_from_parameter(project, name, at)
        elif name in at.rest:
            for site in project.callers(at)[:20]:
                yield from (Origin(value, site.scope) for value in project.rest_of(site, at, name))
        for binding in bindings:
            yield from _back_from_binding(project, binding, at)
        if bindings or name in at.parameters or name in at.rest:
            return
        at = at.outer
    full = scope.module.imports.get(name)
    module = project.home_of(full) if full else None
    if full is not None and module is not None and module is not scope.module:
        last = full.rpartition(".")[2]
        for binding in module.top.bindings.get(last, []):
            yield from _back_from_binding(project, binding, module.top)
        if last not in module.top.bindings and module.imports.get(last, full) != full:
            yield from _back_from_name(project, last, module.top)


def _seen_from(node: ast.Name, bindings: list[Binding], scope: Scope) -> list[Binding]:
    """The bindings of a name that count at a place: the variable of a comprehension is known inside it only."""
    local = [binding for binding in bindings if isinstance(binding.node, ast.comprehension)]
    if not local or node not in scope.module.parents:
        return bindings
    around = {id(head) for above in scope.module.up(node) for head in getattr(above, "generators", ())}
    inside = [binding for binding in local if id(binding.node) in around]
    return inside or [binding for binding in bindings if binding not in local]


def _back_from_parameter(project: "Project", name: str, scope: Scope) -> Iterator[Origin]:
    parameter = scope.parameters[name]
    if parameter.annotation is not None:
        yield Origin(parameter.annotation, scope, is_annotation=True)
    if parameter.default is not None:
        yield Origin(parameter.default, scope.outer or scope)
    yield from _back_from_handing(project, scope)
    yield from _back_from_start(project, name, scope)
    for site in project.callers(scope)[:20]:
        value = project.argument(site, scope, name)
        if value is None:
            yield from _back_from_spread(project, site.call, site.scope, scope, name)
        else:
            yield Origin(value, site.scope)


def _back_from_spread(
    project: "Project", call: ast.Call, at: Scope, function: Scope, name: str
) -> Iterator[Origin]:  # fmt: skip
    """use(*make(x)), use(*pair): a parameter that gets one part of a tuple that is spread over the arguments."""
    place = function.parameters[name].position
    if place is None:
        return
    place -= 1 if function.owner is not None and not is_static(function) else 0
    number = next((n for n, arg in enumerate(call.args) if isinstance(arg, ast.Starred)), len(call.args))
    if number > place or number == len(call.args):
        return
    spread = call.args[number].value  # type: ignore[attr-defined]
    tuples = [(spread, at)]
    if isinstance(spread, ast.Call):
        tuples = [(value, one) for one in project.callees(spread, at)[:3] for value in one.returns]
    elif (held := target_name(spread)) is not None:
        tuples = [(b.value, at) for b in at.bindings.get(held, []) if b.how == "="]
    for value, one in tuples:
        if isinstance(value, (ast.Tuple, ast.List)) and place - number < len(value.elts):
            yield Origin(value.elts[place - number], one)


# what runs a function elsewhere, with arguments: its name -> how many arguments stand before the function
STARTERS = {
    "submit": 0, "to_thread": 0, "apply_async": 0, "apply": 0, "run_in_executor": 1, "run_in_threadpool": 0, "map": 0,
    "imap": 0, "imap_unordered": 0, "starmap": 0, "map_async": 0, "partial": 0, "run_sync": 0, "spawn": 0,
}  # fmt: skip


def _back_from_start(project: "Project", name: str, scope: Scope) -> Iterator[Origin]:
    """pool.submit(f, text), Process(target=f, args=(text,)), pool.map(f, texts): what a process or thread gets."""
    place = scope.parameters[name].position
    place = place - 1 if place is not None and scope.owner is not None and not is_static(scope) else place
    for starter in ("Process", "Thread"):
        for site in project.sites.get(starter, [])[:20]:
            target, args = keyword(site.call, "target"), keyword(site.call, "args")
            if target is None or last_name(target) != scope.simple_name or place is None:
                continue
            if isinstance(args, (ast.Tuple, ast.List)) and place < len(args.elts):
                yield Origin(args.elts[place], site.scope)
    for starter, before in STARTERS.items():
        for site in project.sites.get(starter, [])[:20]:
            args_ = site.call.args[before:]
            if not args_ or last_name(args_[0]) != scope.simple_name:
                continue
            if place is not None and place + 1 < len(args_):
                yield Origin(args_[place + 1], site.scope)
            elif (word := keyword(site.call, name)) is not None:
                yield Origin(word, site.scope)


def _back_from_handing(project: "Project", scope: Scope) -> Iterator[Origin]:
    """re.sub(pattern, lambda match: ..., text): a parameter comes from what else the unknown caller was handed.

    A function with a name may be handed to anything: of it only re.sub() counts, pattern.sub(fix, text).
    """
    for method in ("sub", "subn"):
        for site in project.sites.get(method, []) if not isinstance(scope.node, ast.Lambda) else ():
            if any(last_name(arg) == scope.simple_name for arg in site.call.args[:2]):
                yield from (Origin(arg, site.scope) for arg in site.call.args if last_name(arg) != scope.simple_name)
    above = scope.module.parents.get(scope.node)
    if (
        isinstance(scope.node, ast.Lambda)
        and isinstance(above, ast.Call)
        and scope.outer is not None
        and not project.callees(above, scope.outer)
    ):
        yield from (Origin(arg, scope.outer) for arg in above.args if arg is not scope.node)


def _back_from_binding(project: "Project", binding: Binding, scope: Scope) -> Iterator[Origin]:
    if binding.how == "part" and isinstance(binding.value, ast.Call) and binding.index is not None:
        known = False
        for function in project.callees(binding.value, scope):
            for value in function.returns:
                if isinstance(value, ast.Tuple) and binding.index < len(value.elts):
                    known = True
                    yield Origin(value.elts[binding.index], function)
        if known:
            return
    if binding.how != "with":
        yield Origin(binding.value, scope)


def _back_from_attribute(project: "Project", node: ast.Attribute, scope: Scope) -> Iterator[Origin]:
    name = target_name(node)
    assert name is not None
    at: Scope | None = scope
    while at is not None:
        for binding in at.bindings.get(name, []):
            yield from _back_from_binding(project, binding, at)
        at = at.outer
    owner = project.owner_of(scope) if name.startswith("self.") and name.count(".") > 1 else None
    for method in project.class_scopes(owner[1]) if owner is not None else ():  # self.model.config.use_cache
        for binding in method.bindings.get(name, []) if method is not scope else ():
            yield from _back_from_binding(project, binding, method)
    base = node.value
    first = name.partition(".")[0]
    if first in scope.module.imports and first not in scope.bindings:
        module = project.module_of(dotted(base, scope))
        for binding in module.top.bindings.get(node.attr, []) if module else ():
            yield from _back_from_binding(project, binding, module.top)  # type: ignore[union-attr]
    for place in classes_of(base, scope, project):
        yield from back_from_member(project, place, node.attr, scope)


def back_from_member(
    project: "Project", place: tuple[Module, ast.ClassDef], name: str, scope: Scope
) -> Iterator[Origin]:
    """Where an object's attribute comes from: its methods, its class, the calls that make it, its properties."""
    bound = False
    for method in class_methods(place, project):
        for binding in method.bindings.get(f"self.{name}", []) if method is not scope else ():
            bound = True
            yield from _back_from_binding(project, binding, method)
        decorators = getattr(method.node, "decorator_list", [])
        if method.simple_name == name and any("property" in text_of(item) for item in decorators):
            yield from (Origin(value, method) for value in method.returns)
    for binding, other in project.attribute_writes.get(name, [])[
        :12
    ]:  # state.last = token, by whoever holds the object
        base = binding.node.targets[0].value if isinstance(binding.node, ast.Assign) else None  # type: ignore[attr-defined]
        if base is not None and place in classes_of(base, other, project):
            yield from _back_from_binding(project, binding, other)
    if (value := class_field(place[1], name)) is not None:
        yield Origin(value, place[0].top)
    for statement in place[1].body:
        if isinstance(statement, ast.AnnAssign) and target_name(statement.target) == name:
            yield Origin(statement.annotation, place[0].top, is_annotation=True)
    if not bound:  # a dataclass: what its makers hand over
        fields = [target_name(part.target) for part in place[1].body if isinstance(part, ast.AnnAssign)]
        number = fields.index(name) if name in fields else None
        own = [(call, method) for method in project.class_scopes(place[1]) for call in method.calls]
        own = [(call, method) for call, method in own if last_name(call.func) == "cls"]
        for call, at in [*((site.call, site.scope) for site in project.sites.get(place[1].name, [])[:10]), *own]:
            if (word := keyword(call, name)) is not None:
                yield Origin(word, at)
            elif number is not None and number < len(call.args) and last_name(call.func) == "cls":
                yield Origin(call.args[number], at)


def is_static(scope: Scope) -> bool:
    """Whether a method is static: it gets no self."""
    node = scope.node
    return isinstance(node, FunctionNode) and any(
        isinstance(item, ast.Name) and item.id == "staticmethod" for item in getattr(node, "decorator_list", [])
    )
