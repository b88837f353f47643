"""A rule on what a cache loses by the way that it is kept: short queues, shifts, cuts, masks, missing pages."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.cachewrites import CACHE_OWNER, LIMIT_WORD, compares_size, is_cache, refuses_overflow
from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.overflow import cache_overflow
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import spelled

# words by which code says that it keeps a part on purpose; torch.roll is how it is done, not a word for it
WINDOW = re.compile(
    r"window|\bring|_ring|circular|rolling|slid|wrap|evict|sink|streaming_?(llm|cache|attn|kv|window)|"
    r"local_attn|local attention",
    re.I,
)
JOINS = ("cat", "concat", "concatenate", "hstack")


@rule(
    "S19",
    "a full cache forgets in silence",
    kind="cache-overflow",
    severity="high",
    why="Past its length the cache loses the first tokens of the text, or does not take the newest: the model goes on "
    "with another text than it was given, and nobody is told.",
    fix="Compare the end with the cache's length before writing; raise, grow the cache, or stop the text with the "
    "reason length. A window on purpose says so, and the model is trained for it.",
    source="nanochat-facts.md 4.1.7",
)
def forgotten(module: Module, project: Project) -> Iterator[Place]:
    """deque(maxlen=n) of keys, roll(-1), cat(...)[:, :n], a cut behind a test of the size, where(at == pos, ...)."""
    told: set[int] | None = None
    for scope in module.scopes:
        for node, what in _lost(scope, project):
            if WINDOW.search(text_of(scope.owner or scope.node)):
                break
            if told is None:
                told = {getattr(place.node, "lineno", 0) for place in cache_overflow(module, project)}
            if any(abs(getattr(node, "lineno", 0) - line) < 6 for line in told):
                break
            yield Place(node, what, (code_of(node, 60),), confidence="medium")
            break


def _lost(scope: Scope, project: Project) -> Iterator[tuple[ast.AST, str]]:
    """(where, in words) of each way in which a function lets a cache lose something."""
    for node, target, value in _assigned(scope):
        if _is_short_queue(value) and _holds_cache(target, scope, project):
            yield node, f"`{code_of(target, 30)}` holds a fixed number of entries: the oldest fall out without a word"
        elif _shifts(value) and is_cache(target, scope, project) and not refuses_overflow(scope, project):
            yield node, f"`{code_of(target, 30)}` is shifted to make room: its oldest tokens fall out without a word"
        elif (_head_of_join(value) or _head_of_joined(value, scope)) and (
            is_cache(target, scope, project) or _holds_state(target, scope)
        ):
            yield node, "past the cache's length the newest tokens are cut off without a word"
        elif _is_masked(value, scope, project) and is_cache(target, scope, project):
            if not refuses_overflow(scope, project):
                yield node, "a position past the end meets no place of the mask: the token is not kept, without a word"
        elif _tail_of_itself(target, value, scope) and is_cache(target, scope, project):
            yield (
                node,
                f"`{code_of(target, 30)}` is cut to the cache's length: the first tokens fall out without a word",
            )
        elif _cut_when_full(node, target, value, scope, project):
            yield node, f"`{code_of(target, 30)}` is cut to the cache's length without a word"
    for test in scope.of(ast.If):
        if _no_room(test, scope):
            yield test, "where there is no room the new keys and values are left out without a word"
        elif _steals(test, scope):
            yield test, "where there is no room a page of a text that is under way is taken away without a word"


def _assigned(scope: Scope) -> Iterator[tuple[ast.stmt, ast.expr, ast.expr]]:
    """(statement, target, value) of each name or place that a function gives a value, pair by pair in tuples."""
    for noted in scope.of(ast.AnnAssign):
        if noted.value is not None:
            yield noted, noted.target, noted.value
    for node in scope.of(ast.Assign):
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            yield from ((node, one, other) for one, other in zip(target.elts, value.elts, strict=True))
        else:
            yield node, target, value


def _holds_cache(target: ast.expr, scope: Scope, project: Project) -> bool:
    """A store of keys and values: by its name, or in a class that is named after a cache."""
    name = (target_name(target) or "").rpartition(".")[2]
    kv = re.search(r"(^|_)(k|v|keys?|values?|kv|past|pages?|blocks?)(_|s?$)|cache", name)
    owned = scope.owner is not None and CACHE_OWNER.search(scope.owner.name)
    return bool(owned and kv) or re.search(r"kv|past_key|k_cache|v_cache", name) is not None


def _is_short_queue(value: ast.expr) -> bool:
    """deque(maxlen=n), [deque(maxlen=n) for _ in layers]"""
    for part in walk(value):
        if isinstance(part, ast.Call) and last_name(part.func) == "deque":
            size = keyword(part, "maxlen") or (part.args[1] if len(part.args) > 1 else None)
            return size is not None and not (isinstance(size, ast.Constant) and size.value is None)
    return False


def _shifts(value: ast.expr) -> bool:
    """torch.roll(k, -n, dims=2), k.roll(shifts=-1, dims=1)"""
    if not isinstance(value, ast.Call) or last_name(value.func) != "roll":
        return False
    return any(isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub) for part in walk(value))


def _head_of_join(value: ast.expr) -> bool:
    """cat([cache, k], 2)[:, :, :limit]"""
    if not isinstance(value, ast.Subscript) or not isinstance(value.value, ast.Call):
        return False
    parts = value.slice.elts if isinstance(value.slice, ast.Tuple) else [value.slice]
    ends = [part.upper for part in parts if isinstance(part, ast.Slice) and part.lower is None]
    limits = [text_of(end) for end in ends if end is not None]
    return last_name(value.value.func) in JOINS and any(LIMIT_WORD.search(limit) for limit in limits)


def _head_of_joined(value: ast.expr, scope: Scope) -> bool:
    """k_all = cat([cache, k], 1), and then k_all[:, :limit]"""
    if not isinstance(value, ast.Subscript) or target_name(value.value) is None:
        return False
    parts = value.slice.elts if isinstance(value.slice, ast.Tuple) else [value.slice]
    ends = [part.upper for part in parts if isinstance(part, ast.Slice) and part.lower is None and part.upper]
    made = [b.value for b in scope.bindings.get(target_name(value.value) or "", []) if b.how == "="]
    joined = len(made) == 1 and isinstance(made[0], ast.Call) and last_name(made[0].func) in JOINS
    return joined and any(LIMIT_WORD.search(text_of(end)) or "limit" in text_of(end) for end in ends)


def _holds_state(target: ast.expr, scope: Scope) -> bool:
    """state["k"] in a function that is about keys and values by its name"""
    key = target.slice if isinstance(target, ast.Subscript) else None
    named = isinstance(key, ast.Constant) and re.fullmatch(r"(past_)?(k|v|keys?|values?)", str(key.value)) is not None
    return named and re.search(r"kv|cache|past|attn|attention", scope.name, re.I) is not None


def _tail_of_itself(target: ast.expr, value: ast.expr, scope: Scope) -> bool:
    """self.k = cat([self.k, k], 2), then self.k = self.k[:, :, -limit:]"""
    name = target_name(target)
    if name is None or not isinstance(value, ast.Subscript) or target_name(value.value) != name or not _is_cut(value):
        return False
    return any(
        isinstance(part, ast.Call) and last_name(part.func) in JOINS and name in names_in(part)
        for b in scope.bindings.get(name, [])
        for part in walk(b.value)
    )


def _is_masked(value: ast.expr, scope: Scope, project: Project) -> bool:
    """where(arange == pos, k, cache), cache * (1 - hit) + k * hit with hit = arange == pos: no hit past the end."""
    blends = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)
    chooses = isinstance(value, ast.Call) and last_name(value.func) in ("where", "masked_scatter", "lerp")
    if not blends and not chooses:
        return False
    names = {part.id for part in walk(value) if isinstance(part, ast.Name)}
    parts = [value, *(b.value for name in names for b in scope.bindings.get(name, []) if b.how == "=")]
    return any(
        isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Eq)
        and re.search(r"arange|index|positions|slots|range", text_of(part))
        for node in parts for part in walk(node)
    )  # fmt: skip


def _cut_when_full(node: ast.AST, target: ast.expr, value: ast.expr, scope: Scope, project: Project) -> bool:
    """if k.size(2) > limit: k = k[:, :, -limit:], also for all layers: tuple((k[:, -limit:], ...) for k, v in past)."""
    above = scope.module.parents.get(node)
    if not isinstance(above, ast.If) or node not in above.body or not compares_size(above.test):
        return False
    if target_name(target) is None:
        return False  # an entry of a dict: masks and positions are cut beside what they are about
    if any(isinstance(part, (ast.Raise, ast.Return)) for statement in above.body for part in walk(statement)):
        return False
    if any(isinstance(part, ast.Call) and re.search(r"warn|log|info|print|error", last_name(part.func) or "")
           for statement in above.body for part in walk(statement)):  # fmt: skip
        return False
    cuts = [part for part in walk(value) if isinstance(part, ast.Subscript) and _is_cut(part)]
    crops = isinstance(value, ast.Call) and last_name(value.func) == "crop"
    if not cuts and not crops:
        return False
    if is_cache(target, scope, project):
        return True
    name = target_name(target) or ""
    joined = [b.value for b in scope.bindings.get(name, []) if isinstance(b.value, ast.Call)]
    return any(
        last_name(call.func) in JOINS and re.search(r"cache|past|kv", text_of(call), re.I) for call in joined
    ) and any(name in names_in(part) for part in cuts)


def _is_cut(node: ast.Subscript) -> bool:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for part in parts:
        if not isinstance(part, ast.Slice):
            continue
        if part.upper is None and isinstance(part.lower, (ast.UnaryOp, ast.BinOp, ast.Name)):
            return not isinstance(getattr(part.lower, "operand", None), ast.Constant)
        if part.lower is None and part.upper is not None:
            return bool(LIMIT_WORD.search(text_of(part.upper)))
    return False


NO_ROOM = re.compile(r"free|avail|pool|spare|unused|vacant", re.I)


def _no_room(test: ast.If, scope: Scope) -> bool:
    """if not self.free_blocks: return, in code that writes pages of a cache."""
    asks = isinstance(test.test, ast.UnaryOp) and isinstance(test.test.op, ast.Not) or "len(" in text_of(test.test)
    asked = text_of(test.test)
    if isinstance(test.test, ast.Compare) and isinstance(test.test.ops[0], ast.Is):  # slot = find_free(): slot is None
        asks, asked = True, spelled(test.test, scope, steps=1)
    if not asks or not NO_ROOM.search(asked) or test.orelse or len(test.body) != 1:
        return False
    only = test.body[0]
    leaves = isinstance(only, (ast.Pass, ast.Continue)) or isinstance(only, ast.Return) and (
        only.value is None or isinstance(only.value, ast.Constant) and only.value.value is None
    )  # fmt: skip
    about = f"{scope.owner.name if scope.owner is not None else ''} {scope.name} {asked}"
    writes = any(isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) for node in scope.body)
    return leaves and writes and bool(re.search(r"cache|kv|page|block", about, re.I))


def _steals(test: ast.If, scope: Scope) -> bool:
    """if not self.free: self.free.append(self.tables[victim].pop(0)), in code that keeps pages of a cache."""
    asks = isinstance(test.test, ast.UnaryOp) and isinstance(test.test.op, ast.Not)
    if not asks or not NO_ROOM.search(text_of(test.test)):
        return False
    inside = [part for statement in test.body for part in walk(statement)]
    if any(isinstance(part, ast.Raise) for part in inside):
        return False
    taken = any(
        isinstance(part, ast.Call) and last_name(part.func) in ("pop", "popleft", "popitem")
        and isinstance(part.func, ast.Attribute) and not NO_ROOM.search(text_of(part.func.value))
        for part in inside
    )  # fmt: skip
    given = any(
        isinstance(part, ast.Call) and last_name(part.func) in ("append", "extend", "add", "put")
        and isinstance(part.func, ast.Attribute) and NO_ROOM.search(text_of(part.func.value))
        for part in inside
    )  # fmt: skip
    about = f"{scope.owner.name if scope.owner is not None else ''} {scope.name} {text_of(test)}"
    return taken and given and bool(re.search(r"cache|kv|page|block|slot", about, re.I))
