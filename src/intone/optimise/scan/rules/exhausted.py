"""A rule on pools of cache blocks: where none is free, none may be given that somebody still uses."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.ringwrites import WINDOW
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk

FREE = re.compile(r"(^|[._])_?(free\w*|avail\w*|unused\w*|spare\w*|idle\w*|vacant\w*|\w+_free|pool)$", re.I)
MEMORY = re.compile(r"kv|cache|paged|attention|self\.(k|keys|key_pool)\b", re.I)
UNIT = re.compile(r"block|page|slot", re.I)
TAKES = ("pop", "popleft", "heappop", "get_nowait", "popitem")
# who takes a block from its owner on purpose says so
TAKEN_BACK = re.compile(r"evict|victim|preempt|lru|steal|recla|recycl|swap_?out|spill|offload", re.I)
PICKS = ("next", "min", "max", "randrange", "randint", "choice", "len")
NO_BLOCK = re.compile(r"none|null|scratch|dummy|invalid|sentinel|empty|missing|trash", re.I)


@rule(
    "S90",
    "an exhausted pool gives a block that is in use",
    kind="cache-overflow",
    severity="high",
    why="Two texts then write their keys and values into one block: both go on with parts of the other's, and nothing "
    "says so.",
    fix="Where no block is free: raise, return None and let the scheduler wait, or stop a text and take its block.",
    source="Kwon et al. 2023 (PagedAttention), 4.5: scheduling and preemption",
)
def exhausted_pool(module: Module, project: Project) -> Iterator[Place]:
    """if not self.free: return self.newest; pop() if free else 0; free[:n] where fewer than n are left."""
    if not MEMORY.search(module.text):
        return
    for scope in module.scopes[1:]:
        around = text_of(scope.owner or scope.node)
        if not UNIT.search(around) or TAKEN_BACK.search(text_of(scope.node)) or WINDOW.search(text_of(scope.node)):
            continue
        if (again := _issued_again(scope, project)) is not None:
            words = f"`{code_of(again, 40)}` gives a block that is in use once more were asked for than there are"
            told = f"line {again.lineno}: {module.line_of(again)[:60]}"
            yield Place(again, words, ("nothing asks whether the block is free", told))
            continue
        free = _taken_from(scope)
        if (short := _given_short(scope)) is not None:
            words = f"where fewer are free than are wanted, `{code_of(short, 40)}` gives those few without a word"
            yield Place(short, words, (f"line {short.lineno}: {module.line_of(short)[:60]}",))
            continue
        answers = _when_empty(scope, free) if free else _when_none_found(scope)
        for answer in answers:
            if _is_in_use(answer, scope):
                what = f"`{sorted(free)[0]}` is empty" if free else "no block is free"
                words = f"where {what}, `{code_of(answer, 30)}` is given, which another text may still use"
                yield Place(answer, words, (f"line {answer.lineno}: {module.line_of(answer)[:60]}",))
                break


# how many blocks there are, by what a class calls it
NUMBER = re.compile(r"pages|blocks|slots|capacity|size|total|count|limit|max|(^|[._])n(_|\b)|len\(|shape\[0\]", re.I)


def _issued_again(scope: Scope, project: Project) -> ast.expr | None:
    """page = self.issued % self.num_pages; self.issued += 1: numbers that come again, with no look at who has them."""
    if scope.of(ast.Raise, ast.Assert) or any(isinstance(node, ast.While) for node in scope.body):
        return None
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner is not None else [scope]
    names = [owner[1].name, *(method.simple_name for method in methods)] if owner is not None else []
    if any(WINDOW.search(name) for name in names):
        return None
    tests = " ".join(text_of(node.test) for node in scope.of(ast.If, ast.IfExp))  # type: ignore[attr-defined]
    if re.search(r"free|used|owner|ref|busy|full|capacity|avail", tests, re.I):
        return None
    counted = {
        name for name, bindings in scope.bindings.items()
        if any(isinstance(b.node, ast.AugAssign) and isinstance(b.node.op, ast.Add) for b in bindings)
    }  # fmt: skip
    counted |= {name for name, bindings in scope.bindings.items() if any(_counts_on(b.value, name) for b in bindings)}
    for node in [*scope.of(ast.BinOp), *scope.of(ast.Call)]:
        wraps = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod)
        left = node.left if isinstance(node, ast.BinOp) else None
        right: ast.AST | None = node.right if isinstance(node, ast.BinOp) else None
        if isinstance(node, ast.Call) and last_name(node.func) == "min" and len(node.args) == 2:
            wraps, left, right = True, node.args[0], node.args[1]
        if not wraps or left is None or right is None or not NUMBER.search(text_of(right)):
            continue
        if names_in(left) & counted and _names_block(node, scope):
            return node
    return None


def _counts_on(value: ast.expr, name: str) -> bool:
    """self.next = (self.next + 1) % n"""
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mod) and name in names_in(value.left)


def _names_block(node: ast.expr, scope: Scope) -> bool:
    """Whether a number is that of a block: it is handed back, or kept under a name or in a table of such."""
    for above in scope.module.up(node):
        if isinstance(above, ast.Return):
            return UNIT.search(f"{scope.simple_name} {text_of(above)}") is not None
        if isinstance(above, ast.Assign):
            names = " ".join(text_of(target) for target in above.targets)
            return UNIT.search(f"{names} {text_of(node)} {scope.name}") is not None and "offset" not in names
        if isinstance(above, ast.Call) and last_name(above.func) == "append":
            return UNIT.search(text_of(above)) is not None
        if isinstance(above, ast.stmt):
            break
    return False


def _given_short(scope: Scope) -> ast.expr | None:
    """[free.pop() for _ in range(min(n, len(free)))], free[:n] and then free = free[n:], with no look at len(free)."""
    names = {name for node in scope.of(ast.Name, ast.Attribute) if (name := target_name(node)) and FREE.search(name)}
    tests = [node.test for node in scope.of(ast.If, ast.Assert, ast.While, ast.IfExp)]  # type: ignore[attr-defined]
    if not names or any(names_in(test) & names for test in tests):
        return None
    if any(isinstance(node, (ast.Raise, ast.Try)) and names & names_in(node) for node in scope.body):
        return None
    for call in scope.calls:
        counted = [part for arg in call.args for part in walk(arg) if isinstance(part, ast.Call)]
        fewer = last_name(call.func) == "range" and any(
            last_name(part.func) == "min" and names_in(part) & names and "len(" in text_of(part) for part in counted
        )
        if fewer and any(_takes(loop, names) for loop in scope.of(ast.ListComp, ast.For)):
            return call
    for node in scope.of(ast.Subscript):
        begin = isinstance(node.slice, ast.Slice) and node.slice.lower is None and node.slice.upper is not None
        if not begin or not isinstance(node.ctx, ast.Load) or target_name(node.value) not in names:
            continue
        upper = text_of(node.slice.upper)  # type: ignore[attr-defined]
        if re.fullmatch(r"-?\d+", upper) or not names_in(node.slice):
            continue
        rest = f"{text_of(node.value)}[{upper}:]"
        goes = f"del {text_of(node)}" in text_of(scope.node)
        if goes or any(rest == text_of(other) for other in scope.of(ast.Subscript)):
            return node
    return None


def _taken_from(scope: Scope) -> set[str]:
    """The lists of free blocks that a function takes from: self.free.popleft(), heappop(self._free)."""
    found = set()
    for call in scope.calls:
        if last_name(call.func) in TAKES:
            on_heap = last_name(call.func) == "heappop" and bool(call.args)
            held = call.args[0] if on_heap else getattr(call.func, "value", None)
            name = target_name(held) if held is not None else None
            if name is not None and FREE.search(name):
                found.add(name)
    return found


def _when_empty(scope: Scope, free: set[str]) -> Iterator[ast.expr]:
    """What a function gives where a list of free blocks is empty."""
    for node in scope.of(ast.If, ast.IfExp, ast.Try):
        if isinstance(node, ast.IfExp):
            empty = _says_empty(node.test, free)
            if empty is not None and any(_takes(part, free) for part in (node.body, node.orelse)):
                yield node.body if empty else node.orelse
        elif isinstance(node, ast.If):
            empty = _says_empty(node.test, free)
            if empty is True:
                yield from _given(node.body)
            elif empty is False and any(_takes(part, free) for part in node.body):
                yield from _given(node.orelse or _behind(node, scope.module))
        elif isinstance(node, ast.Try) and any(_takes(part, free) for part in node.body):
            for handler in node.handlers:
                yield from _given(handler.body)


def _says_empty(test: ast.expr, free: set[str]) -> bool | None:
    """Whether a test is true where a list is empty (True), or where it is not (False); None for other tests."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inside = _says_empty(test.operand, free)
        return None if inside is None else not inside
    if target_name(test) in free:
        return False
    if isinstance(test, ast.Call) and names_in(test) & free:
        return {"len": False, "bool": False, "empty": True}.get(last_name(test.func) or "")
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and names_in(test.left) & free:
        other, op = test.comparators[0], test.ops[0]
        number = other.value if isinstance(other, ast.Constant) else None
        if (isinstance(op, (ast.Eq, ast.LtE)) and number == 0) or (isinstance(op, ast.Lt) and number == 1):
            return True
        if (isinstance(op, (ast.Gt, ast.NotEq)) and number == 0) or (isinstance(op, ast.GtE) and number == 1):
            return False
    return None


