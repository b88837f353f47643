"""A rule on random tensors with no size for rows that meet a batch: broadcasting gives all rows the same numbers."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.noise import FILLS, PER_ROW, amount_drawn
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule, told_lines
from intone.optimise.scan.rules.shared_noise import ASKS, LEARNS
from intone.optimise.scan.source import FunctionNode, Module, Scope, target_name, walk
from intone.optimise.scan.values import is_module_class

RANDOM = re.compile(r"rand|uniform_|exponential_|normal_|bernoulli|Gumbel|\.sample\(")
# functions that make weights or one example, and modules that share their mask on purpose
MAKES = re.compile(
    r"(^|_)(init\w*|reset\w*|build|make_\w*(weights|params)|warm_?up|dummy|example|bench\w*|profile|export|trace|demo)($|_)"
)
SHARES = re.compile(r"Locked|Variational|Shared|Spatial|PositionalEmb|Codebook|Fourier|RandomFeature")
# what joins two tensors entry by entry
JOINS = (
    "lerp",
    "where",
    "addcmul",
    "add",
    "mul",
    "sub",
    "add_",
    "mul_",
    "masked_fill",
    "masked_fill_",
    "lt",
    "gt",
    "le",
    "ge",
    "div",
)
# sizes and items of a tensor, whose own numbers are nowhere in them
OF_SHAPE = ("shape", "device", "dtype", "ndim", "size", "dim", "numel", "requires_grad", "is_cuda")
ONE_NUMBER = ("item", "int", "float", "tolist", "bool")
WIDTH = re.compile(r"(shape\[|size\()-1:?[\])]")
ROW_OF = re.compile(r"\[(0|:1|-1|-1:|:1, \.\.\.|0:1)\]|shape\[1:\]|size\(\)\[1:\]|shape\[-1:?\]|size\(-1\)")


@rule(
    "S98",
    "a draw without rows meets a batch",
    kind="copied-token",
    severity="medium",
    why="A random tensor of one row, or of one number, is broadcast over the batch: all rows get the same noise, time "
    "step, mask or choice, so they are no samples of their own and a gradient sees one draw where it should see many.",
    fix="Draw with the size of the batch: randn_like(x), rand(x.size(0), ...), one number per row.",
    source="PyTorch broadcasting semantics; Kingma and Welling 2014, 2.4: noise is drawn for each datapoint",
)
def lone_draw(module: Module, project: Project) -> Iterator[Place]:
    """eps = torch.randn_like(mu[:1]), and mu + eps * std; keep = x.new_empty(1, 1, 1).bernoulli_(p), and x * keep."""
    if not module.mentions(RANDOM):
        return
    told = told_lines("copied-token", module, project, "S98")
    learns = module.mentions(LEARNS)
    for scope in module.scopes[1:]:
        if isinstance(scope.node, ast.Lambda) or MAKES.search(scope.simple_name.strip("_")):
            continue
        if scope.owner is not None and SHARES.search(scope.owner.name):
            continue
        batched: set[str] | None = None
        for draw in scope.calls:
            if (several := _one_place(draw, scope)) is not None:
                yield Place(
                    draw,
                    f"`{code_of(draw, 40)}` is drawn once and used for each row",
                    (f"by {code_of(several, 60)} at line {several.lineno}",),
                    confidence="medium",
                )
                break
            if not _is_of_tensors(draw, scope) or amount_drawn(draw, scope) not in ("one", "row"):
                continue
            base = _row_of(draw)
            if base is not None and WIDTH.search(text_of(draw)):
                base = None  # of the width alone: whether it has rows is for others to say
            if base is None and not (learns or _is_forward(scope)) or base is None and _asks(scope):
                continue
            if batched is None:
                batched = _batched(scope)
            rows = batched | ({base} if base is not None else set())
            met = _met(draw, scope, rows)
            if met is None or any(abs(draw.lineno - line) <= 12 for line in told) or _is_single(scope, rows):
                continue
            yield Place(
                draw,
                f"`{code_of(draw, 40)}` has no size for rows and is broadcast over a batch",
                (f"meets it in `{code_of(met, 60)}` at line {getattr(met, 'lineno', 0)}",),
                confidence="medium",
            )
            break


def _one_place(draw: ast.Call, scope: Scope) -> ast.expr | None:
    """start = np.random.randint(0, n), and [row[start : start + width] for row in rows]: one place in all rows."""
    if not re.search(r"randint|randrange|integers", last_name(draw.func) or "") or not COLLATES.search(
        scope.simple_name
    ):
        return None
    if len(draw.args) > 2 or any(word.arg in ("size", "high") for word in draw.keywords) or _is_in_turns(draw, scope):
        return None
    held = {name for name, bindings in scope.bindings.items() if any(draw in walk(b.value) for b in bindings)}
    comprehensions: list[ast.ListComp | ast.GeneratorExp] = [*scope.of(ast.ListComp), *scope.of(ast.GeneratorExp)]
    for comprehension in comprehensions:
        rows = names_in(comprehension.generators[0].iter) & set(scope.parameters)
        cuts = [part.slice for part in walk(comprehension.elt) if isinstance(part, ast.Subscript)]
        if rows and any(isinstance(cut, ast.Slice) and names_in(cut) & held for cut in cuts):
            return comprehension
    return None


COLLATES = re.compile(r"collat|batch|pack|stack|crop|augment|(^|_)(make|get)_", re.I)


def _is_in_turns(draw: ast.Call, scope: Scope) -> bool:
    return any(
        isinstance(above, (ast.For, ast.While, ast.ListComp, ast.GeneratorExp)) for above in scope.module.up(draw)
    )


def _is_of_tensors(draw: ast.Call, scope: Scope) -> bool:
    last, name = last_name(draw.func) or "", called(draw, scope)
    for above in _around(draw, scope):
        kept = isinstance(above, ast.Call) and last_name(above.func) in ("Parameter", "register_buffer", *ONE_NUMBER)
        if kept or isinstance(above, ast.Attribute) and above.attr in ONE_NUMBER:
            return False
    return name.startswith("torch.") or last in FILLS or last in ("sample", "rsample")


def _around(node: ast.AST, scope: Scope) -> Iterator[ast.AST]:
    for above in scope.module.up(node):
        if isinstance(above, ast.stmt):
            return
        yield above


def _row_of(draw: ast.Call) -> str | None:
    """The tensor of whose rows a draw has the size of one: mu of randn_like(mu[:1]), x of randn(x.shape[1:])."""
    for part in walk(draw):
        if part is draw or not isinstance(part, (ast.Subscript, ast.Call)) or not ROW_OF.search(text_of(part)):
            continue
        inner: ast.AST = part
        while isinstance(inner, (ast.Subscript, ast.Attribute, ast.Call)):
            if isinstance(inner, ast.Attribute) and inner.attr not in OF_SHAPE:
                break
            inner = inner.func if isinstance(inner, ast.Call) else inner.value
        name = target_name(inner)
        if name is not None and name.partition(".")[0] not in ("torch", "np"):
            return name
    return None


def _is_forward(scope: Scope) -> bool:
    return (
        scope.owner is not None
        and is_module_class(scope.owner)
        and scope.simple_name in ("forward", "encode", "reparameterize")
    )


def _asks(scope: Scope) -> bool:
    items = getattr(scope.node, "decorator_list", [])
    return bool(ASKS.search(scope.name)) or any(re.search(r"no_grad|inference_mode", text_of(item)) for item in items)


COUNTS = re.compile(r"^(b|bs|bsz|batch|batch_size|n|rows|num_rows|num_envs|n_envs|num_samples)$", re.I)


def _batched(scope: Scope) -> set[str]:
    """The names of tensors with rows: whose rows are counted, whose shape noise has, and what is computed from them."""
    found: set[str] = set()
    for node in scope.body:
        text = text_of(node) if isinstance(node, (ast.Subscript, ast.Call, ast.Assign)) else ""
        if (
            isinstance(node, ast.Subscript)
            and re.search(r"\.(shape|size\(\))\[0\]$", text)
            or isinstance(node, ast.Call)
            and re.search(r"\.size\((dim=)?0\)$", text)
        ):
            found.add(text.rpartition(".")[0])
        elif isinstance(node, ast.Call) and last_name(node.func) in ("len", "randn_like", "rand_like") and node.args:
            found |= {name} if (name := target_name(node.args[0])) is not None else set()
        elif isinstance(node, ast.Assign) and re.search(r"\.(shape|size\(\))(\[:\d\])?$", text):
            target = node.targets[0]
            first = target.elts[0] if isinstance(target, (ast.Tuple, ast.List)) and target.elts else None
            if first is not None and COUNTS.match(target_name(first) or ""):
                found.add(re.sub(r"\.(shape|size\(\))(\[:\d\])?$", "", text_of(node.value)))
    if _is_forward(scope) and isinstance(scope.node, FunctionNode):
        found |= set(list(scope.parameters)[1:2])
    if scope.simple_name in ("training_step", "compute_loss"):
        found |= {name for name in scope.parameters if name in ("batch", "x", "inputs")}
    for _ in range(3):
        for name, bindings in scope.bindings.items():
            values = [b.value for b in bindings if b.how in ("=", "part", "iter")]
            if any(_values(value) & found for value in values):
                found.add(name)
    return found


def _values(node: ast.AST) -> set[str]:
    """The names in an expression whose numbers count for its value, not those of which only the shape is read."""
    found: set[str] = set()
    todo = [node]
    while todo:
        at = todo.pop()
        if isinstance(at, ast.Attribute) and at.attr in OF_SHAPE:
            continue
        if isinstance(at, ast.Call):
            shape = (
                isinstance(at.func, ast.Attribute) and at.func.attr in OF_SHAPE or last_name(at.func) in ("len", "int")
            )
            if shape:
                continue
            todo += [*at.args, *(word.value for word in at.keywords)]
            todo += [at.func.value] if isinstance(at.func, ast.Attribute) else []
            continue
        if isinstance(at, ast.Subscript) and _is_one(at.slice):
            continue
        name = target_name(at)
        if name is not None:
            found.add(name)
            continue
        todo += list(ast.iter_child_nodes(at))
    return found


def _is_one(index: ast.expr) -> bool:
    part = index.elts[0] if isinstance(index, ast.Tuple) and index.elts else index
    return text_of(part) in ("0", "-1", ":1", "0:1", "-1:") and not (
        isinstance(index, ast.Tuple) and text_of(part) == "..."
    )


def _met(draw: ast.Call, scope: Scope, rows: set[str]) -> ast.AST | None:
    """Where a draw meets rows entry by entry: there, or behind names that hold it or what comes from it alone."""
    held: set[str] = set()
    start = next((above for above in scope.module.up(draw) if isinstance(above, ast.stmt)), None)
    if start is not None and PER_ROW.search(text_of(start)):
        return None
    inside = _meets_around(draw, scope, rows)
    if inside is not None:
        return inside
    if isinstance(start, (ast.Assign, ast.AnnAssign)):
        targets = start.targets if isinstance(start, ast.Assign) else [start.target]
        held |= {name for target in targets if (name := target_name(target)) is not None}
    elif isinstance(start, ast.Return):
        return None
    for _ in range(3):
        for name, bindings in scope.bindings.items():
            for b in bindings:
                used = _values(b.value) if b.how == "=" else set()
                if used & held and not used & (rows - held) and not _is_spread(b.value):
                    held.add(name)
    held -= {name for name in held if _is_remade(name, scope)}
    for node in scope.body if held else ():
        if getattr(node, "lineno", 0) < draw.lineno:
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
            left, right = _values(node.left), _values(node.right)
            if left & held and not left & (rows - held) and right & (rows - held):
                return node
            if right & held and not right & (rows - held) and left & (rows - held):
                return node
        elif isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = [_values(node.left), _values(node.comparators[0])]
            if any(one & held and other & (rows - held) for one, other in (sides, sides[::-1])) and _is_mask(
                node, scope
            ):
                return node
        elif isinstance(node, ast.Call) and last_name(node.func) in JOINS:
            parts = [*node.args, *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
            joined = [_values(part) for part in parts]
            alone = any(one & held and not one & (rows - held) for one in joined)
            if alone and any(one & (rows - held) for one in joined):
                return node
    return None


def _meets_around(draw: ast.Call, scope: Scope, rows: set[str]) -> ast.AST | None:
    """mu + torch.randn_like(mu[:1]) * std: the operation around a draw in which its other side has rows."""
    below: ast.AST = draw
    for above in _around(draw, scope):
        if isinstance(above, ast.BinOp):
            other = above.right if below is above.left else above.left
            if _values(other) & rows:
                return above
        elif isinstance(above, ast.Call) and (_is_spread(above) or below not in (above.func, *above.args)):
            return None
        below = above
    return None


def _is_mask(node: ast.Compare, scope: Scope) -> bool:
    """x < torch.rand(1) as a value, and no test of an `if`."""
    return not any(isinstance(above, (ast.If, ast.While, ast.IfExp, ast.Assert)) for above in scope.module.up(node))


def _is_spread(node: ast.AST) -> bool:
    """Whether a copy for each row is written out: of those another rule tells."""
    return any(
        isinstance(part, ast.Call)
        and last_name(part.func) in ("expand", "repeat", "expand_as", "repeat_interleave", *ONE_NUMBER)
        for part in walk(node)
    )


def _is_remade(name: str, scope: Scope) -> bool:
    return len([b for b in scope.bindings.get(name, []) if b.how in ("=", "part")]) > 1


def _is_single(scope: Scope, rows: set[str]) -> bool:
    """Whether a function says that it has one row: x.unsqueeze(0), x[None]."""
    text = text_of(scope.node)
    return any(re.search(rf"\b{re.escape(name)} = [^\n]*(unsqueeze\(0\)|\[None\]|\[None, )", text) for name in rows)
