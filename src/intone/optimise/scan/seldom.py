"""What in a loop runs only now and then: behind a counter, or a question of logging or the like."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, is_inside
from intone.optimise.scan.source import Module, Scope, target_name, walk

PERIODIC = re.compile(
    r"(^|_)(log|logs|logging|print|report|eval|evaluate|save|verbose|debug|last|sync|profile|prof|wandb|tb|viz|interval|every|"
    r"freq|first|warmup|done|dry|val|validate|ckpt|checkpoint|finished|display|show|monitor)($|_|s$)",
    re.I,
)
ENDS = (ast.Break, ast.Return, ast.Raise)
KIND_QUESTIONS = ("isinstance", "is_tensor", "hasattr")
ACCUM = re.compile(r"accum|micro|num_passes|grad_acc|gas$|accumulate", re.I)


def counter_guard(item: Reached, loop: ast.AST, project: Project) -> ast.If | None:
    """The `if` between a loop and what it reaches that lets it run only every few turns, or None."""
    for test, holder, scope, _ in guards_of(item, loop):
        if _counts(test, scope, project):
            return holder
    return None


def guards_of(item: Reached, loop: ast.AST) -> Iterator[tuple[ast.expr, ast.If, Scope, bool]]:
    """The tests on which it depends whether a reached node runs: (test, its if, function, whether it stands around).

    Others stand before it and leave: `if step % 50: return`.
    """
    for below, above, module in item.up():
        scope = module.scope_of.get(below, module.top)
        if isinstance(above, ast.If) and below is not above.test:
            yield above.test, above, scope, True
        for block in (getattr(above, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list) and below in block:
                for before in block[: block.index(below)]:
                    if isinstance(before, ast.If) and not before.orelse and _leaves(before.body):
                        yield before.test, before, scope, False
        if above is loop:
            return


def _counts(test: ast.expr, scope: Scope, project: Project, depth: int = 2) -> bool:
    """Whether a test is true only every few turns: a remainder, a counter that is set back, a name for it."""
    if any(_is_remainder(part, scope, project) for part in walk(test)):
        return True
    names = names_in(test)
    words = " ".join(names)
    if ACCUM.search(words) or "sync" in words or re.search(r"boundary|should_step|ready_to_step", words):
        return not _is_always(test, scope, project)
    if depth == 0:
        return False
    for part in walk(test):
        if isinstance(part, ast.Call):
            for function in project.callees(part, scope)[:2]:
                if any(_counts(value, function, project, depth - 1) for value in function.returns):
                    return True
    for name in names:
        bindings = scope.bindings.get(name, [])
        if any(b.how == "=" and _counts(b.value, scope, project, depth - 1) for b in bindings):
            return True
        if _is_set_back(name, scope, project) or _is_handed_counter(name, scope, project, depth):
            return True
    return False


def _is_handed_counter(name: str, scope: Scope, project: Project, depth: int) -> bool:
    """step(batch, last=(i + 1) % n == 0): a parameter for which callers hand over such a test."""
    if name not in scope.parameters:
        return False
    values = [(project.argument(site, scope, name), site.scope) for site in project.callers(scope)[:4]]
    return any(
        value is not None and not isinstance(value, ast.Constant) and _counts(value, at, project, depth - 1)
        for value, at in values
    )


def _is_remainder(part: ast.AST, scope: Scope, project: Project) -> bool:
    """x % n with an n that is not known to be 1."""
    if not (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod)):
        return False
    return only_value(part.right, scope, project) != 1


def _is_always(test: ast.expr, scope: Scope, project: Project) -> bool:
    """step % 1 == 0, itself or behind a name."""
    values = [b.value for name in names_in(test) for b in scope.bindings.get(name, []) if b.how == "="]
    return any(
        isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) and only_value(part.right, scope, project) == 1
        for value in [test, *values]
        for part in walk(value)
    )


def _is_set_back(name: str, scope: Scope, project: Project) -> bool:
    """A counter: counted up in this function or class and set to 0 again where it is tested."""
    owner = project.owner_of(scope)
    places = [scope]
    if name.startswith("self.") and owner is not None:
        places = [*places, *project.class_scopes(owner[1])]
    bindings = [b for place in places for b in place.bindings.get(name, [])]
    counted = any(isinstance(b.node, ast.AugAssign) and isinstance(b.node.op, (ast.Add, ast.Sub)) for b in bindings)
    reset = any(
        isinstance(b.value, ast.Constant) and isinstance(place.module.parents.get(b.node), (ast.If, ast.FunctionDef))
        and place.simple_name != "__init__" for place in places for b in place.bindings.get(name, []) if b.how == "="
    )  # fmt: skip
    return counted and reset


def counted_by(test: ast.expr) -> str:
    """The counter that a test asks, as code: of `i % 4 == 0`, `i % 4 != 0`, `not i % 4` and `i % 4` the same."""
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    zero = isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant)
    return text_of(test.left if zero and len(test.ops) == 1 else test)  # type: ignore[attr-defined]


def is_periodic(item: Reached, loop: ast.AST | None, project: Project, *, but: frozenset[str] = frozenset()) -> bool:
    """Whether a node in a loop runs only now and then: behind a counter, or a question of logging or the like.

    but: counters that do not make it rare, as counted_by gives them.
    """
    if loop is None:
        return False
    for test, holder, scope, around in guards_of(item, loop):
        if but and counted_by(test) in but:
            continue
        otherwise = around and any(above is holder and below in holder.orelse for below, above, _ in item.up())
        if not otherwise and _is_rare(test, scope, project, words=around):
            return True
    for below, above, module in item.up():
        if above is loop:
            return False
        if isinstance(above, ast.ExceptHandler):
            return True
        if isinstance(above, ast.BoolOp) and below in above.values:
            before = above.values[: above.values.index(below)]
            if goes_on_seldom(above, before, module.scope_of.get(above, module.top), project):
                return True
        if (
            isinstance(above, ast.IfExp)
            and below is not above.test
            and _is_rare(above.test, module.scope_of.get(above, module.top), project)
        ):
            return True
        if isinstance(above, ast.If) and below in above.body and isinstance(above.body[-1], ENDS):
            return not _ends_a_turn(above, loop, module)
    return False


def goes_on_seldom(node: ast.BoolOp, before: list[ast.expr], scope: Scope, project: Project) -> bool:
    """i % 32 == 31 and done.all(): whether what stands behind some parts of an and, or of an or, runs only seldom."""
    goes_on = isinstance(node.op, ast.And)
    return any(_is_seldom(part, goes_on, scope, project) for part in before)


def _is_seldom(test: ast.expr, wanted: bool, scope: Scope, project: Project, depth: int = 1) -> bool:
    """Whether a test gives what is wanted only every few turns: i % 32 == 0 is seldom true, i % 32 seldom false."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _is_seldom(test.operand, not wanted, scope, project, depth)
    if _is_remainder(test, scope, project):
        return not wanted
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        if not any(_is_remainder(side, scope, project) for side in (test.left, test.comparators[0])):
            return False
        return (
            wanted if isinstance(test.ops[0], ast.Eq) else not wanted and isinstance(test.ops[0], (ast.NotEq, ast.Gt))
        )
    if depth == 0:
        return False
    if isinstance(test, ast.Name):
        values = [(b.value, scope) for b in scope.bindings.get(test.id, []) if b.how == "="]
    elif isinstance(test, ast.Call):
        values = [(value, f) for f in project.callees(test, scope)[:2] for value in f.returns]
    else:
        return False
    return bool(values) and all(_is_seldom(value, wanted, at, project, depth - 1) for value, at in values)


