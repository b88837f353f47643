"""Who is called: the functions and classes that an expression may mean, through aliases, wrappers and instances."""

import ast
from typing import TYPE_CHECKING

from intone.optimise.scan.classes import (
    ClassPlace,
    class_field,
    class_methods,
    classes_of_annotation,
    methods,
    named_classes,
    parents,
)
from intone.optimise.scan.elements import GIVES, classes_inside
from intone.optimise.scan.expressions import dotted, keyword, last_name
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.tables import entries, table_of

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project

DEPTH = 5  # names, wrappers and returns on the way from a call to its function; guess: code is rarely more indirect
# what hands on the function or object that it is given
WRAPS = {
    "compile", "partial", "wraps", "lru_cache", "cache", "DistributedDataParallel", "DDP", "FullyShardedDataParallel",
    "FSDP", "DataParallel", "deepcopy", "copy", "script", "trace", "checkpoint_wrapper", "prepare", "setup_module",
    "unwrap_model", "no_grad", "inference_mode", "jit", "vmap", "fully_shard", "optimize", "make_graphed_callables",
}  # fmt: skip
KEEPS_OBJECT = {"to", "cuda", "cpu", "eval", "train", "half", "bfloat16", "float", "requires_grad_", "share_memory"}
# methods that every container, text, tensor or optimizer has: they say nothing about the object
COMMON = {
    "add", "add_", "all", "any", "append", "backward", "clear", "close", "copy", "copy_", "count", "cpu", "cuda",
    "decode", "detach", "encode", "eval", "extend", "float", "format", "get", "half", "index", "insert", "item",
    "items", "join", "keys", "long", "max", "mean", "min", "open", "pop", "put", "read", "remove", "replace", "reshape",
    "seek", "set", "size", "sort", "split", "step", "strip", "sum", "to", "tolist", "train", "update", "values",
    "view", "write", "zero_grad", "numpy", "cat", "stack", "exp", "log", "softmax", "state_dict", "load_state_dict",
    "wait", "start", "parameters", "compile", "search", "match", "sub", "unsqueeze", "squeeze", "expand",
}  # fmt: skip


def functions_of(func: ast.expr, scope: Scope, project: "Project", depth: int = DEPTH) -> list[Scope]:
    """The functions of the project that an expression in the place of a callee may mean; empty where none is known."""
    if depth == 0:
        return []
    if isinstance(func, ast.Lambda):
        return [inner for inner in scope.module.scopes if inner.node is func]
    if isinstance(func, ast.IfExp):
        return _united(functions_of(part, scope, project, depth - 1) for part in (func.body, func.orelse))
    if isinstance(func, ast.BoolOp):
        return _united(functions_of(part, scope, project, depth - 1) for part in func.values)
    if isinstance(func, ast.Call):
        return _of_call(func, scope, project, depth)
    if isinstance(func, ast.Name):
        return _of_name(func.id, scope, project, depth)
    if isinstance(func, ast.Attribute):
        return _of_attribute(func, scope, project, depth)
    if isinstance(func, ast.Subscript):
        return _of_table(func.value, scope, project, depth)
    return []


AWAITED = {"to_thread": 0, "run_in_executor": 1, "run_in_threadpool": 0, "run_sync": 0, "wait_for": 0, "shield": 0}


def functions_started(call: ast.Call, scope: Scope, project: "Project") -> list[Scope]:
    """What runs in await asyncio.to_thread(f, x), loop.run_in_executor(None, f, x): the call gives what f gives."""
    before = AWAITED.get(last_name(call.func) or "", len(call.args))
    if before >= len(call.args):
        return []
    key = ("started", call)
    if key not in project.remembered:
        project.remembered[key] = []  # while it is looked for: f = await shield(table[f])
        project.remembered[key] = functions_of(call.args[before], scope, project)
    found: list[Scope] = project.remembered[key]
    return found


def given_names(node: ast.AST, module: Module) -> list[str]:
    """The names that a lambda gets: f = lambda ..., f = torch.compile(lambda ...), f, g = lambda ..., lambda ..."""
    above, below = module.parents.get(node), node
    while isinstance(above, ast.Call) and below in above.args and last_name(above.func) in WRAPS:
        below, above = above, module.parents.get(above)
    place = None
    if isinstance(above, ast.Tuple):
        place, above = above.elts.index(below), module.parents.get(above)  # type: ignore[arg-type]
    names = []
    for target in above.targets if isinstance(above, ast.Assign) else ():
        parts = target.elts if isinstance(target, ast.Tuple) else []
        one = target if place is None else parts[place] if place < len(parts) else None
        names += [last_name(one) or ""] if one is not None else []
    return names


