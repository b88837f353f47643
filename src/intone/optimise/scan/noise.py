"""How many random numbers a call draws: one, one row over the vocabulary, or as many as there are rows."""

import ast
import re
from typing import Literal

from intone.optimise.scan.expressions import called, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name, walk

Amount = Literal["one", "row", "many"]
# methods that fill a tensor with random numbers
FILLS = ("uniform_", "exponential_", "random_", "normal_", "bernoulli_", "log_normal_", "cauchy_", "geometric_")
TORCH = ("rand", "randn", "randint", "normal", "empty", "zeros", "new_empty", "new_zeros", "ones", "randperm")
LIKE = ("rand_like", "randn_like", "randint_like", "empty_like", "zeros_like", "ones_like")
# numpy's and Python's, with the place of the size among the arguments; None: they draw one number
OTHERS = {
    "random": 0, "uniform": 2, "gumbel": 2, "exponential": 1, "normal": 2, "standard_normal": 0, "integers": 2,
    "randint": 2, "random_sample": 0, "standard_exponential": 0, "randrange": None, "gauss": None, "choice": 1,
    "beta": 2, "poisson": 1,
}  # fmt: skip
STREAM = re.compile(r"(^|[._])(rng|gen|rs|generator|dice|random)$")
DISTRIBUTIONS = re.compile(r"Gumbel|Exponential|Uniform|Normal|Beta")


def amount_drawn(node: ast.expr, scope: Scope) -> Amount | None:
    """How many numbers a call draws, or None for what draws nothing.

    "one": a number, or a tensor with one; "row": 1s and one size more, which is that of the vocabulary or of a row.
    """
    if not isinstance(node, ast.Call):
        return None
    name, last, method = called(node, scope), last_name(node.func), isinstance(node.func, ast.Attribute)
    base = node.func.value if isinstance(node.func, ast.Attribute) else None
    if last in FILLS and isinstance(base, ast.Call):
        return _of_sizes(base, scope)
    if name.startswith("torch.") and last in ("rand", "randn", "randint", "normal", *LIKE[:3]):
        return _of_sizes(node, scope)
    if last in ("randperm", "permutation", "permuted") or name == "random.sample":
        return "many"
    if last in ("sample", "rsample") and isinstance(base, ast.Call) and DISTRIBUTIONS.search(text_of(base.func)):
        size = node.args[0] if node.args else keyword(node, "sample_shape")
        return _classify([size] if size is not None else [], scope) if _is_plain(base) else None
    if last in OTHERS and (STREAM.search(target_name(base) or "") if method else name.startswith("random.")):  # type: ignore[arg-type]
        place = OTHERS[last or ""]
        size = keyword(node, "size")
        if size is None and place is not None and len(node.args) > place and not name.startswith("random."):
            size = node.args[place]
        if last == "choice" and size is None and len(node.args) != 1:
            return None
        return _classify([size] if size is not None else [], scope)
    return None


def _is_plain(made: ast.Call) -> bool:
    """Gumbel(0, 1), Uniform(0.0, 1.0): of numbers, not of tensors with rows."""
    return all(isinstance(arg, (ast.Constant, ast.UnaryOp)) for arg in made.args)


def _of_sizes(made: ast.Call, scope: Scope) -> Amount | None:
    """The amount of what torch makes: rand(1, V), empty_like(logits[0]), randint(T, (1,))."""
    last = last_name(made.func)
    if last in LIKE:
        like = made.args[0] if made.args else None
        return "row" if like is not None and _is_one_row(like) else "many"
    if last not in TORCH:
        return None
    size = keyword(made, "size")
    sizes = [size] if size is not None else list(made.args)
    if last == "randint" and size is None:
        sizes = [arg for arg in made.args if isinstance(arg, (ast.Tuple, ast.List)) or "shape" in text_of(arg)][-1:]
        if not sizes:
            return None
    if last == "normal" and size is None:
        return None
    return _classify(sizes, scope)


