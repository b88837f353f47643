"""What numbers and texts an expression may stand for: followed through constants, defaults, flags, settings, sums."""

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.classes import class_field
from intone.optimise.scan.expressions import called, keyword, last_name
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name

Constant = int | float | str | bool | None
DEPTH = 8
OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Pow: operator.pow, ast.Mod: operator.mod, ast.LShift: operator.lshift,
}  # fmt: skip
SWITCHES = ("0", "1", "true", "false", "yes", "no", "on", "off", "none")
MANY = 24  # values of one expression; more are not looked at


@dataclass(frozen=True, eq=False)
class Known:
    """A value that an expression may have, and where it is written down."""

    value: Constant
    node: ast.expr
    scope: Scope


def known_values(node: ast.expr | None, scope: Scope, project: Project, depth: int = DEPTH) -> list[Known]:
    """The values that the code shows for an expression; empty where it shows none. Not all need to be possible."""
    if node is None:
        return []
    found = []
    for one in _known(node, scope, project, depth, frozenset()):
        found.append(one)
        if len(found) >= MANY:
            break
    return found


def only_value(node: ast.expr | None, scope: Scope, project: Project) -> Constant:
    """The one value that an expression has wherever it comes from, or None where there are none or several."""
    values = {known.value for known in known_values(node, scope, project)}
    return values.pop() if len(values) == 1 else None


def fixed_values(node: ast.expr | None, scope: Scope, project: Project) -> list[Known]:
    """The known values of an expression without those that some makers of an object write and others find out."""
    return [one for one in known_values(node, scope, project) if not is_one_of_many(one.node, one.scope, project)]


