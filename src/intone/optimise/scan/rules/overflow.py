"""A rule on a full cache: what does not fit must not be dropped in silence."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.cachewrites import (
    CACHE_NAME,
    CACHE_OWNER,
    LIMIT_WORD,
    POSITION,
    Write,
    checks_end,
    clamps,
    compares_size,
    is_cache,
    is_limit,
    only_leaves,
    refuses_overflow,
    writes_of,
)
from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.ringwrites import WINDOW, wrapped, wraps
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk

ROOM = re.compile(r"room|left|free|space|fit")


@rule(
    "S11",
    "cache overflow is dropped in silence",
    kind="cache-overflow",
    severity="high",
    why="A token past the end of the cache is written nowhere: a slice past the end is empty, one row fits "
    "into it without "
    "an error, and the model goes on without the text's newest part.",
    fix="Compare the end with the cache's length before writing; raise, grow the cache, or stop the text "
    "with the reason length.",
    source="nanochat-facts.md 4.1.7, measured there",
)
def cache_overflow(module: Module, project: Project) -> Iterator[Place]:
    """Writes into a cache at a moving place with no check of its end; places that are cut or skipped without a word."""
    for scope in module.scopes:
        if (dropped := _drops_oldest(scope, project)) is not None:
            yield dropped
            continue
        writes = writes_of(scope, project)
        if not writes and (cut := _cut_elsewhere(scope, project)) is not None:
            yield cut
            continue
        passes = [call for call in scope.calls if _hands_position_on(call, scope, project)]
        unseen = [call for call in scope.calls if call not in passes and _hands_cache_on(call, scope, project)]
        if not (writes or passes or unseen) or refuses_overflow(scope, project):
            continue
        silent = next((found for write in writes if (found := _silent(write, scope, project))), None)
        silent = silent or _leaves_when_full(scope, bool(writes)) or _cut_position(scope, project, writes, passes)
        silent = silent or _cut_for_model(scope, unseen) or _passed_over(scope, passes)
        if silent:
            yield silent
        elif (moving := [write for write in writes if write.moves]) and not checks_end(scope):
            yield Place(
                moving[0].node,
                f"`{code_of(moving[0].target, 50)}` is written without a look at the cache's end",
                (
                    "the function compares nothing with the cache's size",
                    "one new position past the end is dropped by broadcasting, without an error",
                ),
            )


def _drops_oldest(scope: Scope, project: Project) -> Place | None:
    """self.k = cat([self.k, k])[:, :, -limit:]: the first tokens fall out of a cache that says nothing of a window."""
    for node in scope.of(ast.Assign):
        if not isinstance(node.value, ast.Subscript):
            continue
        value = node.value
        joined = isinstance(value.value, ast.Call) and last_name(value.value.func) in ("cat", "concat", "concatenate")
        parts = value.slice.elts if isinstance(value.slice, ast.Tuple) else [value.slice]
        tail = any(
            isinstance(part, ast.Slice) and isinstance(part.lower, ast.UnaryOp) and isinstance(part.lower.op, ast.USub)
            and not isinstance(part.lower.operand, ast.Constant)
            for part in parts
        )  # fmt: skip
        if joined and tail and is_cache(node.targets[0], scope, project):
            if WINDOW.search(text_of(scope.owner or scope.node)):
                return None
            return Place(
                node,
                "past the cache's length its oldest tokens fall out without a word",
                (code_of(node, 60),),
                confidence="medium",
            )
    return None


def _hands_position_on(call: ast.Call, scope: Scope, project: Project) -> bool:
    """cache.write(position, keys): a call of a function that writes into a cache."""
    return any(writes_of(function, project) for function in project.callees(call, scope)[:2])


def _hands_cache_on(call: ast.Call, scope: Scope, project: Project) -> bool:
    """model.forward_cached(ids, self.kv, where): a call of code that we do not see, with a cache and a position."""
    if project.callees(call, scope) or called(call, scope).startswith(("torch.", "len", "isinstance", "print")):
        return False
    parts = [*call.args, *(word.value for word in call.keywords)]
    return len(parts) > 1 and any(is_cache(part, scope, project) for part in parts)


# names of places in a text; POSITION has many more, for code that is known to write into a cache
PLACE = re.compile(r"pos|start|begin|offset|cursor|where|slot|(^|[._])(at|t|idx|index|end)$", re.I)


def _cut_for_model(scope: Scope, calls: Sequence[ast.Call]) -> Place | None:
    """start = min(pos, limit - n), or limit - n if it is too long, on the way into a model that writes a cache."""
    for call in calls:
        inside = [part for arg in [*call.args, *(word.value for word in call.keywords)] for part in walk(arg)]
        for part in inside:
            places = [one for one in names_in(part) if PLACE.search(one) and not LIMIT_WORD.search(one)]
            if isinstance(part, ast.Call) and clamps(part) and places:
                return Place(
                    part,
                    f"`{places[0]}` is cut to the cache's end: later tokens overwrite the last place",
                    (f"goes into {code_of(call, 50)} at line {call.lineno}",),
                    confidence="medium",
                )
        names = {name for part in [*call.args, *(word.value for word in call.keywords)] for name in names_in(part)}
        for _ in range(2):  # where = arange(start, start + n)
            names |= {
                other
                for name in names
                for b in scope.bindings.get(name, [])
                if b.how == "="
                for other in names_in(b.value)
            }
        for name in sorted(names):
            for binding in scope.bindings.get(name, []):
                value = binding.value
                cut = (
                    isinstance(value, ast.Call)
                    and clamps(value)
                    and any(PLACE.search(one) and not LIMIT_WORD.search(one) for one in names_in(value))
                )
                back = (
                    isinstance(value, ast.BinOp)
                    and isinstance(value.op, ast.Sub)
                    and _only_when_full(binding.node, scope)
                )
                either = isinstance(value, ast.IfExp) and compares_size(value.test)
                either = either or wraps(value) and bool(LIMIT_WORD.search(text_of(value))) and not _is_window(scope)
                if PLACE.search(name) and binding.how == "=" and (cut or back or either):
                    return Place(
                        binding.node,
                        f"`{name}` is cut to the cache's end: later tokens overwrite the last places",
                        (code_of(binding.node, 60), f"goes into {code_of(call, 50)} at line {call.lineno}"),
                        confidence="medium",
                    )
    return None


def _is_window(scope: Scope) -> bool:
    return WINDOW.search(text_of(scope.owner or scope.node)) is not None


def _cut_elsewhere(scope: Scope, project: Project) -> Place | None:
    """self.pos = min(self.pos + n, self.size) in a method, where another one writes into the cache at self.pos."""
    if scope.owner is None or scope.simple_name == "__init__":
        return None
    moved = {
        name: node
        for node in scope.of(ast.Assign)
        for name in [target_name(node.targets[0])]
        if name is not None and name.startswith("self.") and isinstance(node.value, ast.Call) and clamps(node.value)
    }
    cut = next((one for value in scope.returns for one in _clamps_in(value, scope)), None)
    places = cut is not None and any(POSITION.search(one) for one in [scope.simple_name, *names_in(cut)])
    if not moved and not places or refuses_overflow(scope, project):
        return None
    for method in project.class_scopes(scope.owner):
        if method is scope or refuses_overflow(method, project):
            continue
        for write in writes_of(method, project):
            used = names_in(write.target)
            if (
                places
                and cut is not None
                and (CACHE_OWNER.search(scope.owner.name) or _is_named(write.node))
                and any(POSITION.search(one) for one in names_in(write.target) & set(method.parameters))
            ):
                told = (code_of(cut, 60), f"`{method.simple_name}` writes there: {code_of(write.target, 50)}")
                return Place(cut, "positions are cut to the cache's end: later tokens overwrite the last place", told)
            used |= {n for name in used for b in method.bindings.get(name, []) for n in names_in(b.value)}
            for name in sorted(moved.keys() & used):
                return Place(
                    moved[name],
                    f"`{name}` is cut to the cache's end: later tokens overwrite the last place",
                    (code_of(moved[name], 60), f"`{method.simple_name}` writes there: {code_of(write.target, 50)}"),
                )
    return None


def _is_named(node: ast.AST) -> bool:
    """Whether a write names a cache: self.kv[layer].index_copy_(0, slots, k)."""
    return any(CACHE_NAME.search(name.rpartition(".")[2]) for name in names_in(node))


def _clamps_in(node: ast.expr, scope: Scope) -> Iterator[ast.Call]:
    """The calls that cut a place to a limit in an expression, and in what the names in it are bound to."""
    behind = [b.value for name in names_in(node) for b in scope.bindings.get(name, []) if b.how == "="]
    for part in [part for one in [node, *behind] for part in walk(one)]:
        if isinstance(part, ast.Call) and clamps(part):
            yield part


def _passed_over(scope: Scope, passes: Sequence[ast.Call]) -> Place | None:
    """if pos < cache.max_len: cache.write(pos, k), with nothing for the other case."""
    for call in passes:
        below: ast.AST = call
        for above in scope.module.up(call):
            if above is scope.node:
                break
            asks = isinstance(above, ast.If) and below in above.body and not above.orelse
            if asks and compares_size(above.test) and FULL.search(text_of(above.test)):  # type: ignore[attr-defined]
                leaves = any(isinstance(part, (ast.Return, ast.Raise, ast.Break)) for part in walk(above))
                if not leaves and not _goes_on_loudly(above, scope.module):  # type: ignore[arg-type]
                    return Place(
                        above,
                        "when the cache is full the new keys and values are left out without a word",
                        (f"written only where `{code_of(above.test, 50)}`, with nothing for the other case",),  # type: ignore[attr-defined]
                        confidence="medium",
                    )
            below = above
    return None


FULL = re.compile(r"max_?(len|seq|pos|size|ctx)|capacity|limit|n_ctx|context_len|cache_len|cache_size|\.size\b")


def _silent(write: Write, scope: Scope, project: Project) -> Place | None:
    """A write that is skipped, caught, masked or shortened where the cache is full."""
    module = scope.module
    below: ast.AST = write.node
    for above in module.up(write.node):
        if above is scope.node:
            break
        if (
            isinstance(above, ast.If)
            and below in above.body
            and not above.orelse
            and compares_size(above.test)
            and not _goes_on_loudly(above, module)
        ):
            return Place(
                above,
                "when the cache is full the new keys and values are left out without a word",
                (f"written only where `{code_of(above.test, 50)}`, with nothing for the other case",),
            )
        if isinstance(above, ast.Try) and below in above.body:
            quiet = [handler for handler in above.handlers if _is_quiet(handler)]
            if quiet:
                return Place(
                    write.node,
                    "an error of the full cache is caught and nothing is said",
                    (f"line {quiet[0].lineno}: {module.line_of(quiet[0])}",),
                )
        if isinstance(above, ast.With) and any("suppress(" in text_of(item.context_expr) for item in above.items):
            told = f"line {above.lineno}: {module.line_of(above)}"
            return Place(write.node, "an error of the full cache is caught and nothing is said", (told,))
        below = above
    return _masked(write, scope) or _shortened(write, scope, project)


def _goes_on_loudly(holder: ast.If, module: Module) -> bool:
    """Whether a raise or an answer stands behind the `if`."""
    above = module.parents.get(holder)
    block = next((b for n in ("body", "orelse") if isinstance(b := getattr(above, n, None), list) and holder in b), [])
    rest = block[block.index(holder) + 1 :] if block else []
    return any(isinstance(part, ast.Raise) for statement in rest for part in walk(statement))


def _is_quiet(handler: ast.ExceptHandler) -> bool:
    text = text_of(handler.type) if handler.type else "Exception"
    return bool(re.search(r"Index|Runtime|Value|Exception", text)) and only_leaves(handler.body)


def _masked(write: Write, scope: Scope) -> Place | None:
    """keep = positions < limit; cache[positions[keep]] = keys[keep]"""
    names = {part.id for part in walk(write.target) if isinstance(part, ast.Name)}
    names &= {part.id for part in walk(write.value) if isinstance(part, ast.Name)}
    for name in sorted(names):
        for binding in scope.bindings.get(name, []):
            if compares_size(binding.value) or is_limit(binding.value):
                return Place(
                    write.node,
                    "positions past the cache's end are masked out without a word",
                    (f"line {getattr(binding.node, 'lineno', 0)}: {name} = {code_of(binding.value, 50)}",),
                )
    return None


def _shortened(write: Write, scope: Scope, project: Project) -> Place | None:
    """cache[:, pos:end] = keys[:, : end - pos] with an end that is cut to the cache's length."""
    inside = list(walk(write.target)) + list(walk(write.value))
    slices = [part for part in inside if isinstance(part, ast.Slice) and part.upper is not None]
    for part in slices:
        cut = _cut_to_size(part.upper, scope, project, 3)
        if cut is not None:
            return Place(
                write.node,
                "what does not fit into the cache is cut off without a word",
                (f"line {cut.lineno}: {code_of(cut, 60)}",),
            )
    return None