def _takes(node: ast.AST, free: set[str]) -> bool:
    return any(
        isinstance(part, ast.Call) and last_name(part.func) in TAKES and bool(names_in(part) & free)
        for part in walk(node)
    )


def _given(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """return x, or block = x at the end of a branch."""
    last = body[-1] if body else None
    if isinstance(last, (ast.Return, ast.Assign)) and last.value is not None:
        yield last.value


def _behind(node: ast.If, module: Module) -> list[ast.stmt]:
    """What follows an `if` in its block, where it leaves the function."""
    above = module.parents.get(node)
    block = getattr(above, "body", [])
    rest = block[block.index(node) + 1 :] if isinstance(block, list) and node in block else []
    return rest if isinstance(node.body[-1], ast.Return) else []


def _when_none_found(scope: Scope) -> Iterator[ast.expr]:
    """for i, used in enumerate(self.used): if not used: return i; and behind the loop, where all are used: return 0."""
    body = getattr(scope.node, "body", None)
    if not isinstance(body, list) or len(body) < 2 or not isinstance(body[-1], ast.Return) or body[-1].value is None:
        return
    loop = next((part for part in reversed(body[:-1]) if not isinstance(part, (ast.Assign, ast.Expr))), body[-2])
    if not isinstance(loop, ast.For) or not re.search(r"used|busy|free|owner|ref|taken|alloc", text_of(loop), re.I):
        return
    found = [part for part in walk(loop) if isinstance(part, ast.Return) and part.value is not None]
    if found and all(names_in(loop.target) & names_in(part.value or loop.target) for part in found):
        yield body[-1].value


def _is_in_use(answer: ast.expr, scope: Scope, depth: int = 2) -> bool:
    """Whether an answer is the number of a block that nothing says is free: self.newest, used[-1], n - 1, 0."""
    if isinstance(answer, ast.Constant):
        return type(answer.value) is int and answer.value >= 0
    if isinstance(answer, (ast.Tuple, ast.List)):
        return len(answer.elts) == 1 and _is_in_use(answer.elts[0], scope, depth)
    if NO_BLOCK.search(text_of(answer)) or any(FREE.search(name) for name in names_in(answer)):
        return False
    if isinstance(answer, ast.Name):
        made = [b.value for b in scope.bindings.get(answer.id, []) if b.how == "="]
        return depth > 0 and len(made) == 1 and _is_in_use(made[0], scope, depth - 1)
    if isinstance(answer, ast.Call):
        return last_name(answer.func) in PICKS
    return isinstance(answer, (ast.Attribute, ast.Subscript, ast.BinOp))
