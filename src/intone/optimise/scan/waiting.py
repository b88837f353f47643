"""Lists that a loop over data keeps: who holds them, whether they grow, are taken from, or are kept short."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import names_in
from intone.optimise.scan.loops import is_inside
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Loop, Reached
from intone.optimise.scan.source import Scope, target_name


@dataclass
class Work:
    """A loop over data with all that it runs."""

    loop: Loop
    scope: Scope
    items: Sequence[Reached]
    project: Project
    known: dict[str, set[tuple[Scope, str]]] = field(default_factory=dict)

    def holders(self, name: str, item: Reached) -> list[tuple[Scope, str]]:
        """(function, name) of a list along the calls that hand it on, inner ones first."""
        found, scope, chain = [(item.scope, name)], item.scope, item.chain
        while name in scope.parameters and chain:
            value = self.project.argument(chain[-1], scope, name)
            handed = target_name(value) if value is not None else None
            if handed is None:
                break
            name, scope, chain = handed, chain[-1].scope, chain[:-1]
            found.append((scope, name))
        return found

    def is_touched(self, holders: Sequence[tuple[Scope, str]], methods: Sequence[str]) -> bool:
        """Whether a list is changed by one of these methods anywhere in the loop."""
        for other in self.items:
            node = other.node
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
                and self._is_same(node.func.value, other, holders)
                and not _is_queue_take(node)
            ):
                return True
            if isinstance(node, ast.Delete) and "remove" in methods:
                for target in node.targets:
                    if isinstance(target, ast.Subscript) and self._is_same(target.value, other, holders):
                        return True
            if isinstance(node, ast.Assign) and "remove" in methods and isinstance(node.value, ast.ListComp):
                # waiting = [text for text in waiting if ...]: taken out by making the list anew
                walked = target_name(node.value.generators[0].iter)
                again = walked is not None and walked == target_name(node.targets[0]) and node.value.generators[0].ifs
                if again and self._is_same(node.targets[0], other, holders):
                    return True
            if (
                isinstance(node, ast.AugAssign)
                and "append" in methods
                and self._is_same(node.target, other, holders)
                and isinstance(node.value, (ast.List, ast.ListComp))
            ):
                return True
        return False

    def _is_same(self, node: ast.expr, other: Reached, holders: Sequence[tuple[Scope, str]]) -> bool:
        name = target_name(node)
        if name is None:
            return False
        if name.startswith("self."):
            return any(held == name for _, held in holders)
        return any(pair in holders for pair in self.holders(name, other))

    def is_fresh(self, holders: Sequence[tuple[Scope, str]]) -> bool:
        """Whether a list is made inside the loop: another one at every turn."""
        scope, name = holders[-1]
        if name.startswith("self."):
            return False
        inside = scope is not self.scope
        for binding in scope.bindings.get(name, []):
            if binding.how in ("=", "iter", "part") and (inside or is_inside(binding.node, self.loop, scope.module)):
                return not remakes(binding.value, name)
            if binding.node is self.loop:
                return True
        return False

    def is_few(self, holders: Sequence[tuple[Scope, str]]) -> str | None:
        """The bound of a buffer that is kept short: `while len(buffer) < buffer_size`; None where it has none."""
        names = {name for _, name in holders}
        for scope in {scope for scope, _ in holders} | {self.scope}:
            at: Scope | None = scope
            while at is not None:
                for node in ast.walk(at.node):
                    if (
                        isinstance(node, ast.Compare)
                        and isinstance(node.ops[0], (ast.Lt, ast.LtE, ast.GtE, ast.Gt))
                        and any(ast.unparse(node.left) == f"len({name})" for name in names)
                    ):
                        bound = node.comparators[0]
                        if not (isinstance(bound, ast.Constant) and bound.value in (0, 1)):
                            return self._bound(bound, at)
                at = at.outer
        return None

    def _bound(self, node: ast.expr, scope: Scope) -> str | None:
        numbers = [k.value for k in known_values(node, scope, self.project) if isinstance(k.value, (int, float))]
        return f"{ast.unparse(node)}={max(numbers)}" if numbers else ast.unparse(node)


def _is_queue_take(call: ast.Call) -> bool:
    """pop() from the end moves nothing and needs no search."""
    return call.func.attr == "pop" and not call.args  # type: ignore[attr-defined]


def remakes(value: ast.expr, name: str) -> bool:
    """bins = sorted(bins): the same list made anew."""
    return name in names_in(value)
