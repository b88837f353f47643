"""A rule on programs that take a training up again and read their data from the first row."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.restoring import RESTORES_ORDER, restores, takes_up_progress
from intone.optimise.scan.rulebook import Place, rule, told_lines
from intone.optimise.scan.rules.data_order import passes_over
from intone.optimise.scan.source import LOOPS, Module, Scope, target_name, walk

# words of code that begins somewhere else than at the first row
LATER = re.compile(
    r"skip|resume|seek|offset|consumed|fast_?forward|advance|position|cursor|restor|rewind|islice|state|"
    r"(^|[._])(start|begin|first|from|done|seen|at|pos|ptr|where)(_|$)|_(start|begin|from|done|seen|pos|ptr|idx|index)$",
    re.I,
)
SAVES = re.compile(r"save|checkpoint|ckpt|snapshot|dump", re.I)
HELD_OUT = re.compile(
    r"(^|[._])(val|valid\w*|eval\w*|test\w*|dev|heldout|held_out|probe|prompts?|tasks?)(_|$|[._])", re.I
)
PASSES = (
    "iter",
    "cycle",
    "enumerate",
    "tqdm",
    "trange",
    "zip",
    "prepare",
    "chain",
    "list",
    "map",
    "Prefetcher",
    "islice",
)
NO_DATA = ("range", "count", "param_groups", "parameters", "named_parameters", "items", "keys")
RANDOM = re.compile(r"shuffle|rand|perm|choice|Random|sample", re.I)
STREAM_STATE = ("set_rng_state", "setstate", "set_state")


# methods of a stream of rows that give another one
CHAINS = (
    "shuffle",
    "batch",
    "batched",
    "map",
    "filter",
    "repeat",
    "with_format",
    "prefetch",
    "iter",
    "unbatched",
    "padded",
)


@dataclass(frozen=True, eq=False)
class Source:
    """What a training reads its rows from: where it is walked over or asked, what makes it, and under which names."""

    node: ast.expr
    scope: Scope
    made: tuple[tuple[ast.expr, Scope], ...]
    names: frozenset[str]


@rule(
    "S94",
    "a training that goes on reads its data from the first row",
    kind="data-order",
    severity="medium",
    why="Weights, optimizer and counters come back, the place in the data does not: each resumed run sees the first "
    "rows again and, if it is stopped in time each time, never the last ones.",
    fix="Save how many batches were read and begin there: a stateful loader, a start of the stream, or an index that "
    "is computed from the step.",
    source="optimiser.md G6; torchdata's StatefulDataLoader",
)
def data_begins_anew(module: Module, project: Project) -> Iterator[Place]:
    """opt.load_state_dict(...), step = state["step"], then `for batch in loader` or stream.next() from its start."""
    if is_elsewhere(module):
        return
    files = [other for other in neighbours(module, project) if not is_elsewhere(other)]
    taken_up = [pair for file in files for pair in restores(file, project) if _goes_on(pair[0])]
    if not taken_up or any(_begins_later(file) for file in files):
        return
    if any(told_lines("data-order", file, project, "S94") for file in files):
        return
    progress = {name for scope, _ in taken_up for name in _restored(scope, project)}
    for loop in train_loops(module, project):
        source = _source(loop, project)
        if source is None or HELD_OUT.search(text_of(source.node)) or _is_told_place(source, files, progress, project):
            continue
        if _at_ends_only(loop, project) or not _is_in_order(source, files, project):
            continue
        at, restore = taken_up[0]
        yield Place(
            source.node,
            f"`{code_of(source.node, 40)}` begins with the first row, also where a training is taken up again",
            (
                f"taken up at {at.module.path}:{restore.lineno}: {code_of(restore, 50)}",
                "nothing that is restored reaches the data: no start, skip, state or index",
            ),
            confidence="medium",
            scope=source.scope,
            also=((restore, at),),
        )
        return


def _goes_on(scope: Scope) -> bool:
    """Whether a function takes up where a training was, and not only another training's weights and optimizer."""
    loads = [call for call in scope.calls if last_name(call.func) == "load_state_dict"]
    engine = any(last_name(call.func) in ("load_state", "load_checkpoint") for call in scope.calls)
    return takes_up_progress(scope) or len(loads) > 2 or engine


