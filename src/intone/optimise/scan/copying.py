"""How an expression makes copies of a value for several rows: list * n, expand, full, an element for each of them."""

import ast

from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.source import Scope, target_name, walk


def copied(node: ast.AST, scope: Scope) -> tuple[ast.expr, str] | None:
    """(the value that is copied, how) where an expression makes copies of a value."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for one, count in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.List) and len(one.elts) == 1 and not is_one(count):
                return one.elts[0], "list * n"
            if isinstance(one, ast.Call) and last_name(one.func) in ("ones", "ones_like", "new_ones"):
                return count, "ones * token"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.Call) and last_name(one.func) in ("zeros", "zeros_like", "new_zeros"):
                return other, "zeros + token"
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_zeros(first_part(node.slice), scope):
        return node.value, "the same place for every row"
    if isinstance(node, ast.AugAssign) and _is_all_of(node.target) and isinstance(node.op, (ast.Mult, ast.Add)):
        made = [b.value for b in scope.bindings.get(target_name(_base(node.target)) or "", []) if b.how == "="]
        wanted = ("ones", "new_ones") if isinstance(node.op, ast.Mult) else ("zeros", "new_zeros")
        fits = [isinstance(one, ast.Call) and last_name(one.func) in wanted for one in made]
        single = isinstance(node.op, ast.Mult) or is_number(node.value, scope)
        return (node.value, f"{wanted[0]} and token") if fits and all(fits) and single else None
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        loop = node.generators[0]
        names = {part.id for part in walk(loop.target) if isinstance(part, ast.Name)}
        used = {part.id for part in walk(node.elt) if isinstance(part, ast.Name)}
        if not names & used:
            return _original(node.elt), f"one element for each of {code_of(loop.iter, 20)}"
    if isinstance(node, ast.DictComp) and not names_in(node.value) & names_in(node.generators[0].target):
        return node.value, f"one entry for each of {code_of(node.generators[0].iter, 20)}"
    if isinstance(node, ast.Call):
        return _copied_by_call(node, scope)
    return None


def _base(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Subscript) else node


def _is_all_of(target: ast.expr) -> bool:
    """tokens, or a cut of it that takes every row: tokens[:, 1:]"""
    if not isinstance(target, ast.Subscript):
        return True
    first = first_part(target.slice)
    return isinstance(first, ast.Slice) and first.lower is None and first.upper is None


def first_part(index: ast.expr) -> ast.expr:
    """The part of an index that is about the rows."""
    return index.elts[0] if isinstance(index, ast.Tuple) and index.elts else index


def _is_zeros(node: ast.expr, scope: Scope) -> bool:
    """zeros(n, dtype=long), [0] * n, or a name for one of them."""
    if isinstance(node, ast.Call):
        return last_name(node.func) in ("zeros", "new_zeros") and not all(is_one(arg) for arg in node.args[:1])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = [node.left, node.right]
        return any(isinstance(one, ast.List) and [text_of(part) for part in one.elts] == ["0"] for one in sides)
    made = [b.value for b in scope.bindings.get(target_name(node) or "", []) if b.how != "op"]
    return bool(made) and all(isinstance(one, (ast.Call, ast.BinOp)) and _is_zeros(one, scope) for one in made)


def _copied_by_call(node: ast.Call, scope: Scope) -> tuple[ast.expr, str] | None:
    name = called(node, scope)
    last = name.rpartition(".")[2]
    if name.startswith(("torch.", "np.", "numpy.")) and node.args and last in (
        "repeat_interleave", "tile", "repeat", "broadcast_to", "expand"
    ):  # fmt: skip
        return node.args[0], last
    if name == "torch.index_select" and len(node.args) > 2 and _is_zeros(node.args[2], scope):
        return node.args[0], "the same place for every row"
    if last == "index_select" and isinstance(node.func, ast.Attribute) and node.args:
        return (node.func.value, "the same place for every row") if _is_zeros(node.args[-1], scope) else None
    if name == "map" and len(node.args) == 2 and isinstance(node.args[0], ast.Lambda):
        own = {arg.arg for arg in node.args[0].args.args}
        if not own & names_in(node.args[0].body):
            return node.args[0].body, f"one element for each of {code_of(node.args[1], 20)}"
    if name in ("torch.full", "np.full", "numpy.full", "torch.full_like", "numpy.full_like"):
        filler = node.args[1] if len(node.args) > 1 else keyword(node, "fill_value")
        return (filler, last) if filler is not None else None
    if (
        name
        in ("itertools.repeat", "einops.repeat", "np.repeat", "numpy.repeat", "np.tile", "numpy.tile", "torch.tile")
        and node.args
    ):
        return node.args[0], last
    if isinstance(node.func, ast.Attribute) and last in ("expand", "expand_as", "repeat", "repeat_interleave", "tile"):
        counts = [part for arg in node.args for part in (arg.elts if isinstance(arg, ast.Tuple) else [arg])]
        if all(is_one(part) or isinstance(part, ast.Constant) and part.value == 2 for part in counts):
            return None  # twice: with and without the condition, for guidance
        return node.func.value, f".{last}()"
    if isinstance(node.func, ast.Attribute) and last == "fill_" and node.args:
        return node.args[0], ".fill_()"
    if isinstance(node.func, ast.Attribute) and last == "new_full" and len(node.args) > 1:
        return node.args[1], ".new_full()"
    if last in ("broadcast_to", "fromkeys") and node.args:
        method = last == "broadcast_to" and not name.startswith(("torch.", "np.", "numpy."))
        if method and isinstance(node.func, ast.Attribute):
            return node.func.value, last
        return (node.args[-1] if last == "fromkeys" else node.args[0]), last
    return None


def rows_copied(node: ast.AST, scope: Scope) -> tuple[ast.expr, list[ast.expr]] | None:
    """(what is copied along the rows, what counts them) where a copy has a new first axis: repeat(m, "n -> b n", b=b).

    Also tile(m, (rows, 1)), m[None].expand(rows, -1), m.expand(rows, -1), m.broadcast_to(x.shape), stack([m] * rows).
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = ((node.left, node.right), (node.right, node.left))
        return next(
            ((one.elts[0], [count]) for one, count in sides if isinstance(one, ast.List) and len(one.elts) == 1), None
        )
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        turned = names_in(node.generators[0].target)
        anew = any(isinstance(part, ast.Call) for part in walk(node.elt))  # computed, and so drawn, for each of them
        return None if anew or turned & names_in(node.elt) else (node.elt, [node.generators[0].iter])
    if not isinstance(node, ast.Call):
        return None
    last = last_name(node.func)
    base = node.func.value if isinstance(node.func, ast.Attribute) else None
    of_package = base is None or (target_name(base) or "").partition(".")[0] in scope.module.imports
    args = node.args[1:] if of_package else node.args
    value = node.args[0] if of_package and node.args else base
    if value is None or of_package and not node.args:
        return None
    pattern = args[0].value if args and isinstance(args[0], ast.Constant) else None
    if last == "repeat" and isinstance(pattern, str) and "->" in pattern:
        left, right = (side.split() for side in pattern.split("->"))
        new = [axis.strip("()") for axis in right if axis not in left]
        counts = [word.value for word in node.keywords if word.arg in new]
        return (value, counts) if right and right[0].strip("()") in new else None
    if last in ("broadcast_to", "expand_as") or last == "expand" and args and "shape" in text_of(args[0]):
        return value, list(args)
    if last in ("expand", "repeat", "tile"):
        sizes = [part for arg in args for part in (arg.elts if isinstance(arg, (ast.Tuple, ast.List)) else [arg])]
        rest = [is_one(size) for size in sizes[1:]]
        lone = len(sizes) == 1 and last in ("expand", "repeat")
        widened = isinstance(value, ast.Subscript) and _begins_with_none(value.slice) or text_of(value).endswith(
            (".unsqueeze(0)", "view(1, -1)", "reshape(1, -1)")
        )  # fmt: skip
        if sizes and not is_one(sizes[0]) and (lone or bool(rest) and all(rest) or widened):
            return value, sizes[:1]
    return None


