"""A rule on the mode that an evaluation leaves behind: training goes on in it."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.modes import Mode, is_of_own, mode_of, set_mode
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, loops_around, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope


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
    """.eval() inside a training loop, or in what it calls, and no .train() behind it before the next step."""
    yield from _left_by_hooks(module, project)
    yield from _left_early(module, project)
    for loop in train_loops(module, project):
        modes = _modes(reached(loop.inner, loop.scope, project), project)
        if not any(mode == "eval" for mode, _ in modes):
            outermost = ([*module.loops_around(loop.inner)] or [loop.inner])[-1]
            modes = _modes(reached(outermost, loop.scope, project), project)
            if loop.outer_scope is not loop.scope and loop.outer is not None:
                modes += _modes(reached(loop.outer, loop.outer_scope, project), project)
        if not any(mode == "eval" for mode, _ in modes):
            modes = _around(loop, project)
        evals = [item for mode, item in modes if mode == "eval"]
        if not evals or any(mode == "train" and not _stands_before(item, evals, loop.inner) for mode, item in modes):
            continue
        item = evals[0]
        yield Place(
            item.node,
            f"`{item.scope.simple_name}` leaves the model in evaluation mode"
            if item.chain
            else "the model stays in evaluation mode for the rest of the training",
            ("no .train() behind it in the loop", *([item.path()] if item.chain else [])),
            scope=item.scope,
        )


def _left_early(module: Module, project: Project) -> Iterator[Place]:
    """model.eval(); ...; if done: return early; ...; model.train(): the early way out leaves the mode as it is."""
    for scope in module.scopes[1:]:
        modes = [(call, mode) for call in scope.calls if (mode := mode_of(call, scope, project)) is not None]
        starts = [call.lineno for call, mode in modes if mode == "eval"]
        ends = [call.lineno for call, mode in modes if mode == "train" and not _is_final(call, scope)]
        if not starts or not ends or len(ends) < sum(mode == "train" for _, mode in modes):
            continue
        for node in scope.of(ast.Return):
            if not min(starts) < node.lineno < max(ends) or any(min(starts) < end < node.lineno for end in ends):
                continue
            yield Place(
                node,
                f"`{scope.simple_name}` leaves the model in evaluation mode here",
                (f".eval() at line {min(starts)}, .train() only at line {max(ends)}",),
            )
            break


def _is_final(call: ast.Call, scope: Scope) -> bool:
    """Whether a call stands in what runs on every way out: finally."""
    below: ast.AST = call
    for above in scope.module.up(call):
        if isinstance(above, ast.Try) and below in above.finalbody:
            return True
        below = above
    return False


def _around(loop: TrainLoop, project: Project) -> list[tuple[Mode, Reached]]:
    """The modes set in the loops around that other functions have: for batch in data: update(rollout(batch))."""
    for nest in loops_around(loop.inner, loop.scope, project):
        for frame in nest:
            modes = _modes(reached(frame.loop, frame.scope, project), project) if frame.chain else []
            if any(mode == "eval" for mode, _ in modes):
                return modes
    return []


def _modes(items: list[Reached], project: Project) -> list[tuple[Mode, Reached]]:
    found = [(mode, item) for item in items if (mode := set_mode(item, project)) is not None]
    return [(mode, item) for mode, item in found if not is_of_own(item, project)]


# of Lightning, whose trainer sets the mode at the start of an epoch and around its own validation only
HOOKS = ("training_step", "on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "optimizer_step",
         "on_after_backward", "on_before_zero_grad")  # fmt: skip


def _left_by_hooks(module: Module, project: Project) -> Iterator[Place]:
    """A hook that a library's trainer calls at every batch, and that leaves the model in evaluation mode."""
    for scope in module.scopes[1:]:
        bases = " ".join(text_of(base) for base in scope.owner.bases) if scope.owner is not None else ""
        if scope.simple_name not in HOOKS or not re.search(r"LightningModule|(^|\.| )Callback", bases):
            continue
        modes = _modes(reached(scope.node, scope, project), project)
        evals = [item for mode, item in modes if mode == "eval"]
        if not evals or any(mode == "train" for mode, _ in modes):
            continue
        item = evals[0]
        yield Place(
            item.node,
            f"`{item.scope.simple_name}` leaves the model in evaluation mode",
            (
                f"`{scope.simple_name}` runs at every batch, and no .train() stands behind it",
                *([item.path()] if item.chain else []),
            ),
            scope=item.scope,
        )


def _stands_before(train: Reached, evals: list[Reached], inner: ast.AST) -> bool:
    """Whether .train() comes once per epoch, outside the loop over batches in which .eval() stands."""
    inside = [any(above is inner for _, above, _ in item.up()) for item in (train, evals[0])]
    return inside == [False, True]
