"""A rule on preparing data: work per document must not grow with the number of documents."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import decode_loops, is_inside
from intone.optimise.scan.project import Project, code_of, last_name, names_in
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name

FEW = 256  # waiting texts: looking at so few costs less than making one of them into tokens; guess
CONTEXT = re.compile(
    r"pack|bin|chunk|buffer|concat|fit|doc|conv|row|token|batch|collate|loader|sample|queue|pend|text|example|seq|pool",
    re.I,
)


@rule(
    "S70",
    "packing in quadratic time",
    kind="packing",
    severity="medium",
    why="Each placed text looks at, or moves, all texts that wait: twice the texts, four times the work. "
    "The loader becomes what "
    "training waits for.",
    fix="Sort by length once, keep texts in buckets by length (or a heap, or bisect), take from the end, "
    "use a deque; collect "
    "pieces in a list and join once.",
    source="nanochat-facts.md 4.2.13",
)
def quadratic_packing(module: Module, project: Project) -> Iterator[Place]:
    """A scan over all waiting texts for every one placed; pop(0); buffers made anew by concatenation at every turn."""
    hot = [loop.loop for loop in decode_loops(module, project)]
    for scope in module.scopes:
        told: set[ast.AST] = set()
        for node in scope.body:
            around = module.loops_around(node)
            if not around or any(loop in hot for loop in around) or around[-1] in told:
                continue
            found = _scan_for_best(node, scope) or _moves_list(node, scope) or _grown_anew(node, scope)
            if found:
                told.add(around[-1])
                message, evidence, severity = found
                yield Place(node, message, evidence, severity=severity)  # type: ignore[arg-type]


Found = tuple[str, tuple[str, ...], str | None]


def _scan_for_best(node: ast.AST, scope: Scope) -> Found | None:
    """for i, doc in enumerate(buffer): keep the best; then buffer.pop(best): a linear search per placed text."""
    if not isinstance(node, (ast.For, ast.AsyncFor)):
        return None
    buffer = _walked(node.iter)
    if buffer is None:
        return None
    outer = scope.module.loops_around(node)
    compares = any(
        isinstance(part, ast.Compare) and re.search(r"len|size|remaining|space|room|cap|fit", ast.unparse(part))
        for part in own_nodes(node)
    )
    taken = [
        call
        for call in own_nodes(outer[0])
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("pop", "remove")
        and target_name(call.func.value) == buffer
        and (call.args or call.func.attr == "remove")
    ]
    deleted = [part for part in own_nodes(outer[0]) if isinstance(part, ast.Delete) and buffer in names_in(part)]
    placed = [
        call
        for call in own_nodes(node)
        if isinstance(call, ast.Call)
        and last_name(call.func) in ("append", "extend")
        and isinstance(call.func, ast.Attribute)
        and names_in(call.func.value) & names_in(node.target)
    ]
    if compares and (taken or deleted):
        bound = _bound(buffer, scope)
        if bound is not None and _number(bound, scope) <= FEW:
            return None
        evidence = (
            f"line {node.lineno}: walks over `{buffer}` for each text that is placed",
            *([f"the buffer holds at most {bound}: the work per text is that large, not unbounded"] if bound else []),
        )
        return f"all of `{buffer}` is searched for every text that is placed", evidence, "low" if bound else None
    if compares and placed and _opens_new(outer[0], buffer):
        return (
            f"every text looks at all of `{buffer}` for room",
            (f"line {node.lineno}: first-fit over a list that grows",),
            None,
        )
    return None


def _walked(node: ast.expr) -> str | None:
    """The list that is walked: buffer, enumerate(buffer), range(len(buffer)), list(buffer)."""
    if (
        isinstance(node, ast.Call)
        and last_name(node.func) in ("enumerate", "list", "range", "len", "reversed")
        and node.args
    ):
        return _walked(node.args[-1])
    return target_name(node)


def _opens_new(outer: ast.AST, bins: str) -> bool:
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "append"
        and target_name(call.func.value) == bins
        for call in own_nodes(outer)
    )


def _number(name: str, scope: Scope) -> float:
    """The number that a bound stands for: itself, a default or a constant; endless where the code does not say."""
    if name.isdigit():
        return int(name)
    at: Scope | None = scope
    while at is not None:
        default = at.parameters[name].default if name in at.parameters else None
        values = [default, *(binding.value for binding in at.bindings.get(name, []))]
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, int):
                return value.value
        at = at.outer
    return float("inf")


def _bound(buffer: str, scope: Scope) -> str | None:
    """`while len(buffer) < buffer_size`: the name of the buffer's bound."""
    at: Scope | None = scope
    while at is not None:
        for node in ast.walk(at.node):
            if (
                isinstance(node, ast.Compare)
                and f"len({buffer})" == ast.unparse(node.left)
                and isinstance(node.ops[0], (ast.Lt, ast.LtE))
            ):
                return ast.unparse(node.comparators[0])
        at = at.outer
    return None


