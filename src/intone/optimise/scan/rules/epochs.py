"""Rules on functions that train and evaluate: an epoch without training, and what is asked after the last step."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.compiled import model_calls
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import code_of, is_true, last_name, names_in
from intone.optimise.scan.loops import backward_calls, train_loops
from intone.optimise.scan.modes import is_off, mode_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.evaluation import DROPS
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_model_call


@rule(
    "S68",
    "an epoch without training keeps its graph",
    kind="eval-mode",
    severity="medium",
    why="The same function trains and evaluates: where it is told not to train, the model still runs with gradients "
    "on, so every activation is kept for a backward pass that never comes.",
    fix="Put the forward pass under torch.set_grad_enabled(train), and set model.train(train) with it.",
    source="PyTorch notes on autograd",
)
def epoch_with_graph(module: Module, project: Project) -> Iterator[Place]:
    """def run_epoch(model, loader, opt=None): ... if opt is not None: loss.backward(), called without an optimizer."""
    for scope in module.scopes[1:]:
        for backward in backward_calls(scope, project):
            switch = _switch_of(backward, scope)
            if switch is None:
                continue
            idle = next((site for site in project.callers(scope)[:8] if _is_off_at(site, scope, switch, project)), None)
            runs = [call for call in scope.calls if is_model_call(call, scope, project)]
            if idle is None or not runs or any(last_name(call.func) == "set_grad_enabled" for call in scope.calls):
                continue
            if is_off(Reached(runs[0], scope, (idle,)), project):
                continue
            yield Place(
                runs[0],
                f"`{scope.simple_name}` runs the model with gradients on also where it does not train",
                (
                    f"called without training at {idle.scope.module.path}:{idle.call.lineno}: {code_of(idle.call, 50)}",
                    f"goes backward only where `{switch}` says so, at line {backward.lineno}",
                ),
                also=((idle.call, idle.scope),),
            )
            break


def _switch_of(backward: ast.Call, scope: Scope) -> str | None:
    """The parameter on which it depends whether a function goes backward: if train, if opt is not None."""
    below: ast.AST = backward
    for above in scope.module.up(backward):
        if above is scope.node:
            return None
        if isinstance(above, ast.If) and below in above.body and not isinstance(above.test, ast.BoolOp):
            inverted = isinstance(above.test, ast.UnaryOp) or (
                isinstance(above.test, ast.Compare) and not isinstance(above.test.ops[0], ast.IsNot)
            )
            named = [name for name in sorted(names_in(above.test)) if name in scope.parameters]
            return named[0] if len(named) == 1 and not inverted else None
        below = above
    return None


def _is_off_at(site: Site, scope: Scope, switch: str, project: Project) -> bool:
    """Whether a call leaves the switch off: None or False by all that the code says."""
    handed = project.argument(site, scope, switch)
    if handed is None:
        spread = any(word.arg is None for word in site.call.keywords) or any(
            isinstance(arg, ast.Starred) for arg in site.call.args
        )
        default = scope.parameters[switch].default
        return not spread and isinstance(default, ast.Constant) and not default.value
    if isinstance(handed, ast.Constant) or is_true(handed):
        return not handed.value  # type: ignore[attr-defined]
    known = known_values(handed, site.scope, project)
    return bool(known) and not any(one.value for one in known)


@rule(
    "S69",
    "the model answers in training mode after its training",
    kind="eval-mode",
    severity="medium",
    why="Nothing sets the mode after the last step: what the model writes or scores then is made with dropout, so it "
    "is worse than the model and another text at every start.",
    fix="Call model.eval() behind the training loop.",
    source="PyTorch reference of Module.eval",
)
def asked_after_training(module: Module, project: Project) -> Iterator[Place]:
    """for batch in loader: ...; opt.step(), then print(model.generate(ids)) in the same function."""
    loops = list(train_loops(module, project))
    trains = {id(run.node) for loop in loops for run in model_calls(loop, project)}  # of another loop's training too
    for loop in loops:
        scope = loop.scope
        outermost = ([*module.loops_around(loop.inner)] or [loop.inner])[-1]
        modes = [mode for call in scope.calls if (mode := mode_of(call, scope, project)) is not None]
        drops = "train" in modes or any(file.mentions(DROPS) for file in neighbours(module, project))
        if "eval" in modes or not drops or scope.node is outermost:
            continue
        trained = {target_name(run.node.func) or "" for run in model_calls(loop, project) if run.scope is scope}  # type: ignore[attr-defined]
        for call in scope.calls:
            if call.lineno <= (outermost.end_lineno or 0) or id(call) in trains:
                continue
            base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            asked = target_name(call.func) in trained or base in trained and last_name(call.func) == "generate"
            if asked:
                yield Place(
                    call,
                    f"`{code_of(call, 40)}` runs in the mode that the training left behind",
                    (f"the training ends at line {outermost.end_lineno}, and no .eval() stands in `{scope.name}`",),
                    confidence="medium",
                )
                break
