"""One source file as rules read it: its tree with parents, functions and scopes, imported names, lines and comments."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from intone.optimise.scan.selfnames import name_self

Kind = TypeVar("Kind", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
# one object each for all code that Python parses: they have no place in a tree, and their parents say it all
SHARED = {
    kind
    for group in (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
    for kind in group.__subclasses__()
}


@dataclass(eq=False)
class Scope:
    """A function, or the module's own code. name is qualified: Engine.generate, or <module>."""

    module: "Module"
    node: ast.AST
    name: str
    outer: "Scope | None"
    owner: ast.ClassDef | None  # the class whose method it is

    @property
    def simple_name(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    @cached_property
    def body(self) -> list[ast.AST]:
        """Every node of this scope, without those of functions inside it."""
        return list(own_nodes(self.node))

    def of(self, *kinds: type[Kind]) -> list[Kind]:
        """The nodes of the scope that are of some kinds, in the order of the text. Kept: many rules ask for them."""
        kept = self._by_kinds
        if kinds not in kept:
            kept[kinds] = [node for node in self.body if type(node) in kinds]
        return kept[kinds]  # type: ignore[return-value]

    @cached_property
    def _by_kinds(self) -> dict[tuple[type[ast.AST], ...], list[ast.AST]]:
        return {}

    @cached_property
    def bindings(self) -> dict[str, list["Binding"]]:
        """Name (or self.name) -> what is bound to it here."""
        found: dict[str, list[Binding]] = {}
        for node in self.of(*BINDERS):
            for name, binding in bound_by(node):
                found.setdefault(name, []).append(binding)
        return found

    @cached_property
    def parameters(self) -> dict[str, "Parameter"]:
        """The parameters of a function by name; empty for a module."""
        if not isinstance(self.node, FunctionNode):
            return {}
        return parameters_of(self.node.args)

    @cached_property
    def places(self) -> dict[int, str]:
        """Place among the positional parameters -> its name."""
        return {one.position: name for name, one in self.parameters.items() if one.position is not None}

    @cached_property
    def rest(self) -> tuple[str | None, str | None]:
        """The names of *args and **kwargs of a function; None where it has none."""
        if not isinstance(self.node, FunctionNode):
            return None, None
        args = self.node.args
        return args.vararg.arg if args.vararg else None, args.kwarg.arg if args.kwarg else None

    @cached_property
    def returns(self) -> list[ast.expr]:
        """The expressions it returns."""
        if isinstance(self.node, ast.Lambda):
            return [self.node.body]
        return [node.value for node in self.of(ast.Return) if node.value is not None]

    @cached_property
    def yields(self) -> list[ast.expr]:
        """The expressions it yields, where it is a generator."""
        return [node.value for node in self.of(ast.Yield) if node.value is not None]

    @cached_property
    def is_generator(self) -> bool:
        """Whether it yields."""
        return bool(self.of(ast.Yield, ast.YieldFrom))

    @cached_property
    def calls(self) -> list[ast.Call]:
        """The calls in it."""
        return self.of(ast.Call)

    @cached_property
    def globals(self) -> set[str]:
        """The names that it declares global or nonlocal."""
        return {name for node in self.body if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}


@dataclass(frozen=True)
class Binding:
    """A value given to a name. how: "=", "part" (index of a tuple), "iter" (element of), "op" (augmented), "add"."""

    value: ast.expr
    how: str
    node: ast.AST
    index: int | None = None


@dataclass(frozen=True)
class Parameter:
    """A parameter: its place among the positional ones (None: keyword only), default and annotation."""

    position: int | None
    default: ast.expr | None
    annotation: ast.expr | None


@dataclass(eq=False)
class Module:
    """One parsed file."""

    path: str
    text: str
    tree: ast.Module
    lines: list[str] = field(default_factory=list)
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    scopes: list[Scope] = field(default_factory=list)
    scope_of: dict[ast.AST, Scope] = field(default_factory=dict)  # for every node: the scope that it stands in
    _mentioned: dict[re.Pattern[str], bool] = field(default_factory=dict, repr=False)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree, outer ones first."""
        return walk(self.tree)

    @cached_property
    def reads(self) -> dict[str, list[ast.AST]]:
        """What is read under a name: "x" as a name, ".x" as an attribute, "import x" from another file."""
        found: dict[str, list[ast.AST]] = {}
        for node in self.nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.setdefault(node.id, []).append(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.setdefault(f".{node.attr}", []).append(node)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    found.setdefault(f"import {alias.name}", []).append(node)
        return found

    def mentions(self, pattern: re.Pattern[str]) -> bool:
        """Whether a pattern is found in the text. Searched once: many rules and neighbours ask the same."""
        if pattern not in self._mentioned:
            self._mentioned[pattern] = pattern.search(self.text) is not None
        return self._mentioned[pattern]

    @cached_property
    def imports(self) -> dict[str, str]:
        """Local name -> what it names: {"F": "torch.nn.functional"}."""
        names: dict[str, str] = {}
        for node in self.nodes:
            if type(node) not in (ast.Import, ast.ImportFrom):
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    base = "." * node.level + (node.module or "")
                    names[alias.asname or alias.name] = f"{base}.{alias.name}".lstrip(".")
        return names

    @cached_property
    def stars(self) -> list[str]:
        """The modules of which everything is imported: from settings import *."""
        nodes = [node for node in self.nodes if type(node) is ast.ImportFrom]
        return [node.module for node in nodes if node.module and any(alias.name == "*" for alias in node.names)]

    @cached_property
    def comments(self) -> dict[int, str]:
        """Line -> the comment that ends it, without the #."""
        found: dict[int, str] = {}
        try:
            for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
                if token.type == tokenize.COMMENT:
                    found[token.start[0]] = token.string.lstrip("#").strip()
        except (tokenize.TokenError, SyntaxError):
            pass  # the tree was read; what tokenize trips over has no comments for us
        return found

    @property
    def top(self) -> Scope:
        """The module's own code."""
        return self.scopes[0]

    def up(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around a node, inner ones first."""
        while (above := self.parents.get(node)) is not None:
            yield above
            node = above

    def loops_around(self, node: ast.AST) -> list[ast.For | ast.AsyncFor | ast.While]:
        """The loops around a node inside its own function, inner ones first."""
        found: list[ast.For | ast.AsyncFor | ast.While] = []
        below = node
        for above in self.up(node):
            if isinstance(above, SCOPES):
                break
            if isinstance(above, LOOPS) and not _in_header(above, below):
                found.append(above)
            below = above
        return found

    def line_of(self, node: ast.AST) -> str:
        """The line of code that a node begins on, trimmed."""
        number = getattr(node, "lineno", 1)
        return self.lines[number - 1].strip() if number <= len(self.lines) else ""


def _in_header(loop: ast.AST, below: ast.AST) -> bool:
    """Whether a child of a loop is what is evaluated once, before the first turn."""
    return isinstance(loop, (ast.For, ast.AsyncFor)) and (below is loop.iter or below is loop.target)


def parse_module(path: str, text: str) -> Module:
    """The file as a Module. Raises SyntaxError where it is not Python."""
    module = Module(path, text, ast.parse(text), text.splitlines())
    name_self(module.tree)
    top = Scope(module, module.tree, "<module>", None, None)
    module.scopes.append(top)
    _visit(module, module.tree, top, "", None)
    return module


def _visit(module: Module, node: ast.AST, scope: Scope, prefix: str, owner: ast.ClassDef | None) -> None:
    module.scope_of[node] = scope
    for child in children(node):
        module.parents[child] = node
        if isinstance(child, FunctionNode):
            name = prefix + (child.name if not isinstance(child, ast.Lambda) else "<lambda>")
            inner = Scope(module, child, name, scope, owner)
            module.scopes.append(inner)
            module.scope_of[child] = scope
            _visit_function(module, child, scope, inner, name + ".")
        elif isinstance(child, ast.ClassDef):
            _visit(module, child, scope, f"{prefix}{child.name}.", child)
        else:
            _visit(module, child, scope, prefix, owner)


def _visit_function(module: Module, node: FunctionNode, outside: Scope, inside: Scope, prefix: str) -> None:
    """Decorators, defaults and annotations stand in the scope around, the body in its own."""
    body = node.body if isinstance(node.body, list) else [node.body]
    inner = set(map(id, body))
    for child in children(node):
        module.parents[child] = node
        scope = inside if id(child) in inner else outside
        if isinstance(child, FunctionNode):
            name = prefix + (child.name if not isinstance(child, ast.Lambda) else "<lambda>")
            nested = Scope(module, child, name, inside, None)
            module.scopes.append(nested)
            module.scope_of[child] = inside
            _visit_function(module, child, inside, nested, name + ".")
        elif isinstance(child, ast.ClassDef):
            _visit(module, child, inside, f"{prefix}{child.name}.", child)
        else:
            _visit(module, child, scope, prefix, None)


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes right inside a node in the order of the text, without those that all trees share (Load, Add, Lt).

    Kept with the node, as trees do not change; so nobody may change the list.
    """
    known: list[ast.AST] | None = node.__dict__.get("_inside")
    if known is not None:
        return known
    found: list[ast.AST] = []
    node.__dict__["_inside"] = found
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST) and type(item) not in SHARED]
        elif isinstance(value, ast.AST) and type(value) not in SHARED:
            found.append(value)
    return found


