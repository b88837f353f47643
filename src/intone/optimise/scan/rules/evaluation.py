"""Rules on evaluation and generation: no graph of gradients, and the right mode before and after."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import is_inside, train_loops
from intone.optimise.scan.project import Project, code_of, last_name
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_backward, is_model_call, is_model_name

EVALUATES = re.compile(
    r"(^|_)(eval|evaluate|evaluation|validate|validation|val_loss|estimate_loss|test_loss|generate|perplexity|ppl|accuracy|"
    r"predict|infer|inference|score|benchmark_eval|run_eval)($|_)",
    re.I,
)
NO_GRAD = re.compile(r"no_grad|inference_mode|set_grad_enabled\(False\)|jit\.ignore")
DROPS = re.compile(r"Dropout|dropout|BatchNorm|drop_path|attn_pdrop")


@rule(
    "S45",
    "evaluation keeps the graph of gradients",
    kind="eval-mode",
    severity="medium",
    why="Without no_grad every activation is kept for a backward pass that never comes: several times the "
    "memory, and slower; "
    "losses that are added up keep all their graphs.",
    fix="Put @torch.no_grad() (or inference_mode) on the function, or a with block around the forward passes.",
    source="PyTorch notes on autograd",
)
def graph_in_evaluation(module: Module, project: Project) -> Iterator[Place]:
    """A function that evaluates or generates, runs a model, and neither it nor its callers switch gradients off."""
    for scope in module.scopes[1:]:
        if not EVALUATES.search(scope.simple_name) or any(is_backward(call) for call in scope.calls):
            continue
        calls = [call for call in scope.calls if is_model_call(call, scope, project)]
        if not calls or NO_GRAD.search(module.text) and _is_covered(scope, calls[0], project, 3):
            continue
        if _is_covered(scope, calls[0], project, 3) or _may_train(scope):
            continue
        yield Place(
            calls[0],
            f"`{scope.simple_name}` runs `{code_of(calls[0], 40)}` with gradients on",
            ("no no_grad or inference_mode on the function, around the call, or around its callers",),
            confidence="high" if project.callers(scope) else "medium",
        )
    yield from _bare_evaluation(module, project)


def _is_covered(scope: Scope, call: ast.AST, project: Project, depth: int) -> bool:
    """Whether gradients are off where a call stands: here, around it, or at every caller."""
    if _off_here(scope, call):
        return True
    at = scope.outer
    if at is not None and at.simple_name != "<module>" and _off_here(at, scope.node):
        return True
    sites = project.callers(scope)
    if depth == 0 or not sites:
        return False
    return all(_is_covered(site.scope, site.call, project, depth - 1) for site in sites[:10])


def _off_here(scope: Scope, node: ast.AST) -> bool:
    for item in getattr(scope.node, "decorator_list", []):
        if NO_GRAD.search(ast.unparse(item)):
            return True
    for above in scope.module.up(node):
        if above is scope.node:
            break
        if isinstance(above, ast.With) and any(NO_GRAD.search(ast.unparse(item)) for item in above.items):
            return True
    for call in scope.calls:
        if last_name(call.func) == "set_grad_enabled" and call.lineno < getattr(node, "lineno", 0):
            return "False" in ast.unparse(call)
        if (
            last_name(call.func) == "requires_grad_"
            and "False" in ast.unparse(call)
            and call.lineno < getattr(node, "lineno", 0)
        ):
            return True
    return False


def _may_train(scope: Scope) -> bool:
    """A loss that is handed back may be trained on by whoever called; so may the forward of a module."""
    if scope.owner is not None and "LightningModule" in " ".join(ast.unparse(base) for base in scope.owner.bases):
        return True  # its trainer switches gradients off around validation and prediction
    return scope.simple_name in ("forward", "training_step") or any("reward" in name for name in scope.parameters)


def _bare_evaluation(module: Module, project: Project) -> Iterator[Place]:
    """model.eval() in a training loop, then forward passes without no_grad until model.train()."""
    for loop in train_loops(module, project):
        outer = loop.outer or loop.inner
        if outer is None:
            continue
        modes = sorted(
            (call for call in loop.scope.calls if _mode(call) and is_inside(call, outer, module)),
            key=lambda c: c.lineno,
        )
        for number, call in enumerate(modes):
            if _mode(call) != "eval":
                continue
            end = next((other.lineno for other in modes[number + 1 :] if _mode(other) == "train"), None)
            if end is None:
                continue
            for run in loop.scope.calls:
                if (
                    call.lineno < run.lineno < end
                    and is_model_call(run, loop.scope, project)
                    and not _off_here(loop.scope, run)
                ):
                    yield Place(
                        run,
                        f"`{code_of(run, 40)}` evaluates with gradients on",
                        (f"between .eval() at line {call.lineno} and .train() at line {end}",),
                    )
                    break


def _mode(call: ast.Call) -> str | None:
    if (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("eval", "train")
        and is_model_name(target_name(call.func.value) or "")
    ):
        return "eval" if call.func.attr == "eval" or "False" in ast.unparse(call) else "train"
    return None


@rule(
    "S46",
    "evaluation in training mode",
    kind="eval-mode",
    severity="medium",
    why="Dropout stays on, so the measured loss is noisy and too high, and generated text is worse than the model.",
    fix="Call model.eval() before and model.train() after.",
    source="PyTorch reference of Module.eval",
)
def not_in_eval_mode(module: Module, project: Project) -> Iterator[Place]:
    """A function that evaluates a model of a program that trains it with dropout, and nobody calls .eval()."""
    if not any(DROPS.search(other.text) for other in project.modules if _shares(other, module)):
        return
    for scope in module.scopes[1:]:
        if not EVALUATES.search(scope.simple_name) or any(is_backward(call) for call in scope.calls):
            continue
        calls = [
            call
            for call in scope.calls
            if is_model_call(call, scope, project) and target_name(call.func) not in ("self", "self.forward")
        ]
        if not calls or not _trains(module, project, scope):
            continue
        sites = project.callers(scope)
        if (
            _sets_eval(scope)
            or (sites and all(_sets_eval(site.scope) for site in sites[:10]))
            or _class_sets_eval(scope, project)
        ):
            continue
        yield Place(
            calls[0],
            f"`{scope.simple_name}` runs the model without .eval()",
            ("the model has dropout, and this program trains it",),
        )


def _shares(other: Module, module: Module) -> bool:
    """The file itself, or one that it imports from."""
    if other is module:
        return True
    stem = other.path.removesuffix(".py").replace("/", ".")
    return any(
        stem.endswith(name.rpartition(".")[0] or name) for name in module.imports.values() if "torch" not in name
    )


def _trains(module: Module, project: Project, scope: Scope) -> bool:
    """Whether the model is trained by this file, or by a file that calls this function."""
    around = {id(module): module} | {id(site.scope.module): site.scope.module for site in project.callers(scope)}
    return any(any(True for _ in train_loops(other, project)) for other in around.values())


def _sets_eval(scope: Scope) -> bool:
    return any(
        _mode(call) == "eval"
        or last_name(call.func) == "eval"
        and isinstance(call.func, ast.Attribute)
        and not call.args
        for call in scope.calls
    )


def _class_sets_eval(scope: Scope, project: Project) -> bool:
    return scope.owner is not None and any(_sets_eval(method) for method in project.class_scopes(scope.owner))


@rule(
    "S47",
    "training goes on in evaluation mode",
    kind="eval-mode",
    severity="high",
    why="After the first evaluation dropout and the like are off for the rest of the training.",
    fix="Call model.train() after the evaluation, in the same place.",
    source="PyTorch reference of Module.train",
)
def left_in_eval_mode(module: Module, project: Project) -> Iterator[Place]:
    """.eval() inside a training loop (or in what it calls) and no .train() behind it."""
    for loop in train_loops(module, project):
        outer = loop.outer or loop.inner
        if outer is None:
            continue
        inside = [(call, loop.scope) for call in loop.scope.calls if is_inside(call, outer, module)]
        everything = module.loops_around(loop.inner) if loop.inner is not None else []
        last = everything[-1] if everything else outer
        wide = [call for call in loop.scope.calls if is_inside(call, last, module)]
        if any(_mode(call) == "train" for call in wide):
            continue
        for call, scope in inside:
            if _mode(call) == "eval":
                yield Place(
                    call,
                    "the model stays in evaluation mode for the rest of the training",
                    ("no .train() in the loop",),
                )
                break
            for callee in project.callees(call, scope)[:1]:
                ends = [other for other in callee.calls if _mode(other)]
                if ends and _mode(max(ends, key=lambda c: c.lineno)) == "eval":
                    yield Place(
                        call,
                        f"`{callee.simple_name}` leaves the model in evaluation mode",
                        (f".eval() at {callee.module.path}:{ends[-1].lineno} and no .train() behind it",),
                    )
                    break
