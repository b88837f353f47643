"""Rules on generation's memory: it should exist, and say so when it is full."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import Loop, decode_loops
from intone.optimise.scan.project import Project, code_of, keyword, last_name, names_in
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Binding, Module, Scope, own_nodes, target_name
from intone.optimise.scan.values import is_chosen

CACHE_WORD = re.compile(
    r"cache|past|kv(_|$)|(^|_)state|input_pos|position_ids|cur_pos|start_pos|pos_ids|use_cache", re.I
)
CACHE_NAME = re.compile(r"(^|_)(cache|kv|k_buf|v_buf|past|keys?_mem)|cache", re.I)
SIZE_WORD = re.compile(r"max|size|len|capacity|limit|shape|seqlen|context|num_slots|n_ctx", re.I)


@rule(
    "S10",
    "generation without a key-value cache",
    kind="no-kv-cache",
    severity="high",
    why="Every new token sends the whole text through the model again: the work for n tokens grows with n squared.",
    fix="Keep keys and values: run the prompt once, then feed only the newest token with its position.",
    source="optimiser.md D8; nanochat-facts.md 2.3",
)
def no_cache(module: Module, project: Project) -> Iterator[Place]:
    """A loop that feeds a growing text back into a model without handing over a cache or a position."""
    seen: set[ast.AST] = set()
    for decode in decode_loops(module, project):
        for call in decode.model_calls:
            grown = _grown_argument(call, decode.loop, decode.scope, project)
            if grown is None or call in seen or _hands_over_cache(call):
                continue
            seen.add(call)
            name, how = grown
            used = project.callers(decode.scope)[:3]
            yield Place(
                call,
                f"the whole of `{name}` goes through the model for every new token",
                (
                    f"it grows by {how}",
                    "the call hands over no cache and no position",
                    *(f"called at {site.scope.module.path}:{site.call.lineno}" for site in used),
                ),
            )
    yield from _switched_off(module)


def _switched_off(module: Module) -> Iterator[Place]:
    """generate(..., use_cache=False)."""
    for scope in module.scopes:
        for call in scope.calls:
            value = keyword(call, "use_cache")
            if last_name(call.func) == "generate" and isinstance(value, ast.Constant) and value.value is False:
                yield Place(call, "the cache is switched off for generation", ("use_cache=False",))


def _hands_over_cache(call: ast.Call) -> bool:
    if len(call.args) > 1 and any(CACHE_WORD.search(name) for arg in call.args[1:] for name in names_in(arg)):
        return True
    for word in call.keywords:
        if word.arg is None:
            return True  # **kwargs: cannot be seen
        if word.arg == "use_cache" or (isinstance(word.value, ast.Constant) and word.value.value is None):
            continue
        if CACHE_WORD.search(word.arg):
            return True
    return False


def _grown_argument(call: ast.Call, loop: Loop, scope: Scope, project: Project) -> tuple[str, str] | None:
    """(name of the text that a call gets, how it grows in the loop), or None."""
    for arg in [*call.args[:2], *(word.value for word in call.keywords)]:
        grown = _grows(arg, loop, scope, project, 4)
        if grown:
            return grown
    return None


def _grows(node: ast.expr, loop: Loop, scope: Scope, project: Project, depth: int) -> tuple[str, str] | None:
    """Whether an expression holds a text that gets longer in a loop: followed through names, slices and tensor()."""
    if depth == 0:
        return None
    if isinstance(node, ast.IfExp):
        return _grows(node.body, loop, scope, project, depth) or _grows(node.orelse, loop, scope, project, depth)
    if isinstance(node, ast.Subscript):
        if _ends_at_loop_position(node, loop, scope, project):
            return code_of(node.value, 30), "a slice that ends one token later at every turn"
        if _is_last_only(node.slice):
            return None
        return _grows(node.value, loop, scope, project, depth)
    if isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) == 1:
        return _grows(node.elts[0], loop, scope, project, depth)
    if isinstance(node, ast.Call):
        inside = list(node.args[:1])
        if isinstance(node.func, ast.Attribute) and last_name(node.func) not in (
            "tensor",
            "as_tensor",
            "cat",
            "concat",
            "array",
        ):
            inside.append(node.func.value)
        return next((found for part in inside if (found := _grows(part, loop, scope, project, depth - 1))), None)
    name = target_name(node)
    if name is None:
        return None
    for binding in _in_loop(name, loop, scope):
        how = _growth(name, binding, scope, project)
        if how:
            return name, how
    for binding in _in_loop(name, loop, scope):
        if binding.how == "=" and name not in names_in(binding.value):
            found = _grows(binding.value, loop, scope, project, depth - 1)
            if found:
                return found
    return None


def _in_loop(name: str, loop: Loop, scope: Scope) -> list[Binding]:
    inside = set(map(id, own_nodes(loop)))
    return [binding for binding in scope.bindings.get(name, []) if id(binding.node) in inside]


def _growth(name: str, binding: Binding, scope: Scope, project: Project) -> str | None:
    """How a statement makes a text longer by a chosen token, or None."""
    value = binding.value
    if binding.how == "=" and isinstance(value, ast.Call):
        last = last_name(value.func)
        if last in ("cat", "concat", "concatenate", "hstack", "append", "column_stack", "pad") and name in names_in(
            value
        ):
            return f"{last} in the loop (line {value.lineno})"
    if (
        binding.how == "="
        and isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add)
        and name in names_in(value)
    ):
        return f"+ in the loop (line {value.lineno})"
    if binding.how == "op" and is_chosen(value, scope, project, greedy=True):
        return f"+= in the loop (line {value.lineno})"
    node = binding.node
    appends = binding.how == "add" and isinstance(node, ast.Call) and last_name(node.func) in ("append", "extend")
    if appends and is_chosen(value, scope, project, greedy=True):
        return f"{code_of(node, 30)} in the loop (line {value.lineno})"
    return None


def _ends_at_loop_position(node: ast.Subscript, loop: Loop, scope: Scope, project: Project) -> bool:
    """seq[:, :t] where t moves on in the loop and a chosen token is written into seq."""
    base = target_name(node.value)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    ends = [
        part.upper for part in parts if isinstance(part, ast.Slice) and part.lower is None and part.upper is not None
    ]
    moving = (
        {part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
        if isinstance(loop, (ast.For, ast.AsyncFor))
        else set()
    )
    for part in own_nodes(loop):
        if isinstance(part, ast.AugAssign) and isinstance(part.op, ast.Add):
            moving |= names_in(part.target)
    if base is None or not any(names_in(end) & moving for end in ends):
        return False
    written = [binding for binding in _in_loop(base, loop, scope) if binding.how == "add"]
    return any(is_chosen(binding.value, scope, project, greedy=True) for binding in written)


def _is_last_only(index: ast.expr) -> bool:
    """[:, -1:], [-1], [:, -1]: only the newest token."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    for part in parts:
        at = part.lower if isinstance(part, ast.Slice) and part.upper is None else part
        if isinstance(at, ast.UnaryOp) and isinstance(at.operand, ast.Constant) and at.operand.value == 1:
            return True
    return False


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
        writes = [node for node in scope.body if isinstance(node, ast.Assign) and _writes_cache(node)]
        if writes and not _checks_end(scope):
            target = writes[0].targets[0]
            yield Place(
                writes[0],
                f"`{code_of(target, 50)}` is written without a look at the cache's end",
                (
                    "the function compares nothing with the cache's size",
                    "one new position past the end is dropped by broadcasting, without an error",
                ),
            )
        yield from _cut(scope)


