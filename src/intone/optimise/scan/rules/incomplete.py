"""A rule on what a checkpoint leaves out: a training that goes on from it begins anew with what was not saved."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.options import is_told
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.statefiles import written_by
from intone.optimise.scan.values import is_optimizer, steps_optimizer


@dataclass(frozen=True, eq=False)
class Kept:
    """A dict of states that goes into a file: where it stands, its function, its keys, the objects it names."""

    node: ast.expr
    scope: Scope
    keys: frozenset[str]
    objects: frozenset[str]


@rule(
    "S92",
    "a checkpoint leaves out what the training goes on with",
    kind="checkpoint",
    severity="medium",
    why="The training is taken up with its step, and without the optimizer's moments, the schedule's place or the "
    "averaged weights: those begin anew, so the loss jumps, the warm-up comes again, or what is sampled from is lost.",
    fix="Save and restore the state of everything that the loop steps: optimizer, schedule, scaler, averaged weights.",
    source="PyTorch tutorial on saving and loading a general checkpoint",
)
def left_out(module: Module, project: Project) -> Iterator[Place]:
    """ModelCheckpoint(save_weights_only=True) and fit(ckpt_path="last"); {"model": ..., "step": n}, no optimizer."""
    yield from _weights_only(module, project)
    if is_elsewhere(module):
        return
    stepped: dict[str, tuple[str, ast.AST, Scope]] | None = None
    for kept in _kept_in(module, project):
        if not any(PROGRESS.search(key) for key in kept.keys) and not any(map(OPTIMIZER.search, kept.objects)):
            continue
        if stepped is None:
            stepped = _stepped(module, project)
        lost = next((pair for name, pair in stepped.items() if not _is_kept(name, pair, kept, module, project)), None)
        if lost is None:
            continue
        what, node, scope = lost
        yield Place(
            kept.node,
            f"the checkpoint has no state of {what}",
            (
                f"stepped at {scope.module.path}:{getattr(node, 'lineno', 0)}: {code_of(node, 50)}",
                f"saved: {', '.join(sorted(kept.keys))[:80]}",
            ),
            confidence="medium",
            scope=kept.scope,
            also=((node, scope),),
        )


PROGRESS = re.compile(r"(^|_)(step|steps|epoch|iter|iteration|progress|cursor|updates|global_step|iter_num)(_|$)")
OPTIMIZER = re.compile(r"opt", re.I)
SCHEDULE = re.compile(r"sched|lr_s|warmup", re.I)
AVERAGED = re.compile(r"(^|_)(ema|swa|shadow|averaged?|avg)(_?(model|net|weights|params))?$", re.I)


def _weights_only(module: Module, project: Project) -> Iterator[Place]:
    """A trainer's own checkpoints that hold weights only, in a program that goes on from them."""
    files = neighbours(module, project)
    calls = [(scope, call) for file in files for scope in file.scopes for call in scope.calls]
    resumes = next((pair for pair in calls if _goes_on(pair[1])), None)
    for scope in module.scopes:
        for call in scope.calls if resumes is not None else ():
            option = next((word for word in ONLY if is_told(call, word, scope, project)), None)
            if option is None or not SAVERS.search(last_name(call.func) or ""):
                continue
            at, goes_on = resumes  # type: ignore[misc]
            yield Place(
                keyword(call, option) or call,
                "the checkpoints that the training is taken up from hold weights only",
                (
                    f"{option}=True in {code_of(call, 50)}",
                    f"taken up by {code_of(goes_on, 50)} at {at.module.path}:{goes_on.lineno}",
                ),
                scope=scope,
            )


SAVERS = re.compile(r"Checkpoint|Arguments|Config|save_checkpoint")
ONLY = ("save_weights_only", "save_only_model", "weights_only")


def _goes_on(call: ast.Call) -> bool:
    """trainer.fit(module, ckpt_path="last"), trainer.train(resume_from_checkpoint=True)"""
    if last_name(call.func) not in ("fit", "train"):
        return False
    said = keyword(call, "ckpt_path") or keyword(call, "resume_from_checkpoint")
    return said is not None and not (isinstance(said, ast.Constant) and not said.value)


def _kept_in(module: Module, project: Project) -> Iterator[Kept]:
    """The dicts of states that are saved, which stand in a file, wherever they are written."""
    seen: set[ast.AST] = set()
    for file in neighbours(module, project):
        for scope in file.scopes:
            for call in scope.calls:
                written = written_by(call, scope, project)
                if written is None or written.is_text or written.is_array:
                    continue
                for origin in project.origins(written.what, scope, _moved, depth=5):
                    if origin.node in seen or origin.scope.module is not module:
                        continue
                    seen.add(origin.node)
                    kept = _of_dict(origin.node, origin.scope) or _of_parts(origin.node, origin.scope, project)
                    if kept is not None and any("state_dict" in text_of(part) or kept.node is not origin.node
                                                for part in [kept.node, kept.scope.node]):  # fmt: skip
                        yield kept


def _moved(node: ast.expr) -> list[ast.expr]:
    """{k: v.cpu() for k, v in state.items()}: what the states come from."""
    if isinstance(node, ast.Call) and last_name(node.func) in ("deepcopy", "copy", "clone", "snapshot") and node.args:
        return [node.args[0]]
    return []