def interval_of_one(item: Reached, loop: ast.AST, project: Project) -> str | None:
    """The test around a node that looks like `every n steps` with an n that is 1, as code; None where there is none."""
    for test, _, scope, _ in guards_of(item, loop):
        if _is_always(test, scope, project):
            return text_of(test)
    return None


def _ends_a_turn(holder: ast.If, loop: ast.AST, module: Module) -> bool:
    """A return out of a function that is called in the loop ends the call, not the loop."""
    return isinstance(holder.body[-1], ast.Return) and not is_inside(holder, loop, module)


def _is_rare(test: ast.expr, scope: Scope, project: Project, *, words: bool = True) -> bool:
    """Whether a test holds only now and then, by a remainder, or (words) by a name such as log or verbose."""
    if any(_is_remainder(part, scope, project) for part in walk(test)):
        return True
    if _is_always(test, scope, project):
        return False
    names = names_in(test)
    if _is_full(test, scope):
        return True
    if words and any(PERIODIC.search(name.rpartition(".")[2]) for name in names - _asked_kind(test)):
        return True
    values = [b.value for name in names for b in scope.bindings.get(name, []) if b.how == "="]
    calls = [part for part in walk(test) if isinstance(part, ast.Call)]
    inside = [(value, scope) for value in values]  # due = step % 50 == 0
    inside += [(value, f) for call in calls for f in project.callees(call, scope)[:2] for value in f.returns]
    return any(_is_remainder(part, at, project) for value, at in inside for part in walk(value))


def _asked_kind(test: ast.expr) -> set[str]:
    """isinstance(val, Tensor), hasattr(val, "item"): the names of which a test asks what they hold, not how often."""
    asks = [part for part in walk(test) if isinstance(part, ast.Call) and last_name(part.func) in KIND_QUESTIONS]
    names = {name for part in asks for name in names_in(part)}
    return {name for name in names_in(test) if name.partition(".")[0] in names}


def _is_full(test: ast.expr, scope: Scope) -> bool:
    """len(seen) == 100, of a list that is emptied in the function: true every hundred turns."""
    if not isinstance(test, ast.Compare) or not isinstance(test.left, ast.Call) or not test.left.args:
        return False
    bound, name = test.comparators[0], target_name(test.left.args[0])
    if last_name(test.left.func) != "len" or isinstance(bound, ast.Constant) and bound.value in (0, 1):
        return False
    emptied = any(last_name(call.func) == "clear" and name in names_in(call.func) for call in scope.calls)
    made = [b.value for b in scope.bindings.get(name or "", []) if b.how == "="]
    return emptied or sum(isinstance(value, ast.List) and not value.elts for value in made) > 1


def _leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], (ast.Break, ast.Return, ast.Raise, ast.Continue))
