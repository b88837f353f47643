"""Options of a call by name: written there, or in a dict that is handed on with **, wherever that was made."""

import ast
from dataclasses import dataclass

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.classes import class_field
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import keyword, last_name
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name


@dataclass(frozen=True, eq=False)
class Option:
    """A value that an option of a call may have. node: where it is said, the call itself or the entry of a dict."""

    value: ast.expr
    node: ast.AST
    scope: Scope


def options(call: ast.Call, name: str, scope: Scope, project: Project) -> list[Option]:
    """What the code shows that a call is told under a name: by a keyword, else in the dicts that are handed on."""
    if (value := keyword(call, name)) is not None:
        return [Option(value, call, scope)]
    found = []
    for word in call.keywords:
        if word.arg is not None:
            continue
        for origin in project.origins(word.value, scope, lambda node: _merged(node, name), depth=4):
            said = _entry(origin.node, name)
            if said is not None:
                found.append(Option(said[1], said[0], origin.scope))
            found += _of_fields(origin.node, name, origin.scope, project)
        held = target_name(word.value)
        owner = project.owner_of(scope) if held is not None and held.startswith("self.") else None
        places = [scope] if held in scope.bindings or held in scope.parameters else [scope, scope.module.top]
        for method in project.class_scopes(owner[1]) if owner is not None else dict.fromkeys(places):
            for node in method.body:
                if held is not None and (put := _put_later(node, held, name)) is not None:
                    found.append(Option(put, node, method))
    return found


def option_values(option: Option, project: Project) -> list[object]:
    """The constants that an option may stand for; empty where the code shows none."""
    return [known.value for known in known_values(option.value, option.scope, project)]


def is_on(call: ast.Call, name: str, scope: Scope, project: Project) -> bool:
    """Whether a call is told True under a name, and nothing else by all that the code shows."""
    values = [option_values(option, project) for option in options(call, name, scope, project)]
    return any(set(one) == {True} for one in values)


def is_told(call: ast.Call, name: str, scope: Scope, project: Project, *, place: int | None = None) -> bool:
    """Whether a call is told True under a name or at a place among its arguments, by all that the code shows."""
    if place is not None and len(call.args) > place:
        return {known.value for known in known_values(call.args[place], scope, project)} == {True}
    return any(word.arg in (name, None) for word in call.keywords) and is_on(call, name, scope, project)


def hides_options(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call hands on a dict with ** of which the code does not show all entries."""
    for word in call.keywords:
        if word.arg is None:
            for origin in project.origins(word.value, scope, lambda node: _merged(node, None), depth=4):
                written = isinstance(origin.node, ast.Dict) and None not in origin.node.keys
                made = isinstance(origin.node, ast.Call) and last_name(origin.node.func) == "dict"
                if origin.is_annotation or not (written or made and not origin.node.args):  # type: ignore[attr-defined]
                    return True
    return False


# what makes a container of settings of another, or of keywords: OmegaConf.create(dict(...)), EasyDict(a=1)
CONTAINERS = (
    "create", "to_container", "to_object", "merge", "structured", "EasyDict", "Munch", "Box", "AttrDict", "DictConfig",
    "FrozenDict", "ConfigDict", "SimpleNamespace", "Namespace", "OrderedDict", "ChainMap", "defaultdict",
)  # fmt: skip


def _entry(node: ast.expr, name: str) -> tuple[ast.AST, ast.expr] | None:
    """(where, value) of an entry of a dict that is written out: {"name": value}, dict(name=value)."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == name:
                return key, value
    elif isinstance(node, ast.Call) and last_name(node.func) in ("dict", *CONTAINERS):
        return next(((word, word.value) for word in node.keywords if word.arg == name), None)
    return None


def _of_fields(node: ast.expr, name: str, scope: Scope, project: Project) -> list[Option]:
    """asdict(settings), vars(settings), settings.model_dump(): the field of this name of the settings' class."""
    if not isinstance(node, ast.Call):
        return []
    if last_name(node.func) in ("asdict", "vars") and node.args:
        held = node.args[0]
    elif isinstance(node.func, ast.Attribute) and node.func.attr in ("model_dump", "dict", "to_dict", "_asdict"):
        held = node.func.value
    else:
        return []
    fields = [(file, class_field(owner, name)) for file, owner in classes_of(held, scope, project)]
    return [Option(value, value, file.top) for file, value in fields if value is not None]


def _merged(node: ast.expr, name: str | None) -> list[ast.expr]:
    """The dicts that another one is made of, unless it says itself: {**defaults, "top_k": 5}, defaults | {...}."""
    if name is not None and _entry(node, name) is not None:
        return []
    if isinstance(node, ast.Dict):
        return [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        own = name is not None and _entry(node.right, name) is not None
        return [node.right] if own else [node.left, node.right]
    if isinstance(node, ast.Call) and last_name(node.func) in ("dict", "deepcopy", "MappingProxyType", *CONTAINERS):
        return [*node.args, *(word.value for word in node.keywords if word.arg is None)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "copy":
        return [node.func.value]
    return []


def _put_later(node: ast.AST, held: str, name: str) -> ast.expr | None:
    """kwargs["name"] = value; kwargs.update(name=value); kwargs.setdefault("name", value)"""
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
        key = target.slice
        put = isinstance(key, ast.Constant) and key.value == name and target_name(target.value) == held
        return node.value if put else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    if target_name(node.func.value) != held:
        return None
    if node.func.attr == "update":
        written = _entry(node.args[0], name) if node.args else None
        return keyword(node, name) or (written[1] if written is not None else None)
    if node.func.attr == "setdefault" and len(node.args) == 2 and isinstance(node.args[0], ast.Constant):
        return node.args[1] if node.args[0].value == name else None
    return None
