"""A rule on loops that feed a model with what it gave before: a value read in one stops every turn."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.handing import handed_from
from intone.optimise.scan.hostreads import reads_in, tested
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.ondevice import is_tensor
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_evaluation
from intone.optimise.scan.reach import Loop, Reached, inner_loops, is_inside, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import LOOPS, Module, Scope, own_nodes, walk
from intone.optimise.scan.values import is_backward, is_model_call

ASKED_ONCE = re.compile(r"eval|valid|test|bench|profil|perplex|metric", re.IGNORECASE)
OUTSIDE = re.compile(r"(^|[._])(env\w*|gym\w*|sim\w*|world|robot|arena)$")  # what takes its actions on the host


@rule(
    "S24",
    "a loop that feeds its model waits at every turn",
    kind="host-sync",
    severity="medium",
    why="The next turn's kernels are only started after a value of this turn came back to Python, so the device idles "
    "between turns.",
    fix="Keep what is tested, counted or shown on the device, and read it every few turns or behind the loop.",
    source="optimiser.md D5; nanochat-facts.md 4.1.3",
)
def sync_in_turns(module: Module, project: Project) -> Iterator[Place]:
    """for t in times: noise = net(x, t); x = step(x, noise); if x.isnan().any(): ..., and drafts that are checked."""
    told: set[ast.AST] = set()
    for scope in module.scopes:
        loops: list[Loop] = scope.of(*LOOPS)
        for loop in loops:
            known = _told_elsewhere(project)
            if ASKED_ONCE.search(scope.simple_name) or is_evaluation(scope, project):
                continue
            if not _feeds_model(loop, scope, known, project):
                continue
            turn = [
                item for item in reached(loop, scope, project)
                if item.node not in known and item.node not in told and len(inner_loops(item, loop)) <= 1
                and not is_periodic(item, loop, project)
            ]  # fmt: skip
            reads = [
                (item, what) for item, what in reads_in(turn, project)
                if not _goes_outside(item) and not _is_answer(item, project)
            ]  # fmt: skip
            if isinstance(loop, ast.While) and loop not in known and (what := tested(loop.test, scope, project)):
                reads.append((Reached(loop.test, scope), what))
            if reads:
                reads.sort(key=lambda read: (len(read[0].chain), read[0].line))
                told |= {item.node for item, _ in reads}
                yield _place(reads, loop, scope, project)


def _is_answer(item: Reached, project: Project) -> bool:
    """Whether a value is read behind the loop over tokens of its own function: once a text, to hand it back."""
    loops = [decode.loop for decode in decode_loops(item.scope.module, project) if decode.scope is item.scope]
    after = [loop for loop in loops if (getattr(loop, "end_lineno", 0) or 0) < item.line]
    return bool(after) and not any(is_inside(item.node, loop, item.scope.module) for loop in loops)


def _place(reads: list[tuple[Reached, str]], loop: Loop, scope: Scope, project: Project) -> Place:
    item, what = reads[0]
    at = handed_from(item, scope, project)
    lines = [f"{one.scope.module.path}:{one.line}: {text}" for one, text in reads[:5]]
    words = what if at is item else code_of(at.node, 40)
    return Place(
        at.node,
        f"`{words}` waits for the device at every turn of the loop at line {loop.lineno}",
        (*lines, *([item.path()] if item.chain else [])),
        confidence="medium",
        scope=at.scope,
        also=((item.node, item.scope),) if at is not item else (),
    )


def _told_elsewhere(project: Project) -> set[ast.AST]:
    """What runs in loops that train or generate token by token: other rules look there."""
    key = ("turns of known loops", None)
    if key not in project.remembered:
        found: set[ast.AST] = set()
        for module in project.modules:
            for train in train_loops(module, project):
                found |= {item.node for item in train.step_turn(project)} | {train.inner}
            for decode in decode_loops(module, project):
                found |= {item.node for item in reached(decode.loop, decode.scope, project)} | {decode.loop}
        project.remembered[key] = found
    nodes: set[ast.AST] = project.remembered[key]
    return nodes


def _feeds_model(loop: Loop, scope: Scope, known: set[ast.AST], project: Project) -> bool:
    """Whether a model in a loop gets what it gave in the turn before: x = step(x, net(x, t)).

    A loop that goes backward trains; one that only walks over batches asks a model once for each; one whose turns are
    whole texts, or several steps of an inner loop, may read between them.
    """
    calls = [node for node in own_nodes(loop) if isinstance(node, ast.Call)]
    if not any(_may_run(call, scope, project) for call in calls):
        return False
    items = [item for item in reached(loop, scope, project) if isinstance(item.node, ast.Call)]
    if any(is_backward(item.node) for item in items):  # type: ignore[arg-type]
        return False
    runs = {
        item.anchor for item in items
        if not item.is_in_forward and item.node not in known and _runs_model(item.node, item.scope, project)  # type: ignore[arg-type]
    }  # fmt: skip
    return any(
        isinstance(run, ast.Call) and scope.module.loops_around(run)[:1] == [loop] and _comes_back(run, loop, scope)
        for run in runs
    )


def _may_run(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call runs a model or a function of the project, which may run one: a quick look before the walk."""
    return _runs_model(call, scope, project) or bool(project.callees(call, scope))


def _runs_model(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call runs a model, also one that is only known by its name and gets what lies on the device."""
    if is_model_call(call, scope, project):
        return True
    if not PARTS.search(last_name(call.func) or "") or project.callees(call, scope):
        return False
    return any(is_tensor(arg, scope, project) for arg in call.args)


# what parts of a model are called that are asked again and again
PARTS = re.compile(
    r"(^|_)(unet|vae|denois\w+|score_(fn|net|model)|velocity|critic|dynamics|predictor|drift|dit|energy)($|_)"
)


def _comes_back(run: ast.Call, loop: Loop, scope: Scope) -> bool:
    """Whether what a call gives goes, by names that the loop sets, into the same call at the next turn."""
    given: set[str] = set()
    inside = [
        (name, binding) for name, bindings in scope.bindings.items() for binding in bindings
        if binding.how != "iter" and is_inside(binding.node, loop, scope.module)
    ]  # fmt: skip
    grown = True
    while grown:
        grown = False
        for name, binding in inside:
            if name in given:
                continue
            if names_in(binding.value) & given or any(part is run for part in walk(binding.value)):
                given.add(name)
                grown = True
    fed: set[str] = set()
    for arg in [*run.args, *(word.value for word in run.keywords)]:
        fed |= names_in(arg)
    return bool(fed & given)


def _goes_outside(item: Reached) -> bool:
    """env.step(action.cpu().numpy()): what takes the value runs on the host, so it has to be read."""
    names: set[str] = set()
    for above in item.scope.module.up(item.node):
        if isinstance(above, ast.Call) and last_name(above.func) == "step" and OUTSIDE.search(_base(above)):
            return True
        if isinstance(above, ast.Assign):
            names |= {name for target in above.targets for name in names_in(target)}
    steps = [call for call in item.scope.calls if last_name(call.func) == "step" and OUTSIDE.search(_base(call))]
    return any(names_in(arg) & names for call in steps for arg in call.args)


def _base(call: ast.Call) -> str:
    return text_of(call.func.value) if isinstance(call.func, ast.Attribute) else ""
