"""The loops that generate token by token, and what goes into the model at each turn: the whole text or not."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from intone.optimise.scan.expressions import last_name, text_of
from intone.optimise.scan.folds import is_folded
from intone.optimise.scan.growth import grown_argument
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import COMPREHENSIONS, Loop, Reached, inner_loops, reached
from intone.optimise.scan.source import LOOPS, FunctionNode, Module, Scope, own_nodes
from intone.optimise.scan.values import chooses_token, is_backward, is_chosen, is_model_call, is_model_name


@dataclass(eq=False)
class DecodeLoop:
    """A loop that feeds chosen tokens back into a model.

    model_calls: where the model runs, in the loop or in what it calls; choices: where tokens are chosen.
    A function that calls itself with a longer text, or that reduce() calls with it, stands for a loop.
    """

    scope: Scope
    loop: Loop | FunctionNode
    model_calls: list[Reached]
    choices: list[Reached]


def decode_loops(module: Module, project: Project) -> Iterator[DecodeLoop]:
    """The loops of a file that generate: a token is chosen in them and goes into the next call of a model."""
    if "decode" not in project.known_loops:
        found = [one for other in project.modules for scope in other.scopes for one in _decode_loops(scope, project)]
        loops = {one.loop for one in found}
        project.known_loops["decode"] = [one for one in found if not _runs_whole_texts(one, loops, project)]
    yield from (decode for decode in project.known_loops["decode"] if decode.scope.module is module)


def _runs_whole_texts(one: DecodeLoop, loops: set[Loop | FunctionNode], project: Project) -> bool:
    """A loop over prompts or samples: it calls a function that has the loop over tokens."""
    if not all(item.chain for item in one.model_calls):
        return False
    return any(item.node in loops and item.node is not one.loop for item in reached(one.loop, one.scope, project))


def _decode_loops(scope: Scope, project: Project) -> Iterator[DecodeLoop]:
    loops: list[Loop | FunctionNode] = list(scope.of(*LOOPS, *COMPREHENSIONS))  # type: ignore[arg-type]
    if isinstance(scope.node, FunctionNode) and any(scope in project.callees(call, scope) for call in scope.calls):
        loops.append(scope.node)
    elif is_folded(scope, project):
        loops.append(scope.node)  # type: ignore[arg-type]
    for loop in loops:
        if not _may_choose(loop, scope, project):
            continue
        items = [item for item in reached(loop, scope, project) if isinstance(item.node, ast.Call)]
        if any(is_backward(item.node) and not item.chain for item in items):  # type: ignore[arg-type]
            continue
        choices = [item for item in items if chooses_token(_call(item), item.scope, greedy=True)]
        if not choices:
            continue
        models = [item for item in items if is_model_call(_call(item), item.scope, project) and not _in_model(item)]
        models += [item for item in choices if runs_model(_call(item)) and item not in models]
        fed = [item for item in models if _runs_each_turn(item, loop) and _is_fed(item, loop, project)]
        if fed and any(not inner_loops(item, loop) or _picks_rows(item, loop) for item in choices):
            yield DecodeLoop(scope, loop, fed, choices)


def _may_choose(loop: ast.AST, scope: Scope, project: Project) -> bool:
    """Whether a token is chosen in a loop or in anything that it calls, however deep: a quick look before the walk."""
    choosers = _choosers(project)
    for node in own_nodes(loop):
        if isinstance(node, ast.Call) and (
            chooses_token(node, scope, greedy=True) or any(f in choosers for f in project.callees(node, scope))
        ):
            return True
    return False


def _choosers(project: Project) -> set[Scope]:
    """The functions from which a call that chooses a token can be reached."""
    if "choosers" not in project.known_loops:
        callers: dict[Scope, list[Scope]] = {}
        found: set[Scope] = set()
        for module in project.modules:
            for scope in module.scopes:
                for call in scope.calls:
                    if chooses_token(call, scope, greedy=True):
                        found.add(scope)
                    for callee in project.callees(call, scope):
                        callers.setdefault(callee, []).append(scope)
        todo = list(found)
        while todo:
            for caller in callers.get(todo.pop(), []):
                if caller not in found:
                    found.add(caller)
                    todo.append(caller)
        project.known_loops["choosers"] = list(found)
        project.known_choosers.update(found)
    return project.known_choosers


def _call(item: Reached) -> ast.Call:
    assert isinstance(item.node, ast.Call)
    return item.node


def _in_model(item: Reached) -> bool:
    """Inside a module's forward: a layer of the model, not the model."""
    return any(site.call for site in item.chain if last_name(site.call.func) == "forward") or (
        item.scope.simple_name == "forward" and bool(item.chain)
    )


def _runs_each_turn(item: Reached, loop: ast.AST) -> bool:
    """Not in a loop of its own over tokens; a loop over the rows or beams of a batch is part of the turn."""
    inner = inner_loops(item, loop)
    if not inner:
        return True
    walked = inner[0]
    if len(inner) > 1 or not isinstance(walked, ast.For) or not isinstance(loop, (ast.For, ast.While)):
        return False
    text = f"{text_of(walked.target)} {text_of(walked.iter)}"
    return OF_BATCH.search(text) is not None and not re.search(r"max_|new_tokens|steps|length", text)


# loops over the rows or beams of a batch
OF_BATCH = re.compile(
    r"row|beam|seq|cand|hyp|batch|prompt|text|sample|enumerate|len\(|frontier|partial|prefix|queue|branch"
)


def _picks_rows(item: Reached, loop: ast.AST) -> bool:
    """Chosen row by row in an inner loop of the loop over positions."""
    return len(inner_loops(item, loop)) == 1


def runs_model(call: ast.Call) -> bool:
    """Whether a call that chooses a token runs the model itself: next_token(model, ...)."""
    words = [last_name(arg) or "" for arg in call.args] + [last_name(word.value) or "" for word in call.keywords]
    return any(is_model_name(word) for word in words)


def _is_fed(item: Reached, loop: ast.AST, project: Project) -> bool:
    call = _call(item)
    values = [*call.args, *(word.value for word in call.keywords)]
    if any(is_chosen(value, item.scope, project, greedy=True) for value in values):
        return True
    return grown_argument(item, loop, project) is not None
