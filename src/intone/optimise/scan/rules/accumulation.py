"""Rules on gradient accumulation: when to step, how to scale, when to exchange gradients."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import ACCUM, Loop, TrainLoop, counter_guard, is_inside, train_loops
from intone.optimise.scan.project import Project, code_of, last_name, names_in
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name
from intone.optimise.scan.values import backward_loss, is_optimizer, steps_optimizer

SOURCE = "optimiser.md D19 and G3"
HANDLED = re.compile(
    r"no_sync|require_backward_grad_sync|no_backward_sync|set_requires_gradient_sync|set_is_last_backward|\.accumulate\("
)
DIVIDES = ("div", "div_", "mul", "mul_", "true_divide", "divide")


@rule(
    "S50",
    "optimizer steps at every micro-batch",
    kind="accumulation",
    severity="high",
    why="The loss is scaled for several micro-batches, but the weights move after each one: many steps of a "
    "fraction of the size, "
    "with another batch than the recipe says.",
    fix="Step and clear gradients once, after the last micro-batch.",
    source=SOURCE,
)
def steps_too_often(module: Module, project: Project) -> Iterator[Place]:
    """A loop over micro-batches, or a loss divided by their number, with optimizer.step() at every turn."""
    for loop in train_loops(module, project):
        if loop.shape != "plain" or not loop.steps or loop.inner is None:
            continue
        over = _over_micro_batches(loop.inner, loop.scope)
        divided = _divided_by_count(loop, project)
        if over or divided:
            words = f"the loop runs over `{over}`" if over else f"the loss is divided by `{divided}`"
            yield Place(
                loop.steps[0],
                f"`{code_of(loop.steps[0], 40)}` runs after every micro-batch",
                (f"{words} (line {loop.inner.lineno})",),
            )


def _over_micro_batches(loop: Loop, scope: Scope) -> str | None:
    """for micro in range(accumulation_steps), for chunk in batch.chunk(n)."""
    if not isinstance(loop, (ast.For, ast.AsyncFor)):
        return None
    text = code_of(loop.iter, 50)
    names = {name.rpartition(".")[2] for name in names_in(loop.iter)} | names_in(loop.target)
    if any(ACCUM.search(name) for name in names) and not re.search(r"loader|dataset", text):
        return text
    return None


def _divided_by_count(loop: TrainLoop, project: Project) -> str | None:
    for call in loop.backwards:
        loss = backward_loss(call)
        if loss is None:
            continue
        for part in _scalings(loss, loop, 5):
            for name in names_in(part):
                if ACCUM.search(name.rpartition(".")[2]):
                    return name
    return None


@rule(
    "S51",
    "gradients are cleared inside the accumulation",
    kind="accumulation",
    severity="critical",
    why="Only the last micro-batch reaches the weights; the work on all others is thrown away.",
    fix="Clear gradients once per step, before the first micro-batch or after the step.",
    source=SOURCE,
)
def cleared_too_often(module: Module, project: Project) -> Iterator[Place]:
    """zero_grad() at every turn of the loop over micro-batches, while the step comes later."""
    for loop in train_loops(module, project):
        if not loop.accumulates or loop.inner is None:
            continue
        for node in own_nodes(loop.inner):
            if (
                isinstance(node, ast.Call)
                and last_name(node.func) == "zero_grad"
                and not counter_guard(node, loop.inner, module)
            ) and not _behind_flag(node, loop.inner, module):
                yield Place(
                    node,
                    "gradients are cleared at every micro-batch, the step comes only after several",
                    (f"the step is {code_of(loop.steps[0], 40)} at line {loop.steps[0].lineno}",),
                )
                break


def _behind_flag(node: ast.AST, loop: ast.AST, module: Module) -> bool:
    """Inside any `if` of the loop: it does not run at every turn."""
    for above in module.up(node):
        if above is loop:
            return False
        if isinstance(above, ast.If):
            return True
    return False


@rule(
    "S52",
    "accumulated loss is not scaled",
    kind="accumulation",
    severity="high",
    why="Gradients of n micro-batches are added up without dividing by n: the step is n times as large as "
    "with one batch, so the "
    "result depends on the micro-batch.",
    fix="Divide each loss by the number of micro-batches before backward, or better the sum of token losses "
    "by all supervised "
    "tokens of the step.",
    source=SOURCE,
)
def unscaled_loss(module: Module, project: Project) -> Iterator[Place]:
    """A loss that goes into backward undivided in a loop that accumulates; or is divided only after backward."""
    for loop in train_loops(module, project):
        if not loop.accumulates or not loop.steps or loop.inner is None or not _counts_micro_batches(loop):
            continue
        if _scales_elsewhere(loop):
            continue
        for call in loop.backwards:
            loss = backward_loss(call)
            if loss is None or "gradient" in ast.unparse(call):
                continue
            found = list(_scalings(loss, loop, 5))
            before = [part for part in found if part.lineno <= call.lineno]
            if not before:
                late = [part for part in found if part.lineno > call.lineno]
                how = (
                    f"it is divided only after backward, at line {late[0].lineno}"
                    if late
                    else "nothing divides it on its way to backward"
                )
                yield Place(
                    call,
                    f"`{code_of(loss, 30)}` of every micro-batch counts in full",
                    (how, f"the step comes after several: line {loop.steps[0].lineno}"),
                )
                break


def _counts_micro_batches(loop: TrainLoop) -> bool:
    """Nested loops are accumulation only where the inner one is over micro-batches, not over batches of an epoch."""
    if loop.shape == "guarded":
        return True
    assert loop.inner is not None
    names = (
        names_in(loop.inner.iter) | names_in(loop.inner.target)
        if isinstance(loop.inner, (ast.For, ast.AsyncFor))
        else set()
    )
    text = ast.unparse(loop.inner.iter) if isinstance(loop.inner, (ast.For, ast.AsyncFor)) else ""
    return any(ACCUM.search(name.rpartition(".")[2]) for name in names) or bool(
        re.search(r"range\(|chunk|split|micro", text)
    )


def _scales_elsewhere(loop: TrainLoop) -> bool:
    """Gradients divided after the loop, a loss made as a sum, or a library that scales by itself."""
    assert loop.outer is not None
    text = ast.unparse(loop.outer)
    if re.search(
        r"\.grad\.(div_|mul_)|\.grad\s*(/=|\*=)|_foreach_(div|mul)|\.accumulate\(|accelerator\.backward|model_engine|scale_grad",
        text,
    ):
        return True
    return bool(re.search(r"['\"]sum['\"]", ast.unparse(loop.scope.node)) and re.search(r"\.grad\b", text))


def _scalings(node: ast.expr, loop: TrainLoop, depth: int) -> Iterator[ast.expr]:
    """Divisions and products on a loss's way inside the loop; calls that are handed the number of micro-batches."""
    inner = loop.inner
    assert inner is not None
    todo: list[tuple[ast.expr, int]] = [(node, depth)]
    seen: set[int] = set()
    while todo:
        at, left = todo.pop()
        if id(at) in seen or left == 0:
            continue
        seen.add(id(at))
        if isinstance(at, ast.BinOp) and isinstance(at.op, (ast.Div, ast.Mult)):
            yield at
        if isinstance(at, ast.Call):
            words = {
                name.rpartition(".")[2] for arg in [*at.args, *(w.value for w in at.keywords)] for name in names_in(arg)
            }
            if last_name(at.func) in DIVIDES or any(ACCUM.search(word) for word in words):
                yield at
            if isinstance(at.func, ast.Attribute):
                todo.append((at.func.value, left))
        for child in ast.iter_child_nodes(at):
            if isinstance(child, ast.expr) and not isinstance(at, ast.Call):
                todo.append((child, left))
        name = target_name(at)
        if name is not None:
            for binding in loop.scope.bindings.get(name, []):
                if (
                    binding.how == "op"
                    and isinstance(binding.node, ast.AugAssign)
                    and isinstance(binding.node.op, (ast.Div, ast.Mult))
                ):
                    if is_inside(binding.node, inner, loop.scope.module):
                        yield binding.value
                elif binding.how in ("=", "part", "op") and is_inside(binding.node, inner, loop.scope.module):
                    todo.append((binding.value, left - 1))


