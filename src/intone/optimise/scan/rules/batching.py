"""A rule on how much work a device gets at once: the micro-batch that is written into the code."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from intone.optimise.scan.classes import FIELDS
from intone.optimise.scan.constants import fixed_values, is_one_of_many, known_values
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in
from intone.optimise.scan.loops import TrainLoop, train_loops, walked_over
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.accumulating import Where, accumulation_of, flag_of, written_settings
from intone.optimise.scan.rules.accumulation import adds_nothing, counts_micro_batches, over_micro_batches
from intone.optimise.scan.rules.cutting import folded, is_floor, sliced
from intone.optimise.scan.rules.rows_at_once import is_choice, is_for_evaluation, tokens_at_once
from intone.optimise.scan.scaling import count_of
from intone.optimise.scan.source import Module, Scope, target_name, walk

BATCH = re.compile(
    r"^(per_device_|device_|micro_|mini_|local_|train_|per_gpu_)*(train_)?(micro_)?"
    r"(batch|batch_size|bs|mbs|batchsize|bsz|batch_rows|rows_per_\w+|seqs_per_\w+|sequences_per_\w+|examples_per_\w+|"
    r"samples_per_\w+|(num_|n_)?(rows|seqs|sequences)|(rows_)?at_once|micro(_?size)?|micro_?batch(_size)?|mb|"
    r"micro_(rows|seqs|rollouts|prompts|samples|examples|sequences|episodes|texts|docs|groups|pairs|b|bs|bsz))"
    r"(_per_(gpu|device|rank|step|micro|pass|forward))?$",
    re.I,
)
# functions that cut rows into pieces of so many: rows, number
CUTTERS = ("batched", "chunked", "grouper", "minibatches", "micro_batches", "ichunked", "chunks", "iter_batches")
WORLD = re.compile(r"world|rank|gpus|devices|nproc|dp_size", re.I)
SMALL = 8  # rows; guess: below it the matrix products of a small model leave most of a GPU idle


@rule(
    "S20",
    "small micro-batch fixed in the code, with accumulation",
    kind="small-batch",
    severity="medium",
    why="A few rows at a time leave the device idle between small kernels, and accumulation repeats that "
    "for every step; the "
    "number suits one machine and is used on all.",
    fix="Choose the micro-batch by measurement on the machine at hand and divide the accumulation by the "
    "same factor: tokens "
    "per step stay as they are, so the recipe does not change.",
    source="optimiser.md D1; nanochat-facts.md 2.1",
)
def small_batch(module: Module, project: Project) -> Iterator[Place]:
    """A batch size of 8 rows or less as a constant, default or flag, in a program that accumulates gradients."""
    for place in _small_batches(module, project):
        file = place.scope.module if place.scope is not None else module
        if is_choice(place.node, file) or is_for_evaluation(place.node, file):
            continue
        named = [(name, value) for _, name, value in _constants(file, project)]
        named += [(name, value) for name, value, _ in written_settings(file, project)]
        many = tokens_at_once(place, named)
        yield place if many is None else replace(place, confidence="low", evidence=(*place.evidence, many))


def _small_batches(module: Module, project: Project) -> Iterator[Place]:
    if re.search(r"(^|/)(test|tests)/", module.path):
        return
    accumulation = accumulation_of(module, project)
    if accumulation is not None:
        for node, name, value in _constants(module, project):
            if (BATCH.match(name) or name == "B") and 1 <= value <= SMALL and _is_micro(name, module):
                if _has_reason(node, module):
                    continue
                yield _place(node, name, value, accumulation, module)
        for name, value, line in written_settings(module, project):
            if BATCH.match(name) and 1 <= value <= SMALL and _is_micro(name, module):
                at = ast.Constant(value, lineno=line, col_offset=0, end_lineno=line, end_col_offset=0)
                yield _place(at, name, value, accumulation, module)
        yield from _handed_to_loader(module, accumulation, project)
    for loop in train_loops(module, project):
        if adds_nothing(loop, project):
            continue  # passes over parts of a batch that step each, as PPO's
        over = loop.accumulates and counts_micro_batches(loop, project)
        if over or over_micro_batches(loop.inner, loop.scope, project):
            yield from _cut_by_loop(loop, project)


def _handed_to_loader(module: Module, accumulation: Where, project: Project) -> Iterator[Place]:
    """DataLoader(rows, batch_size=cfg.at_once): where the number is written that goes into it."""
    for scope in module.scopes:
        for call in scope.calls:
            if not re.search(r"(DataLoader|BatchSampler)$", last_name(call.func) or ""):
                continue
            if re.search(r"eval|val|test|dev", f"{scope.simple_name} {code_of(call, 200)}", re.I):
                continue
            size = keyword(call, "batch_size") or (call.args[1] if len(call.args) > 1 else None)
            if isinstance(size, ast.Constant) and size in call.args and type(size.value) is int:
                if 1 <= size.value <= SMALL:
                    yield _place(call, "batch_size", size.value, accumulation, module)
                continue
            if size is None or isinstance(size, ast.Constant):
                continue
            values = known_values(size, scope, project)
            if values and all(type(known.value) is int and 1 <= known.value <= SMALL for known in values):
                one = values[0]
                assert isinstance(one.value, int)
                found = _place(one.node, code_of(size, 30), one.value, accumulation, one.scope.module)
                way = f"handed over at {module.path}:{call.lineno}: {code_of(call, 50)}"
                yield Place(found.node, found.message, (*found.evidence, way), severity=found.severity, scope=one.scope)


REASON = re.compile(
    r"no (room|memory) (for|left)|(second|more|two)\b.*(does|do|would|will)(n't| not) fit|"
    r"fills (the|a|its) (memory|card|gpu|device)",
    re.I,
)


def _has_reason(node: ast.AST, module: Module) -> bool:
    """Whether a comment on the number, or right above it, says that the device has no room for more."""
    line = getattr(node, "lineno", 0)
    return any(REASON.search(module.comments.get(number, "")) for number in (line, line - 1, line - 2))


def _place(node: ast.AST, name: str, value: int, accumulation: Where, module: Module) -> Place:
    path, line, code = accumulation
    where = f"line {line}" if path == module.path else f"{path}:{line}"
    remark = module.comments.get(getattr(node, "lineno", 0), "")
    return Place(
        node,
        f"`{name}` is fixed at {value} row{'s' if value > 1 else ''} and made up for by accumulation",
        (
            f"accumulation: {where}: {code}",
            *([f"remark: {remark}"] if remark and remark in module.line_of(node) else []),
        ),
        severity="high" if value <= 4 and "train" not in name else None,
    )


def _is_micro(name: str, module: Module) -> bool:
    """A plain `batch_size` is the micro-batch unless a name for that stands beside it."""
    if re.search(r"micro|device|mini|local|gpu|mbs", name, re.I):
        return True
    return not re.search(r"\b(micro_batch|device_batch|micro_bs|mini_batch_size|per_device)\w*", module.text)


# --- batch sizes ------------------------------------------------------------------------------------------------------


def _constants(module: Module, project: Project) -> Iterator[tuple[ast.AST, str, int]]:
    """(node, name, whole number) of every constant assignment, default of a parameter, argument and flag."""
    kinds = (ast.Assign, ast.AnnAssign, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.Dict)
    for node in module.nodes:
        if type(node) not in kinds:
            continue
        scope = module.scope_of.get(node, module.top)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield from _assigned(node, node.targets[0], node.value, scope, project)
        elif isinstance(node, ast.AnnAssign):
            yield from _number(node, target_name(node.target), _field(node.value), scope, project)
        elif isinstance(node, ast.Call):
            yield from _in_call(node, scope, project)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            args = [*node.args.posonlyargs, *node.args.args]
            for arg, default in zip(args[len(args) - len(node.args.defaults) :], node.args.defaults, strict=True):
                yield from _number(default, arg.arg, _field(default), scope, project)
            for arg, maybe in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                yield from _number(maybe, arg.arg, maybe, scope, project)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield from _number(value, key.value, value, scope, project)


def _assigned(
    node: ast.AST, target: ast.expr, value: ast.expr, scope: Scope, project: Project
) -> Iterator[tuple[ast.AST, str, int]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for part, one in zip(target.elts, value.elts, strict=True):
            yield from _number(node, target_name(part), one, scope, project)
    elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        yield from _number(node, str(target.slice.value), value, scope, project)
    else:
        yield from _number(node, target_name(target), value, scope, project)


def _field(value: ast.expr | None) -> ast.expr | None:
    """x: int = field(default=4) -> 4"""
    if isinstance(value, ast.Call) and last_name(value.func) in FIELDS:
        return keyword(value, "default") or (value.args[0] if value.args else None)
    return value


def _in_call(node: ast.Call, scope: Scope, project: Project) -> Iterator[tuple[ast.AST, str, int]]:
    """Flags, keywords of settings and of the project's own functions, and positional arguments by their parameter."""
    name = last_name(node.func) or ""
    if name in ("add_argument", "option", "DEFINE_integer"):
        default = keyword(node, "default")
        if default is None and name == "DEFINE_integer" and len(node.args) > 1:
            default = node.args[1]
        for flag in flag_of(node)[-1:] if name != "DEFINE_integer" else flag_of(node)[:1]:
            yield from _number(node, flag, default, scope, project)
        return
    callees = project.callees(node, scope)[:2]
    if re.search(r"cache|eval|generat|sampl|infer|bench|dummy|warm", f"{name} {scope.simple_name}", re.I):
        return
    if name in project.classes:
        inits = [
            s for _, one in project.classes[name] for s in project.class_scopes(one) if s.simple_name == "__init__"
        ]
        callees = [*callees, *inits[:2]]
    if callees or re.search(
        r"Args|Arguments|Config|Settings|DataLoader|Sampler|Namespace|dict$|loader|partial$|^Trainer|^(update|setdefault|merge)$|"
        r"_replace$|^(create|EasyDict|Box|Munch)$",
        name,
    ):
        for word in node.keywords:
            if BATCH.match(word.arg or "") and is_one_of_many(word.value, scope, project):
                continue
            if isinstance(word.value, ast.Constant) or name.endswith(("DataLoader", "BatchSampler")):
                yield from _number(word.value, word.arg, word.value, scope, project)
    for function in callees:
        places = function.places
        skip = 1 if function.owner is not None else 0
        for number, arg in enumerate(node.args):
            if isinstance(arg, ast.Constant) and number + skip in places:
                yield from _number(arg, places[number + skip], arg, scope, project)