def _united(groups: object) -> list[Scope]:
    found: dict[Scope, None] = {}
    for group in groups:  # type: ignore[attr-defined]
        found.update(dict.fromkeys(group))
    return list(found)


def _of_call(func: ast.Call, scope: Scope, project: "Project", depth: int) -> list[Scope]:
    """partial(f, 1), torch.compile(f), make_step(model), Sampler(0.8): what the result runs when it is called."""
    name = last_name(func.func)
    if name in WRAPS and func.args:
        return functions_of(func.args[0], scope, project, depth - 1)
    if name in WRAPS and isinstance(func.func, ast.Call) and func.func.args:
        return functions_of(func.func.args[0], scope, project, depth - 1)
    if isinstance(func.func, ast.Attribute) and name in KEEPS_OBJECT:
        return functions_of(func.func.value, scope, project, depth - 1)
    table = table_of(func)
    if table is not None and (found := _of_table(table, scope, project, depth)):
        return found
    made = [
        functions_of(value, maker, project, depth - 1)
        for maker in functions_of(func.func, scope, project, depth - 1)
        for value in maker.returns
    ]
    return _united(made) or _when_called(classes_of(func, scope, project, depth - 1), project)


def _when_called(classes: list[ClassPlace], project: "Project") -> list[Scope]:
    """What runs where an object of a class is called."""
    return _united(methods(place, name, project) for place in classes for name in ("__call__", "forward"))


def _of_name(name: str, scope: Scope, project: "Project", depth: int) -> list[Scope]:
    plain = [function for function in project.functions.get(name, []) if function.owner is None]
    near = [function for function in plain if function.module is scope.module and _is_visible(function, scope)]
    if near:
        return near
    if not _is_bound(name, scope):
        if name in scope.module.imports:
            full = scope.module.imports[name]
            return project.imported(plain, full) or _exported(full, project, depth)
        stars = [project.module_of(full) for full in scope.module.stars]
        if found := [function for function in plain if function.module in stars]:
            return found
    at: Scope | None = scope
    while at is not None:
        values = [b.value for b in at.bindings.get(name, []) if b.how in ("=", "part") and b.value is not None]
        found = _united(
            functions_of(value, at, project, depth - 1)
            for value in values
            if not isinstance(value, ast.Name) or value.id != name
        )
        if found:
            return found
        if name in at.parameters:
            return _of_parameter(name, at, project, depth)
        if name in at.bindings:
            return _when_called(classes_of(ast.Name(name, ast.Load()), at, project, depth - 1), project)
        at = at.outer
    return []


def _is_visible(function: Scope, scope: Scope) -> bool:
    """Whether a plain function of the same file can be named from a scope: it is no inner function of another one."""
    around = function.outer
    if around is None or around.node is function.module.tree:
        return True
    at: Scope | None = scope
    while at is not None:
        if at is around:
            return True
        at = at.outer
    return False


def _is_bound(name: str, scope: Scope) -> bool:
    at: Scope | None = scope
    while at is not None:
        if name in at.bindings or name in at.parameters:
            return True
        at = at.outer
    return False


def _exported(full: str, project: "Project", depth: int) -> list[Scope]:
    """A name that another file binds: step = torch.compile(_step)."""
    module, name = project.home_of(full), full.rpartition(".")[2]
    if module is None or depth <= 1 or module.imports.get(name) == full:
        return []
    return _of_name(name, module.top, project, depth - 1)


def _of_parameter(name: str, scope: Scope, project: "Project", depth: int) -> list[Scope]:
    """A function that is handed over: by its default, its callers, or as an object by its class."""
    parameter = scope.parameters[name]
    values = [] if parameter.default is None else [(parameter.default, scope.outer or scope)]
    for site in project.callers(scope)[:6]:
        value = project.argument(site, scope, name)
        if value is not None:
            values.append((value, site.scope))
    found = _united(functions_of(value, at, project, depth - 2) for value, at in values if depth > 2)
    if found or parameter.annotation is None:
        return found
    return _when_called(classes_of_annotation(parameter.annotation, scope, project), project)


