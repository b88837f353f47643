"""Rules on how much work a device gets at once: the micro-batch, and how much of a row is padding."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.project import Project, called, code_of, keyword, last_name
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name

BATCH = re.compile(
    r"^(per_device_|device_|micro_|mini_|local_|train_|per_gpu_)*(train_)?(micro_)?(batch|batch_size|bs|mbs|batchsize)$",
    re.I,
)
ACCUMULATES = re.compile(
    r"accum|grad_acc|target_(examples|batch|tokens)|global_batch|total_batch|effective_batch|num_passes", re.I
)
SMALL = 8  # rows; guess: below it the matrix products of a small model leave most of a GPU idle
LABELS = re.compile(r"label|target|(^|_)y($|_)|loss_mask|train")
IGNORED = (-1, -100)


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
    """A batch size of 8 rows or less as a constant, default or flag, in a file that accumulates gradients."""
    accumulation = _accumulation_line(module)
    if accumulation is None or re.search(r"(^|/)(test|tests)/", module.path):
        return
    for node, name, value in _constants(module):
        if not BATCH.match(name) or not 1 <= value <= SMALL or not _is_micro(name, module):
            continue
        text = module.line_of(node)
        remark = module.comments.get(node.lineno, "")  # type: ignore[attr-defined]
        yield Place(
            node,
            f"`{name}` is fixed at {value} row{'s' if value > 1 else ''} and made up for by accumulation",
            (
                f"accumulation: line {accumulation[0]}: {accumulation[1]}",
                *([f"remark: {remark}"] if remark and remark in text else []),
            ),
            severity="high" if value <= 4 and "train" not in name else None,
        )


def _is_micro(name: str, module: Module) -> bool:
    """A plain `batch_size` is the micro-batch unless a name for that stands beside it."""
    if re.search(r"micro|device|mini|local|gpu|mbs", name, re.I):
        return True
    return not re.search(r"\b(micro_batch|device_batch|micro_bs|mini_batch_size|per_device)\w*", module.text)


def _accumulation_line(module: Module) -> tuple[int, str] | None:
    """Where a file accumulates gradients: a name for it with a value other than 1, or a quotient of batch sizes."""
    for node in ast.walk(module.tree):
        names: list[str] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            names, value = [target_name(node.targets[0]) or ""], node.value
        elif isinstance(node, ast.AnnAssign):
            names, value = [target_name(node.target) or ""], node.value
        elif isinstance(node, ast.keyword) and node.arg:
            names, value = [node.arg], node.value
        elif isinstance(node, ast.Call) and last_name(node.func) == "add_argument":
            names, value = _flag(node), keyword(node, "default")
        if not names or value is None:
            continue
        if any(ACCUMULATES.search(name) for name in names) and not (
            isinstance(value, ast.Constant) and value.value in (1, None)
        ):
            if isinstance(value, ast.Constant) and not isinstance(value.value, int) or _is_bound_to_one(value, module):
                continue
            return value.lineno, code_of(node, 60)
    return None


def _is_bound_to_one(value: ast.expr, module: Module) -> bool:
    """A name that only ever stands for 1."""
    bindings = module.top.bindings.get(target_name(value) or "", [])
    return bool(bindings) and all(isinstance(b.value, ast.Constant) and b.value.value == 1 for b in bindings)


def _flag(call: ast.Call) -> list[str]:
    return [
        arg.value.lstrip("-").replace("-", "_")
        for arg in call.args
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    ]


def _constants(module: Module) -> Iterator[tuple[ast.AST, str, int]]:
    """(node, name, whole number) of every constant assignment, default of a parameter, keyword and flag."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield from _number(node, target_name(node.targets[0]), node.value)
        elif isinstance(node, ast.AnnAssign):
            yield from _number(node, target_name(node.target), node.value)
        elif isinstance(node, ast.Call):
            if last_name(node.func) == "add_argument":
                for name in _flag(node)[-1:]:
                    yield from _number(node, name, keyword(node, "default"))
            elif re.search(r"Args|Arguments|Config|Settings|DataLoader|dict$", last_name(node.func) or ""):
                for word in node.keywords:
                    yield from _number(word.value, word.arg, word.value)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            args = [*node.args.posonlyargs, *node.args.args]
            for arg, default in zip(args[len(args) - len(node.args.defaults) :], node.args.defaults, strict=True):
                yield from _number(default, arg.arg, default)
            for arg, maybe in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                yield from _number(maybe, arg.arg, maybe)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield from _number(value, key.value, value)


def _number(node: ast.AST | None, name: str | None, value: ast.expr | None) -> Iterator[tuple[ast.AST, str, int]]:
    if node is not None and name and isinstance(value, ast.Constant) and type(value.value) is int:
        yield node, name.rpartition(".")[2], value.value