def _of_dict(node: ast.expr, scope: Scope) -> Kept | None:
    """{"model": net.state_dict(), "step": n}, dict(model=..., step=n); None where it is made of others too."""
    if isinstance(node, ast.Dict):
        if any(not isinstance(key, ast.Constant) for key in node.keys):
            return None
        keys, values = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)], node.values
    elif isinstance(node, ast.Call) and last_name(node.func) == "dict" and not node.args:
        if any(word.arg is None for word in node.keywords):
            return None
        keys, values = [word.arg or "" for word in node.keywords], [word.value for word in node.keywords]
    else:
        return None
    name = next((n for n, bs in scope.bindings.items() if any(b.value is node for b in bs)), None)
    more = [b for b in scope.bindings.get(name or "", []) if b.how == "add"]
    if any(_is_named_elsewhere(b.node) for b in more):
        return None  # for key, part in others.items(): state[key] = part.state_dict()
    values = [*values, *(b.value for b in more)]
    keys += [
        str(b.node.targets[0].slice.value) for b in more
        if isinstance(b.node, ast.Assign) and isinstance(b.node.targets[0], ast.Subscript)
        and isinstance(b.node.targets[0].slice, ast.Constant)
    ]  # fmt: skip
    updated = any(last_name(c.func) == "update" and name in names_in(c.func) for c in scope.calls) if name else False
    if len(keys) < 2 or updated:
        return None
    names = {one for value in values for one in names_in(value)}
    names |= {one for name in names for b in scope.bindings.get(name, []) for one in names_in(b.value)}
    return Kept(node, scope, frozenset(keys), frozenset(one.rpartition(".")[2] for one in names))


def _is_named_elsewhere(node: ast.AST) -> bool:
    """state[key] = ..., with a key that is no text that stands there."""
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Constant)


def _of_parts(node: ast.expr, scope: Scope, project: Project) -> Kept | None:
    """{name: part.state_dict() for name, part in self.parts.items()}: the parts that the object was made with."""
    if not isinstance(node, ast.DictComp) or "state_dict" not in text_of(node.value):
        return None
    walked = node.generators[0].iter
    held = walked.func.value if isinstance(walked, ast.Call) and isinstance(walked.func, ast.Attribute) else walked
    for origin in project.origins(held, scope, depth=4):
        if isinstance(origin.node, ast.Dict) and len(origin.node.keys) > 1:
            return _of_dict(origin.node, origin.scope)
    return None


def _stepped(module: Module, project: Project) -> dict[str, tuple[str, ast.AST, Scope]]:
    """Name -> (in words, the call that steps it, its function) of what the training loops of a program move on."""
    found: dict[str, tuple[str, ast.AST, Scope]] = {}
    for loop in [loop for file in neighbours(module, project) for loop in train_loops(file, project)]:
        for item in loop.step_turn(project):
            call = item.node
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            name = target_name(call.func.value) or ""
            last = name.rpartition(".")[2]
            if steps_optimizer(call, item.scope, project) and is_optimizer(call.func.value, item.scope, project):
                if item.scope.owner is None or item.scope.simple_name != "step":  # no inner part of another optimizer
                    found.setdefault(last, (f"the optimizer `{last}`", call, item.scope))
            elif call.func.attr == "step" and SCHEDULE.search(last) and _has_state(call, item.scope, project):
                found.setdefault(last, (f"the schedule `{last}`", call, item.scope))
            elif "exp_avg" in last:
                continue  # a part of an optimizer's own state
            elif AVERAGED.search(last) and call.func.attr in ("update", "update_parameters", "step", "lerp_"):
                found.setdefault(last, (f"the averaged weights `{last}`", call, item.scope))
    return found


def _has_state(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a schedule is one of a library, and is not set to its place by the step: last_epoch=step."""
    assert isinstance(call.func, ast.Attribute)
    if call.args:
        return False  # step(n) says itself where it is
    made = [o.node for o in project.origins(call.func.value, scope, depth=4) if isinstance(o.node, ast.Call)]
    of_project = any(last_name(one.func) in project.classes for one in made)
    return not of_project and not any("last_epoch" in text_of(one) for one in made)


def _is_kept(
    name: str, stepped: tuple[str, ast.AST, Scope], kept: Kept, module: Module, project: Project
) -> bool:  # fmt: skip
    """Whether an object of the training loop is among those of a checkpoint, also under the name of a parameter."""
    if name in kept.objects:
        return True
    for site in project.callers(kept.scope)[:6]:
        for parameter in kept.scope.parameters:
            handed = project.argument(site, kept.scope, parameter)
            if handed is not None and (last_name(handed) or "") == name and parameter in kept.objects:
                return True
    kind = OPTIMIZER if "optimizer" in stepped[0] else SCHEDULE if "schedule" in stepped[0] else AVERAGED
    if any(kind.search(one) for one in [*kept.keys, *kept.objects]):
        return True
    # saved beside it, in a file of its own, or caught up with in a loop
    states = [call for scope in (kept.scope, stepped[2]) for call in scope.calls]
    beside = [call for call in states if last_name(call.func) == "state_dict"]
    if any(name in names_in(call) or name == (last_name(getattr(call.func, "value", call)) or "") for call in beside):
        return True
    files = neighbours(stepped[2].module, project)
    for site in project.sites.get("state_dict", []):  # saved with an object that keeps several: progress.schedule
        base = site.call.func.value if isinstance(site.call.func, ast.Attribute) else None
        if base is not None and last_name(base) == name and site.scope.module in files:
            return True
    return any(
        isinstance(node, ast.For) and len(node.body) == 1 and f"{name}.step()" in text_of(node.body[0])
        for node in walk(module.tree)
    )