def walk(node: ast.AST) -> list[ast.AST]:
    """A node and every node inside it, outer ones first, without those that all trees share (Load, Add, Lt)."""
    found = [node]
    for one in found:  # grows while it is walked over
        found += children(one)
    return found


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node inside a function, module, loop or statement in the order of the text, none of inner functions.

    Nodes that all trees share (Load, Add, Lt) are left out."""
    if isinstance(node, ast.Lambda):
        stack: list[ast.AST] = [node.body]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        stack = list(reversed(node.body))
    else:
        stack = children(node)[::-1]
    while stack:
        top = stack.pop()
        if isinstance(top, FunctionNode):
            continue
        yield top
        stack.extend(children(top)[::-1])


def parameters_of(args: ast.arguments) -> dict[str, Parameter]:
    """The parameters of a function by name, `*args` and `**kwargs` left out."""
    found: dict[str, Parameter] = {}
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    for number, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        found[arg.arg] = Parameter(number, default, arg.annotation)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[arg.arg] = Parameter(None, default, arg.annotation)
    return found


def target_name(node: ast.AST) -> str | None:
    """x -> "x", self.x -> "self.x", a.b.c -> "a.b.c"; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = target_name(node.value)
        return f"{base}.{node.attr}" if base else None
    return None


# what binds a name, as bound_by tells it
BINDERS = (
    ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.AugAssign, ast.For, ast.AsyncFor, ast.comprehension, ast.withitem,
    ast.Call,
)  # fmt: skip