def _begins_with_none(index: ast.expr) -> bool:
    """[None], [None, :]"""
    first = first_part(index)
    return isinstance(first, ast.Constant) and first.value is None


def _original(node: ast.expr) -> ast.expr:
    """What deepcopy(state), state.clone() or replace(state, row=i) is a copy of; anything else itself."""
    if isinstance(node, ast.Call):
        if last_name(node.func) in ("deepcopy", "copy", "replace") and node.args:
            return node.args[0]
        if last_name(node.func) in ("clone", "copy", "fork") and isinstance(node.func, ast.Attribute):
            return node.func.value
    return node


def is_number(value: ast.expr, scope: Scope) -> bool:
    """One number, not a column of them: token.item(), int(token), or a name for that."""
    if isinstance(value, ast.Call):
        one = last_name(value.func) == "choice" and keyword(value, "size") is None and len(value.args) < 2
        return one or last_name(value.func) in ("item", "int")
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Call):  # random.choices(...)[0]
        return last_name(value.value.func) == "choices"
    if isinstance(value, ast.Name):
        made = [binding.value for binding in scope.bindings.get(value.id, []) if binding.how == "="]
        return bool(made) and all(isinstance(one, ast.Call) and is_number(one, scope) for one in made)
    return False


def is_one(node: ast.expr) -> bool:
    """1, -1 or something that is no count at all."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant) and node.value == 1