def _cut_to_size(node: ast.expr | None, scope: Scope, project: Project, depth: int) -> ast.expr | None:
    """min(end, self.max_len), or room = self.max_len - self.pos: the expression that cuts, through names and calls."""
    if node is None or depth == 0:
        return None
    for part in walk(node):
        if isinstance(part, ast.Call):
            if clamps(part):
                return part
            for function in project.callees(part, scope)[:2]:
                for value in function.returns:
                    if (cut := _cut_to_size(value, function, project, depth - 1)) is not None:
                        return cut
        name = target_name(part) if isinstance(part, (ast.Name, ast.Attribute)) else None
        for binding in scope.bindings.get(name, []) if name is not None else ():
            value = binding.value
            if binding.how in ("=", "part") and (cut := _cut_to_size(value, scope, project, depth - 1)) is not None:
                return cut
            if isinstance(value, ast.IfExp) and compares_size(value.test):
                return value  # limit if end > limit else end
            named = isinstance(value, (ast.Name, ast.Attribute)) and LIMIT_WORD.search(text_of(value))
            if named and _only_when_full(binding.node, scope):
                return value  # if end > limit: end = limit
            if (
                isinstance(value, ast.BinOp)
                and isinstance(value.op, ast.Sub)
                and (ROOM.search(name or "") or _only_when_full(binding.node, scope))
                and LIMIT_WORD.search(" ".join(names_in(value.left)))
            ):
                return value
    return None


