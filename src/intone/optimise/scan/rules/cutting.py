"""How a batch is cut into micro-batches, and which of the numbers in it says how many rows each has."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import keyword, last_name, names_in, text_of
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.source import Scope, target_name


def is_floor(node: ast.expr, scope: Scope) -> bool:
    """max(1, rows): the number is only the least that it can be."""
    above = scope.module.parents.get(node)
    return isinstance(above, ast.Call) and last_name(above.func) == "max" and len(above.args) > 1


def folded(call: ast.Call) -> list[ast.expr]:
    """The rows of a part where a batch is folded: x.view(-1, 4, T), x.unflatten(0, (-1, 4)), rearrange(x, ..., m=4)."""
    last = last_name(call.func)
    if last == "unflatten" and call.args and text_of(call.args[0]) == "0" and isinstance(call.args[-1], ast.Tuple):
        return call.args[-1].elts[1:2]
    if last in ("view", "reshape") and len(call.args) > 2 and text_of(call.args[0]) in ("-1", "n", "accum"):
        return call.args[1:2]
    if last == "rearrange" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
        left = str(call.args[1].value).partition("->")[0].strip()
        found = re.match(r"\((\w+) (\w+)\)", left)
        size = keyword(call, found[2]) if found else None
        return [size] if size is not None else []
    return []


def _slides(name: str, item: Reached) -> bool:
    """[x[i : i + n] for i in range(len(x) - n)]: a window that moves by one cuts nothing into parts."""
    for above in item.scope.module.up(item.node):
        turns = above.generators if isinstance(above, (ast.ListComp, ast.SetComp, ast.GeneratorExp)) else [above]
        for turn in turns:
            if isinstance(turn, (ast.For, ast.comprehension)) and target_name(turn.target) == name:
                walked = turn.iter
                return isinstance(walked, ast.Call) and last_name(walked.func) == "range" and len(walked.args) < 3
    return False


def sliced(item: Reached) -> Iterator[tuple[ast.expr, Scope]]:
    """x[i * n : (i + 1) * n], slice(at, at + n): as many rows as a part has."""
    node = item.node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "slice":
        lower, upper = (node.args[0], node.args[1]) if len(node.args) > 1 else (None, None)
    elif isinstance(node, ast.Slice) and not isinstance(item.scope.module.parents.get(node), ast.Tuple):
        lower, upper = node.lower, node.upper
    else:
        return
    if isinstance(lower, ast.BinOp) and isinstance(lower.op, ast.Mult) and isinstance(upper, ast.BinOp):
        sides = [side for side in (lower.left, lower.right) if isinstance(upper.op, ast.Mult)]
        moving = {name for loop in item.scope.module.loops_around(node) if isinstance(loop, ast.For)
                  for name in names_in(loop.target)}  # fmt: skip
        yield from ((side, item.scope) for side in sides if not names_in(side) & moving)
    elif (
        isinstance(lower, ast.Name)
        and isinstance(upper, ast.BinOp)
        and target_name(upper.left) == lower.id
        and not _slides(lower.id, item)
    ):
        yield upper.right, item.scope
