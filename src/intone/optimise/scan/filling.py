"""How a function makes rows equally long by filling them up: to the longest of a batch, or to a fixed length."""

import ast
import re

from intone.optimise.scan.expressions import called, is_false, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.options import option_values, options
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name, walk

Found = tuple[ast.AST, str]
LONGEST, FIXED = "to the longest of the batch", "to a fixed length"
# of a library, for rows with labels
COLLATORS = re.compile(r"^DataCollator(ForSeq2Seq|ForTokenClassification|ForCompletionOnlyLM|WithPadding)$")
MAKES = ("full", "zeros", "ones", "empty", "new_full", "new_zeros", "new_ones", "bytearray", "memmap")


def filled_up(scope: Scope, project: Project) -> Found | None:
    """(where, to what length in words) for a function that fills rows up; None for one that does not."""
    return (
        _pads_to_longest(scope, project)
        or _pads_by_library(scope, project)
        or _fills_gap(scope, project)
        or _pads_step_by_step(scope, project)
        or _goes_on_for_ever(scope)
        or _filled_and_cut(scope)
        or _fills_in_part(scope)
    )


def is_for_training(node: ast.AST) -> bool:
    """Whether what fills rows up is made for rows with labels: a collator or a trainer of a library."""
    return isinstance(node, ast.Call) and (
        bool(COLLATORS.match(last_name(node.func) or "")) or _is_unpacked(node) or _collates_texts(node)
    )


def _is_unpacked(node: ast.Call) -> bool:
    """SFTConfig(packing=False): a library's trainer that was told not to pack."""
    return bool(re.search(r"Config$|Trainer$|Arguments$", last_name(node.func) or "")) and is_false(
        keyword(node, "packing")
    )


def _collates_texts(node: ast.Call) -> bool:
    return last_name(node.func) == "DataCollatorForLanguageModeling"


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
            return node, LONGEST
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
        if name.endswith(("pad_sequence", "pad_sequences", "to_padded_tensor")):
            return call, LONGEST
        if COLLATORS.match(name.rpartition(".")[2]):
            return call, LONGEST
        if _is_unpacked(call):
            return call, LONGEST
        if name.endswith("zip_longest") and keyword(call, "fillvalue") is not None:
            return call, LONGEST
        for option in options(call, "padding", scope, project):
            values = option_values(option, project)
            said = text_of(option.value)
            if "max_length" in values or said.endswith("Strategy.MAX_LENGTH"):
                return option.node, FIXED
            if (
                "longest" in values or said.endswith("Strategy.LONGEST") or any(value is True for value in values)
            ):  # 1 is a convolution's
                return option.node, LONGEST
        if name.endswith((".enable_padding", "PadTransform")) or is_true(keyword(call, "pad_to_max_length")):
            return call, FIXED
        if _collates_texts(call) and not re.search(r"group|block_size|concat|pack|chunk", scope.module.text):
            return call, LONGEST
        if re.search(r"(^|[._])(tok|tokenizer|processor|extractor)\.pad$", name):
            return call, LONGEST
        if name in ("torch.nn.functional.pad", "torch.constant_pad_nd", "np.pad", "numpy.pad") and len(call.args) > 1:
            amount = call.args[1]
            if re.search(r"len|size|shape", text_of(amount)) or any(_is_gap(part, scope) for part in walk(amount)):
                longest = _is_longest(amount, scope, project, 3)
                return call, LONGEST if longest else "one by one"
    return None


