"""The loops that train: where a loss goes backward, where the optimizer steps, and what stands behind which counter."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import COMPREHENSIONS, Frame, Reached, loops_around, reached
from intone.optimise.scan.seldom import counted_by, counter_guard, guards_of
from intone.optimise.scan.source import FunctionNode, Module, Scope, target_name
from intone.optimise.scan.values import backward_loss, is_backward, steps_optimizer

Loop = ast.For | ast.AsyncFor | ast.While
STEP = re.compile(r"(^|_)(train|training|learn|update|optimi[sz]e|fit)(_(step|batch|one|micro_?batch))?$|^step$")


@dataclass(eq=False)
class TrainLoop:
    """A loop that ends in optimizer steps, with all that it calls.

    inner: the innermost loop around the backward call, in `scope`. outer: the loop around the step, in `outer_scope`;
    None where no step is seen. chain: the calls from outer to inner, where they stand in different functions.
    accumulates: several backward calls make one step, because the step stands outside inner (nested) or behind a
    test on a counter (guarded). A function that is called by nothing that we see stands for the loop that calls it.
    """

    scope: Scope
    outer: ast.AST | None
    inner: Loop
    backwards: list[Reached]
    steps: list[Reached]
    shape: str  # nested | guarded | plain
    outer_scope: Scope
    chain: tuple[Site, ...] = field(default=())

    @property
    def accumulates(self) -> bool:
        """Whether several micro-batches make one optimizer step."""
        return self.shape in ("nested", "guarded")

    @property
    def around(self) -> ast.AST:
        """The loop around the step, or the innermost one where no step is seen."""
        return self.outer or self.inner

    def turn(self, project: Project) -> list[Reached]:
        """Everything that runs in one turn of the innermost loop."""
        return reached(self.inner, self.scope, project)

    def step_turn(self, project: Project) -> list[Reached]:
        """Everything that runs in one turn of the loop around the step."""
        return reached(self.around, self.outer_scope if self.outer is not None else self.scope, project)

    def in_inner(self, item: Reached) -> bool:
        """Whether something reached from the loop around the step runs inside the innermost loop."""
        return any(above is self.inner for _, above, _ in item.up()) or item.node is self.inner


def train_loops(module: Module, project: Project) -> Iterator[TrainLoop]:
    """The training loops of which the innermost loop stands in a file."""
    if "loops" not in project.known_loops:
        project.known_loops["loops"] = list(_train_loops(project))
    yield from (loop for loop in project.known_loops["loops"] if loop.scope.module is module)


def is_test(scope: Scope) -> bool:
    """Whether a function is a test that stands beside the code, or stands in one: nothing is trained there."""
    at: Scope | None = scope
    while at is not None:
        if at.simple_name.startswith("test_") and at.owner is None and not at.parameters:
            return True
        at = at.outer
    return False


def backward_calls(scope: Scope, project: Project) -> list[ast.Call]:
    """The calls in a function that run back-propagation themselves, not a method of the project called backward."""
    return [
        call for call in scope.calls
        if is_backward(call) and backward_loss(call) is not None and not _delegates(call, scope, project)
    ]  # fmt: skip


def _delegates(call: ast.Call, scope: Scope, project: Project) -> bool:
    return any(any(is_backward(inner) for inner in callee.calls) for callee in project.callees(call, scope))


def _train_loops(project: Project) -> Iterator[TrainLoop]:
    groups: dict[tuple[ast.AST, ast.AST | None], TrainLoop] = {}
    for module in project.modules:
        for scope in module.scopes:
            if is_test(scope):
                continue
            for call in backward_calls(scope, project):
                nests = [nest for nest in loops_around(call, scope, project) if nest]
                for nest in nests:
                    _enter(groups, call, scope, nest, project)
                if not nests and isinstance(scope.node, ast.FunctionDef) and STEP.search(scope.simple_name):
                    _enter_function(groups, call, scope, project)
    yield from groups.values()


def _enter_function(
    groups: dict[tuple[ast.AST, ast.AST | None], TrainLoop], call: ast.Call, scope: Scope, project: Project
) -> None:
    """training_step() of a library's trainer: it stands for the loop that calls it, which we do not see."""
    steps = step_events(scope.node, scope, project)
    if project.callers(scope) or not steps:
        return
    node = scope.node
    shape = "guarded" if all(counter_guard(step, node, project) for step in steps) else "plain"
    backward = Reached(call, scope)
    if (node, node) in groups:
        groups[node, node].backwards.append(backward)
    else:
        groups[node, node] = TrainLoop(scope, node, node, [backward], steps, shape, scope)  # type: ignore[arg-type]