def _number(
    node: ast.AST | None, name: str | None, value: ast.expr | None, scope: Scope, project: Project
) -> Iterator[tuple[ast.AST, str, int]]:
    """A name's whole number: written here, or the one value that an expression of constants has."""
    if node is None or not name or value is None:
        return
    last = name.rpartition(".")[2]
    if isinstance(value, ast.Constant):
        if type(value.value) is int:
            yield node, last, value.value
        return
    if not BATCH.match(last) or not _is_simple(value):
        return
    values = {known.value for known in fixed_values(value, scope, project)}
    if len(values) == 1 and type(number := values.pop()) is int:
        yield node, last, number


def _is_simple(value: ast.expr) -> bool:
    """A name, a sum of constants, or a setting read with a default."""
    if isinstance(value, (ast.Name, ast.BinOp)):
        return not any(isinstance(part, ast.Call) for part in walk(value))
    return isinstance(value, ast.Call) and last_name(value.func) in ("int", "get", "getenv", "getattr")


def _cut_by_loop(loop: TrainLoop, project: Project) -> Iterator[Place]:
    """Rows of a micro-batch by how a loop cuts them: range(0, n, 4), x.split(4), randint(..., (4, T))."""
    module = loop.scope.module
    where = (module.path, loop.inner.lineno, module.line_of(loop.inner)[:60])
    for node, scope in _row_counts(loop, project):
        for known in fixed_values(node, scope, project)[:4]:
            if type(known.value) is int and 1 <= known.value <= SMALL and not is_floor(known.node, known.scope):
                name = target_name(node) or code_of(node, 20)
                place = _place(known.node, name, known.value, where, known.scope.module)
                yield Place(place.node, place.message, place.evidence, severity=place.severity, scope=known.scope)
                break


