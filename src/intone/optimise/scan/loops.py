"""The hot loops of a program: those that train and those that generate, and what happens how often inside them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from intone.optimise.scan.project import Project, last_name, names_in
from intone.optimise.scan.source import LOOPS, Module, Scope, own_nodes
from intone.optimise.scan.values import (
    backward_loss,
    chooses_token,
    is_backward,
    is_chosen,
    is_model_call,
    steps_optimizer,
)

Loop = ast.For | ast.AsyncFor | ast.While
PERIODIC = re.compile(
    r"(^|_)(log|logs|logging|print|report|eval|evaluate|save|verbose|debug|last|sync|profile|prof|wandb|tb|viz|interval|every|"
    r"freq|first|warmup|done|dry|val|validate|ckpt|checkpoint|finished|display|show|monitor)($|_|s$)",
    re.I,
)
ACCUM = re.compile(r"accum|micro|num_passes|grad_acc|gas$|accumulate", re.I)


@dataclass(eq=False)
class TrainLoop:
    """A loop (or a function called in one) that ends in optimizer steps.

    inner: the innermost loop around the backward call. accumulates: several backward calls make one step, because the
    step stands outside inner (nested) or behind a test on a counter (guarded).
    """

    scope: Scope
    outer: Loop | None
    inner: Loop | None
    backwards: list[ast.Call]
    steps: list[ast.Call]
    shape: str  # nested | guarded | plain

    @property
    def accumulates(self) -> bool:
        """Whether several micro-batches make one optimizer step."""
        return self.shape in ("nested", "guarded")


@dataclass(eq=False)
class DecodeLoop:
    """A loop that feeds chosen tokens back into a model."""

    scope: Scope
    loop: Loop
    model_calls: list[ast.Call]
    choices: list[ast.Call]


def train_loops(module: Module, project: Project) -> Iterator[TrainLoop]:
    """The training loops of a file; a loop around epochs and the one around batches inside it are one."""
    for scope in module.scopes:
        backwards = [call for call in scope.calls if is_backward(call)]
        steps = [call for call in scope.calls if steps_optimizer(call, scope, project)]
        groups: dict[ast.AST | None, list[ast.Call]] = {}
        for call in backwards:
            loss = backward_loss(call)
            if loss is None or not module.loops_around(call):
                continue
            groups.setdefault(module.loops_around(call)[0], []).append(call)
        for inner, calls in groups.items():
            assert isinstance(inner, LOOPS)
            around = [inner, *module.loops_around(inner)]
            outer = next((loop for loop in around if any(is_inside(step, loop, module) for step in steps)), None)
            mine = [step for step in steps if outer is not None and is_inside(step, outer, module)]
            yield TrainLoop(scope, outer, inner, calls, mine, _shape(module, outer, inner, mine))


def _shape(module: Module, outer: Loop | None, inner: Loop, steps: list[ast.Call]) -> str:
    if outer is None:
        return "plain"
    if outer is not inner:
        return "nested"
    guarded = steps and all(counter_guard(step, inner, module) for step in steps)
    return "guarded" if guarded else "plain"


def counter_guard(node: ast.AST, loop: ast.AST, module: Module) -> ast.If | None:
    """The `if` inside a loop that lets a node run only every few turns, or None."""
    below = node
    for above in module.up(node):
        if above is loop:
            return None
        if isinstance(above, ast.If) and below is not above.test:
            words = " ".join(names_in(above.test))
            if (
                any(isinstance(part, ast.Mod) for part in ast.walk(above.test))
                or ACCUM.search(words)
                or "sync" in words
            ):
                return above
        below = above
    return None


def is_inside(node: ast.AST, container: ast.AST, module: Module) -> bool:
    """Whether a node stands inside another one."""
    return any(above is container for above in module.up(node))


def is_periodic(node: ast.AST, loop: ast.AST | None, module: Module) -> bool:
    """Whether a node in a loop runs only now and then: behind a counter, or a question of logging or the like."""
    below = node
    for above in module.up(node):
        if above is loop:
            return False
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test and _is_rare(above.test):
            return True
        if isinstance(above, ast.If) and below in above.body and _leaves(above.body):
            return True  # runs once, then the loop is over
        if isinstance(above, ast.ExceptHandler):
            return True
        below = above
    return False


def _is_rare(test: ast.expr) -> bool:
    if any(isinstance(part, ast.Mod) for part in ast.walk(test)):
        return True
    return any(PERIODIC.search(name.rpartition(".")[2]) for name in names_in(test))


def _leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], (ast.Break, ast.Return, ast.Raise))


def decode_loops(module: Module, project: Project) -> Iterator[DecodeLoop]:
    """The loops that generate token by token: a token is chosen in them and goes into the next call of a model."""
    for scope in module.scopes:
        for loop in [node for node in scope.body if isinstance(node, LOOPS)]:
            calls = [node for node in own_nodes(loop) if isinstance(node, ast.Call)]
            if any(is_backward(call) for call in calls):
                continue
            choices = [call for call in calls if chooses_token(call, scope, greedy=True)]
            models = [call for call in calls if is_model_call(call, scope, project)]
            both = [call for call in choices if runs_model(call)]
            fed = [call for call in [*models, *both] if _is_fed(call, scope, project)]
            inner = [node for node in own_nodes(loop) if isinstance(node, LOOPS)]
            if choices and fed and not any(is_inside(call, other, module) for call in fed for other in inner):
                yield DecodeLoop(scope, loop, fed, choices)


def runs_model(call: ast.Call) -> bool:
    """Whether a call that chooses a token runs the model itself: next_token(model, ...)."""
    from intone.optimise.scan.values import is_model_name

    words = [last_name(arg) or "" for arg in call.args] + [last_name(word.value) or "" for word in call.keywords]
    return any(is_model_name(word) for word in words)


def _is_fed(call: ast.Call, scope: Scope, project: Project) -> bool:
    values = [*call.args, *(word.value for word in call.keywords)]
    return any(is_chosen(value, scope, project, greedy=True) for value in values)
