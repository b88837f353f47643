"""The files of a scan together: which functions and classes there are, who calls whom, and where a value comes from."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from intone.optimise.scan.calls import WRAPS, functions_of, given_names
from intone.optimise.scan.classes import class_field, fields_of
from intone.optimise.scan.decorators import decorated_by
from intone.optimise.scan.expressions import keyword, last_name
from intone.optimise.scan.origins import DEPTH, Origin, Passes, is_static, origins
from intone.optimise.scan.source import Binding, Module, Scope, target_name
from intone.optimise.scan.tables import registries, table_of, written


@dataclass(frozen=True)
class Site:
    """A call, and the scope that it stands in."""

    call: ast.Call
    scope: Scope


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
            for node in module.nodes:
                if type(node) is ast.ClassDef:
                    found.setdefault(node.name, []).append((module, node))
        return found

    @cached_property
    def fields(self) -> dict[str, list[tuple[Module, ast.ClassDef]]]:
        """Name of a field -> the classes whose bodies give it a value."""
        found: dict[str, list[tuple[Module, ast.ClassDef]]] = {}
        for place in (place for places in self.classes.values() for place in places):
            for name in dict.fromkeys(bound for part in place[1].body for bound in fields_of(part)):
                if class_field(place[1], name) is not None:
                    found.setdefault(name, []).append(place)
        return found

    @cached_property
    def children(self) -> dict[str, list[tuple[Module, ast.ClassDef]]]:
        """Name of a class -> the classes that build on it."""
        found: dict[str, list[tuple[Module, ast.ClassDef]]] = {}
        for places in self.classes.values():
            for place in places:
                for base in place[1].bases:
                    found.setdefault(last_name(base) or "", []).append(place)
        return found

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Simple name of what is called -> the calls; of a function out of a table that of the table."""
        found: dict[str, list[Site]] = {}
        for module in self.modules:
            for scope in module.scopes:
                for call in scope.calls:
                    name = last_name(call.func) or last_name(table_of(call.func) or call.func)
                    if name:
                        found.setdefault(name, []).append(Site(call, scope))
        return found

    @cached_property
    def attribute_writes(self) -> dict[str, list[tuple[Binding, Scope]]]:
        """Name of an attribute -> where it is set on an object other than self: state.last = token."""
        found: dict[str, list[tuple[Binding, Scope]]] = {}
        for module in self.modules:
            for scope in module.scopes:
                for name, bindings in scope.bindings.items():
                    base, dot, last = name.rpartition(".")
                    if not dot or base in ("self", "cls") or base in module.imports:
                        continue
                    plain = [b for b in bindings if b.how == "=" and isinstance(b.node, ast.Assign)]
                    plain = [b for b in plain if target_name(b.node.targets[0]) == name]  # type: ignore[attr-defined]
                    found.setdefault(last, []).extend((binding, scope) for binding in plain)
        return found

    @cached_property
    def aliases(self) -> dict[str, set[str]]:
        """Name of a function or class -> other names under which it may be called: variables and parameters."""
        found: dict[str, set[str]] = {}
        for module in self.modules:
            for scope in module.scopes:
                for name, bindings in scope.bindings.items():
                    for binding in bindings:
                        table = self._in_table(binding.value, scope)
                        for meant in [*table, *(self._handed(binding.value) if binding.how == "=" else ())]:
                            found.setdefault(meant, set()).add(name.rpartition(".")[2])
                for call in scope.calls:
                    for name, value in self._parameter_names(call):
                        for meant in self._handed(value):
                            found.setdefault(meant, set()).add(name)
            for meant, tables in registries(module).items():
                found.setdefault(meant, set()).update(tables)
        return found

    def _handed(self, node: ast.expr) -> Iterator[str]:
        """The functions and classes of the project that an expression hands on: f, torch.compile(f), Class(...).

        Of what is looked up in a table the table's name.
        """
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := last_name(node)) in self.functions:
            yield name or ""
        elif isinstance(node, ast.Call):
            name = last_name(node.func)
            if name in self.classes:
                yield name or ""
            elif name in WRAPS or (isinstance(node.func, ast.Call) and last_name(node.func.func) in WRAPS):
                yield from (found for arg in node.args[:1] for found in self._handed(arg))
            for maker in self.functions.get(name or "", [])[:2]:  # roll = make_roll(model), which returns a function
                inner = {one.simple_name for one in maker.module.scopes if one.outer is maker}
                yield from (last for value in maker.returns if (last := last_name(value) or "") in inner)
        elif isinstance(node, (ast.IfExp, ast.BoolOp)):
            parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            yield from (found for part in parts for found in self._handed(part))
        if (table := table_of(node)) is not None and (name := last_name(table)) in self._tables:
            yield name or ""

    @cached_property
    def _tables(self) -> set[str]:
        """The names of what functions are looked up in."""
        found = {table for module in self.modules for tables in registries(module).values() for table in tables}
        for module in self.modules:
            for scope in module.scopes:
                for name, bindings in scope.bindings.items():
                    if any(self._in_table(binding.value, scope) for binding in bindings):
                        found.add(name.rpartition(".")[2])
        return found

    def _in_table(self, node: ast.expr, scope: Scope) -> list[str]:
        """The functions in a dict, list or tuple that is written out and holds nothing but functions."""
        parts = [part for part in written(node) if not isinstance(part, ast.Lambda)]
        names = [last_name(part) or "" for part in parts if isinstance(part, (ast.Name, ast.Attribute))]
        local = any(name in scope.bindings or name in scope.parameters for name in names)
        return names if names and len(names) == len(parts) and not local and self.functions.keys() >= set(names) else []

    def _parameter_names(self, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """(the name of the parameter, what is handed over) for a call of a function or class of the project."""
        name = last_name(call.func) or ""
        inits = [s for _, node in self.classes.get(name, []) for s in self.class_scopes(node)]
        for function in [*self.functions.get(name, []), *(s for s in inits if s.simple_name == "__init__")][:4]:
            places = function.places
            skip = 1 if function.owner is not None and not is_static(function) else 0
            for number, arg in enumerate(call.args):
                if number + skip in places:
                    yield places[number + skip], arg
        yield from ((word.arg, word.value) for word in call.keywords if word.arg)

    def callers(self, scope: Scope) -> list[Site]:
        """The calls of a function that can mean it; for a constructor the calls of its class."""
        if scope.simple_name == "__init__" and scope.owner is not None:
            return self.sites.get(scope.owner.name, [])
        if scope not in self._callers:
            self._callers[scope] = []  # while it is looked for: a function that calls itself through others
            sites = [site for name in self._names_of(scope) for site in self.sites.get(name, [])]
            sites = [site for site in sites if site.scope is not scope]
            if scope.outer is not None:  # optimizer.step(closure)
                sites += [Site(call, scope.outer) for call in scope.outer.calls if last_name(call.func) == "step"]
            found = [site for site in sites if scope in self.callees(site.call, site.scope)]
            if not found and scope.outer is not None:
                found = [site for one in decorated_by(scope, self) for site in self.callers(one)]
            self._callers[scope] = found
        return self._callers[scope]

    def _names_of(self, scope: Scope) -> list[str]:
        names = [scope.simple_name]
        if scope.simple_name == "<lambda>":
            names = given_names(scope.node, scope.module)
            above = scope.module.parents.get(scope.node)
            above = scope.module.parents.get(above) if isinstance(above, ast.keyword) else above
            if isinstance(above, ast.Call) and not names:  # publish(path, lambda p: save(p)): the parameter's name
                names = [name for name, value in self._parameter_names(above) if value is scope.node]
        if scope.simple_name in ("forward", "__call__") and scope.owner is not None:
            names.append(scope.owner.name)
        for name in list(names):
            names += sorted(self.aliases.get(name, set()) - set(names))
        for name in names[1:]:
            names += sorted(self.aliases.get(name, set()) - set(names))
        return list(dict.fromkeys(name for name in names if name))[:12]

    @cached_property
    def _callers(self) -> dict[Scope, list[Site]]:
        return {}

    @cached_property
    def known_classes(self) -> dict[tuple[Scope, str], list[tuple[Module, ast.ClassDef]]]:
        """What calls.classes_of found, so that it is found once."""
        return {}

    @cached_property
    def known_reached(self) -> dict[tuple[ast.AST, int], list[Any]]:
        """What reach.reached found, so that it is found once."""
        return {}

    @cached_property
    def known_runs(self) -> dict[ast.Call, bool]:
        """Which calls run a model, as values.py found out."""
        return {}

    @cached_property
    def known_chosen(self) -> dict[tuple[ast.expr, bool], bool]:
        """Which values are chosen tokens, as values.py found out."""
        return {}

    @cached_property
    def known_imports(self) -> dict[str, list[Module]]:
        """Which files of the project a file imports from."""
        return {}

    @cached_property
    def known_choosers(self) -> set[Scope]:
        """The functions that lead to a choice of a token, as decode.py found out."""
        return set()

    @cached_property
    def known_names(self) -> dict[str, set[str]]:
        """Names that values.py found out about, by what they are."""
        return {}

    @cached_property
    def known_loops(self) -> dict[str, list[Any]]:
        """The loops that loops.py and decode.py found, by their kind."""
        return {}

    @cached_property
    def known_neighbours(self) -> dict[str, list[Module]]:
        """What neighbours.neighbours found, so that it is found once."""
        return {}

    @cached_property
    def remembered(self) -> dict[tuple[str, Any], Any]:
        """What rules found out about a file, function or the whole, by a word and what it is about."""
        return {}

    @cached_property
    def known_device(self) -> dict[tuple[ast.expr, bool], bool]:
        """Which values lie on the device, as far as the rule on waiting found out."""
        return {}

    @cached_property
    def _callees(self) -> dict[ast.Call, list[Scope]]:
        return {}

    def callees(self, call: ast.Call, scope: Scope) -> list[Scope]:
        """The functions of this project that a call may mean: of its own file first, else those that it imports."""
        if call not in self._callees:
            self._callees[call] = []  # while it is looked for: a call that is found through itself
            self._callees[call] = functions_of(call.func, scope, self)
            if not self._callees[call] and last_name(call.func) == "step" and call.args:  # optimizer.step(closure)
                self._callees[call] = functions_of(call.args[0], scope, self)
        return self._callees[call]

    def owner_of(self, scope: Scope) -> tuple[Module, ast.ClassDef] | None:
        """The class around a function with its file."""
        owner = owner_of(scope)
        return (scope.module, owner) if owner is not None else None

    @cached_property
    def _by_owner(self) -> dict[ast.ClassDef, list[Scope]]:
        found: dict[ast.ClassDef, list[Scope]] = {}
        for module in self.modules:
            for scope in module.scopes:
                if scope.owner is not None:
                    found.setdefault(scope.owner, []).append(scope)
        return found

    def class_scopes(self, owner: ast.ClassDef) -> list[Scope]:
        """The methods of a class."""
        return self._by_owner.get(owner, [])

    @cached_property
    def _modules_by_stem(self) -> dict[str, list[Module]]:
        found: dict[str, list[Module]] = {}
        for module in self.modules:
            stem = module.path.removesuffix(".py").removesuffix("/__init__")
            found.setdefault(stem.rpartition("/")[2], []).append(module)
        return found

    def module_of(self, full: str) -> Module | None:
        """The file of a dotted name: of package.module, or of package.module.name."""
        for words in (full.split("."), full.split(".")[:-1]):
            for module in self._modules_by_stem.get(words[-1], []) if words else []:
                stem = module.path.removesuffix(".py").removesuffix("/__init__")
                for number in range(len(words)):
                    if f"/{stem}".endswith("/" + "/".join(words[number:])):
                        return module
        return None

    def home_of(self, full: str) -> Module | None:
        """The file in which a dotted name is defined: package.module.name -> package/module.py."""
        words = full.split(".")[:-1]
        found = self.module_of(".".join(words)) if words else None
        return found if found is not None and self._is_named(found, words) else None

    @staticmethod
    def _is_named(module: Module, words: list[str]) -> bool:
        stem = module.path.removesuffix(".py").removesuffix("/__init__")
        return stem.rpartition("/")[2] == words[-1]

    def imported(self, found: list[Scope], full: str | None) -> list[Scope]:
        """Of functions with one name those that an import means."""
        return _imported(found, full)

    def literals(self, node: ast.expr, scope: Scope) -> list[ast.expr]:
        """The dicts, lists and tuples, written out, that an expression may be."""
        written = (ast.Dict, ast.List, ast.Tuple)
        return [origin.node for origin in self.origins(node, scope, depth=3) if isinstance(origin.node, written)]

    def argument(self, site: Site, scope: Scope, name: str) -> ast.expr | None:
        """What a call hands over for a parameter of a function, or None."""
        parameter = scope.parameters[name]
        if (handed := keyword(site.call, name)) is not None:
            return handed
        if parameter.position is None:
            return None
        place = parameter.position
        if scope.owner is not None and not is_static(scope):
            place -= 1  # self
        if 0 <= place < len(site.call.args) and not any(isinstance(arg, ast.Starred) for arg in site.call.args):
            return site.call.args[place]
        return None

    def rest_of(self, site: Site, scope: Scope, name: str) -> list[ast.expr]:
        """What a call hands over through *args or **kwargs of a function, by the name of the one or the other."""
        many, named = scope.rest
        if name == named:
            return [word.value for word in site.call.keywords if word.arg and word.arg not in scope.parameters]
        if name != many:
            return []
        first = sum(1 for parameter in scope.parameters.values() if parameter.position is not None)
        if scope.owner is not None and not is_static(scope):
            first -= 1  # self
        return site.call.args[first:]

    def handed(self, site: Site, scope: Scope, name: str) -> list[ast.expr]:
        """Everything that a call hands over under a name: for a parameter one value, for *args and **kwargs several."""
        if name in scope.parameters:
            value = self.argument(site, scope, name)
            return [value] if value is not None else []
        return self.rest_of(site, scope, name)

    def origins(
        self,
        node: ast.expr,
        scope: Scope,
        passes: Passes | None = None,
        *,
        depth: int = DEPTH,
        stops: Callable[[Origin], bool] | None = None,
    ) -> list[Origin]:
        """Where a value may come from, as origins.origins says."""
        return origins(self, node, scope, passes, depth=depth, stops=stops)


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