def _is_gap(node: ast.AST, scope: Scope, depth: int = 2) -> bool:
    """A number that is the difference of two lengths, itself, behind max(0, ...), or behind a name."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return _is_length(node.right, scope)
    if isinstance(node, ast.Call) and last_name(node.func) in ("max", "maximum") and node.args:
        return any(_is_gap(arg, scope, depth) for arg in node.args)
    if isinstance(node, ast.Name) and depth:
        return any(b.how == "=" and _is_gap(b.value, scope, depth - 1) for b in scope.bindings.get(node.id, []))
    return False


# what makes so many of a thing
REPEATS = (*MAKES, "repeat", "tile", "expand", "pad", "constant_pad_nd", "ConstantPad1d")


def _fills_gap(scope: Scope, project: Project) -> Found | None:
    """row + [pad] * (longest - len(row)), cat([row, full((gap,), pad)]), chain(row, repeat(pad, gap)), "~" * gap."""
    for node in scope.of(ast.BinOp, ast.Call):
        counts: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for one, count in ((node.left, node.right), (node.right, node.left)):
                if isinstance(one, (ast.List, ast.Tuple)) and len(one.elts) == 1 or _is_letter(one):
                    counts = [count]
        elif isinstance(node, ast.Call) and last_name(node.func) in REPEATS:
            counts = [*node.args, *(word.value for word in node.keywords if word.arg in ("size", "repeats", "shape"))]
        gaps = [part for count in counts for part in walk(count) if _is_gap(part, scope)]
        if not gaps or any(isinstance(loop, ast.While) for loop in scope.module.loops_around(node)):
            continue
        behind = [binding.value for gap in gaps for name in names_in(gap) for binding in scope.bindings.get(name, [])]
        parts = [gap.left if isinstance(gap, ast.BinOp) else gap for gap in gaps]
        parts += [value.left for value in behind if isinstance(value, ast.BinOp)]
        longest = any(_is_longest(part, scope, project, 3) for part in parts if isinstance(part, ast.expr))
        return node, LONGEST if longest else FIXED
    return None


def _is_letter(node: ast.expr) -> bool:
    """A text that is one sign: what fills a line of signs."""
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and len(node.value) == 1


def _filled_and_cut(scope: Scope) -> Found | None:
    """(ids + [pad] * width)[:width]"""
    for node in scope.of(ast.Subscript):
        upper = node.slice.upper if isinstance(node.slice, ast.Slice) and node.slice.lower is None else None
        if upper is None:
            continue
        value: ast.expr = node.value
        made = [b.value for b in scope.bindings.get(target_name(value) or "", []) if b.how == "="]
        for one in [value, *made]:
            filler = one.right if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Add) else None
            if isinstance(filler, ast.BinOp) and isinstance(filler.op, ast.Mult):
                sides = (filler.left, filler.right)
                lists = any(isinstance(side, (ast.List, ast.Tuple)) and len(side.elts) == 1 for side in sides)
                if lists and any(text_of(side) == text_of(upper) for side in sides):
                    return one, FIXED
    return None


def _goes_on_for_ever(scope: Scope) -> Found | None:
    """islice(chain(row, repeat(pad)), width), line.ljust(width, "~"): as many as are wanted."""
    for node in scope.calls:
        name = last_name(node.func)
        if name in ("ljust", "rjust") and isinstance(node.func, ast.Attribute) and len(node.args) == 2:
            return node, FIXED
        if name == "islice" and node.args and isinstance(node.args[0], ast.Call):
            inside = [part for part in walk(node.args[0]) if isinstance(part, ast.Call)]
            if any(last_name(part.func) == "repeat" and len(part.args) == 1 for part in inside):
                return node, FIXED
    return None


def _fills_in_part(scope: Scope) -> Found | None:
    """row = full(width, pad); row[: len(ids)] = ids, row[-len(ids) :] = ids, or row[i, j] = id one by one."""
    for node in scope.of(ast.Assign):
        if not isinstance(node.targets[0], ast.Subscript):
            continue
        target = node.targets[0]
        index = target.slice.elts[-1] if isinstance(target.slice, ast.Tuple) and target.slice.elts else target.slice
        name = target_name(target.value)
        made = _made(name or "", scope)
        filled = [call for call in made if last_name(call.func) in MAKES and last_name(call.func) != "empty"]
        filled += [call for call in scope.calls if _fills_whole(call, name)]
        if filled and (_is_begin(index, scope) or _is_end(index, scope) or _is_counter(index, node, scope)):
            return filled[0], FIXED
    return None


def _fills_whole(call: ast.Call, name: str | None) -> bool:
    """buffer.fill_(pad), buffer[:] = pad as a call: what makes a buffer that is used again full of padding."""
    base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
    return name is not None and base == name and last_name(call.func) in ("fill_", "fill")


def _made(name: str, scope: Scope) -> list[ast.Call]:
    """The calls that made a name; of a row in zip(out, rows) those that made `out`."""
    found = []
    for binding in scope.bindings.get(name, []):
        value = binding.value
        if binding.how == "=" and isinstance(value, ast.Call):
            found.append(value)
        elif binding.how == "iter":
            walked = [value]
            if isinstance(value, ast.Call) and last_name(value.func) in ("zip", "enumerate"):
                walked = value.args[binding.index or 0 :][:1] if last_name(value.func) == "zip" else value.args[:1]
            made = [b.value for one in walked for b in scope.bindings.get(target_name(one) or "", []) if b.how == "="]
            found += [one for one in made if isinstance(one, ast.Call)]
    return found


def _is_begin(index: ast.expr, scope: Scope) -> bool:
    """[: len(row)]"""
    if not isinstance(index, ast.Slice) or index.lower is not None or index.upper is None:
        return False
    return _is_length(index.upper, scope)


def _is_end(index: ast.expr, scope: Scope) -> bool:
    """[-len(row) :], [width - len(row) :]"""
    if not isinstance(index, ast.Slice) or index.lower is None or index.upper is not None:
        return False
    below = isinstance(index.lower, ast.UnaryOp) and _is_length(index.lower.operand, scope)
    return below or _is_gap(index.lower, scope)


def _is_counter(index: ast.expr, node: ast.Assign, scope: Scope) -> bool:
    """rows[i, j] = token in a loop over the places j of one row, inside another loop."""
    loops = scope.module.loops_around(node)
    if not isinstance(index, ast.Name) or len(loops) < 2 or not isinstance(loops[0], ast.For):
        return False
    walked, put = loops[0].iter, node.value
    if not isinstance(walked, ast.Call) or index.id not in names_in(loops[0].target):
        return False
    if last_name(walked.func) == "enumerate":  # for j, token in enumerate(row)
        return bool(names_in(put) & (names_in(loops[0].target) - {index.id}))
    return last_name(walked.func) == "range" and isinstance(put, ast.Subscript) and index.id in names_in(put.slice)


def _is_length(node: ast.expr, scope: Scope) -> bool:
    """len(row), row.size(0), or a name for one of them."""
    if re.search(r"len\(|\.size\b|\.shape|numel", text_of(node)):
        return True
    values = [b.value for name in names_in(node) for b in scope.bindings.get(name, []) if b.how == "="]
    return any(re.search(r"len\(|\.size\b|\.shape|numel", text_of(value)) for value in values)


def _is_filler(node: ast.expr) -> bool:
    return isinstance(node, (ast.Constant, ast.UnaryOp)) or bool(re.search(r"pad|ignore|eos", text_of(node), re.I))


def _pads_step_by_step(scope: Scope, project: Project) -> Found | None:
    """while len(row) < width: row.append(pad)"""
    for turn in scope.of(ast.For):  # for _ in range(width - len(row)): row.append(pad)
        counted = (
            turn.iter.args[-1:] if isinstance(turn.iter, ast.Call) and last_name(turn.iter.func) == "range" else []
        )
        puts = [one for one in walk(turn) if isinstance(one, ast.Call) and last_name(one.func) == "append" and one.args]
        if counted and _is_gap(counted[0], scope) and any(_is_filler(one.args[0]) for one in puts):
            return turn, LONGEST if _is_longest(counted[0], scope, project, 3) else FIXED
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
            return node, LONGEST if longest else FIXED
    return None
