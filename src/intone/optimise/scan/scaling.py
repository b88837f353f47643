"""By what a loss is divided on its way to backward, also in other functions, and how many micro-batches make a step."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from intone.optimise.scan.constants import known_values, only_value
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, walk_of
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached, is_inside
from intone.optimise.scan.seldom import ACCUM, counter_guard
from intone.optimise.scan.source import Binding, Scope, target_name, walk
from intone.optimise.scan.values import backward_loss

DIVIDES = ("div", "div_", "true_divide", "divide")
TIMES = ("mul", "mul_", "multiply")
DEPTH = 8  # names, arguments and returns on a loss's way; guess


@dataclass(frozen=True, eq=False)
class Scaling:
    """A division or product on a loss's way: by which factor, and where."""

    node: ast.AST
    factor: ast.expr
    scope: Scope  # of the factor
    divides: bool
    home: Scope | None = None  # of the node, where that is another one

    @property
    def line(self) -> int:
        """The line that it stands in."""
        return getattr(self.node, "lineno", 0)

    @property
    def text(self) -> str:
        """Its code."""
        return code_of(self.node, 60)


Way = tuple[ast.expr, Scope, tuple[Site, ...], int]


def scalings(item: Reached, loop: TrainLoop, project: Project) -> Iterator[Scaling]:
    """The scalings of what a backward call gets, inside the loop over micro-batches and in what it calls."""
    assert isinstance(item.node, ast.Call)
    loss = backward_loss(item.node)
    if loss is None:
        return
    todo: list[Way] = [(loss, item.scope, item.chain, DEPTH)]
    seen: set[int] = set()
    while todo:
        node, scope, chain, left = todo.pop()
        if id(node) in seen or left == 0:
            continue
        seen.add(id(node))
        for one in _scaled_here(node, scope):
            yield _by_reciprocal(one, project) or one
        todo.extend(_back(node, scope, chain, left, project))
        name = target_name(node)
        if name is None:
            continue
        for binding in _bindings(name, scope, loop):
            if isinstance(binding.node, ast.AugAssign) and isinstance(binding.node.op, (ast.Div, ast.Mult)):
                yield Scaling(binding.node, binding.value, scope, isinstance(binding.node.op, ast.Div))
            elif binding.how in ("=", "part", "op"):
                part = _part(binding)
                if part is None:
                    todo += _parts_of_call(binding, scope, chain, left, project)
                todo.append((binding.value if part is None else part, scope, chain, left - 1))
        if name in scope.parameters and chain:
            value = project.argument(chain[-1], scope, name)
            if value is not None:
                todo.append((value, chain[-1].scope, chain[:-1], left - 1))


def _scaled_here(node: ast.expr, scope: Scope) -> Iterator[Scaling]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield Scaling(node, node.right, scope, True)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = [node.right, node.left]
        factor = next((side for side in sides if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Div)), None)
        if factor is not None:  # loss * (1 / n)
            yield Scaling(node, factor.right, scope, True)
        else:
            plain = next((side for side in sides if "loss" not in text_of(side)), node.right)
            yield Scaling(node, plain, scope, "inv" in text_of(plain) or "scale" in text_of(plain))
    elif isinstance(node, ast.Call):
        if last_name(node.func) in (*DIVIDES, *TIMES) and node.args:
            yield Scaling(node, node.args[-1], scope, last_name(node.func) in DIVIDES)
            return
        for arg in [*node.args, *(word.value for word in node.keywords)]:
            if any(ACCUM.search(name.rpartition(".")[2]) for name in names_in(arg)):
                yield Scaling(node, arg, scope, True)


def _by_reciprocal(scaling: Scaling, project: Project) -> Scaling | None:
    """loss * self.share, with share = 1 / n somewhere: a division by n."""
    if scaling.divides and isinstance(scaling.factor, ast.BinOp) or target_name(scaling.factor) is None:
        return None
    for origin in project.origins(scaling.factor, scaling.scope, depth=3):
        made = origin.node
        if isinstance(made, ast.BinOp) and isinstance(made.op, ast.Div) and isinstance(made.left, ast.Constant):
            return Scaling(scaling.node, made.right, origin.scope, True, scaling.scope)
    return None


