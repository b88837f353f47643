"""A rule on how much of a row is padding."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.options import option_values, options
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk

Found = tuple[ast.AST, str]
# of a library, for rows with labels
COLLATORS = re.compile(r"^DataCollator(ForSeq2Seq|ForTokenClassification|ForCompletionOnlyLM|WithPadding)$")


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
    key = ("padded", module.path)
    if key not in project.remembered:  # the rule on changing shapes asks too
        project.remembered[key] = list(_padded_rows(module, project))
    yield from project.remembered[key]


def _padded_rows(module: Module, project: Project) -> Iterator[Place]:
    for scope in module.scopes:
        if scope.simple_name == "<lambda>" or _packs(scope):
            continue
        padding = (
            _pads_to_longest(scope, project)
            or _pads_by_library(scope, project)
            or _pads_lists(scope, project)
            or _pads_step_by_step(scope, project)
            or _fills_in_part(scope)
        )
        if padding is None:
            continue
        by_library = COLLATORS.match(_called_name(padding[0])) or _unpacked(padding[0])
        labels = scope if by_library else _labels_near(scope, project)
        if labels is None or _packs(labels):
            continue
        node, how = padding
        told = "the batch carries labels: it is for training"
        if labels is not scope:
            told += f" ({labels.module.path}: `{labels.simple_name}`)"
        home = next((other.scope_of[node] for other in project.modules if node in other.scope_of), scope)
        yield Place(node, f"rows are filled up {how}, each with one text", (told,), scope=home)


def _unpacked(node: ast.AST) -> bool:
    """SFTConfig(packing=False): a library's trainer that was told not to pack."""
    if not isinstance(node, ast.Call) or not re.search(r"Config$|Trainer$|Arguments$", last_name(node.func) or ""):
        return False
    return is_false(keyword(node, "packing"))


def _called_name(node: ast.AST) -> str:
    return (last_name(node.func) or "") if isinstance(node, ast.Call) else ""


def _labels_near(scope: Scope, project: Project) -> Scope | None:
    """The function that makes labels for what is padded: itself, its class, what it calls, or what calls it."""
    near = [scope]
    if scope.owner is not None:
        near += project.class_scopes(scope.owner)
    near += [function for call in scope.calls for function in project.callees(call, scope)[:2]]
    if scope.node is not scope.module.tree:
        sites = project.callers(scope)[:6]
        near += [site.scope for site in sites]
        near += [site.scope for up in sites for site in project.callers(up.scope)[:4] if up.scope.outer is not None]
    return next((one for one in near if one.node is not one.module.tree and _makes_labels(one)), None) or (
        scope if scope.node is scope.module.tree and _makes_labels(scope) else None
    )


def _makes_labels(scope: Scope) -> bool:
    """Whether a function makes labels in which padding is left out (-1, -100), as only training does."""
    text_names = {node.id for node in scope.of(ast.Name)}
    words = {part.value for part in scope.of(ast.Constant) if isinstance(part.value, str)}
    words = {word for word in words if len(word) < 40}
    labelled = any(re.search(r"label|target|loss_mask", name) for name in text_names | words)
    return (
        _fills_ignored(scope)
        or labelled
        and (_has_ignored(scope) or any(re.search(r"label|loss_mask", word) for word in words))
    )


TRAINS = re.compile(r"ignore_index|cross_entropy|backward\(")


def _fills_ignored(scope: Scope) -> bool:
    """A row that begins full of -100, or in a file with a loss of -1, as only labels do, whatever their name."""
    trains = scope.module.mentions(TRAINS)
    numbers = (1, 100) if trains else (100,)
    for node in scope.of(ast.Call, ast.BinOp):
        if isinstance(node, ast.Call) and last_name(node.func) in (
            "full", "new_full", "full_like", "fill_", "masked_fill", "masked_fill_", "pad_sequence", "pad",
            "constant_pad_nd",
        ):  # fmt: skip
            values = [*node.args[1:], *(word.value for word in node.keywords)]
            values += node.args[:1] if last_name(node.func) == "fill_" else []
            if any(_is_ignored(value, numbers) for value in values):
                return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            lists = [side for side in (node.left, node.right) if isinstance(side, ast.List) and len(side.elts) == 1]
            if any(_is_ignored(side.elts[0], (100,)) for side in lists):
                return True
    return False