def _restored(scope: Scope, project: Project) -> set[str]:
    """The names that a restore gives its numbers to: self.it = state["it"], and what callers take from its return."""
    found = {
        name.rpartition(".")[2]
        for name, bindings in scope.bindings.items()
        for b in bindings
        if any(isinstance(part, (ast.Subscript, ast.Call)) for part in walk(b.value))
        and re.search(r"\[['\"]|\.get\(", text_of(b.value))
    }
    for site in project.callers(scope)[:6] if scope.returns else ():
        for name, bindings in site.scope.bindings.items():
            if any(b.value is site.call or site.call in walk(b.value) for b in bindings):
                found.add(name.rpartition(".")[2])
    return found - {"model", "opt", "optimizer", "state", "ckpt", "checkpoint", "net"}


def _begins_later(file: Module) -> bool:
    """Whether a file passes over batches, or says in words of a library that the data has a state."""
    words: set[str] = set()
    if file.mentions(RESTORES_ORDER):
        words = {match[0].rstrip("(") for match in RESTORES_ORDER.finditer(text_of(file.tree))}
    words -= {*STREAM_STATE, "islice", "start_index"}  # vocab_start_index is none
    return bool(words) or file.mentions(START_INDEX) or passes_over(file)


START_INDEX = re.compile(r"\bstart_index\b")


def _source(loop: TrainLoop, project: Project) -> Source | None:
    """What the innermost loop over data walks over, or what is asked for a batch at each turn."""
    scope = loop.scope
    nest: list[ast.AST] = [loop.inner, *scope.module.loops_around(loop.inner)]
    for node in nest:
        if isinstance(node, (ast.For, ast.AsyncFor)) and not _counts(node):
            return _followed(node.iter, scope, project)
    for item in loop.step_turn(project):
        call = item.node
        if not isinstance(call, ast.Call) or item.is_in_forward:
            continue
        walked = isinstance(call.func, ast.Name) and call.func.id == "next" and bool(call.args)
        asked = call.args[0] if walked else _is_asked(call, item)
        found = _followed(asked, item.scope, project) if asked is not None else None
        if found is None or not walked and not found.made:
            continue
        if found.made:  # told where the stream is made: it is there that it could begin later
            made, at = found.made[0]
            return Source(made, at, found.made, found.names)
        return found
    return None


def _counts(loop: ast.For | ast.AsyncFor) -> bool:
    """for step in range(n), for epoch in ...: no loop over rows; nor one over the parts of a model or batch."""
    names = {last_name(part.func) for part in walk(loop.iter) if isinstance(part, ast.Call)}
    own = text_of(loop.iter)
    cut = (
        re.search(r"chunk|split|micro|range\(|\.T\b|permute|layers|modules|rollout|buffer|replay|\benvs?\b", own)
        is not None
    )
    return bool(names & set(NO_DATA)) or "epoch" in text_of(loop.target) or cut


def _is_asked(call: ast.Call, item: Reached) -> ast.expr | None:
    """stream.next(), reader.next_batch("train"): the object that is asked for rows, without a place or step."""
    func = call.func
    if not isinstance(func, ast.Attribute) or not re.match(
        r"^(_?next\w*|get_?batch|\w*_batch|read|draw|fetch|take)$", func.attr
    ):
        return None
    counted = any(re.search(r"step|iter|idx|index|\bi\b|epoch", text_of(arg)) for arg in call.args)
    name = target_name(func.value)
    return None if counted or name is None or name in ("self", "cls") or "model" in name else func.value