def bound_by(node: ast.AST) -> Iterator[tuple[str, Binding]]:
    """What a statement or expression binds to names: assignments, loops, with, walrus, comprehensions, append."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _bind(target, node.value, "=", node)
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        yield from _bind(node.target, node.value, "=", node)
    elif isinstance(node, ast.AugAssign):
        yield from _bind(node.target, node.value, "op", node)
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        yield from _bind(node.target, node.iter, "iter", node)
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield from _bind(node.optional_vars, node.context_expr, "with", node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        name = target_name(node.func.value)
        if name == "self" and node.func.attr in ("register_buffer", "register_parameter") and len(node.args) > 1:
            yield f"self.{getattr(node.args[0], 'value', '')}", Binding(node.args[1], "=", node)
        if name is None and isinstance(node.func.value, ast.Subscript):  # rows[i].append(token)
            name = target_name(node.func.value.value)
        if name and node.func.attr in ("append", "extend", "appendleft", "add", "put", "fill_", "copy_"):
            yield name, Binding(node.args[0], "add", node)


def _bind(target: ast.expr, value: ast.expr, how: str, node: ast.AST) -> Iterator[tuple[str, Binding]]:
    name = target_name(target)
    if name is not None:
        yield name, Binding(value, how, node)
    elif isinstance(target, ast.Starred):
        yield from _bind(target.value, value, "iter", node)
    elif isinstance(target, ast.Subscript):
        name = target_name(target.value)
        if name is not None:
            yield name, Binding(value, "add", node)
    elif isinstance(target, (ast.Tuple, ast.List)):
        exact = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) and how == "="
        for number, part in enumerate(target.elts):
            if exact:
                yield from _bind(part, value.elts[number], "=", node)  # type: ignore[attr-defined]
            else:
                for inner, _binding in _bind(part, value, how, node):
                    yield inner, Binding(value, "part" if how == "=" else how, node, number)