def _back(node: ast.expr, scope: Scope, chain: tuple[Site, ...], left: int, project: Project) -> Iterator[Way]:
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            yield node.func.value, scope, chain, left
        if last_name(node.func) == "scale" and node.args:
            yield node.args[0], scope, chain, left
        for function in project.callees(node, scope)[:2]:
            if function.simple_name != "forward":
                yield from ((value, function, (*chain, Site(node, scope)), left - 1) for value in function.returns[:4])
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield node.left, scope, chain, left
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and "loss" in text_of(node):
        yield from ((side, scope, chain, left) for side in (node.left, node.right) if "loss" in text_of(side))
    elif not isinstance(node, (ast.Lambda, ast.Attribute)):
        yield from ((child, scope, chain, left) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


def _bindings(name: str, scope: Scope, loop: TrainLoop) -> list[Binding]:
    """What is bound to a name; in the loop's own function only inside the loop."""
    found = scope.bindings.get(name, [])
    if scope is loop.scope:
        return [binding for binding in found if is_inside(binding.node, loop.inner, scope.module)]
    return found


def _part(binding: Binding) -> ast.expr | None:
    """_, loss = model(x), loss / n: the element; None for anything that is no tuple."""
    if binding.how == "part" and isinstance(binding.value, ast.Tuple) and binding.index is not None:
        return binding.value.elts[binding.index] if binding.index < len(binding.value.elts) else None
    return None


def _parts_of_call(binding: Binding, scope: Scope, chain: tuple[Site, ...], left: int, project: Project) -> list[Way]:
    """loss, stats = compute(batch): the first elements of what the function returns."""
    if binding.how != "part" or not isinstance(binding.value, ast.Call) or binding.index is None:
        return []
    found: list[Way] = []
    for function in project.callees(binding.value, scope)[:2]:
        for value in function.returns[:4]:
            if isinstance(value, ast.Tuple) and binding.index < len(value.elts):
                found.append((value.elts[binding.index], function, (*chain, Site(binding.value, scope)), left - 1))
    return found


# --- how many micro-batches -------------------------------------------------------------------------------------------


def count_of(loop: TrainLoop, project: Project) -> tuple[ast.expr, Scope] | None:
    """The expression for the number of micro-batches of a step, and its function; None where the code has none."""
    if loop.shape == "nested":
        walked = loop.inner.iter if isinstance(loop.inner, (ast.For, ast.AsyncFor)) else None
        if isinstance(walked, ast.Call) and last_name(walked.func) == "range" and len(walked.args) == 1:
            return walked.args[0], loop.scope
        return None
    for step in loop.steps:
        guard = counter_guard(step, loop.inner, project)
        if guard is None:
            continue
        scope = next((item.scope for item in loop.turn(project) if item.node is guard), loop.scope)
        for part in walk(guard.test):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod):
                return part.right, scope
    return None


