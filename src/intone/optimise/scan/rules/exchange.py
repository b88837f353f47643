"""Rules on what happens to gradients between backward and step: exchange between devices, clipping, loss scaling."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of, keyword, last_name, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.accumulation import adds_nothing, counts_micro_batches
from intone.optimise.scan.seldom import counter_guard
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_optimizer, steps_optimizer

HANDLED = re.compile(
    r"no_sync|require_backward_grad_sync|no_backward_sync|set_requires_gradient_sync|set_is_last_backward|\.accumulate\("
)


@rule(
    "S54",
    "gradients are exchanged at every micro-batch",
    kind="accumulation",
    severity="medium",
    why="All gradients cross the network after each backward pass although they are only needed once per "
    "step: n times the traffic.",
    fix="Run all but the last backward pass inside model.no_sync(), or exchange once after the loop.",
    source="optimiser.md D19",
)
def exchanged_too_often(module: Module, project: Project) -> Iterator[Place]:
    """DDP and accumulation without no_sync; all_reduce of gradients inside the loop over micro-batches."""
    for loop in train_loops(module, project):
        if not loop.accumulates or not loop.steps:
            continue
        items = [item for item in loop.turn(project) if isinstance(item.node, ast.Call)]
        reduce = next((item for item in items if _reduces_gradients(item.node, item.scope)), None)  # type: ignore[arg-type]
        if reduce is not None and not counter_guard(reduce, loop.inner, project):
            yield Place(
                reduce.node,
                "gradients are reduced inside the loop over micro-batches",
                (f"{module.path}:{loop.inner.lineno}: {module.line_of(loop.inner)[:60]}", reduce.path()),
                scope=reduce.scope,
            )
            continue
        if not counts_micro_batches(loop, project) or adds_nothing(loop, project):
            continue
        inverted = _inverted(loop, project)
        if inverted is not None:
            told = f"{module.path}:{loop.inner.lineno}: {module.line_of(loop.inner)[:60]}"
            words = "the exchange of gradients is left out at the last micro-batch, and done at all others"
            yield Place(inverted.node, words, (told,), scope=inverted.scope)
            continue
        wrapped = _wrapped_in(loop, project)
        if wrapped is not None:
            backward = loop.backwards[0]
            yield Place(
                backward.node,
                "every micro-batch exchanges all gradients",
                (f"the model is wrapped at {wrapped}", "no no_sync on the way to it"),
                scope=backward.scope,
            )


def _wrapped_in(loop: TrainLoop, project: Project) -> str | None:
    """Where the model of a loop is wrapped in DDP or FSDP: in its files, or in those that call or set it up."""
    files = {item.scope.module.path: item.scope.module for item in loop.step_turn(project)}
    files[loop.scope.module.path] = loop.scope.module
    for scope in (loop.scope, loop.outer_scope):
        sites = project.callers(scope)
        if scope.owner is not None:
            sites = [*sites, *project.sites.get(scope.owner.name, [])]
        files |= {site.scope.module.path: site.scope.module for site in sites}
        for call in scope.calls:  # model = wrap(model)
            files |= {function.module.path: function.module for function in project.callees(call, scope)[:2]}
    if any(module.mentions(HANDLED) for module in files.values()):
        return None
    for module in files.values():
        for scope in module.scopes:
            for call in scope.calls:
                if last_name(call.func) in EXCHANGERS or _is_fabric(call):
                    return f"{module.path}:{call.lineno}"
    return None


EXCHANGERS = ("DistributedDataParallel", "DDP", "FSDP", "FullyShardedDataParallel", "fully_shard")


def _is_fabric(call: ast.Call) -> bool:
    """Fabric(devices=8), Fabric(strategy="ddp"): what it sets up exchanges gradients at every backward pass."""
    devices, strategy = keyword(call, "devices"), keyword(call, "strategy")
    many = devices is not None and not (isinstance(devices, ast.Constant) and devices.value in (1, "1"))
    return last_name(call.func) == "Fabric" and (many or strategy is not None)


def _inverted(loop: TrainLoop, project: Project) -> Reached | None:
    """no_sync() if last else nullcontext(): the exchange is left out only where it is needed."""
    for item in loop.turn(project):
        node = item.node
        if not isinstance(node, ast.IfExp) or not any(
            isinstance(part, ast.Call) and last_name(part.func) in NO_SYNC for part in (node.body, node.orelse)
        ):
            continue
        off = isinstance(node.body, ast.Call) and last_name(node.body.func) in NO_SYNC
        if _is_last(node.test, item.scope, project, off):
            return item
    return None


NO_SYNC = ("no_sync", "no_backward_sync")


def _is_last(test: ast.expr, scope: Scope, project: Project, wanted: bool, depth: int = 2) -> bool:
    """Whether a test is as wanted at the last micro-batch of a step only: k == n - 1, (i + 1) % n == 0, or a name."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _is_last(test.operand, scope, project, not wanted, depth)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right, op = test.left, test.comparators[0], test.ops[0]
        ends = isinstance(right, ast.BinOp) and isinstance(right.op, ast.Sub)
        ends = ends or isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod)
        last = isinstance(op, (ast.Eq, ast.GtE))
        return ends and (last if wanted else isinstance(op, (ast.NotEq, ast.Lt)))
    if isinstance(test, ast.Name) and depth:
        made = [b.value for b in scope.bindings.get(test.id, []) if b.how == "="]
        return len(made) == 1 and _is_last(made[0], scope, project, wanted, depth - 1)
    return False