@rule(
    "S53",
    "micro-batches weigh the same whatever they hold",
    kind="accumulation",
    severity="low",
    why="Each micro-batch's loss is a mean over its own supervised tokens; the mean of means gives a token "
    "in a short answer more "
    "weight than one in a long answer, and the result depends on the micro-batch and the number of devices.",
    fix="Sum the token losses, divide once by all supervised tokens of the step, over all micro-batches and ranks.",
    source="nanochat-facts.md 4.3.23",
)
def mean_of_means(module: Module, project: Project) -> Iterator[Place]:
    """A loss divided by the number of micro-batches in a file that masks targets."""
    masks = [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assign)
        and re.search(r"target|label", " ".join(names_in(node.targets[0])))
        and isinstance(node.targets[0], ast.Subscript)
        and ast.unparse(node.value) in ("-1", "-100", "IGNORE_INDEX", "ignore_index")
    ]
    if not masks:
        return
    for loop in train_loops(module, project):
        if loop.accumulates and loop.inner is not None and (name := _divided_by_count(loop, project)):
            if re.search(r"num_tokens|num_valid|n_tokens|num_supervised|token_count|num_items", name):
                continue
            call = loop.backwards[0]
            yield Place(
                call,
                f"the loss is a mean per micro-batch, divided by `{name}`",
                (f"targets are masked at line {masks[0].lineno}, so micro-batches hold different numbers of tokens",),
                confidence="medium",
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
    wrapped = re.search(r"\bDistributedDataParallel\b|\bDDP\(|\bFSDP\(|FullyShardedDataParallel\(", module.text)
    for loop in train_loops(module, project):
        if not loop.accumulates or loop.inner is None or not loop.steps or not _counts_micro_batches(loop):
            continue
        reduce = next(
            (
                node
                for node in own_nodes(loop.inner)
                if isinstance(node, ast.Call) and _reduces_gradients(node, loop.scope)
            ),
            None,
        )
        if reduce is not None and not counter_guard(reduce, loop.inner, module):
            yield Place(
                reduce,
                "gradients are reduced inside the loop over micro-batches",
                (f"line {loop.inner.lineno}: {module.line_of(loop.inner)[:60]}",),
            )
        elif wrapped and not HANDLED.search(module.text) and _is_wrapped_here(module):
            yield Place(
                loop.backwards[0],
                "every micro-batch exchanges all gradients",
                ("the model is wrapped in DDP or FSDP", "no no_sync in this file"),
            )


def _is_wrapped_here(module: Module) -> bool:
    return any(
        last_name(call.func) in ("DistributedDataParallel", "DDP", "FSDP", "FullyShardedDataParallel")
        for scope in module.scopes
        for call in scope.calls
    )


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
    if "grad" in ast.unparse(call):
        return True
    # for p in params: g = p.grad; all_reduce(g)
    for arg in call.args[:1]:
        name = target_name(arg)
        if name and any(".grad" in ast.unparse(b.value) for b in scope.bindings.get(name, [])):
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
    """scaler.scale(loss).backward() and clip_grad_norm_ without unscale_ before it."""
    for scope in module.scopes:
        scaled = [
            call
            for call in scope.calls
            if last_name(call.func) == "scale" and isinstance(module.parents.get(call), ast.Attribute)
        ]
        if not scaled:
            continue
        for call in scope.calls:
            if last_name(call.func) in ("clip_grad_norm_", "clip_grad_value_"):
                unscaled = [
                    other
                    for other in scope.calls
                    if last_name(other.func) == "unscale_" and other.lineno <= call.lineno
                ]
                if not unscaled:
                    yield Place(
                        call,
                        "gradients are clipped before they are unscaled",
                        (f"scaled at line {scaled[0].lineno}: {code_of(scaled[0], 50)}",),
                    )


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
    """scaler.scale(loss).backward() followed by optimizer.step() in the same function, never scaler.step()."""
    for scope in module.scopes:
        scaled = [
            call for call in scope.calls if last_name(call.func) == "scale" and "scaler" in ast.unparse(call.func)
        ]
        steps = [call for call in scope.calls if steps_optimizer(call, scope, project)]
        by_scaler = [
            call
            for call in scope.calls
            if last_name(call.func) in ("step", "unscale_") and any(is_optimizer(a, scope, project) for a in call.args)
        ]
        if scaled and steps and not by_scaler:
            yield Place(
                steps[0],
                f"`{code_of(steps[0], 40)}` uses gradients that still carry the scale",
                (f"scaled at line {scaled[0].lineno}",),
            )