def _is_ignored(node: ast.expr, numbers: tuple[int, ...]) -> bool:
    """-1, -100, or a name that says ignore."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return node.operand.value in numbers
    return bool(re.search(r"ignore", last_name(node) or "", re.I))


def _has_ignored(scope: Scope) -> bool:
    for node in scope.of(ast.UnaryOp, ast.Name, ast.Attribute):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            above = scope.module.parents.get(node)
            if node.operand.value in (1, 100) and not isinstance(above, (ast.Subscript, ast.Slice, ast.Tuple)):
                return True
        if isinstance(node, ast.Name) and re.search(r"ignore_?(index|id|label)|IGNORE", node.id):
            return True
        if isinstance(node, ast.Attribute) and re.search(r"ignore_?(index|id|label)|IGNORE", node.attr):
            return True
    return False


PACKED = re.compile(r"cu_seqlens|doc(ument)?_(ids|mask)|packed|seq_idx")


def _packs(scope: Scope) -> bool:
    """Whether a function already lays several texts into one row."""
    for node in scope.of(ast.Call, ast.Name):
        if (
            isinstance(node, ast.Call)
            and last_name(node.func) in ("extend", "pack")
            and len(scope.module.loops_around(node)) >= 2
        ):
            inner = scope.module.loops_around(node)[0]
            if isinstance(inner, ast.While):
                return True
        if isinstance(node, ast.Name) and PACKED.search(node.id):
            return True
    return False


def _pads_to_longest(scope: Scope, project: Project) -> Found | None:
    """full((rows, max(len(x) ...)), pad), also where the width is handed over."""
    for node in scope.of(ast.Call):
        if not node.args:
            continue
        if last_name(node.func) not in ("full", "zeros", "ones", "empty", "new_full", "new_zeros"):
            continue
        width: ast.expr = node.args[0]
        if (
            not isinstance(width, (ast.Tuple, ast.List))
            and len(node.args) > 1
            and "full" not in (last_name(node.func) or "")
        ):
            width = ast.Tuple(elts=list(node.args[:2]), ctx=ast.Load())
        if (
            isinstance(width, (ast.Tuple, ast.List))
            and len(width.elts) == 2
            and _is_filled(node, scope)
            and _is_longest(width.elts[1], scope, project, 4)
        ):
            return node, "to the longest of the batch"
    return None


def _is_filled(node: ast.Call, scope: Scope) -> bool:
    """Whether what was made is written row by row in the same function."""
    above = scope.module.parents.get(node)
    while isinstance(above, (ast.Call, ast.Attribute)):
        above = scope.module.parents.get(above)
    return isinstance(above, (ast.Assign, ast.AnnAssign, ast.Return, ast.Tuple, ast.Dict, ast.keyword))


def _is_longest(node: ast.expr, scope: Scope, project: Project, depth: int) -> bool:
    """max(len(row) for row in batch), perhaps plus or minus something, behind a name, or handed over by a caller."""
    for part in walk(node):
        if isinstance(part, ast.Call) and last_name(part.func) in ("max", "amax") and _is_of_lengths(part, scope):
            return True
        if (
            isinstance(part, ast.Subscript)
            and isinstance(part.value, ast.Call)
            and last_name(part.value.func) == "sorted"
            and "len" in text_of(part.value)
        ):
            return True
        if depth and isinstance(part, ast.Call):
            for function in project.callees(part, scope)[:2]:
                if any(_is_longest(value, function, project, depth - 1) for value in function.returns):
                    return True
        if depth and isinstance(part, ast.Name):
            for origin in project.origins(part, scope, depth=2):
                if (
                    origin.node is not part
                    and not origin.is_annotation
                    and _is_longest(origin.node, origin.scope, project, depth - 1)
                ):
                    return True
    return False


def _is_of_lengths(call: ast.Call, scope: Scope) -> bool:
    """max over len(...), sizes or lengths; not max(1, n)."""
    if re.search(r"len|size|shape", text_of(call)):
        return True
    return any(
        "len(" in text_of(binding.value)
        for arg in call.args for name in names_in(arg) for binding in scope.bindings.get(name, [])
    )  # fmt: skip


def _pads_by_library(scope: Scope, project: Project) -> Found | None:
    """pad_sequence(...), tokenizer(..., padding=...), tokenizer.pad(...), F.pad(row, (0, longest - len(row)))."""
    for call in scope.calls:
        name = called(call, scope)
        if name.endswith(("pad_sequence", "to_padded_tensor")):
            return call, "to the longest of the batch"
        if COLLATORS.match(name.rpartition(".")[2]):
            return call, "to the longest of the batch"
        if _unpacked(call):
            return call, "to the longest of the batch"
        if name.endswith("zip_longest") and keyword(call, "fillvalue") is not None:
            return call, "to the longest of the batch"
        for option in options(call, "padding", scope, project):
            values = option_values(option, project)
            if "max_length" in values:
                return option.node, "to a fixed length"
            if "longest" in values or any(value is True for value in values):  # 1 is a convolution's
                return option.node, "to the longest of the batch"
        if re.search(r"(^|[._])(tok|tokenizer|processor|extractor)\.pad$", name):
            return call, "to the longest of the batch"
        if name in ("torch.nn.functional.pad", "torch.constant_pad_nd", "np.pad", "numpy.pad") and len(call.args) > 1:
            amount = call.args[1]
            if re.search(r"len|size|shape", text_of(amount)) or _is_gap(amount, scope):
                longest = _is_longest(amount, scope, project, 3)
                return call, "to the longest of the batch" if longest else "one by one"
    return None


def _is_gap(node: ast.expr, scope: Scope) -> bool:
    """A number that is the difference of two lengths, behind a name."""
    for name in names_in(node):
        for binding in scope.bindings.get(name, []):
            value = binding.value
            if isinstance(value, ast.Call) and last_name(value.func) == "max" and value.args:
                value = value.args[-1]
            if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub) and re.search(
                r"len\(|\.size|shape|numel", text_of(value)
            ):  # fmt: skip
                return True
    return False


def _pads_lists(scope: Scope, project: Project) -> Found | None:
    """row + [pad] * (longest - len(row)), row.extend([pad] * gap)."""
    for node in scope.of(ast.BinOp):
        if not isinstance(node.op, ast.Mult):
            continue
        one, count = (node.left, node.right) if isinstance(node.left, ast.List) else (node.right, node.left)
        if not isinstance(one, ast.List) or len(one.elts) != 1:
            continue
        direct = isinstance(count, ast.BinOp) and isinstance(count.op, ast.Sub) and "len(" in text_of(count)
        if not direct and not _is_gap(count, scope):
            continue
        if any(isinstance(loop, ast.While) for loop in scope.module.loops_around(node)):
            continue
        parts: list[ast.expr] = [count.left] if isinstance(count, ast.BinOp) else [count]
        behind = [binding.value for name in names_in(count) for binding in scope.bindings.get(name, [])]
        parts += [value.left for value in behind if isinstance(value, ast.BinOp)]
        longest = any(_is_longest(part, scope, project, 3) for part in parts)
        return node, "to the longest of the batch" if longest else "to a fixed length"
    return None


def _fills_in_part(scope: Scope) -> Found | None:
    """row = full(width, pad); row[: len(ids)] = ids"""
    for node in scope.of(ast.Assign):
        if not isinstance(node.targets[0], ast.Subscript):
            continue
        target = node.targets[0]
        index = target.slice.elts[-1] if isinstance(target.slice, ast.Tuple) and target.slice.elts else target.slice
        if not isinstance(index, ast.Slice) or index.lower is not None or index.upper is None:
            continue
        name = target_name(target.value)
        made = [b.value for b in scope.bindings.get(name or "", []) if b.how == "=" and isinstance(b.value, ast.Call)]
        filled = [call for call in made if last_name(call.func) in ("full", "zeros", "ones", "new_full", "new_zeros")]
        if filled and _is_length(index.upper, scope):
            return filled[0], "to a fixed length"
    return None


def _is_length(node: ast.expr, scope: Scope) -> bool:
    """len(row), row.size(0), or a name for one of them."""
    if re.search(r"len\(|\.size\(|\.shape|numel", text_of(node)):
        return True
    values = [b.value for name in names_in(node) for b in scope.bindings.get(name, []) if b.how == "="]
    return any(re.search(r"len\(|\.size\(|\.shape|numel", text_of(value)) for value in values)


def _is_filler(node: ast.expr) -> bool:
    return isinstance(node, (ast.Constant, ast.UnaryOp)) or bool(re.search(r"pad|ignore|eos", text_of(node), re.I))


def _pads_step_by_step(scope: Scope, project: Project) -> Found | None:
    """while len(row) < width: row.append(pad)"""
    for node in scope.of(ast.While):
        if len(node.body) > 3 or not isinstance(node.test, ast.Compare):
            continue
        if not re.match(r"len\(", text_of(node.test.left)) or not isinstance(node.test.ops[0], ast.Lt):
            continue
        row = names_in(node.test.left)
        pads = [
            call for statement in node.body for call in walk(statement)
            if isinstance(call, ast.Call) and last_name(call.func) == "append" and call.args
            and _is_filler(call.args[0]) and names_in(call.func) & row
        ]  # fmt: skip
        if pads:
            longest = _is_longest(node.test.comparators[0], scope, project, 3)
            return node, "to the longest of the batch" if longest else "to a fixed length"
    return None