def _only_when_full(node: ast.AST, scope: Scope) -> bool:
    """if end > self.size: n = self.size - start"""
    above = scope.module.parents.get(node)
    return isinstance(above, ast.If) and node in above.body and compares_size(above.test)


def _leaves_when_full(scope: Scope, writes: bool) -> Place | None:
    for node in scope.of(ast.If):
        if writes and compares_size(node.test) and only_leaves(node.body):
            return Place(
                node,
                "when the cache is full the new keys and values are left out without a word",
                (f"`if {code_of(node.test, 50)}` only leaves",),
            )
    return None


def _cut_position(scope: Scope, project: Project, writes: Sequence[Write], passes: Sequence[ast.Call]) -> Place | None:
    """pos = min(pos, limit - 1), also inside the index, in functions that write into a cache or call one that does."""
    for node in scope.of(ast.Assign, ast.Call):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and clamps(node.value):
            name = target_name(node.targets[0]) or ""
            if POSITION.search(name):
                return Place(
                    node,
                    f"`{name}` is cut to the cache's end: later tokens overwrite the last place",
                    (code_of(node, 60),),
                )
        if (
            isinstance(node, ast.Call)
            and last_name(node.func) in ("clamp_", "clip_")
            and clamps(node)
            and isinstance(node.func, ast.Attribute)
            and POSITION.search(target_name(node.func.value) or "")
        ):
            return Place(node, "the position is cut to the cache's end", (code_of(node, 60),))
    for place in [*(write.target for write in writes), *(arg for call in passes for arg in call.args)]:
        for part in _clamps_in(place, scope):
            if names_in(part) & set(scope.parameters) or any(part is one for one in walk(place)):
                words = "the position is cut to the cache's end: later tokens overwrite the last place"
                return Place(part, words, (code_of(place, 60),))
    if (ring := wrapped(scope, project, writes, passes)) is not None:
        return Place(
            ring.node,
            "past its end the cache is written from its beginning: the text's first part is lost without a word",
            (code_of(ring.node, 60), f"written at {code_of(ring.target, 60)}"),
            confidence="medium",
            scope=ring.scope,
        )
    return None