def _is_one_row(node: ast.expr) -> bool:
    """logits[0], logits[:1], logits[0, -1], logits[-1:]: one row of several."""
    if isinstance(node, ast.Attribute) and node.attr == "shape":
        return _is_one_row(node.value)
    if not isinstance(node, ast.Subscript):
        return False
    part = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
    if isinstance(part, ast.Slice):
        begins = part.lower is None or text_of(part.lower) in ("0", "-1")
        end = part.upper or part.lower
        return begins and end is not None and text_of(end) in ("1", "-1")
    return isinstance(part, (ast.Constant, ast.UnaryOp)) and text_of(part) in ("0", "-1")


def _classify(sizes: list[ast.expr], scope: Scope) -> Amount:
    parts = [part for size in sizes for part in (size.elts if isinstance(size, (ast.Tuple, ast.List)) else [size])]
    more = [part for part in parts if not (isinstance(part, ast.Constant) and part.value == 1)]
    if not more:
        return "one"
    if len(more) == 1 and more[0] is parts[-1] and _is_wide(more[0], scope):
        return "row"
    return "row" if len(more) < len(parts) and more[0] is parts[1] and parts[0] is not more[0] else "many"


def _is_wide(node: ast.expr, scope: Scope) -> bool:
    """logits.size(-1), V with _, V = logits.shape, vocab_size, logits.shape[-1:], logits[0].shape: of one row."""
    value = node.value if isinstance(node, ast.Starred) else node
    text = text_of(value)
    if re.search(r"(size\(|shape\[)-1|vocab|shape\[1:\]|size\(\)\[1:\]", text, re.I):
        return True
    if isinstance(value, ast.Attribute) and value.attr == "shape":
        return _is_one_row(value)
    for binding in scope.bindings.get(target_name(value) or "", []):
        target = binding.node.targets[0] if isinstance(binding.node, ast.Assign) else None
        ends = isinstance(target, (ast.Tuple, ast.List)) and binding.index == len(target.elts) - 1 > 0
        if ends and re.search(r"\.shape$|\.size\(\)$", text_of(binding.value)):
            return True
        if binding.how == "=" and re.search(r"(size\(|shape\[)-1|vocab", text_of(binding.value), re.I):
            return True
    return False


def parts_of(node: ast.expr, scope: Scope, project: Project, steps: int = 4) -> list[tuple[ast.AST, Scope]]:
    """The parts of an expression, of what its names are bound to, and of what the functions called in it return.

    Of what is written into a part of a name also where: mask[chosen] = True depends on what was chosen.
    """
    found: list[tuple[ast.AST, Scope]] = []
    todo: list[tuple[ast.AST, Scope, int]] = [(node, scope, steps)]
    seen: set[tuple[int, str]] = set()
    while todo and len(found) < 2000:
        at, where, left = todo.pop(0)
        for part in walk(at):
            found.append((part, where))
            if isinstance(part, ast.Name) and left and (id(where), part.id) not in seen:
                seen.add((id(where), part.id))
                for binding in where.bindings.get(part.id, []):
                    if binding.how in ("=", "part"):
                        todo.append((binding.value, where, left - 1))
                    elif binding.how == "add" and isinstance(binding.node, ast.Assign):
                        todo += [(target, where, left - 1) for target in binding.node.targets]
            elif isinstance(part, ast.Call) and left:
                for function in project.callees(part, where)[:2]:
                    if (id(function), "") not in seen:
                        seen.add((id(function), ""))
                        todo += [(value, function, left - 1) for value in function.returns]
    return found


# sizes that are those of a batch
BATCH = re.compile(
    r"shape\[0\]|size\(0\)|len\(|batch|\bbsz?\b|\b[bB]\b|rows|num_(samples|graphs|images|envs)|examples|\.shape\b(?!\[)"
)