def _writes_cache(node: ast.Assign) -> bool:
    """cache[..., start:end] = x with a start that is no constant."""
    target = node.targets[0]
    if not isinstance(target, ast.Subscript) or isinstance(node.value, ast.Constant):
        return False
    name = target_name(target.value) or ""
    if not CACHE_NAME.search(name.rpartition(".")[2]):
        return False
    parts = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
    return any(
        isinstance(part, ast.Slice)
        and part.lower is not None
        and not isinstance(part.lower, ast.Constant)
        and part.upper is not None
        for part in parts
    )


def _checks_end(scope: Scope) -> bool:
    """Whether a function compares something with a size: if, assert, while, min(), or modulo for a ring."""
    for node in scope.body:
        if isinstance(node, (ast.If, ast.Assert, ast.While, ast.IfExp)) and _compares_size(node.test):
            return True
        if isinstance(node, ast.Call) and last_name(node.func) in (
            "min",
            "check_length",
            "ensure_capacity",
            "_check",
            "grow",
        ):
            return True
        if isinstance(node, ast.Call) and re.search(r"ensure|reserve|grow|check|validate", last_name(node.func) or ""):
            return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return True
    return False


def _compares_size(test: ast.expr) -> bool:
    """A comparison by order in which a size, length or maximum appears."""
    for part in ast.walk(test):
        if isinstance(part, ast.Compare) and any(isinstance(op, (ast.Gt, ast.GtE, ast.Lt, ast.LtE)) for op in part.ops):
            words = (
                " ".join(names_in(part))
                + " "
                + " ".join(last_name(c.func) or "" for c in ast.walk(part) if isinstance(c, ast.Call))
            )
            if SIZE_WORD.search(words):
                return True
    return False


def _cut(scope: Scope) -> Iterator[Place]:
    """pos = min(pos, limit - 1), and `if full: return`, in functions that write into a cache."""
    writes = [node for node in scope.body if isinstance(node, (ast.Assign, ast.Call)) and _touches_cache(node)]
    if not writes:
        return
    for node in scope.body:
        if isinstance(node, ast.If) and _compares_size(node.test) and _only_leaves(node.body):
            yield Place(
                node,
                "when the cache is full the new keys and values are left out without a word",
                (f"`if {code_of(node.test, 50)}` only leaves",),
            )
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _clamps(node.value):
            name = target_name(node.targets[0]) or ""
            if re.search(r"pos|idx|index|slot|end|start|length", name):
                yield Place(
                    node,
                    f"`{name}` is cut to the cache's end: later tokens overwrite the last place",
                    (code_of(node, 60),),
                )


def _touches_cache(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        return isinstance(target, ast.Subscript) and bool(
            CACHE_NAME.search((target_name(target.value) or "").rpartition(".")[2])
        )
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("index_copy_", "scatter_", "copy_")
    ):
        return any(CACHE_NAME.search(name.rpartition(".")[2]) for name in names_in(node.func.value))
    return False


def _clamps(call: ast.Call) -> bool:
    name = last_name(call.func)
    words = " ".join(names_in(call))
    if name == "min" and isinstance(call.func, ast.Name):
        return bool(re.search(r"max|capacity|limit|size|cache", words)) and any(
            isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) for part in call.args
        )
    return (
        name in ("clamp", "clamp_", "clip")
        and (keyword(call, "max") is not None or len(call.args) > 1)
        and bool(re.search(r"max|cache|len", words))
    )


def _only_leaves(body: list[ast.stmt]) -> bool:
    """Whether a block does nothing but return, pass or continue."""
    if len(body) != 1:
        return False
    only = body[0]
    return isinstance(only, (ast.Pass, ast.Continue)) or isinstance(only, ast.Return) and not _returns_new(only)


def _returns_new(node: ast.Return) -> bool:
    """A return of False or of an error is an answer that a caller can read."""
    return isinstance(node.value, ast.Constant) and node.value.value is not None or isinstance(node.value, ast.Call)
