"""A rule on checkpoints: a crash in the middle of a write must not leave half a file under the final name."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_run_once
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.statefiles import TEMPORARY, Written, goes_elsewhere, is_moved_after, moves_in, written_by

STATE = re.compile(
    r"state_dict|checkpoint|ckpt|optim|model|weights|snapshot|(^|[._])state($|[_(.])|params|(^|[^\w])(net|opt)($|[^\w])",
    re.I,
)
PROGRESS = re.compile(r"state|progress|resume|checkpoint|ckpt|cursor|snapshot", re.I)
COUNTS = ("step", "epoch", "iteration", "iter", "global_step", "cursor", "offset", "position", "rng", "samples_seen")
COPIES = ("shutil.copy", "shutil.copyfile", "shutil.copy2", "shutil.copytree")


@rule(
    "S60",
    "checkpoint written in place",
    kind="checkpoint",
    severity="medium",
    why="A crash, a full disk or a time limit in the middle of the write leaves half a file under the name "
    "that the next start "
    "loads; where the name is always the same, the last good state is gone too.",
    fix="Write to a temporary name in the same folder, flush to disk, then os.replace; keep the one before.",
    source="nanochat-facts.md 4.4.36",
)
def written_in_place(module: Module, project: Project) -> Iterator[Place]:
    """A model's or optimizer's state written to its final name, by whatever writes it."""
    for scope in module.scopes:
        states = []
        for call in scope.calls:
            written = written_by(call, scope, project)
            if written is None or not _is_state(written, scope, project):
                continue
            states.append(written)
        removed = list(_removed_first(scope, states, project))
        told = {save for _, save in removed}  # at the removal, which is the graver
        for written in states:
            call = written.call
            if call in told or not _is_in_place(written, scope, project) or _is_marked(written, scope, project):
                continue
            same = _same_name(written.where) and _in_training(call, scope, project)
            yield Place(
                call,
                f"`{code_of(written.what, 30)}` is written straight to its final name",
                (
                    "no temporary name and rename in this function",
                    *(["the name is the same at every save"] if same else []),
                ),
                # a conversion that broke off is seen and can be run again, unless something takes the file as it is
                confidence="low"
                if is_run_once(scope, project) and not same or _is_marked_last(written, scope)
                else "high",
                severity="high" if same else None if _keeps_training(module, scope) else "low",
            )
        yield from _copied(scope, states)
        elsewhere = {one.call for one in states if not _is_in_place(one, scope, project)}
        yield from (place for place, save in removed if save not in elsewhere)


def _is_in_place(written: Written, scope: Scope, project: Project, depth: int = 3) -> bool:
    """Whether a file is written under the name that it keeps, by its function and by those that say the name."""
    if goes_elsewhere(written.where, scope, project) or is_moved_after(written, scope):
        return False
    roots = _handed_names(written.where, scope) if written.where is not None and depth else set()
    sites = project.callers(scope)[:6] if roots else []
    for site in sites:
        handed = [value for name in sorted(roots) if (value := project.argument(site, scope, name)) is not None]
        if not handed:
            return True
        parts = [Written(site.call, written.what, value, written.rarely) for value in handed]
        if all(_is_in_place(part, site.scope, project, depth - 1) for part in parts):
            return True
    return not sites


def _handed_names(where: ast.expr, scope: Scope) -> set[str]:
    """The parameters of which a path is made in its function: folder, name of Path(folder) / name."""
    names = {one.partition(".")[0] for one in names_in(where)}
    for _ in range(3):
        made = [b.value for name in names for b in scope.bindings.get(name, []) if b.how == "="]
        names |= {one.partition(".")[0] for value in made for one in names_in(value)}
    return names & (set(scope.parameters) - {"self", "cls"})


def _is_marked(written: Written, scope: Scope, project: Project) -> bool:
    """Whether a file written after it into the same folder says that the folder is whole, and loading asks for it."""
    if written.where is None:
        return False
    folder = names_in(written.where)
    for call in scope.calls:
        if call.lineno <= written.call.lineno or last_name(call.func) not in ("open", "write_text", "touch"):
            continue
        names = names_in(call)
        if not names & folder:
            continue
        spelled = names | {one for name in names for b in scope.bindings.get(name, []) for one in names_in(b.value)}
        marks = {one.partition(".")[0] for one in spelled if one.partition(".")[0].isupper()}
        asked = [site.call for word in ASKS for site in project.sites.get(word, []) if site.scope is not scope]
        if any(marks & {one.partition(".")[0] for one in names_in(ask)} for ask in asked):
            return True
    return False


ASKS = ("exists", "is_file", "isfile")


def _is_marked_last(written: Written, scope: Scope) -> bool:
    """torch.distributed.checkpoint.save to a name of its own: .metadata comes last, and nothing is loaded without."""
    constant = isinstance(written.where, ast.Constant)
    return called(written.call, scope).startswith("torch.distributed.checkpoint.") and not constant


def _copied(scope: Scope, states: list[Written]) -> Iterator[Place]:
    """shutil.copy(tmp, path): a copy is a write, and what was written before it is no safety for its own name."""
    names = {text_of(one.where) for one in states if one.where is not None}
    for call in scope.calls:
        if called(call, scope) not in COPIES or len(call.args) < 2:
            continue
        source, to = text_of(call.args[0]), text_of(call.args[1])
        best = re.search(r"best|last|latest", to, re.I) and re.search(r"\.(pth?|ckpt|tar|safetensors)|ckpt|model", to)
        if not (source in names or best) or re.search(r"(^|[^a-z])(te?mp|bak|backup|old|prev)", to, re.I):
            continue
        if any(text_of(move.args[0]) == to for move in moves_in(scope) if move.args):
            continue
        told = f"{code_of(call, 60)}: half a copy has the final name until it is done"
        yield Place(call, "a checkpoint is copied straight to its final name", (told,))


def _is_removed(written: Written, scope: Scope) -> bool:
    """Whether what was there before is removed in the same function: rmtree(out); model.save_pretrained(out)."""
    return written.where is not None and any(text_of(gone) == text_of(written.where) for gone, _ in _removals(scope))


def _removals(scope: Scope) -> Iterator[tuple[ast.expr, ast.Call]]:
    for call in scope.calls:
        name = called(call, scope)
        if name in ("os.remove", "os.unlink", "shutil.rmtree") and call.args:
            yield call.args[0], call
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "unlink" and name != "os.unlink":
            yield call.func.value, call


def _removed_first(
    scope: Scope, states: list[Written], project: Project
) -> Iterator[tuple[Place, ast.Call | None]]:  # fmt: skip
    """os.remove(path) before os.rename(tmp, path), rmtree(last) before saving into it: a crash leaves no checkpoint.

    Also where a helper removes: slot.clear(), then trainer.save_checkpoint(slot.file). Each with the save behind it.
    """
    written = {text_of(one.where) for one in states if one.where is not None}
    moved = {
        text_of(move.args[-1]): move for move in moves_in(scope)
        if text_of(move.func.value if len(move.args) == 1 else move.args[0]) in written  # type: ignore[attr-defined]
    }  # fmt: skip
    saves = [(one.call, text_of(one.where)) for one in states if one.where is not None]
    saves += [(call, text_of(call.args[0])) for call in scope.calls if last_name(call.func) in SAVES and call.args]
    near: list[tuple[int, ast.Call, ast.Call]] = []
    for gone, call in _removals(scope):
        move = moved.get(text_of(gone)) if states else None
        if move is not None and move.lineno >= call.lineno:
            words = f"`{code_of(call, 40)}` removes the last checkpoint before the new one has its name"
            yield Place(call, words, (f"line {move.lineno}: {code_of(move, 50)}",)), None
            continue
        save = next((one for one, to in saves if one.lineno > call.lineno and _is_below(to, text_of(gone))), None)
        if save is not None and not _is_partial(text_of(gone)):
            near.append((save.lineno - call.lineno, call, save))
    for _, call, save in sorted(near, key=lambda one: one[0])[:1]:
        words = f"`{code_of(call, 40)}` removes the last checkpoint before the new one is written"
        yield Place(call, words, (f"line {save.lineno}: {code_of(save, 50)}",)), save
    for call in scope.calls if saves else ():
        base = text_of(call.func.value) if isinstance(call.func, ast.Attribute) else None
        later = next((one for one, to in saves if base and one.lineno > call.lineno and base in to), None)
        if later is None or not _is_of_object(call):
            continue
        for function in project.callees(call, scope)[:1]:
            for gone, removal in _removals(function):
                if (target_name(gone) or "").startswith("self.") and not function.module.loops_around(removal):
                    words = f"`{code_of(call, 40)}` removes the last checkpoint before the new one is written"
                    told = f"saved after it by {code_of(later, 50)} at {scope.module.path}:{later.lineno}"
                    yield Place(removal, words, (told,), scope=function, also=((call, scope),)), later


SAVES = ("save_checkpoint", "save_pretrained", "save_state", "save_model")


def _is_of_object(call: ast.Call) -> bool:
    """slot.clear(), self.slot.clear(): a method of an object that a name holds."""
    return isinstance(call.func, ast.Attribute) and target_name(call.func.value) not in (None, "self")


def _is_below(to: str, folder: str) -> bool:
    """Whether a file is what was removed, or lies in it: last / "model.pt", os.path.join(last, name)."""
    return to == folder or to.startswith(f"{folder} /") or f"join({folder}," in to or to.startswith(f"{folder}.")


def _is_partial(text: str) -> bool:
    return TEMPORARY.search(text) is not None


def _is_state(written: Written, scope: Scope, project: Project) -> bool:
    """Whether what is saved is a state: by its name, by what it is made of, or by the name of what saves it."""
    node, named = written.what, f"{scope.simple_name} {text_of(written.where) if written.where is not None else ''}"
    if written.is_text:  # settings and results are texts too
        keys = [
            key.value for part in project.literals(node, scope) if isinstance(part, ast.Dict)
            for key in part.keys if isinstance(key, ast.Constant)
        ]  # fmt: skip
        counts = any(key in COUNTS for key in keys) or bool(re.search(r"(^|[._(])state(_dict|$|[).])", text_of(node)))
        part = text_of(node.slice) if isinstance(node, ast.Subscript) else ""  # state_dict[ADAPTER_CONFIG]
        return counts and bool(PROGRESS.search(named)) and "config" not in f"{named} {part}".lower()
    if written.is_array:
        ends = project.origins(node, scope, _inside, depth=3)
        weights = re.search(r"(^|[^\w])(params|weights|state)($|[^\w])", text_of(node)) is not None
        return weights or any(re.search(r"state_dict|parameters\(", text_of(end.node)) for end in ends)
    if written.rarely:  # a whole model written once, at the end, is no checkpoint
        hook = bool(re.match(r"on_(epoch|step|save|evaluate|train_batch|train_epoch)", scope.simple_name))
        return hook or _keeps_name(scope) or _in_training(written.call, scope, project) or _is_removed(written, scope)
    if STATE.search(text_of(node)):
        return True
    ends = project.origins(node, scope, _inside, depth=3)
    if any(re.search(r"state_dict|named_parameters", text_of(end.node)) for end in ends):
        return True
    handed = (target_name(node) or "") in scope.parameters and not project.callers(scope)
    return handed and _keeps_name(scope)


def _inside(node: ast.expr) -> list[ast.expr]:
    """What a chain of methods begins with: p.detach().cpu().numpy() -> p."""
    if isinstance(node, ast.Dict):  # for name, part in parts.items()
        return node.values
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return []
    same = ("items", "values", "detach", "cpu", "numpy", "float", "clone", "contiguous", "half", "to")
    return [node.func.value] if node.func.attr in same else []


def _keeps_name(scope: Scope) -> bool:
    return bool(re.search(r"checkpoint|ckpt|snapshot", scope.simple_name, re.I))


def _same_name(target: ast.expr | None) -> bool:
    """Whether the file's name holds nothing that changes."""
    if target is None:
        return False
    text = text_of(target)
    return bool(re.search(r"['\"][\w./-]+\.(pt|pth|ckpt|bin|pkl|safetensors)['\"]", text)) and not re.search(
        r"\{|step|iter|epoch|format|%", text
    )


def _keeps_training(module: Module, scope: Scope) -> bool:
    """Whether it is a training's state, which cannot be made again as a converted file can."""
    return bool(
        re.search(r"optim|checkpoint|ckpt|epoch|train", scope.name + module.path + text_of(scope.node)[:4000], re.I)
    )


def _in_training(call: ast.Call, scope: Scope, project: Project) -> bool:
    module = scope.module
    loops = [loop.around for loop in train_loops(module, project)]
    return any(around in loops for around in module.loops_around(call)) or any(
        scope.simple_name in text_of(loop) for loop in loops if loop
    )