def _enter(
    groups: dict[tuple[ast.AST, ast.AST | None], TrainLoop], call: ast.Call, scope: Scope, nest: list[Frame],
    project: Project,
) -> None:  # fmt: skip
    inner = nest[0]
    outer, steps, chain = _around_step(nest, project)
    loop: ast.AST | None = outer.loop if outer else None
    outer_scope = outer.scope if outer else inner.scope
    if outer is None and isinstance(inner.scope.node, FunctionNode):
        steps = step_events(inner.scope.node, inner.scope, project)
        loop, outer_scope = (inner.scope.node, inner.scope) if steps else (None, inner.scope)
        for site in project.callers(inner.scope)[:4] if not steps else ():  # def step(self): self.backward_all(); ...
            found = step_events(site.scope.node, site.scope, project) if site.scope.name != "<module>" else []
            if found:
                steps, loop, outer_scope, chain = found, site.scope.node, site.scope, (site,)
                break
    key = (inner.loop, loop)
    if key in groups:
        if call not in [item.node for item in groups[key].backwards]:
            groups[key].backwards.append(Reached(call, scope, tuple(inner.chain)))
        return
    shape = "plain"
    if loop is not None and loop is not inner.loop:
        shape = "nested"
    elif loop is not None and steps and all(counter_guard(step, inner.loop, project) for step in steps):
        shape = "guarded"
    groups[key] = TrainLoop(
        inner.scope, loop, inner.loop, [Reached(call, scope, tuple(inner.chain))], steps, shape, outer_scope, chain
    )


def _around_step(nest: list[Frame], project: Project) -> tuple[Frame | None, list[Reached], tuple[Site, ...]]:
    """(the first loop of a nest that reaches a step, the steps, the calls from it to the innermost loop)."""
    inner = nest[0]
    for frame in nest:
        steps = step_events(frame.loop, frame.scope, project)
        if steps:
            return frame, steps, frame.chain[: len(frame.chain) - len(inner.chain)]
    return None, [], ()


def step_events(start: ast.AST, scope: Scope, project: Project) -> list[Reached]:
    """The optimizer steps that run in a loop."""
    return [
        item for item in reached(start, scope, project)
        if isinstance(item.node, ast.Call) and steps_optimizer(item.node, item.scope, project)
    ]  # fmt: skip


# --- what a loop walks over -------------------------------------------------------------------------------------------


def walked_over(loop: ast.AST, scope: Scope) -> list[ast.expr]:
    """What a loop walks over; of a name of the function what it is made of: parts = rows.chunk(n)."""
    walked, _ = walk_of(loop)
    found = [] if walked is None else [walked]
    parts = walked.args if isinstance(walked, ast.Call) and last_name(walked.func) in ("zip", "enumerate") else found
    for part in list(parts):
        made = [b.value for b in scope.bindings.get(target_name(part) or "", []) if b.how == "="]
        found += made if len(made) == 1 else []
    return found


def is_cut(node: ast.AST) -> bool:
    """x.chunk(n), torch.split(x, n)"""
    cuts = ("chunk", "split", "tensor_split", "array_split")
    return isinstance(node, ast.Call) and last_name(node.func) in cuts


def walk_of(loop: ast.AST) -> tuple[ast.expr | None, ast.expr | None]:
    """(what a loop or comprehension walks over, its variable); (None, None) for a while."""
    if isinstance(loop, (ast.For, ast.AsyncFor)):
        return loop.iter, loop.target
    if isinstance(loop, COMPREHENSIONS):
        return loop.generators[0].iter, loop.generators[0].target
    return None, None


def behind_step(item: Reached, loop: TrainLoop, project: Project) -> frozenset[str]:
    """The counters of a training loop that lets its optimizer step, behind which a reached node stands too."""
    guards = [counter_guard(step, loop.inner, project) for step in loop.steps] if loop.shape == "guarded" else []
    counters = {counted_by(guard.test) for guard in guards if guard is not None}
    return frozenset(counters & {counted_by(test) for test, *_ in guards_of(item, loop.inner)} if counters else ())
