"""Rules on where a resumed training goes on: inside the epoch, and in a stream that gives its state."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.restoring import counted_entries, restores, restores_order, takes_up_progress
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.data_order import (
    order_not_restored,
    passes_over,
)
from intone.optimise.scan.source import LOOPS, Module, Scope, target_name, walk

SAVES = re.compile(r"(^|\.)(torch\.save|distributed\.checkpoint\.(async_)?save|save_(state|checkpoint)|pickle\.dump)$")
# names under which programs keep how much of an epoch was read
WITHIN = re.compile(
    r"skip|consumed|(batch|row|sample)(es|s)?_(seen|done|in_epoch)|in_epoch|fast_forward|advance|cursor|start_(batch|row|at|from)|"
    r"resume_(step|batch|at|from|batch_idx)|mid_epoch|position"
)


@rule(
    "S81",
    "resuming begins the epoch anew",
    kind="data-order",
    severity="medium",
    why="A checkpoint is written in the middle of an epoch, but only the epoch's number comes back: its rows are read "
    "from the first again, so some are seen twice, and all later steps see other rows than without the stop.",
    fix="Save how many batches of the epoch were read and pass over as many on resume (a stateful loader, a sampler "
    "that can begin later, islice), or save only at the end of an epoch.",
    source="optimiser.md G6",
)
def epoch_begun_anew(module: Module, project: Project) -> Iterator[Place]:
    """A loop over a loader inside one over epochs that saves between two batches; a restore that knows no batch."""
    if is_elsewhere(module):
        return
    for loop in train_loops(module, project):
        walked = _over_batches(loop, project)
        files = [other for other in neighbours(module, project) if not is_elsewhere(other)]
        if walked is None or any(restores_order(file) or passes_over(file) or _knows_position(file) for file in files):
            continue
        saved = next((item for item in reached(walked[0], walked[1], project) if _saves(item.node, item.scope)), None)
        taken_up = [pair for file in files for pair in restores(file, project) if takes_up_progress(pair[0])]
        taken_up = [] if any(_restores_more(*pair) for pair in taken_up) else taken_up
        if saved is None or not taken_up or any(True for _ in order_not_restored(module, project)):
            continue
        scope, restore = taken_up[0]
        # a helper that restores cannot know where in the data the loop begins; a method of the trainer can
        here = scope is walked[1] or scope.owner is not None and scope.owner is walked[1].owner
        yield Place(
            restore if here else walked[0],
            "the training is taken up in the middle of an epoch, the data at its beginning",
            (
                f"saved between two batches at {saved.scope.module.path}:{saved.line}",
                f"taken up at {scope.module.path}:{restore.lineno}",
                f"`{code_of(walked[0].iter, 40)}` at {module.path}:{walked[0].lineno} begins with the first batch",
            ),
            scope=scope if here else walked[1],
            also=((walked[0], walked[1]) if here else (restore, scope),),
        )
        return


# what a checkpoint holds besides a position in the data
HELD = re.compile(
    r"net|model|opt|sched|scal|epoch|step|iter|loss|best|metric|config|cfg|args|ema|weight|state_dict|grad|lr|seed|"
    r"version|time|student|teacher|module|rng|vocab|history|name|val|param"
)


def _restores_more(scope: Scope, restore: ast.Call) -> bool:
    """Whether a restore reads something else too, or hands it to a loader or sampler: that may be the position."""
    counted = counted_entries(scope)
    loaded = {name.partition(".")[0] for arg in restore.args for name in names_in(arg)}
    loaded |= {
        name for name, bindings in scope.bindings.items() for b in bindings
        if isinstance(b.value, ast.Call) and "load" in (last_name(b.value.func) or "")
    }  # fmt: skip
    for node in scope.body:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Constant):
            held = target_name(node.value) in loaded
            key = node.slice.value
            if held and isinstance(key, str) and not HELD.search(key) and key not in counted:
                return True
        elif isinstance(node, ast.Call) and last_name(node.func) == "get" and node.args:
            held = isinstance(node.func, ast.Attribute) and target_name(node.func.value) in loaded
            key = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if held and isinstance(key, str) and not HELD.search(key) and key not in counted:
                return True
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and node.attr != "epoch"
            and re.search(r"sampler|loader|data|stream|order", target_name(node.value) or "")
        ):
            return True
    return False


def _over_batches(loop: TrainLoop, project: Project) -> tuple[ast.For, Scope] | None:
    """(the loop over a loader inside a loop over epochs, its function), where it begins with the first batch."""
    nest: list[tuple[ast.AST, Scope]] = [(loop.inner, loop.scope)]
    nest += [(above, loop.scope) for above in loop.scope.module.loops_around(loop.inner)]
    if loop.outer is not None and loop.outer_scope is not loop.scope:
        at = loop.outer_scope
        nest += [(above, at) for above in [loop.outer, *at.module.loops_around(loop.outer)]]
    for number, (node, scope) in enumerate(nest):
        if not isinstance(node, ast.For) or FROM_LATER.search(text_of(node.iter)):
            continue
        outside = [other for other, _ in nest[number + 1 :]]
        if not outside:
            outside = [
                other for site in project.callers(scope)[:4] for other in site.scope.module.loops_around(site.call)
            ]
        if any(_is_of_epochs(other) for other in outside):
            return node, scope
    return None


def _is_of_epochs(loop: ast.AST) -> bool:
    """for epoch in ..., or a while around a loop over the batches: while step < max_steps: for batch in loader."""
    return isinstance(loop, ast.While) or isinstance(loop, LOOPS) and "epoch" in _head(loop)


FROM_LATER = re.compile(r"range\(|count\(|start_|_start|skip|islice|resume")


def _head(loop: ast.AST) -> str:
    if isinstance(loop, ast.While):
        return text_of(loop.test)
    return f"{text_of(loop.target)} {text_of(loop.iter)}" if isinstance(loop, (ast.For, ast.AsyncFor)) else ""


def _saves(node: ast.AST, scope: Scope) -> bool:
    return isinstance(node, ast.Call) and bool(SAVES.search(called(node, scope)))


def _knows_position(module: Module) -> bool:
    """Whether a file has a name for how much of an epoch was read."""
    for node in module.nodes:
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if name is None and isinstance(node, (ast.keyword, ast.arg)):
            name = node.arg
        if name is not None and WITHIN.search(name):
            return True
    return False


@rule(
    "S82",
    "a stream does not go on from the state that it gives",
    kind="data-order",
    severity="medium",
    why="The state is saved and restored, and the rows come from the beginning of the file or epoch all the same: a "
    "resumed training sees some rows twice, and nothing says so.",
    fix="Let the iteration begin at the restored position: pass over as many rows, or compute the row from the count.",
    source="optimiser.md G6; torchdata's StatefulDataLoader",
)
def state_without_effect(module: Module, project: Project) -> Iterator[Place]:
    """A data set with state_dict() whose counters of rows are restored and never read where it gives rows."""
    for scope in module.scopes[1:]:
        if scope.owner is None or scope.simple_name not in ("state_dict", "get_state", "state"):
            continue
        methods = {method.simple_name: method for method in project.class_scopes(scope.owner)}
        back = next((methods[name] for name in ("load_state_dict", "set_state", "load_state") if name in methods), None)
        walks = next((methods[name] for name in ("__next__", "__iter__") if name in methods), None)
        if back is None or walks is None or re.search(r"set_?state|load_state|update", _body(back)):
            continue
        restored = {name for name, bindings in back.bindings.items() if name.startswith("self.") and bindings}
        if "setattr" in _body(back):  # for key, value in state.items(): setattr(self, key, value)
            keys = [entry[0] for value in scope.returns for entry in _entries(value, scope, project)]
            restored |= {f"self.{key}" for key in keys}
        steps = _moved_per_row(walks, project)
        read = _read_in(walks, project)
        marks = {name for name in restored - steps if not FIXED.search(name)}
        if not restored or not (restored & steps or _is_endless(walks)) or read & ((restored & steps) | marks):
            continue
        lost = sorted(restored & steps)
        told = (
            f"`{lost[0]}` comes back and is read nowhere in it" if lost else "no position inside the epoch comes back"
        )
        yield Place(
            scope.node,
            f"`{scope.owner.name}` begins anew after a restore",
            (told, f"rows are given by `{walks.simple_name}` at line {getattr(walks.node, 'lineno', 0)}"),
            scope=scope.outer or module.top,
        )


# restored fields that say which order it is, and not where in it
FIXED = re.compile(r"seed|epoch|rank|world|shuffle|size|length|path|files|name|config")


@rule(
    "S67",
    "a stream begins anew whenever it is walked over",
    kind="data-order",
    severity="low",
    why="Nothing tells the stream where a training stopped: a resumed one sees the first files again and never those "
    "at the end, however often it is resumed.",
    fix="Give it state_dict() and load_state_dict() with file, row and epoch, or let it begin at a count of rows.",
    source="optimiser.md G6; torchdata's StatefulDataLoader",
)
def stream_without_place(module: Module, project: Project) -> Iterator[Place]:
    """class Rows(IterableDataset) that reads files, with no position, epoch or state that anybody could set."""
    if is_elsewhere(module):
        return
    for scope in module.scopes[1:]:
        owner = scope.owner
        if owner is None or scope.simple_name != "__iter__":
            continue
        if "IterableDataset" not in " ".join(text_of(base) for base in owner.bases) or _can_begin_later(owner, project):
            continue
        reads = any(READS_FILES.search(last_name(c.func) or "") for m in project.class_scopes(owner) for c in m.calls)
        files = neighbours(module, project)
        told = any(restores(file, project) for file in files if not is_elsewhere(file))
        whole = any(True for file in files for _ in train_loops(file, project))
        skipped = any(restores_order(file) or passes_over(file) for file in files)
        if not reads or whole and not told or skipped or any(True for _ in order_not_restored(module, project)):
            continue
        yield Place(
            scope.node,
            f"`{owner.name}` always begins with its first row",
            ("no state, position or epoch that a resumed training could set",),
            confidence="medium",
            scope=scope.outer or module.top,
        )


READS_FILES = re.compile(r"open|memmap|load|read|iter_\w+|fromfile|parquet")
PLACE_OF = re.compile(
    r"state|epoch|start|skip|resume|offset|position|cursor|consumed|seek|(^|_)(pos|step|idx|index|done|seen)$"
)


def _can_begin_later(owner: ast.ClassDef, project: Project) -> bool:
    """Whether a class keeps or is told any place: by a field, a parameter or the name of a method."""
    for method in project.class_scopes(owner):
        fields = [name.removeprefix("self.") for name in method.bindings if name.startswith("self.")]
        if any(PLACE_OF.search(name) for name in [method.simple_name, *method.parameters, *fields]):
            return True
    return False


def _body(scope: Scope) -> str:
    return " ".join(text_of(statement) for statement in getattr(scope.node, "body", []))


def _moved_per_row(walks: Scope, project: Project) -> set[str]:
    """The fields that change between two rows: inside the innermost loop that yields, or at every __next__()."""
    found: set[str] = set()
    for item in reached(walks.node, walks, project):
        node = item.node
        if not isinstance(node, (ast.AugAssign, ast.Assign)):
            continue
        target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
        name = target_name(target)
        if name is None or not name.startswith("self."):
            continue
        loops = item.scope.module.loops_around(node)
        inside = loops[0] if loops else None
        yields = inside is not None and any(isinstance(part, (ast.Yield, ast.YieldFrom)) for part in walk(inside))
        deeper = any(isinstance(part, LOOPS) and part is not inside for part in walk(inside)) if inside else False
        if walks.simple_name == "__next__" or yields and not deeper:
            found.add(name)
    return found


def _read_in(walks: Scope, project: Project) -> set[str]:
    """The fields that are read where rows are given, not counting what only counts them on."""
    found: set[str] = set()
    for item in reached(walks.node, walks, project):
        node = item.node
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and (name := target_name(node)):
            above = item.scope.module.parents.get(node)
            outer = item.scope.module.parents.get(above) if isinstance(above, ast.BinOp) else None
            counted = isinstance(outer, ast.Assign) and target_name(outer.targets[0]) == name
            if not counted and not (
                isinstance(above, ast.Call) and last_name(above.func) in ("print", "info", "debug")
            ):
                found.add(name)
    return found


def _is_endless(walks: Scope) -> bool:
    """while True around the yields: the state is asked for in the middle, as there is no end."""
    return any(
        isinstance(node, ast.While) and not names_in(node.test) and any(isinstance(p, ast.Yield) for p in walk(node))
        for node in walks.body
    )


# entries of a checkpoint that say where in the data a training was
PLACES = re.compile(
    r"loader|sampler|dataset|^data|_data|stream|position|offset|cursor|(^|_)rng|random|shard|consumed|batch_(idx|index)|"
    r"generator|iterator|order|permutation|in_epoch"
)


@rule(
    "S88",
    "a saved place in the data is never read",
    kind="data-order",
    severity="medium",
    why="The checkpoint holds where in the data the training was, and nothing takes it up: a resumed training begins "
    "the data anew all the same, and who looks at the file believes otherwise.",
    fix="Give it back to the loader, sampler or generator where weights and optimizer are restored.",
    source="optimiser.md G6",
)
def saved_place_unread(module: Module, project: Project) -> Iterator[Place]:
    """torch.save({"model": ..., "loader": loader.state_dict()}), and a restore that reads "model" only."""
    files = neighbours(module, project)
    for scope in module.scopes:
        for call in scope.calls:
            if not SAVES.search(called(call, scope)) or not call.args:
                continue
            lost = next((one for one in _entries(call.args[0], scope, project) if PLACES.search(one[0])), None)
            if lost is None or _is_read(lost, files):
                continue
            back = [pair for file in files for pair in restores(file, project) if not is_elsewhere(file)]
            if not back or any(_takes_all(at) for at, _ in back):
                continue
            at, restore = back[0]
            yield Place(
                restore,
                f"the saved `{lost[0]}` is not taken up here, nor anywhere else",
                (f"saved at {scope.module.path}:{lost[1].lineno}", "no other mention of this entry in the program"),
                scope=at,
                also=((call, scope),),
            )
            return


def _entries(node: ast.expr, scope: Scope, project: Project) -> list[tuple[str, ast.Constant]]:
    """The entries of a dict that is saved, written out there or where a name or function gives it."""
    found: list[tuple[str, ast.Constant]] = []
    for origin in project.origins(node, scope, depth=3):
        keys = origin.node.keys if isinstance(origin.node, ast.Dict) else []
        found += [(key.value, key) for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return found


def _is_read(entry: tuple[str, ast.Constant], files: list[Module]) -> bool:
    """Whether the name of an entry stands anywhere else in a program: as a key, attribute or text."""
    name, key = entry
    return any(
        isinstance(node, ast.Constant) and node.value == name and node is not key
        or isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)
        for file in files for node in file.nodes
    )  # fmt: skip


def _takes_all(scope: Scope) -> bool:
    """for name, part in parts.items(): part.load_state_dict(state[name]): every entry is taken up."""
    return any(
        last_name(call.func) == "load_state_dict"
        and call.args
        and isinstance(call.args[0], ast.Subscript)
        and not isinstance(call.args[0].slice, ast.Constant)
        for call in scope.calls
    )