def drawn_for_one(
    node: ast.expr, scope: Scope, project: Project, counts: frozenset[str]
) -> tuple[ast.Call, Scope] | None:
    """(a draw that a value is made of, its function), where none of its draws has a number for each row.

    counts: names by which the rows are counted where the value is copied.
    """
    first: tuple[ast.Call, Scope] | None = None
    for part, at in parts_of(node, scope, project):
        if isinstance(part, ast.Call) and last_name(part.func) == "Parameter":
            return None
        amount = amount_drawn(part, at) if isinstance(part, ast.Call) else None
        if amount is None or not isinstance(part, ast.Call):
            continue
        if amount == "many" and (_is_per_row(part, at) or names_in(part) & counts and at is scope):
            return None
        first = first or (part, at)
    return first


def _is_per_row(draw: ast.Call, scope: Scope) -> bool:
    """Whether a draw has the size of a batch, by what is written: rand(x.shape[0]), rand_like(x), rand(rows)."""
    if last_name(draw.func) in LIKE:
        return True
    sizes = [*draw.args, *(word.value for word in draw.keywords if word.arg in ("size", "sample_shape"))]
    values = [b.value for one in sizes for name in names_in(one) for b in scope.bindings.get(name, [])]
    return any(BATCH.search(text_of(part)) for part in [*sizes, *values])


# what changes the form or value of numbers, and not how many they are
SAME = (
    "item", "to", "float", "double", "cuda", "view", "reshape", "unsqueeze", "squeeze", "clone", "log", "clamp", "long",
    "int", "tensor", "as_tensor", "exp", "sqrt", "type", "half", "bfloat16", "sigmoid", "pow", "sin", "cos",
    "FloatTensor", "LongTensor", "stack", "array", "astype", "full", "floor", "round", "neg", "clamp_", "clamp_min",
    "log_", "neg_",
    "uniform_", "exponential_", "random_", "div",
)  # fmt: skip


# what gives each row another number
PER_ROW = re.compile(r"arange|linspace|range\(|randperm|cumsum")


def drawn_once(node: ast.expr, scope: Scope, project: Project, depth: int) -> tuple[ast.Call, Scope] | None:
    """(the call that draws one number or row, its function) of which a value is made; None for anything else."""
    if depth == 0:
        return None
    if isinstance(node, ast.UnaryOp):
        return drawn_once(node.operand, scope, project, depth - 1)
    if isinstance(node, ast.BinOp):
        sides = [drawn_once(side, scope, project, depth - 1) for side in (node.left, node.right)]
        if any(PER_ROW.search(text_of(side)) for side in (node.left, node.right)):
            return None
        return next((side for side in sides if side is not None), None)
    if isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) == 1:
        return drawn_once(node.elts[0], scope, project, depth - 1)
    if isinstance(node, ast.Subscript):
        cuts = [part for part in walk(node.slice) if isinstance(part, (ast.Name, ast.Call))]
        found = [one for part in cuts if (one := drawn_once(part, scope, project, depth - 1)) is not None]
        return found[0] if found else drawn_once(node.value, scope, project, depth - 1)
    if not isinstance(node, ast.Call):
        made = [b for b in scope.bindings.get(target_name(node) or "", []) if b.how != "add"]
        return drawn_once(made[0].value, scope, project, depth - 1) if len(made) == 1 and made[0].how == "=" else None
    if amount_drawn(node, scope) in ("one", "row"):
        return node, scope
    if last_name(node.func) in SAME:
        base = node.func.value if isinstance(node.func, ast.Attribute) else None
        of_package = base is not None and (target_name(base) or "").partition(".")[0] in scope.module.imports
        inner = node.args[0] if (base is None or of_package) and node.args else base
        return drawn_once(inner, scope, project, depth - 1) if inner is not None else None
    for function in project.callees(node, scope)[:1]:
        found = [drawn_once(value, function, project, depth - 1) for value in function.returns]  # type: ignore[misc]
        if found and all(one is not None for one in found):
            return found[0]
    return None