def is_count(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether an expression reads like the number of micro-batches, itself or where it comes from."""
    if any(ACCUM.search(name.rpartition(".")[2]) for name in names_in(node)):
        return True
    if isinstance(node, ast.Constant) or target_name(node) is None:
        return False
    for origin in project.origins(node, scope, depth=3):
        if origin.node is not node and any(ACCUM.search(name.rpartition(".")[2]) for name in names_in(origin.node)):
            return not isinstance(origin.node, ast.Call)
    return False


def same_number(one: ast.expr, one_scope: Scope, other: ast.expr, other_scope: Scope, project: Project) -> bool | None:
    """Whether two expressions are one number, as far as the code shows: None where it shows nothing."""
    if text_of(one) == text_of(other) and (one_scope is other_scope or isinstance(one, ast.Constant)):
        return True
    ones = {known.value for known in known_values(one, one_scope, project)}
    others = {known.value for known in known_values(other, other_scope, project)}
    if not ones or not others:
        return None
    if ones & others:
        return True
    return False if len(ones) == len(others) == 1 else None


# factors by which parts of a loss are weighed, or scores made flatter
WEIGHS = re.compile(
    r"(^|[._])(tau|temp|temperature|alpha|beta|gamma|lambda\w*|lam|weights?|\w+_weight|w\d?|coeff?|\w+_coeff?|eps\w*|sigma|"
    r"std|margin)$",
    re.I,
)


def weighs(scaling: Scaling, project: Project) -> bool:
    """Whether a factor has nothing to do with the number of micro-batches: 0.1 * hint_loss, scores / temperature."""
    if is_count(scaling.factor, scaling.scope, project):
        return False
    sides = [scaling.factor]
    if isinstance(scaling.node, ast.BinOp) and isinstance(scaling.node.op, ast.Mult) and not scaling.divides:
        sides = [scaling.node.left, scaling.node.right]
    return any(
        isinstance(side, ast.Constant) and not scaling.divides
        or bool(names_in(side)) and all(WEIGHS.search(name) for name in names_in(side))
        for side in sides
    )  # fmt: skip


REDUCES = ("sum", "mean", "nansum", "nanmean", "count_nonzero", "einsum")


def within_micro_batch(scaling: Scaling, project: Project) -> bool:
    """Whether a factor masks or averages inside one micro-batch: (nll * mask).sum(), (nll * mask).sum() / mask.sum().

    Neither makes the sum over several micro-batches any smaller.
    """
    if is_count(scaling.factor, scaling.scope, project):
        return False
    if not scaling.divides:
        return isinstance(scaling.node, ast.BinOp) and _is_reduced(scaling.node, scaling.scope)
    node = scaling.node
    parted = node.left if isinstance(node, ast.BinOp) else getattr(getattr(node, "func", None), "value", None)
    if parted is None:
        return False
    above, below = _reduced_names(parted, scaling.scope), _reduced_names(scaling.factor, scaling.scope)
    rows = {target_name(part.value) for part in walk(parted) if isinstance(part, ast.Subscript)}  # mask[i] of all masks
    return bool((above & below) - rows)


def _is_reduced(node: ast.expr, scope: Scope) -> bool:
    """(a * b).sum(), mean(a * b), also by a name: a product of tensors element by element, and then one number."""
    below: ast.AST = node
    for above in scope.module.up(node):
        if isinstance(above, ast.Call):
            method = isinstance(above.func, ast.Attribute) and below is above.func
            if last_name(above.func) in REDUCES and (method or below in above.args):
                return True
        if isinstance(above, ast.Assign):
            name = target_name(above.targets[0])
            return name is not None and any(
                last_name(call.func) in REDUCES and isinstance(call.func, ast.Attribute)
                and name in (target_name(call.func.value), *map(target_name, call.args)) for call in scope.calls
            )  # fmt: skip
        if isinstance(above, ast.stmt):
            return False
        below = above
    return False


def _reduced_names(node: ast.expr, scope: Scope) -> set[str]:
    """The names that are added up in an expression, itself or behind a name: {"mask"} of mask.sum().clamp(min=1)."""
    inside = [node, *(b.value for name in names_in(node) for b in scope.bindings.get(name, []) if b.how == "=")]
    return {
        name for value in inside for part in walk(value)
        if isinstance(part, ast.Call) and last_name(part.func) in REDUCES and isinstance(part.func, ast.Attribute)
        for name in names_in(part)
        if name.partition(".")[0] not in ("self", "sum") and name.partition(".")[0] not in scope.module.imports
        and name.rpartition(".")[2] not in REDUCES
    }  # fmt: skip


def divided_by_turns(loop: TrainLoop, project: Project) -> str | None:
    """for _ in range(n): loss = model(x) / n, whatever n is called; also for row in islice(rows, n), rows.take(n)."""
    walked, _ = walk_of(loop.inner)
    counts = ("range", "islice", "take", "head", "sample")
    turns = walked.args[-1:] if isinstance(walked, ast.Call) and last_name(walked.func) in counts else []
    found = (scaling for item in loop.backwards for scaling in scalings(item, loop, project))
    same = (
        any(scaling.divides and text_of(scaling.factor) == text_of(turns[0]) for scaling in found) if turns else False
    )
    return code_of(turns[0], 40) if same else None


def divided_by_count(loop: TrainLoop, project: Project) -> str | None:
    """The number of micro-batches that a loss is divided by, by its name; None where it is not divided by it."""
    for item in loop.backwards:
        for scaling in scalings(item, loop, project):
            if (
                is_count(scaling.factor, scaling.scope, project)
                and only_value(scaling.factor, scaling.scope, project) != 1
            ):
                named = [name for name in names_in(scaling.factor) if ACCUM.search(name.rpartition(".")[2])]
                return sorted(named)[0] if named else code_of(scaling.factor, 40)
    return None