def _of_attribute(func: ast.Attribute, scope: Scope, project: "Project", depth: int) -> list[Scope]:
    base, name = func.value, func.attr
    first = target_name(base)
    first = first.partition(".")[0] if first else None
    if first in scope.module.imports and not _is_bound(first or "", scope):
        full = dotted(func, scope)
        plain = [function for function in project.functions.get(name, []) if function.owner is None]
        found = project.imported(plain, full) or _exported(full, project, depth)
        if found:
            return found
        if (
            project.module_of(dotted(base, scope)) is None
            and project.home_of(scope.module.imports[first or ""]) is None
        ):
            return []  # of another package
    if isinstance(base, ast.Call) and last_name(base.func) == "super":
        owner = project.owner_of(scope)
        return _united(methods(place, name, project) for place in parents(owner, project)) if owner else []
    classes = classes_of(base, scope, project, depth - 1)
    found = _united(_member(place, name, project, depth) for place in classes) or _in_namespace(
        base, name, scope, project
    )
    if found or classes:
        return found
    others = [function for function in project.functions.get(name, []) if function.owner is not None]
    named = [function for function in others if _is_named_after(base, function)]
    if named:
        places = [(function.module, function.owner) for function in named if function.owner is not None]
        return _united(methods(place, name, project) for place in places)[:4]
    # a name that many classes share tells nothing about this object
    return others if len(others) <= 3 and name not in COMMON else []


def _is_named_after(base: ast.expr, method: Scope) -> bool:
    """engine.step(), self.kv_cache.write(): a variable that is called like the class of the method."""
    name = (last_name(base) or "").strip("_").replace("_", "").lower()
    owner = method.owner.name.strip("_").lower() if method.owner is not None else ""
    return len(name) > 1 and (name in owner or (len(owner) > 3 and owner in name))


def _in_namespace(base: ast.expr, name: str, scope: Scope, project: "Project") -> list[Scope]:
    """ops.run(...) where ops = SimpleNamespace(run=f)."""
    if name in COMMON or target_name(base) is None:
        return []
    for origin in project.origins(base, scope, depth=2):
        if (
            isinstance(origin.node, ast.Call)
            and last_name(origin.node.func)
            in (
                "SimpleNamespace",
                "namedtuple",
                "dict",
            )
        ) and (value := keyword(origin.node, name)) is not None:
            return functions_of(value, origin.scope, project, 2)
    return []


def _member(place: ClassPlace, name: str, project: "Project", depth: int) -> list[Scope]:
    """A method of an object of a class, or a function that it keeps under a name."""
    found = methods(place, name, project)
    if found:
        return found
    out: list[Scope] = []
    for method in class_methods(place, project):
        for binding in method.bindings.get(f"self.{name}", []):
            if binding.how in ("=", "part") and binding.value is not None:
                out += functions_of(binding.value, method, project, depth - 1)
    if not out and (value := class_field(place[1], name)) is not None:
        out = functions_of(value, place[0].top, project, depth - 1)
    return _united([out])


def _of_table(table: ast.expr, scope: Scope, project: "Project", depth: int) -> list[Scope]:
    """TABLE["name"](...), TABLE.get("name")(...): the functions in a table that stands somewhere near."""
    return _united(functions_of(value, at, project, depth - 1) for value, at in entries(table, scope, project))


# --- classes ----------------------------------------------------------------------------------------------------------


def classes_of(node: ast.expr, scope: Scope, project: "Project", depth: int = DEPTH) -> list[ClassPlace]:
    """The classes of the project that a value may be an object of."""
    if depth <= 0:
        return []
    key = None
    if isinstance(node, (ast.Name, ast.Attribute)) and (name := target_name(node)) is not None:
        key = (scope, name)
        if key in project.known_classes:
            return project.known_classes[key]
        project.known_classes[key] = []  # a value that is made of itself
    found = list(dict.fromkeys(_classes(node, scope, project, depth)))
    if key is not None:
        project.known_classes[key] = found
        if not found and depth < DEPTH:
            del project.known_classes[key]  # perhaps only not deep enough
    return found