def _reduces_gradients(call: ast.Call, scope: Scope) -> bool:
    if last_name(call.func) not in (
        "all_reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "all_reduce_coalesced",
        "all_reduce_gradients",
        "sync_gradients",
    ):
        return False
    if "grad" in text_of(call):
        return True
    # for p in params: g = p.grad; all_reduce(g)
    for arg in call.args[:1]:
        name = target_name(arg)
        if name and any(".grad" in text_of(b.value) for b in scope.bindings.get(name, [])):
            return True
    return False


@rule(
    "S55",
    "gradients are clipped while still scaled",
    kind="accumulation",
    severity="high",
    why="With a GradScaler gradients carry a factor of thousands until they are unscaled: clipping them "
    "first makes every step tiny.",
    fix="Call scaler.unscale_(optimizer) before clip_grad_norm_.",
    source="PyTorch automatic mixed precision examples",
)
def clipped_while_scaled(module: Module, project: Project) -> Iterator[Place]:
    """scaler.scale(loss).backward() and clip_grad_norm_ without unscale_ before it, in one function or one loop."""
    regions = [[Reached(call, scope) for call in scope.calls] for scope in module.scopes]
    regions += [_calls(loop.step_turn(project)) for loop in train_loops(module, project)]
    for items in regions:
        scaled = [item for item in items if _scales(item)]
        clips = [item for item in items if _named(item, "clip_grad_norm_", "clip_grad_value_")]
        unscaled = [item for item in items if _named(item, "unscale_")]
        for clip in clips if scaled else ():
            if not any(other.scope is not clip.scope or other.line <= clip.line for other in unscaled):
                first = scaled[0]
                yield Place(
                    clip.node,
                    "gradients are clipped before they are unscaled",
                    (f"scaled at {first.scope.module.path}:{first.line}: {code_of(first.node, 50)}",),
                    scope=clip.scope,
                )


def _calls(items: list[Reached]) -> list[Reached]:
    return [item for item in items if isinstance(item.node, ast.Call)]


def _named(item: Reached, *names: str) -> bool:
    return isinstance(item.node, ast.Call) and last_name(item.node.func) in names


def _scales(item: Reached) -> bool:
    """scaler.scale(loss)"""
    node = item.node
    if not _named(item, "scale") or not isinstance(node, ast.Call):
        return False
    return "scaler" in text_of(node.func) or isinstance(item.scope.module.parents.get(node), ast.Attribute)


@rule(
    "S56",
    "the scaled loss is never unscaled",
    kind="accumulation",
    severity="high",
    why="scaler.scale() multiplies the loss by thousands; optimizer.step() without the scaler takes steps "
    "with gradients that large.",
    fix="Use scaler.step(optimizer) and scaler.update().",
    source="PyTorch automatic mixed precision examples",
)
def stepped_without_scaler(module: Module, project: Project) -> Iterator[Place]:
    """scaler.scale(loss).backward() followed by optimizer.step(), never scaler.step(), in one function or one loop."""
    regions = [[Reached(call, scope) for call in scope.calls] for scope in module.scopes]
    regions += [_calls(loop.step_turn(project)) for loop in train_loops(module, project)]
    for items in regions:
        scaled = [item for item in items if _named(item, "scale") and "scaler" in text_of(item.node)]
        steps = [item for item in items if steps_optimizer(item.node, item.scope, project)]  # type: ignore[arg-type]
        by_scaler = [item for item in items if _named(item, "step", "unscale_") and _takes_optimizer(item, project)]
        if scaled and steps and not by_scaler:
            first = scaled[0]
            yield Place(
                steps[0].node,
                f"`{code_of(steps[0].node, 40)}` uses gradients that still carry the scale",
                (f"scaled at {first.scope.module.path}:{first.line}",),
                scope=steps[0].scope,
            )


def _takes_optimizer(item: Reached, project: Project) -> bool:
    assert isinstance(item.node, ast.Call)
    return any(is_optimizer(arg, item.scope, project) for arg in item.node.args)


@rule(
    "S58",
    "what belongs to a step runs at every micro-batch",
    kind="accumulation",
    severity="medium",
    why="A schedule that moves on with every micro-batch ends n times too early; gradients that are clipped while they "
    "are being added up weigh the first micro-batches less than the last.",
    fix="Clip, step the optimizer and move the schedule on behind one test, after the last micro-batch.",
    source="optimiser.md D19 and G3",
)
def once_a_step(module: Module, project: Project) -> Iterator[Place]:
    """scheduler.step() or clip_grad_norm_() at every turn of the loop over micro-batches."""
    for loop in train_loops(module, project):
        if not loop.accumulates or not loop.steps or not counts_micro_batches(loop, project):
            continue
        for item in loop.turn(project):
            words = _once_only(item)
            if words is None or ".accumulate(" in module.text or counter_guard(item, loop.inner, project):
                continue
            step = loop.steps[0]
            yield Place(
                item.node,
                f"{words} at every micro-batch",
                (
                    f"the step comes after several: {step.scope.module.path}:{step.line}",
                    *([item.path()] if item.chain else []),
                ),
                scope=item.scope,
            )


def _once_only(item: Reached) -> str | None:
    """What a call does that belongs to a whole step, in words; None for any other call."""
    if _named(item, "clip_grad_norm_", "clip_grad_value_"):
        return "gradients are clipped"
    if _named(item, "unscale_", "update") and "scaler" in text_of(item.node):
        return "the scaler moves on"
    if _named(item, "step") and isinstance(item.node, ast.Call) and isinstance(item.node.func, ast.Attribute):
        name = (target_name(item.node.func.value) or "").rpartition(".")[2]
        if re.search(r"(^|_)(lr_?)?(sched|scheduler|schedule|schedulers|warmup)(_lr)?$|lr_sched", name):
            return "the schedule moves on"
    return None