def is_one_of_many(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Step(device_batch=1) beside Step(device_batch=search()): the number is not what an object of the class has."""
    word = scope.module.parents.get(node)
    call = scope.module.parents.get(word) if isinstance(word, ast.keyword) else None
    name = last_name(call.func) if isinstance(call, ast.Call) else None
    if name not in project.classes or not isinstance(word, ast.keyword) or word.arg is None:
        return False
    others = [site for site in project.sites.get(name or "", []) if site.call is not call]
    handed = [(value, site.scope) for site in others if (value := keyword(site.call, word.arg)) is not None]
    return any(not known_values(value, at, project) for value, at in handed)


def is_never(test: ast.expr | None, scope: Scope, project: Project) -> bool:
    """Whether a test is false by all that the code says: a switch whose only known values are false.

    A switch that the command line may change counts by its default.
    """
    values = known_values(test, scope, project)
    return bool(values) and not any(known.value for known in values)


Seen = frozenset[tuple[int, str]]


def _known(node: ast.expr, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    if depth == 0:
        return
    if isinstance(node, ast.Constant):
        if isinstance(node.value, (int, float, str, bool)) or node.value is None:
            yield Known(node.value, node, scope)
    elif isinstance(node, ast.UnaryOp):
        for one in _known(node.operand, scope, project, depth, seen):
            if isinstance(node.op, ast.Not):
                yield Known(not one.value, one.node, one.scope)
            elif isinstance(node.op, ast.USub) and isinstance(one.value, (int, float)):
                yield Known(-one.value, one.node, one.scope)
    elif isinstance(node, ast.BinOp):
        yield from _computed(node, scope, project, depth, seen)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from _compared(node, scope, project, depth, seen)
    elif isinstance(node, ast.IfExp):
        yield from _known(node.body, scope, project, depth - 1, seen)
        yield from _known(node.orelse, scope, project, depth - 1, seen)
    elif isinstance(node, ast.BoolOp):
        for part in node.values:
            yield from _known(part, scope, project, depth - 1, seen)
    elif isinstance(node, ast.NamedExpr):
        yield from _known(node.value, scope, project, depth, seen)
    elif isinstance(node, ast.Call):
        yield from _of_call(node, scope, project, depth, seen)
    elif isinstance(node, ast.Name):
        yield from _of_name(node.id, scope, project, depth, seen)
    elif isinstance(node, ast.Attribute):
        yield from _of_attribute(node, scope, project, depth, seen)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        yield from _of_table(node.value, node.slice.value, scope, project, depth, seen)


def _computed(node: ast.BinOp, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    operation = OPERATIONS.get(type(node.op))
    if operation is None:
        return
    rights = list(_known(node.right, scope, project, depth - 1, seen))[:4]
    for left in list(_known(node.left, scope, project, depth - 1, seen))[:4]:
        for right in rights:
            if isinstance(left.value, (int, float)) and isinstance(right.value, (int, float)):
                try:
                    yield Known(operation(left.value, right.value), left.node, left.scope)
                except (ArithmeticError, TypeError, ValueError):
                    continue


def _compared(node: ast.Compare, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    """os.environ.get("COMPILE", "0") == "1": a switch that is a text; what else is compared is no switch by itself."""
    equal, right = isinstance(node.ops[0], ast.Eq), node.comparators[0]
    wanted = right.value.lower() if isinstance(right, ast.Constant) and isinstance(right.value, str) else None
    if wanted in SWITCHES and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        for one in list(_known(node.left, scope, project, depth - 1, seen))[:4]:
            yield Known((str(one.value).lower() == wanted) is equal, one.node, one.scope)


def _of_call(node: ast.Call, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    """int(x), os.environ.get("X", "4"), settings.get("x", 4), getattr(args, "x", 4), max(1, x), a function's return."""
    name = called(node, scope)
    last = last_name(node.func)
    if name in ("int", "float", "max", "min", "bool", "round", "abs") and node.args:
        for arg in node.args:
            for one in _known(arg, scope, project, depth - 1, seen):
                value = one.value
                if name in ("int", "float") and isinstance(value, str):
                    value = int(value) if value.strip().isdigit() else None
                if name == "bool" and value is not None:
                    value = bool(value)
                if value is not None:
                    yield Known(value, one.node, one.scope)
    elif name in ("os.environ.get", "os.getenv", "getattr") or (last == "get" and len(node.args) in (1, 2)):
        place = 2 if name == "getattr" else 1
        if last == "get" and name not in ("os.environ.get", "os.getenv") and isinstance(node.args[0], ast.Constant):
            assert isinstance(node.func, ast.Attribute)
            yield from _of_table(node.func.value, node.args[0].value, scope, project, depth, seen)
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            inside = ast.Attribute(node.args[0], str(node.args[1].value), ast.Load())
            yield from _known(inside, scope, project, depth - 1, seen)
        default = node.args[place] if len(node.args) > place else keyword(node, "default")
        if default is not None:
            yield from _known(default, scope, project, depth - 1, seen)
    else:
        for function in project.callees(node, scope)[:3]:
            for result in function.returns[:4]:
                yield from _known(result, function, project, depth - 2 if depth > 1 else 0, seen)


def _of_name(name: str, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    at: Scope | None = scope
    while at is not None:
        bindings = at.bindings.get(name, [])
        if bindings or name in at.parameters:
            if (id(at), name) not in seen:
                inside = seen | {(id(at), name)}
                if name in at.parameters:
                    yield from _of_parameter(name, at, project, depth, inside)
                for binding in bindings:
                    if binding.how == "=":
                        yield from _known(binding.value, at, project, depth - 1, inside)
            return
        at = at.outer
    full = scope.module.imports.get(name)
    module = project.home_of(full) if full else None
    if full is not None and module is not None and module is not scope.module and depth > 1:
        yield from _of_name(full.rpartition(".")[2], module.top, project, depth - 1, seen)
    elif full is None and depth > 1:
        for star in scope.module.stars:
            other = project.module_of(star)
            if other is not None and other is not scope.module and name in other.top.bindings:
                yield from _of_name(name, other.top, project, depth - 1, seen)


def _of_parameter(name: str, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    parameter = scope.parameters[name]
    if parameter.default is not None:
        yield from _known(parameter.default, scope.outer or scope, project, depth - 1, seen)
    for site in project.callers(scope)[:8]:
        value = project.argument(site, scope, name)
        if value is not None:
            yield from _known(value, site.scope, project, depth - 1, seen)


def _of_attribute(node: ast.Attribute, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    """self.x, cfg.x, args.x, config.X: bound here, by the object's class, by a flag, or by a module."""
    text = target_name(node) or node.attr
    if (id(scope), text) in seen:
        return
    inside = seen | {(id(scope), text)}
    found = False
    for origin in project.origins(node, scope, depth=1):
        if origin.node is not node and not origin.is_annotation:
            for one in _known(origin.node, origin.scope, project, depth - 1, inside):
                found = True
                yield one
    for place in classes_of(node.value, scope, project):
        if (value := class_field(place[1], node.attr)) is not None:
            for one in _known(value, place[0].top, project, depth - 1, inside):
                found = True
                yield one
    if not found and not isinstance(node.value, ast.Call):
        yield from _by_field_name(node.attr, scope, project, depth, inside)


def _by_field_name(name: str, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    """A flag --x of argparse, click or typer, or the one class of the project that has a field x with a value."""
    for at, call in flags(project, name):
        default = keyword(call, "default")
        if default is not None:
            yield from _known(default, at, project, depth - 1, seen)
        elif (
            (action := keyword(call, "action")) is not None
            and isinstance(action, ast.Constant)
            and action.value in ("store_true", "store_false")
        ):
            yield Known(action.value == "store_false", action, at)
    places = project.fields.get(name, [])
    if len(places) == 1:
        value = class_field(places[0][1], name)
        assert value is not None
        yield from _known(value, places[0][0].top, project, depth - 1, seen)


def flags(project: Project, name: str) -> list[tuple[Scope, ast.Call]]:
    """The calls that declare a flag --name."""
    found = []
    for adder in ("add_argument", "option", "Option", "DEFINE_integer", "DEFINE_bool", "DEFINE_string"):
        for site in project.sites.get(adder, []):
            words = [
                arg.value for arg in site.call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            dest = keyword(site.call, "dest")
            if isinstance(dest, ast.Constant):
                words.append(str(dest.value))
            if any(word.lstrip("-").replace("-", "_") == name for word in words):
                found.append((site.scope, site.call))
    return found


def _of_table(node: ast.expr, key: object, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    """cfg["x"]: the dict, written out or made by dict(), that the name stands for, and what is put into it later."""
    for origin in project.origins(node, scope, depth=4):
        yield from _in_table(origin.node, key, origin.scope, project, depth, seen)
    name = target_name(node)
    for part in scope.body if name else ():
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Subscript):
            target = part.targets[0]
            if (
                target_name(target.value) == name
                and isinstance(target.slice, ast.Constant)
                and target.slice.value == key
            ):
                yield from _known(part.value, scope, project, depth - 1, seen)


def _in_table(node: ast.expr, key: object, scope: Scope, project: Project, depth: int, seen: Seen) -> Iterator[Known]:
    if isinstance(node, ast.Dict):
        for name, value in zip(node.keys, node.values, strict=True):
            if isinstance(name, ast.Constant) and name.value == key:
                yield from _known(value, scope, project, depth - 1, seen)
            elif name is None:  # {**defaults, ...}
                yield from _of_table(value, key, scope, project, depth - 1, seen)
    elif isinstance(node, ast.Call) and isinstance(key, str):
        if last_name(node.func) == "dict" and (value_ := keyword(node, key)) is not None:
            yield from _known(value_, scope, project, depth - 1, seen)
    elif isinstance(node, (ast.List, ast.Tuple)) and isinstance(key, int) and -len(node.elts) <= key < len(node.elts):
        yield from _known(node.elts[key], scope, project, depth - 1, seen)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):  # config["train"]["x"]
        for origin in project.origins(node.value, scope, depth=3):
            if isinstance(origin.node, ast.Dict):
                for name, value in zip(origin.node.keys, origin.node.values, strict=True):
                    if isinstance(name, ast.Constant) and name.value == node.slice.value:
                        yield from _in_table(value, key, origin.scope, project, depth - 1, seen)