def _classes(node: ast.expr, scope: Scope, project: "Project", depth: int) -> list[ClassPlace]:
    if isinstance(node, ast.Call):
        return _made_by(node, scope, project, depth)
    if isinstance(node, ast.IfExp):
        return [*classes_of(node.body, scope, project, depth - 1), *classes_of(node.orelse, scope, project, depth - 1)]
    if isinstance(node, ast.BoolOp):
        return [place for part in node.values for place in classes_of(part, scope, project, depth - 1)]
    if isinstance(node, (ast.NamedExpr, ast.Await)):
        return classes_of(node.value, scope, project, depth - 1)
    if isinstance(node, ast.Subscript):
        return classes_inside(node.value, scope, project, depth - 1)
    if isinstance(node, ast.Name):
        return _classes_of_name(node.id, scope, project, depth)
    if isinstance(node, ast.Attribute):
        return [
            inside
            for place in classes_of(node.value, scope, project, depth - 1)
            for inside in _classes_of_member(place, node.attr, project, depth)
        ]
    return []


def _made_by(node: ast.Call, scope: Scope, project: "Project", depth: int) -> list[ClassPlace]:
    name = last_name(node.func)
    if name == "cls" or name == "__new__":
        owner = project.owner_of(scope)
        return [owner] if owner else []
    if name in project.classes and (found := named_classes(name, scope, project)):
        return found
    if name in WRAPS and node.args:
        return classes_of(node.args[0], scope, project, depth - 1)
    if isinstance(node.func, ast.Attribute) and name in GIVES:
        made = classes_of(node.args[1], scope, project, depth - 1) if len(node.args) > 1 else []
        if inside := [*made, *classes_inside(node.func.value, scope, project, depth - 1)]:
            return inside
    if isinstance(node.func, ast.Attribute) and name in KEEPS_OBJECT:
        return classes_of(node.func.value, scope, project, depth - 1)
    if (
        isinstance(node.func, ast.Attribute)
        and name
        and name.startswith("from_")
        and (base := last_name(node.func.value)) in project.classes
    ):
        return named_classes(base or "", scope, project)
    found = []
    for maker in functions_of(node.func, scope, project, depth - 1) or functions_started(node, scope, project):
        if annotation := getattr(maker.node, "returns", None):
            found += classes_of_annotation(annotation, maker, project)
        for value in maker.returns:
            found += classes_of(value, maker, project, depth - 1)
    return found


def _classes_of_name(name: str, scope: Scope, project: "Project", depth: int) -> list[ClassPlace]:
    if name in ("self", "cls"):
        owner = project.owner_of(scope)
        return [owner] if owner else []
    at: Scope | None = scope
    while at is not None:
        found: list[ClassPlace] = []
        if name in at.parameters:
            parameter = at.parameters[name]
            if parameter.annotation is not None:
                found += classes_of_annotation(parameter.annotation, at, project)
            if not found and depth > 1:
                for site in project.callers(at)[:6]:
                    value = project.argument(site, at, name)
                    if value is not None:
                        found += classes_of(value, site.scope, project, depth - 2)
        for binding in at.bindings.get(name, []):
            if binding.how in ("=", "with"):
                found += classes_of(binding.value, at, project, depth - 1)
            elif binding.how == "iter" and depth > 2:  # for hook in hooks, where hooks is a list that is written out
                for listed in project.literals(binding.value, at):
                    parts = listed.elts if isinstance(listed, (ast.List, ast.Tuple)) else []
                    found += [place for part in parts[:6] for place in classes_of(part, at, project, 2)]
                found = found or classes_inside(binding.value, at, project, depth - 1)
        if found or name in at.parameters or name in at.bindings:
            return found
        at = at.outer
    full = scope.module.imports.get(name)
    module = project.home_of(full) if full else None
    if module is not None and module is not scope.module and full is not None:
        last = full.rpartition(".")[2]
        return [
            p for b in module.top.bindings.get(last, []) for p in classes_of(b.value, module.top, project, depth - 1)
        ]
    return []


def _classes_of_member(place: ClassPlace, name: str, project: "Project", depth: int) -> list[ClassPlace]:
    found: list[ClassPlace] = []
    for method in class_methods(place, project):
        for binding in method.bindings.get(f"self.{name}", []):
            if binding.how == "=":
                found += classes_of(binding.value, method, project, depth - 1)
    for number, statement in enumerate(part for part in place[1].body if isinstance(part, ast.AnnAssign)):
        if target_name(statement.target) == name:
            found += classes_of_annotation(statement.annotation, place[0].top, project)
            for site in project.sites.get(place[1].name, [])[:4] if not found and depth > 2 else ():
                args = site.call.args
                value = keyword(site.call, name) or (args[number] if number < len(args) else None)
                if value is not None:  # a dataclass: what its makers hand over
                    found += classes_of(value, site.scope, project, depth - 2)
    return found
