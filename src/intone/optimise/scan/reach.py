"""What runs inside a loop, also in the functions that it calls: every piece of code with the calls that lead to it."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.source import LOOPS, SCOPES, Module, Scope, own_nodes, walk

Loop = ast.For | ast.AsyncFor | ast.While
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
DEPTH = 5  # calls deep; guess
WIDTH = 3  # functions that one call may mean; where there are more, the name says nothing


# not frozen: hundreds of thousands are made, and a frozen one takes much longer to make
@dataclass(eq=False, slots=True)
class Reached:
    """A node that runs, its function, and the calls through which it is reached, the outermost first."""

    node: ast.AST
    scope: Scope
    chain: tuple[Site, ...] = ()

    @property
    def anchor(self) -> ast.AST:
        """The node itself, or the call in the function where the way began."""
        return self.chain[0].call if self.chain else self.node

    @property
    def line(self) -> int:
        """The line that it stands in."""
        return getattr(self.node, "lineno", 0)

    def at(self, node: ast.AST) -> "Reached":
        """Another node of the same function, reached on the same way."""
        return Reached(node, self.scope, self.chain)

    def up(self) -> Iterator[tuple[ast.AST, ast.AST, Module]]:
        """(child, parent, file) from the node outward, going on at the call site at the head of each function."""
        for node, scope in [(self.node, self.scope), *((site.call, site.scope) for site in reversed(self.chain))]:
            below = node
            for above in scope.module.up(node):
                if above is scope.node:
                    yield below, above, scope.module
                    break
                yield below, above, scope.module
                below = above

    @property
    def is_in_forward(self) -> bool:
        """Whether it runs inside the forward pass of a module that the way leads into."""
        if not self.chain:
            return False
        scopes = [*(site.scope for site in self.chain[1:]), self.scope]
        return any(scope.simple_name == "forward" and scope.owner is not None for scope in scopes)

    def path(self) -> str:
        """The way in words: "called at train.py:12 -> step.py:40"; empty where there was no call."""
        places = [f"{site.scope.module.path}:{site.call.lineno}" for site in self.chain]
        return f"reached by the call at {' -> '.join(places)}" if places else ""


def reached(start: ast.AST, scope: Scope, project: Project, depth: int = DEPTH) -> list[Reached]:
    """Everything that runs in a loop's turns or a function's body, breadth first; each function is entered once.

    depth: calls deep. A loop over a generator of the project runs the generator's body too.
    """
    key = (start, depth)
    if key not in project.known_reached:
        project.known_reached[key] = _reached(start, scope, project, depth)
    return project.known_reached[key]


def _reached(start: ast.AST, scope: Scope, project: Project, depth: int) -> list[Reached]:
    found: list[Reached] = []
    entered = {scope.node}
    header = set(map(id, walk(start.iter))) if isinstance(start, (ast.For, ast.AsyncFor)) else set()
    todo: list[tuple[Scope, tuple[Site, ...], Sequence[ast.AST]]] = [(scope, (), list(turn_nodes(start)))]
    later: list[tuple[Scope, tuple[Site, ...], Sequence[ast.AST]]] = []  # what is called behind a test
    while todo or later:
        if not todo:
            todo.append(later.pop(0))
            if todo[0][0].node in entered:
                todo.pop()
                continue
            entered.add(todo[0][0].node)
        at, chain, nodes = todo.pop(0)
        for node in nodes:
            found.append(Reached(node, at, chain))
            if isinstance(node, ast.Call) and len(chain) < depth:
                for inner in project.callees(node, at)[:WIDTH]:
                    if inner.node in entered:
                        continue
                    if id(node) in header and not inner.yields:
                        continue  # made once, before the first turn
                    for one in [inner, *wrappers(inner, project)]:
                        if one.node in entered:
                            continue
                        if _is_tested(node, at, start):
                            later.append((one, (*chain, Site(node, at)), one.body))
                        else:
                            entered.add(one.node)
                            todo.append((one, (*chain, Site(node, at)), one.body))
    return found


def wrappers(function: Scope, project: Project) -> list[Scope]:
    """The functions that decorators of the project put around one: they run with every call of it."""
    found: list[Scope] = []
    for item in getattr(function.node, "decorator_list", []):
        func = item.func if isinstance(item, ast.Call) else item
        for decorator in functions_of(func, function.module.top, project)[:1]:
            found += [scope for scope in decorator.module.scopes if _is_within(scope, decorator)]
    return found[:WIDTH]


def _is_within(scope: Scope, around: Scope) -> bool:
    return scope.outer is around or scope.outer is not None and scope.outer.outer is around


def _is_tested(node: ast.AST, scope: Scope, start: ast.AST) -> bool:
    """Whether a call stands behind an `if` in its function: it may run less often than the code around."""
    for above in scope.module.up(node):
        if above is start or above is scope.node:
            return False
        if isinstance(above, ast.If):
            return True
    return False


def turn_nodes(start: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run at every turn of a loop: what it walks over is made once, unless a generator makes it."""
    if isinstance(start, COMPREHENSIONS):
        once = set(map(id, walk(start.generators[0])))
        yield from (node for node in own_nodes(start) if id(node) not in once or isinstance(node, ast.Call))
        return
    if isinstance(start, (ast.For, ast.AsyncFor)):
        walked = set(map(id, walk(start.iter)))
        for node in own_nodes(start):
            if id(node) not in walked or isinstance(node, ast.Call):
                yield node
    else:
        yield from own_nodes(start)


@dataclass(frozen=True, eq=False)
class Frame:
    """A loop around a node, in its function or in one that calls it; chain: the calls from the loop to the node."""

    loop: Loop
    scope: Scope
    chain: tuple[Site, ...]

    @property
    def module(self) -> Module:
        """The file of the loop."""
        return self.scope.module


def loops_around(node: ast.AST, scope: Scope, project: Project, *, depth: int = 4, ways: int = 3) -> list[list[Frame]]:
    """The nests of loops around a node: one list per way by which its function is called, innermost loop first."""
    here = [Frame(loop, scope, ()) for loop in turns_around(node, scope)]
    if depth == 0 or scope.node is scope.module.tree:
        return [here]
    sites = [site for site in project.callers(scope) if site.scope is not scope][:ways]
    nests = []
    for site in sites:
        for outer in loops_around(site.call, site.scope, project, depth=depth - 1, ways=ways):
            nests.append([*here, *(Frame(f.loop, f.scope, (*f.chain, site)) for f in outer)])
    return nests or [here]


def turns_around(node: ast.AST, scope: Scope) -> list[Any]:
    """The loops and comprehensions around a node in its function, inner ones first."""
    found = []
    below = node
    for above in scope.module.up(node):
        if isinstance(above, SCOPES):
            break
        walked = isinstance(above, (ast.For, ast.AsyncFor)) and below in (above.iter, above.target)
        if (
            isinstance(above, LOOPS)
            and not walked
            or isinstance(above, COMPREHENSIONS)
            and below is not above.generators[0]
        ):
            found.append(above)
        below = above
    return found


def inner_loops(item: Reached, start: ast.AST) -> list[ast.AST]:
    """The loops between a reached node and the loop where the way began, inner ones first."""
    found: list[ast.AST] = []
    for below, above, _ in item.up():
        if above is start:
            break
        if isinstance(above, LOOPS) and not (isinstance(above, (ast.For, ast.AsyncFor)) and below is above.iter):
            found.append(above)
        if isinstance(above, SCOPES) and above is start:
            break
    return found


def is_inside(node: ast.AST, container: ast.AST, module: Module) -> bool:
    """Whether a node stands inside another one."""
    return any(above is container for above in module.up(node))