def _followed(node: ast.expr, scope: Scope, project: Project) -> Source:
    """A source with what makes it: through iter(), tqdm() and names, also those of the object and the file."""
    names: set[str] = set()
    seen: set[tuple[str, Scope]] = set()
    made: list[tuple[ast.expr, Scope]] = []
    todo = [(node, scope, 5)]
    while todo:
        at, where, left = todo.pop(0)
        if isinstance(at, ast.Call):
            made.append((at, where))
            inner = at.args[:2] if last_name(at.func) in PASSES or (last_name(at.func) or "")[:1].isupper() else []
            todo += [(arg, where, left - 1) for arg in inner if left]
            if isinstance(at.func, ast.Attribute) and (isinstance(at.func.value, ast.Call) or at.func.attr in CHAINS):
                todo.append((at.func.value, where, left - 1))
            todo += [(value, f, left - 1) for f in project.callees(at, where)[:2] for value in f.returns if left]
            continue
        name = target_name(at)
        if name is None or not left or (name, where) in seen:
            continue
        seen.add((name, where))
        names.add(name)
        owner = project.owner_of(where) if name.startswith("self.") else None
        places = project.class_scopes(owner[1]) if owner is not None else [where, *_outer(where)]
        todo += [
            (b.value, place, left - 1)
            for place in places
            for b in place.bindings.get(name, [])
            if b.how in ("=", "part")
        ]
        if name in where.parameters:
            handed = [(project.argument(site, where, name), site.scope) for site in project.callers(where)[:4]]
            todo += [(value, there, left - 1) for value, there in handed if value is not None]
    return Source(node, scope, tuple(made), frozenset(name.rpartition(".")[2] for name in names))


def _outer(scope: Scope) -> list[Scope]:
    found = []
    while scope.outer is not None:
        scope = scope.outer
        found.append(scope)
    return found


def _is_told_place(source: Source, files: list[Module], progress: set[str], project: Project) -> bool:
    """Whether anything says where the source begins: an argument, a method, a field, or what is restored."""
    for made, _ in source.made:
        args = [*made.args, *(word.value for word in made.keywords)] if isinstance(made, ast.Call) else []
        words = {name.rpartition(".")[2] for arg in args for name in names_in(arg)}
        words |= {word.arg or "**" for word in getattr(made, "keywords", [])}
        if words & progress or any(LATER.search(word) for word in words) or "**" in words:
            return True
        if isinstance(made, ast.Call) and LATER.search(last_name(made.func) or ""):
            return True
    for file in files:
        for scope in file.scopes:
            for call in scope.calls:
                base = last_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
                if base in source.names and LATER.search(last_name(call.func) or ""):
                    return True
                args = [*call.args, *(word.value for word in call.keywords)]
                given = {name.rpartition(".")[2] for arg in args for name in names_in(arg)}
                if source.names & given and (LATER.search(last_name(call.func) or "") or given & progress):
                    return True
            for name, bindings in scope.bindings.items():
                base, _, last = name.rpartition(".")
                if base.rpartition(".")[2] in source.names and any(b.how == "=" for b in bindings) and last:
                    return True  # stream.pos = state["pos"]
            for node in scope.of(ast.If):
                words = {name.rpartition(".")[2] for name in names_in(node.test)}
                if words & progress and any(isinstance(part, ast.Continue) for part in node.body):
                    return True
    return False


def _at_ends_only(loop: TrainLoop, project: Project) -> bool:
    """Whether checkpoints are kept between epochs only, so that a resumed training begins with a whole one."""
    module = loop.scope.module
    nest = [loop.inner, *module.loops_around(loop.inner)]
    walked = next((node for node in nest if isinstance(node, (ast.For, ast.AsyncFor)) and not _counts(node)), None)
    if walked is None:
        return False
    outer = [node for node in module.loops_around(walked) if isinstance(node, LOOPS)]
    called_in = any(site.scope.module.loops_around(site.call) for site in project.callers(loop.scope)[:4])
    if not outer and not called_in:
        return False
    return not any(
        isinstance(item.node, ast.Call) and SAVES.search(called(item.node, item.scope).rpartition(".")[2])
        for item in reached(walked, loop.scope, project)
    )


def _is_in_order(source: Source, files: list[Module], project: Project) -> bool:
    """Whether the rows come in a fixed order from a beginning: of random ones a restored stream goes on elsewhere."""
    put_back = any(
        (last_name(call.func) or "").startswith(STREAM_STATE)
        for file in files
        for scope in file.scopes
        for call in scope.calls
    )
    if not put_back:
        return True
    texts = [text_of(made) for made, _ in source.made]
    for made, where in source.made:
        places = project.classes.get(last_name(made.func) or "", []) if isinstance(made, ast.Call) else []
        texts += [text_of(node) for _, node in places]
        texts += [text_of(f.node) for f in project.callees(made, where)[:2]] if isinstance(made, ast.Call) else []
    return not any(RANDOM.search(text) for text in texts)
