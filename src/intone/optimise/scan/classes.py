"""The classes of a project: what a name or type means, their parents and children, methods and fields."""

import ast
import re
from typing import TYPE_CHECKING

from intone.optimise.scan.expressions import last_name, text_of
from intone.optimise.scan.source import Module, Scope, target_name

if TYPE_CHECKING:
    from intone.optimise.scan.project import Project

ClassPlace = tuple[Module, ast.ClassDef]
FIELDS = ("field", "Field", "Option", "ib", "attrib")  # what gives a field its default: dataclasses, pydantic, attrs


def named_classes(name: str, scope: Scope, project: "Project") -> list[ClassPlace]:
    """The classes that a name means in a file: its own one first, else those that it may have imported."""
    places = project.classes.get(name, [])
    return [place for place in places if place[0] is scope.module] or places[:3]


def names_class(name: str, scope: Scope, project: "Project") -> bool:
    """Whether a name stands for a class, so that calling it makes an object: model_cls(args), net: type[Net] = GPT."""
    if re.search(r"(^|_)(cls|klass|class|type|ctor|constructor|factory|builder)$", name.rpartition(".")[2], re.I):
        return True
    at: Scope | None = scope
    while at is not None and name not in at.parameters and name not in at.bindings:
        at = at.outer
    if at is None:
        return False
    values = [binding.value for binding in at.bindings.get(name, []) if binding.how == "="]
    if (parameter := at.parameters.get(name)) is not None:
        if parameter.annotation is not None and re.match(r"(typing\.)?[tT]ype\[", text_of(parameter.annotation)):
            return True
        values += [parameter.default] if parameter.default is not None else []
        values += [value for site in project.callers(at)[:4] if (value := project.argument(site, at, name)) is not None]
    named = [isinstance(value, (ast.Name, ast.Attribute)) and last_name(value) in project.classes for value in values]
    return bool(named) and all(named)


def classes_of_annotation(node: ast.expr, scope: Scope, project: "Project") -> list[ClassPlace]:
    """The classes of the project that a type names: GPT, Optional[GPT], "GPT | None"."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else text_of(node)
    words = re.findall(r"\w+", text)
    return [place for word in words if word in project.classes for place in named_classes(word, scope, project)]


def class_methods(place: ClassPlace, project: "Project") -> list[Scope]:
    """The methods of a class and of its parents that are in the project."""
    found: list[Scope] = []
    for one in [place, *parents(place, project)]:
        found += project.class_scopes(one[1])
    return found


def methods(place: ClassPlace, name: str, project: "Project") -> list[Scope]:
    """The methods that a call of obj.name() may run: of the class or its nearest parent, and of its children."""
    for one in [place, *parents(place, project)]:
        found = [scope for scope in project.class_scopes(one[1]) if scope.simple_name == name]
        if found:
            break
    else:
        found = []
    for child in project.children.get(place[1].name, [])[:6]:
        found += [scope for scope in project.class_scopes(child[1]) if scope.simple_name == name]
    if found and all(_is_open(scope) for scope in found):  # of a protocol: whoever has such a method
        others = [scope for scope in project.functions.get(name, []) if scope.owner is not None]
        found += [scope for scope in others if not _is_open(scope)][:4]
    return list(dict.fromkeys(found))


def _is_open(scope: Scope) -> bool:
    """Whether a method says only what others have to do: its body is a text, `...`, `pass` or a raise."""
    body = getattr(scope.node, "body", None)
    return isinstance(body, list) and all(
        isinstance(part, (ast.Pass, ast.Raise)) or isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
        for part in body
    )


def parents(place: ClassPlace, project: "Project") -> list[ClassPlace]:
    """The classes of the project that a class builds on, nearest first."""
    found: list[ClassPlace] = []
    todo = [place]
    while todo and len(found) < 8:
        at = todo.pop(0)
        for base in at[1].bases:
            for parent in named_classes(last_name(base) or "", at[0].top, project)[:1]:
                if parent != place and parent not in found:
                    found.append(parent)
                    todo.append(parent)
    return found


def fields_of(statement: ast.stmt) -> list[str]:
    """The names of the fields that a statement in the body of a class is about."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return [name for target in targets if (name := target_name(target)) is not None]


def class_field(node: ast.ClassDef, name: str) -> ast.expr | None:
    """The value that a class gives a field in its body: `x = 1`, `x: int = 1`, `x: int = field(default=1)`."""
    for statement in node.body:
        value = None
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and name in fields_of(statement):
            value = statement.value
        if isinstance(value, ast.Call) and last_name(value.func) in FIELDS:
            words = {word.arg: word.value for word in value.keywords}
            value = words.get("default", value.args[0] if value.args else None)
        if value is not None:
            return value
    return None