def _row_counts(loop: TrainLoop, project: Project) -> Iterator[tuple[ast.expr, Scope]]:
    """The expressions that say how many rows go through the model at once."""
    if isinstance(loop.inner, (ast.For, ast.AsyncFor)):
        for part in (part for walked in walked_over(loop.inner, loop.scope) for part in walk(walked)):
            if isinstance(part, ast.Call) and last_name(part.func) == "range" and len(part.args) == 3:
                yield part.args[2], loop.scope
            if isinstance(part, ast.Call):
                yield from ((size, loop.scope) for size in _split_size(part, loop.scope))
                yield from _split_in(part, loop, project)
                yield from ((size, loop.scope) for size in folded(part))
                if last_name(part.func) in CUTTERS and len(part.args) > 1:
                    yield part.args[1], loop.scope
    yield from _divisors(loop, project)
    for item in loop.turn(project):
        yield from _drawn(item)
        yield from sliced(item)


def _divisors(loop: TrainLoop, project: Project) -> Iterator[tuple[ast.expr, Scope]]:
    """The factors that the number of micro-batches is a quotient by: n = batch_tokens // (rows * width * world)."""
    count = count_of(loop, project)
    for origin in project.origins(*count, depth=4) if count is not None else ():
        for part in walk(origin.node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, (ast.FloorDiv, ast.Div)):
                for factor in _factors(part.right, origin.scope, project):
                    if not WORLD.search(" ".join(names_in(factor[0]))):
                        yield factor


