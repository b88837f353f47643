"""The files of a scan together: which functions and classes there are, who calls whom, and where a value comes from."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from intone.optimise.scan.source import Binding, FunctionNode, Module, Scope, target_name

# how far a value is followed back through names, parameters and returns; guess: deeper chains were never needed
DEPTH = 7
# names that stand for a bag of settings: their .device is what somebody typed, not a torch.device
BAGS = re.compile(r"^(args?|cfg|conf|config|opts?|options|hps?|hparams|params|settings|flags|FLAGS|parsed)$")
Passes = Callable[[ast.expr], Sequence[ast.expr]]


@dataclass(frozen=True)
class Site:
    """A call, and the scope that it stands in."""

    call: ast.Call
    scope: Scope


@dataclass(frozen=True, eq=False)
class Origin:
    """An expression that a value was followed back to; annotation: it is the type of a parameter."""

    node: ast.expr
    scope: Scope
    is_annotation: bool = False


@dataclass(eq=False)
class Project:
    """All modules of a scan. Names are resolved by their last part: a method is found whatever it is called on."""

    modules: list[Module]
    notes: dict[str, str] = field(default_factory=dict)  # facts about the folder: pinned versions

    @cached_property
    def functions(self) -> dict[str, list[Scope]]:
        """Simple name -> the functions called so."""
        found: dict[str, list[Scope]] = {}
        for module in self.modules:
            for scope in module.scopes[1:]:
                found.setdefault(scope.simple_name, []).append(scope)
        return found

    @cached_property
    def classes(self) -> dict[str, list[tuple[Module, ast.ClassDef]]]:
        """Name -> the classes called so."""
        found: dict[str, list[tuple[Module, ast.ClassDef]]] = {}
        for module in self.modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append((module, node))
        return found

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Simple name of what is called -> the calls."""
        found: dict[str, list[Site]] = {}
        for module in self.modules:
            for scope in module.scopes:
                for call in scope.calls:
                    name = last_name(call.func)
                    if name:
                        found.setdefault(name, []).append(Site(call, scope))
        return found

    def callers(self, scope: Scope) -> list[Site]:
        """The calls of a function that can mean it; for a constructor the calls of its class."""
        if scope.simple_name == "__init__" and scope.owner is not None:
            return self.sites.get(scope.owner.name, [])
        if scope.simple_name == "<lambda>":
            return []
        if scope not in self._callers:
            sites = [site for site in self.sites.get(scope.simple_name, []) if site.scope is not scope]
            self._callers[scope] = [site for site in sites if scope in self.callees(site.call, site.scope)]
        return self._callers[scope]

    @cached_property
    def _callers(self) -> dict[Scope, list[Site]]:
        return {}

    def callees(self, call: ast.Call, scope: Scope) -> list[Scope]:
        """The functions of this project that a call may mean: of its own file first, else those that it imports."""
        name = last_name(call.func)
        if name is None:
            return []
        found = self.functions.get(name, [])
        if isinstance(call.func, ast.Name):
            found = [function for function in found if function.owner is None]
            near = [function for function in found if function.module is scope.module]
            return near or _imported(found, scope.module.imports.get(name))
        assert isinstance(call.func, ast.Attribute)
        base = call.func.value
        if isinstance(base, ast.Name) and base.id == "self":
            owner = owner_of(scope)
            same = [function for function in found if function.owner is owner and owner is not None]
            return same or [function for function in found if function.owner is not None][:3]
        if isinstance(base, ast.Name) and base.id in scope.module.imports:
            plain = [function for function in found if function.owner is None]
            return _imported(plain, f"{scope.module.imports[base.id]}.{name}")
        # a name that many classes share tells nothing about this object
        methods = [function for function in found if function.owner is not None]
        return methods if len(methods) <= 3 else []

    def class_scopes(self, owner: ast.ClassDef) -> list[Scope]:
        """The methods of a class."""
        return [scope for module in self.modules for scope in module.scopes if scope.owner is owner]

    def argument(self, site: Site, scope: Scope, name: str) -> ast.expr | None:
        """What a call hands over for a parameter of a function, or None."""
        parameter = scope.parameters[name]
        for keyword in site.call.keywords:
            if keyword.arg == name:
                return keyword.value
        if parameter.position is None:
            return None
        place = parameter.position
        if scope.owner is not None and not _is_static(scope):
            place -= 1  # self
        if 0 <= place < len(site.call.args) and not any(isinstance(arg, ast.Starred) for arg in site.call.args):
            return site.call.args[place]
        return None

    def origins(
        self,
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
            ways = [] if ends else list(self._back(at, passes))
            if not ways:
                found.append(at)
            # taking an expression apart costs nothing, following a name does
            cost = 1 if isinstance(at.node, (ast.Name, ast.Attribute)) else 0
            todo.extend((way, left - cost - (way.scope is not at.scope)) for way in ways)
        return found

    def _back(self, at: Origin, passes: Passes | None) -> Iterator[Origin]:
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
            yield from self._back_from_name(node.id, scope)
        elif isinstance(node, ast.Attribute) and target_name(node) is not None:
            yield from self._back_from_attribute(node, scope)
        elif isinstance(node, ast.Call):
            for function in self.callees(node, scope):
                yield from (Origin(value, function) for value in function.returns)

    def _back_from_name(self, name: str, scope: Scope) -> Iterator[Origin]:
        at: Scope | None = scope
        while at is not None:
            bindings = at.bindings.get(name, [])
            if name in at.parameters:
                yield from self._back_from_parameter(name, at)
            for binding in bindings:
                yield from self._back_from_binding(binding, at)
            if bindings or name in at.parameters:
                return
            at = at.outer

    def _back_from_parameter(self, name: str, scope: Scope) -> Iterator[Origin]:
        parameter = scope.parameters[name]
        if parameter.annotation is not None:
            yield Origin(parameter.annotation, scope, is_annotation=True)
        if parameter.default is not None:
            yield Origin(parameter.default, scope.outer or scope)
        for site in self.callers(scope)[:20]:
            value = self.argument(site, scope, name)
            if value is None:
                continue
            yield Origin(value, site.scope)

    def _back_from_binding(self, binding: Binding, scope: Scope) -> Iterator[Origin]:
        if binding.how == "part" and isinstance(binding.value, ast.Call) and binding.index is not None:
            known = False
            for function in self.callees(binding.value, scope):
                for value in function.returns:
                    if isinstance(value, ast.Tuple) and binding.index < len(value.elts):
                        known = True
                        yield Origin(value.elts[binding.index], function)
            if known:
                return
        if binding.how != "with":
            yield Origin(binding.value, scope)

    def _back_from_attribute(self, node: ast.Attribute, scope: Scope) -> Iterator[Origin]:
        name = target_name(node)
        assert name is not None
        at: Scope | None = scope
        while at is not None:
            for binding in at.bindings.get(name, []):
                yield from self._back_from_binding(binding, at)
            at = at.outer
        owner = owner_of(scope)
        if name.startswith("self.") and owner is not None:
            for method in self.class_scopes(owner):
                if method is not scope:
                    for binding in method.bindings.get(name, []):
                        yield from self._back_from_binding(binding, method)


def _imported(found: list[Scope], full: str | None) -> list[Scope]:
    """Of functions with one name those that an import means: package.module.name -> the file package/module.py."""
    if full is None:
        return []
    parts = full.split(".")[:-1]
    for number in range(len(parts)):
        ending = "/".join(parts[number:])
        same = [f for f in found if f"/{f.module.path}".endswith((f"/{ending}.py", f"/{ending}/__init__.py"))]
        if same:
            return same
    return []


def owner_of(scope: Scope) -> ast.ClassDef | None:
    """The class around a function, also for functions inside a method."""
    at: Scope | None = scope
    while at is not None and at.owner is None:
        at = at.outer
    return at.owner if at else None


def last_name(node: ast.expr) -> str | None:
    """f -> "f", a.b.f -> "f", anything else None."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def dotted(node: ast.AST, scope: Scope) -> str:
    """The name of an expression with imports spelled out: F.softmax -> torch.nn.functional.softmax; "" for others.

    A method of a computed object is ".name": (a + b).item -> ".item".
    """
    if isinstance(node, ast.Name):
        return scope.module.imports.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, scope)
        return f"{base}.{node.attr}"
    return ""


def called(call: ast.Call, scope: Scope) -> str:
    """The dotted name of what a call calls."""
    return dotted(call.func, scope)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument, or None."""
    return next((word.value for word in call.keywords if word.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    """Whether an expression is the constant True."""
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr | None) -> bool:
    """Whether an expression is the constant False."""
    return isinstance(node, ast.Constant) and node.value is False


def names_in(node: ast.AST) -> set[str]:
    """The names and dotted names of names used in an expression."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.Name, ast.Attribute)):
            name = target_name(part)
            if name:
                found.add(name)
    return found


def code_of(node: ast.AST, limit: int = 80) -> str:
    """An expression as one short line of code."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_static(scope: Scope) -> bool:
    node = scope.node
    return isinstance(node, FunctionNode) and any(
        isinstance(item, ast.Name) and item.id == "staticmethod" for item in getattr(node, "decorator_list", [])
    )
