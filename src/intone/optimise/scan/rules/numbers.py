"""One random number, or one row of noise, that is copied over all rows before each row's token is chosen with it."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.copying import copied, first_part
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place
from intone.optimise.scan.rules.seeding import made_of, shared_noise
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import spelled

# what makes tokens of numbers and scores -> what is in its making
INVERTS = {
    "searchsorted": "cum", "bucketize": "cum", "digitize": "cum", "sum": "cum",
    "argmax": r"cum|log\(|exponential|gumbel",
}  # fmt: skip
SAME = (
    "item", "to", "float", "double", "cuda", "view", "reshape", "unsqueeze", "squeeze", "clone", "log", "neg", "clamp",
    "clamp_", "clamp_min", "log_", "neg_", "tensor", "as_tensor", "uniform_", "exponential_", "random_", "div",
)  # fmt: skip
RANDOM = re.compile(r"(^|\.)(torch\.rand|random\.random|random\.rand|random\.uniform|random\.random_sample)$")


def numbers_for_all(module: Module, project: Project) -> Iterator[Place]:
    """searchsorted(cdf, torch.rand(1).expand(rows, 1)), (logits + gumbel(1, vocab).expand(rows, -1)).argmax(-1)"""
    if "rand" not in module.text and "uniform_" not in module.text and "exponential_" not in module.text:
        return
    for scope in module.scopes:
        told: set[ast.AST] = set()
        for call in scope.calls:
            making = INVERTS.get(last_name(call.func) or "")
            if making is None or not re.search(making, spelled(call, scope, 3)):
                continue
            for part in made_of(call, scope):
                made = copied(part, scope) if part not in told and _covers_rows(part) else None
                number = _one_draw(made[0], scope, project, 12) if made is not None else None
                if made is None or number is None or any(number is p.node for p in shared_noise(module, project)):
                    continue
                told.add(part)
                yield Place(
                    part,
                    f"`{code_of(number, 40)}` is drawn once and copied for every row ({made[1]})",
                    (
                        f"each row's token is chosen with it by {code_of(call, 50)} at line {call.lineno}",
                        "rows with the same scores get the same token, so samples of one prompt are copies",
                    ),
                )


def _covers_rows(node: ast.AST) -> bool:
    """Whether a copy has more than one row, by what is written of its size: not expand(1, n), full((1, n), u)."""
    if not isinstance(node, ast.Call):
        return isinstance(node, (ast.BinOp, ast.ListComp))
    counts = node.args[:1]
    if last_name(node.func) in ("broadcast_to", "repeat", "tile", "expand") and len(node.args) == 2 and (
        isinstance(node.args[1], (ast.Tuple, ast.List))
    ):  # fmt: skip
        counts = node.args[1:]
    first = counts[0] if counts else None
    if isinstance(first, (ast.Tuple, ast.List)):
        first = first.elts[0] if first.elts else None
    if isinstance(first, ast.UnaryOp):
        return False
    return first is not None and not (isinstance(first, ast.Constant) and first.value == 1)


def _one_draw(node: ast.expr, scope: Scope, project: Project, depth: int) -> ast.Call | None:
    """The call that draws one number, or one row of noise over the vocabulary, that a value is made of; else None."""
    if depth == 0:
        return None
    if isinstance(node, ast.UnaryOp):
        return _one_draw(node.operand, scope, project, depth - 1)
    if isinstance(node, ast.BinOp):
        sides = [_one_draw(side, scope, project, depth - 1) for side in (node.left, node.right)]
        return next((side for side in sides if side is not None), None)
    if not isinstance(node, ast.Call):
        made = [b.value for b in scope.bindings.get(target_name(node) or "", [])]
        return _one_draw(made[0], scope, project, depth - 1) if len(made) == 1 else None
    if _draws_one(node, scope):
        return node
    if last_name(node.func) in SAME:
        base = node.func.value if isinstance(node.func, ast.Attribute) else None
        module_of = base is not None and (target_name(base) or "").partition(".")[0] in scope.module.imports
        inner = node.args[0] if (base is None or module_of) and node.args else base
        return _one_draw(inner, scope, project, depth - 1) if inner is not None else None
    for function in project.callees(node, scope)[:1]:
        found = [_one_draw(value, function, project, depth - 1) for value in function.returns]
        if found and all(one is not None for one in found):
            return found[0]
    return None


def _draws_one(call: ast.Call, scope: Scope) -> bool:
    """torch.rand(1), random.random(), rng.random(), torch.empty(1).uniform_(), torch.rand(1, vocab)."""
    name, last = called(call, scope), last_name(call.func)
    sizes = [*call.args] if not (size := keyword(call, "size")) else [size]
    if last in ("uniform_", "exponential_", "random_") and isinstance(call.func, ast.Attribute):
        made = call.func.value
        return isinstance(made, ast.Call) and last_name(made.func) in ("empty", "zeros") and _is_one_size(made.args)
    if last == "rand_like" and call.args and isinstance(call.args[0], ast.Subscript):
        cut = first_part(call.args[0].slice)
        upper = cut.upper if isinstance(cut, ast.Slice) and cut.lower is None else cut
        return isinstance(upper, ast.Constant) and upper.value in (0, 1)
    if last in ("random", "uniform") and isinstance(call.func, ast.Attribute):
        drawn = RANDOM.search(name) or re.search(
            r"(^|[._])(rng|gen|rs|generator|dice)$", target_name(call.func.value) or ""
        )
        return bool(drawn) and (last == "uniform" and size is None or _is_one_size(sizes))
    return bool(RANDOM.search(name)) and _is_one_size(sizes)


def _is_one_size(sizes: list[ast.expr]) -> bool:
    """No size, 1s only, or one row over the vocabulary: (), (1,), (1, 1), (1, logits.size(-1))."""
    parts = [part for size in sizes for part in (size.elts if isinstance(size, (ast.Tuple, ast.List)) else [size])]
    more = [part for part in parts if not (isinstance(part, ast.Constant) and part.value == 1)]
    return not more or len(more) == 1 and more[0] is parts[-1] and bool(
        re.search(r"(size\(|shape\[)-1|vocab", text_of(more[0]))
    )  # fmt: skip