@rule(
    "S23",
    "rows padded where they could be packed",
    kind="padding",
    severity="medium",
    why="Padding goes through every layer and is then left out of the loss; with texts of mixed length half "
    "of the work or more "
    "is for nothing, and each new width is a new shape for compiled code.",
    fix="Pack several texts into one row of fixed length, with a document mask and positions that start "
    "anew; weight the loss "
    "by supervised tokens.",
    source="optimiser.md D16; nanochat-facts.md 2.6",
)
def padded_rows(module: Module, project: Project) -> Iterator[Place]:
    """A collate of training rows with labels that fills up to the longest row, or to a fixed length."""
    for scope in module.scopes:
        if not _makes_labels(scope) or _packs(scope) or scope.simple_name == "<lambda>":
            continue
        padding = _pads_to_longest(scope) or _pads_by_library(scope) or _pads_lists(scope)
        if padding:
            node, how = padding
            yield Place(
                node, f"rows are filled up {how}, each with one text", ("the batch carries labels: it is for training",)
            )


def _makes_labels(scope: Scope) -> bool:
    """Whether a function makes labels in which padding is left out (-1, -100), as only training does."""
    text_names = {name for node in scope.body for name in ([node.id] if isinstance(node, ast.Name) else [])}
    words = {part.value for part in scope.body if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    labelled = any(re.search(r"label|target", name) for name in text_names | words)
    return labelled and (_has_ignored(scope) or any("label" in word for word in words))


def _has_ignored(scope: Scope) -> bool:
    for node in scope.body:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            above = scope.module.parents.get(node)
            if node.operand.value in (1, 100) and not isinstance(above, (ast.Subscript, ast.Slice, ast.Tuple)):
                return True
        if isinstance(node, ast.Name) and re.search(r"ignore_(index|id|label)|IGNORE", node.id):
            return True
        if isinstance(node, ast.Attribute) and re.search(r"ignore_(index|id|label)", node.attr):
            return True
    return False


def _packs(scope: Scope) -> bool:
    """Whether a function already lays several texts into one row."""
    for node in scope.body:
        if (
            isinstance(node, ast.Call)
            and last_name(node.func) in ("extend", "pack")
            and len(scope.module.loops_around(node)) >= 2
        ):
            inner = scope.module.loops_around(node)[0]
            if isinstance(inner, ast.While):
                return True
        if isinstance(node, ast.Name) and re.search(r"cu_seqlens|doc(ument)?_(ids|mask)|packed|seq_idx", node.id):
            return True
    return False


def _pads_to_longest(scope: Scope) -> tuple[ast.AST, str] | None:
    """full((rows, max(len(x) ...)), pad)."""
    for node in scope.body:
        if isinstance(node, ast.Call) and last_name(node.func) in ("full", "zeros", "ones", "empty") and node.args:
            width = (
                node.args[0]
                if len(node.args) == 1 or last_name(node.func) == "full"
                else ast.Tuple(elts=list(node.args[:2]), ctx=ast.Load())
            )
            if isinstance(width, (ast.Tuple, ast.List)) and len(width.elts) == 2:
                for name in [width.elts[1]]:
                    if _is_longest(name, scope, 3):
                        return node, "to the longest of the batch"
    return None


def _is_longest(node: ast.expr, scope: Scope, depth: int) -> bool:
    """max(len(row) for row in batch), perhaps plus or minus something, perhaps behind a name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and last_name(part.func) == "max" and "len(" in ast.unparse(part):
            return True
        if (
            isinstance(part, ast.Call)
            and last_name(part.func) == "max"
            and re.search(r"len|size|shape", ast.unparse(part))
        ):
            return True
        if depth and isinstance(part, ast.Name):
            for binding in scope.bindings.get(part.id, []):
                if binding.how == "=" and _is_longest(binding.value, scope, depth - 1):
                    return True
    return False


def _pads_by_library(scope: Scope) -> tuple[ast.AST, str] | None:
    """pad_sequence(...), tokenizer(..., padding=...), F.pad(row, (0, longest - len(row)))."""
    for call in scope.calls:
        name = called(call, scope)
        if name.endswith("pad_sequence"):
            return call, "to the longest of the batch"
        padding = keyword(call, "padding")
        if isinstance(padding, ast.Constant) and padding.value in (True, "longest", "max_length"):
            return call, "to a fixed length" if padding.value == "max_length" else "to the longest of the batch"
        if (
            name in ("torch.nn.functional.pad", "np.pad", "numpy.pad")
            and len(call.args) > 1
            and re.search(r"len|size|shape", ast.unparse(call.args[1]))
        ):
            return call, "one by one"
    return None


def _pads_lists(scope: Scope) -> tuple[ast.AST, str] | None:
    """row + [pad] * (longest - len(row))."""
    for node in scope.body:
        if not (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Mult)
            and isinstance(node.left, ast.List)
            and len(node.left.elts) == 1
        ):
            continue
        if (
            isinstance(node.right, ast.BinOp)
            and isinstance(node.right.op, ast.Sub)
            and re.search(r"len\(", ast.unparse(node.right))
        ):
            if any(isinstance(loop, ast.While) for loop in scope.module.loops_around(node)):
                continue
            longest = any(_is_longest(part, scope, 2) for part in [node.right.left])
            return node, "to the longest of the batch" if longest else "to a fixed length"
    return None