def _factors(node: ast.expr, scope: Scope, project: Project, depth: int = 2) -> Iterator[tuple[ast.expr, Scope]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield from _factors(node.left, scope, project, depth)
        yield from _factors(node.right, scope, project, depth)
        return
    made = [b.value for b in scope.bindings.get(node.id, []) if b.how == "="] if isinstance(node, ast.Name) else []
    if depth and len(made) == 1 and isinstance(made[0], ast.BinOp):
        yield from _factors(made[0], scope, project, depth - 1)
    else:
        yield node, scope


def _split_in(call: ast.Call, loop: TrainLoop, project: Project) -> Iterator[tuple[ast.expr, Scope]]:
    """for part in pieces(batch): the step of the range in the generator, or of its split."""
    for function in project.callees(call, loop.scope)[:2]:
        for inner in function.calls:
            if last_name(inner.func) == "range" and len(inner.args) == 3:
                yield inner.args[2], function
            yield from ((size, function) for size in _split_size(inner, function))


def _split_size(call: ast.Call, scope: Scope) -> list[ast.expr]:
    """The rows of a part: x.split(4), torch.split(x, 4); the separator of a text is none."""
    if last_name(call.func) != "split":
        return []
    size = call.args[1 if called(call, scope).startswith("torch.") else 0 :][:1]
    return [one for one in size if not isinstance(one, ast.Constant) or type(one.value) is int]


def _drawn(item: Reached) -> Iterator[tuple[ast.expr, Scope]]:
    """torch.randint(n, (rows,)), sample(data, rows), stack([... for _ in range(rows)]): rows drawn in the loop."""
    node = item.node
    if not isinstance(node, ast.Call):
        return
    last = last_name(node.func)
    if last in ("stack", "tensor", "array", "collate", "default_collate") and node.args:
        counted = _counted(node.args[0], item.scope, 3)
        if counted is not None:
            yield counted, item.scope
    if last != "randint" or not any(isinstance(arg, (ast.Tuple, ast.List)) for arg in node.args):
        counted = _number_drawn(node)
        if counted is not None:
            yield counted, item.scope
    if last == "randint":
        for size in [*node.args, *(word.value for word in node.keywords)]:
            if isinstance(size, (ast.Tuple, ast.List)) and size.elts and not WORLD.search(
                " ".join(names_in(size.elts[0]))
            ):  # fmt: skip
                yield size.elts[0], item.scope


def _number_drawn(node: ast.Call) -> ast.expr | None:
    """How many a call draws: sample(data, n), choices(data, k=n), integers(0, high, n), islice(rows, n)."""
    last = last_name(node.func)
    if last in ("sample", "choices", "islice"):
        return keyword(node, "k") or (node.args[1] if len(node.args) == 2 else None)
    if last in ("randint", "integers"):
        size = keyword(node, "size") or (node.args[2] if len(node.args) > 2 else None)
        return None if isinstance(size, (ast.Tuple, ast.List)) else size
    return None


def _counted(node: ast.expr, scope: Scope, depth: int) -> ast.expr | None:
    """How many parts a list has: [f(i) for i in starts] with starts = [draw() for _ in range(n)] -> n."""
    if depth == 0:
        return None
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and len(node.generators) == 1:
        walked = node.generators[0].iter
        if isinstance(walked, ast.Call) and last_name(walked.func) == "range" and len(walked.args) == 1:
            return walked.args[0]
        return _counted(walked, scope, depth - 1)
    if isinstance(node, ast.Call):
        return _number_drawn(node)
    if isinstance(node, ast.Name):
        values = [binding.value for binding in scope.bindings.get(node.id, []) if binding.how == "="]
        return next((count for value in values if (count := _counted(value, scope, depth - 1)) is not None), None)
    return None