def _moves_list(node: ast.AST, scope: Scope) -> Found | None:
    """buffer.pop(0), buffer.insert(0, x), buffer = buffer[n:], del buffer[:n]: all the rest is moved each time."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = target_name(node.func.value)
        first = node.args[0] if node.args else None
        zero = isinstance(first, ast.Constant) and first.value == 0
        if (
            name
            and node.func.attr in ("pop", "insert")
            and zero
            and not _made_in_loop(name, node, scope)
            and CONTEXT.search(name)
            and not _is_deque(name, scope)
        ):
            return (
                f"`{code_of(node, 40)}` moves the whole list at every turn",
                (f"line {node.lineno}: {code_of(node, 50)}",),
                None,
            )
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        name = target_name(node.targets[0])
        value = node.value
        if (
            name
            and isinstance(value, ast.Subscript)
            and target_name(value.value) == name
            and isinstance(value.slice, ast.Slice)
            and value.slice.lower is not None
            and value.slice.upper is None
            and CONTEXT.search(name)
            and _is_stream(name, scope, node)
        ):
            return (
                f"`{code_of(node, 50)}` copies all the rest at every turn",
                (f"line {node.lineno}: {code_of(node, 50)}",),
                None,
            )
    return None


def _made_in_loop(name: str, node: ast.AST, scope: Scope) -> bool:
    """Whether a list is the variable of a loop around, or made inside it: it is another one at every turn."""
    return any(
        binding.how in ("=", "iter")
        and (binding.node in scope.module.loops_around(node)[:1] or _stands_in(binding.node, node, scope))
        for binding in scope.bindings.get(name, [])
    )


def _stands_in(made: ast.AST, node: ast.AST, scope: Scope) -> bool:
    return is_inside(made, scope.module.loops_around(node)[0], scope.module)


def _is_deque(name: str, scope: Scope) -> bool:
    at: Scope | None = scope
    while at is not None:
        if any("deque" in ast.unparse(b.value) for b in at.bindings.get(name, [])):
            return True
        at = at.outer
    return False


def _is_stream(name: str, scope: Scope, node: ast.AST) -> bool:
    """Whether a list is cut in an inner loop: a buffer of many rows that is cut row by row."""
    loops = scope.module.loops_around(node)
    return isinstance(loops[0], ast.While) and name in names_in(loops[0].test)


def _grown_anew(node: ast.AST, scope: Scope) -> Found | None:
    """tokens = tokens + new, np.append, torch.cat([buffer, new]) at every turn."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    name = target_name(node.targets[0])
    value = node.value
    if name is None or not CONTEXT.search(name) or not _over_data(node, scope):
        return None
    if (
        isinstance(value, ast.Call)
        and last_name(value.func) in ("cat", "concat", "concatenate", "append", "hstack")
        and value.args
    ):
        parts = value.args[0].elts if isinstance(value.args[0], (ast.List, ast.Tuple)) else value.args
        if any(target_name(part) == name for part in parts) and not _starts_anew(name, node, scope):
            return (
                f"`{name}` is copied as a whole for every piece that is added",
                (f"line {node.lineno}: {code_of(node, 60)}",),
                None,
            )
    if (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add)
        and target_name(value.left) == name
        and _is_list(name, scope)
    ):
        return (
            f"`{name}` is copied as a whole for every piece that is added",
            (f"line {node.lineno}: {code_of(node, 60)}",),
            None,
        )
    return None


def _over_data(node: ast.AST, scope: Scope) -> bool:
    """Whether the loop walks over documents, files or batches."""
    loop = scope.module.loops_around(node)[0]
    text = (
        ast.unparse(loop.iter) + ast.unparse(loop.target)
        if isinstance(loop, (ast.For, ast.AsyncFor))
        else ast.unparse(loop.test)
    )
    return bool(
        re.search(r"doc|text|conv|example|file|shard|batch|data|line|row|sample|token|buffer|len\(", text, re.I)
    )


def _starts_anew(name: str, node: ast.AST, scope: Scope) -> bool:
    """Whether the name is set afresh inside the same loop: it does not grow over the whole data."""
    loop = scope.module.loops_around(node)[0]
    return any(
        b.node is not node and b.how == "=" and is_inside(b.node, loop, scope.module)
        for b in scope.bindings.get(name, [])
    )


def _is_list(name: str, scope: Scope) -> bool:
    return any(isinstance(b.value, ast.List) for b in scope.bindings.get(name, []))
