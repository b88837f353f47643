"""Where a training clears its gradients, before or inside the loop that adds them up, and who steps for it."""

import ast

from intone.optimise.scan.expressions import last_name, text_of
from intone.optimise.scan.loops import TrainLoop
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached


def steps_by_library(loop: TrainLoop) -> bool:
    """with accelerator.accumulate(model): optimizer.step(), which does nothing but at the last micro-batch."""
    return any(
        isinstance(above, ast.With) and any(".accumulate(" in text_of(item.context_expr) for item in above.items)
        for step in loop.steps[:1] for _, above, _ in step.up()
    )  # fmt: skip


def cleared_outside(loop: TrainLoop, project: Project) -> ast.Call | None:
    """for step in ...: opt.zero_grad(); for part in ...: backward(); opt.step(): old gradients are applied again."""
    module = loop.scope.module
    around = module.loops_around(loop.inner)
    if not around or any(clears(item) for item in loop.step_turn(project)):
        return None
    calls = [call for call in loop.scope.calls if last_name(call.func) == "zero_grad"]
    calls = [call for call in calls if call.lineno < loop.inner.lineno]
    return next((call for call in calls if module.loops_around(call)[:1] == around[:1]), None)


def cleared_before_step(loop: TrainLoop) -> Reached | None:
    """optimizer.zero_grad(); optimizer.step() one after the other in a block: the step finds nothing."""
    for step in loop.steps[:2]:
        module = step.scope.module
        statement = module.parents.get(step.node)
        above = module.parents.get(statement) if isinstance(statement, ast.Expr) else None
        for block in (getattr(above, name, None) for name in ("body", "orelse")):
            if isinstance(block, list) and statement in block and block.index(statement) > 0:
                before = block[block.index(statement) - 1]
                cleared = step.at(before.value) if isinstance(before, ast.Expr) else None
                if cleared is not None and clears(cleared):
                    holder = text_of(before).partition(".zero_grad")[0]
                    return cleared if holder in text_of(step.node) or "model" in holder else None
    return None


def clears(item: Reached) -> bool:
    """optimizer.zero_grad(), p.grad = None, p.grad.zero_()"""
    node = item.node
    if isinstance(node, ast.Call):
        of_gradient = isinstance(node.func, ast.Attribute) and last_name(node.func.value) == "grad"
        return last_name(node.func) == "zero_grad" or last_name(node.func) in ("zero_", "fill_") and of_gradient
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and node.targets[0].attr == "grad"
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
    )


def behind_if(item: Reached, loop: ast.AST) -> bool:
    """Inside any `if` of the loop: it does not run at every turn."""
    for below, above, _ in item.up():
        if above is loop:
            return False
        if isinstance(above, ast.If) and below is not above.test and ".grad" not in text_of(above.test):
            return True
    return False
