"""Rules on waiting for the device: reading a value back stops the queue of work until everything before it is done."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, text_of
from intone.optimise.scan.handing import handed_from
from intone.optimise.scan.hostreads import reads_in, tested
from intone.optimise.scan.loops import backward_calls, behind_step, step_events, train_loops
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.ondevice import has_read
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, inner_loops, loops_around, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import interval_of_one, is_periodic
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_chosen, is_model_call

ROLLS_OUT = re.compile(r"(^|_)rollouts?(_|$)|^generate$")  # writes texts: what it reads once is nothing beside that
MANY = 4  # reads in a turn that also writes texts; guess: fewer do not show beside those
NO_GRAD = re.compile(r"no_grad|inference_mode")
HOT_METHODS = (
    "training_step", "compute_loss", "train_step", "train_batch", "on_train_batch_end", "on_before_optimizer_step",
    "optimizer_step", "on_step_end", "on_substep_end", "on_before_zero_grad", "on_after_backward", "on_before_backward",
    "on_train_batch_start", "after_batch", "after_step", "after_backward", "after_train_iter", "on_batch_end",
)  # fmt: skip
SOURCE = "optimiser.md D5; nanochat-facts.md 4.1.3"


@rule(
    "S30",
    "a training loop waits for the device",
    kind="host-sync",
    severity="medium",
    why="Reading a tensor's value (.item(), float(), print) waits until all kernels before it are done; the "
    "device then idles "
    "while Python prepares the next ones.",
    fix="Add up on the device and read once every few steps, behind the same test as the log line.",
    source=SOURCE,
)
def sync_in_training(module: Module, project: Project) -> Iterator[Place]:
    """Values of device tensors read at every micro-batch or at every step, not behind a counter."""
    if _is_cpu_only(module, project):
        return
    for loop in train_loops(module, project):
        reads = [
            (item, what)
            for item, what in reads_in(loop.step_turn(project), project)
            if not is_periodic(item, loop.around, project, but=behind_step(item, loop, project))
            and not _in_evaluation(item, loop.around, project)
            and not any(ROLLS_OUT.search(last_name(site.call.func) or "") for site in item.chain)
        ]
        if isinstance(loop.inner, ast.While) and (what := tested(loop.inner.test, loop.scope, project)):
            reads.append((Reached(loop.inner.test, loop.scope), what))  # while loss > limit
        beside = any(
            isinstance(item.node, ast.Call) and ROLLS_OUT.search(last_name(item.node.func) or "")
            and not is_periodic(item, loop.around, project) for item in loop.turn(project)
        )  # fmt: skip
        micro = [(item, what) for item, what in reads if loop.in_inner(item) and not behind_step(item, loop, project)]
        step = [(item, what) for item, what in reads if (item, what) not in micro]
        if micro:
            every = "micro-batch" if loop.accumulates else "step"
            severity = "medium" if loop.accumulates or len(micro) > 1 else "low"
            words = f"waits for the device at every {every}"
            for place in _places(micro, words, severity, loop.around, loop.scope, project):
                yield replace(place, confidence="low") if beside and len(micro) < MANY else place
        elif step:
            times = f"{len(step)} times" if len(step) > 1 else "once"
            words = f"waits for the device {times} at every optimizer step"
            for place in _places(step, words, "low", loop.around, loop.outer_scope, project):
                yield replace(place, confidence="low") if beside and len(step) < MANY else place
    yield from _in_step_functions(module, project)


def _places(
    reads: list[tuple[Reached, str]], words: str, severity: str, loop: ast.AST, home: Scope, project: Project
) -> Iterator[Place]:
    one = interval_of_one(reads[0][0], loop, project)
    yield _place(
        reads, words, severity, home, project, *([f"`{one}` holds at every turn: the interval is 1"] if one else [])
    )


def _place(
    reads: list[tuple[Reached, str]], words: str, severity: str, home: Scope, project: Project, *more: str
) -> Place:
    item, what = reads[0]
    at = handed_from(item, home, project)
    lines = [*(f"{other.scope.module.path}:{other.line}: {text}" for other, text in reads[:5]), *more]
    if item.chain:
        lines.append(item.path())
    told = what if at is item else code_of(at.node, 40)
    shares = [(item.node, item.scope)] if at is not item else [(site.call, site.scope) for site in item.chain[:1]]
    return Place(
        at.node,
        f"`{told}` {words}",
        tuple(lines),
        severity=severity,  # type: ignore[arg-type]
        scope=at.scope,
        also=tuple(shares),
    )


def _in_step_functions(module: Module, project: Project) -> Iterator[Place]:
    """A step of a training that is called by nothing that we see, or by a library: train_step(), training_step()."""
    for scope in module.scopes[1:]:
        if isinstance(scope.node, ast.Lambda) or project.callers(scope):
            continue
        hook = scope.owner is not None and scope.simple_name in HOT_METHODS
        backwards = backward_calls(scope, project)
        whole = any(not any(loops_around(call, scope, project)) for call in backwards) and bool(
            step_events(scope.node, scope, project)
        )
        if not hook and not whole:
            continue
        reads = [
            (item, what) for item, what in reads_in(reached(scope.node, scope, project), project)
            if not is_periodic(item, scope.node, project) and not _in_evaluation(item, scope.node, project)
        ]  # fmt: skip
        if reads:
            words = f"waits for the device whenever `{scope.simple_name}` runs a step"
            yield _place(reads, words, "low", scope, project)


def _is_cpu_only(module: Module, project: Project) -> bool:
    """Whether a file sets its device to the CPU, and no file of its program names another one."""
    sets = any(
        isinstance(node, ast.Assign)
        and any((target_name(target) or "").endswith("device") for target in node.targets)
        and re.fullmatch(r"(torch\.device\()?['\"]cpu['\"]\)?", text_of(node.value))
        for node in module.nodes
    )
    return sets and not any("cuda" in other.text for other in neighbours(module, project))


def _in_evaluation(item: Reached, outer: ast.AST, project: Project) -> bool:
    """Inside no_grad in the loop, by a block or a decorator: an evaluation, which comes only now and then.

    A block without a loop or a pass of a model in it computes a number of the step itself.
    """
    for site_scope in (item.scope, *(site.scope for site in item.chain[1:])):
        decorators = getattr(site_scope.node, "decorator_list", [])
        if item.chain and any(NO_GRAD.search(text_of(decorator)) for decorator in decorators):
            return _evaluates(site_scope.node, site_scope, project)
    for _, above, module in item.up():
        if above is outer:
            return False
        if isinstance(above, ast.With) and NO_GRAD.search(" ".join(text_of(i) for i in above.items)):
            return _evaluates(above, module.scope_of.get(above, module.top), project)
    return False


def _evaluates(block: ast.AST, scope: Scope, project: Project) -> bool:
    """Whether a block or function walks over data or runs a model, itself or in what it calls."""
    return any(
        isinstance(item.node, (ast.For, ast.While))
        or isinstance(item.node, ast.Call) and is_model_call(item.node, item.scope, project)
        for item in reached(block, scope, project, 2)
    )  # fmt: skip


@rule(
    "S31",
    "generation waits for the device at every token",
    kind="host-sync",
    severity="medium",
    why="The next token's kernels are only started after this one's value came back, so the device idles "
    "between tokens.",
    fix="Keep the tokens, the stop test and the lengths on the device; read results one step late or every few tokens.",
    source=SOURCE,
)
def sync_in_decoding(module: Module, project: Project) -> Iterator[Place]:
    """Values read inside a loop that generates token by token."""
    seen: set[ast.AST] = set()
    for decode in decode_loops(module, project):
        turn = [
            item for item in reached(decode.loop, decode.scope, project)
            if item.node not in seen and not is_periodic(item, decode.loop, project)
        ]  # fmt: skip
        reads = list(reads_in(turn, project))
        told = [item.node for item, _ in reads]
        reads += [
            (item, code_of(item.node, 40)) for item in turn
            if item.node not in told and not item.is_in_forward and _reads_token(item, project)
        ]  # fmt: skip
        if isinstance(decode.loop, ast.While) and (what := tested(decode.loop.test, decode.scope, project)):
            reads.append((Reached(decode.loop.test, decode.scope), what))
        reads = [(item, what) for item, what in reads if len(inner_loops(item, decode.loop)) <= 1]
        seen.update(item.node for item, _ in reads)
        if reads:
            reads.sort(key=lambda read: (len(read[0].chain), read[0].line))
            yield _place(reads, "waits for the device at every token", "medium", decode.scope, project)


def _reads_token(item: Reached, project: Project) -> bool:
    call = item.node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    texts = bool(re.search(r"tok|enc|bpe|(^|[._])sp$|vocab|processor", text_of(call.func.value)))
    if texts and call.func.attr in ("decode", "batch_decode") and len(call.args) == 1 and not has_read(call):
        return is_chosen(call.args[0], item.scope, project, greedy=True)  # a tensor is read to be made a text
    if call.args:
        return False
    return call.func.attr in ("item", "tolist", "cpu") and is_chosen(call.func.value, item.scope, project, greedy=True)
