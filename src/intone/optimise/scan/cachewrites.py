"""Where generation's memory is written, and what a function does where it is full."""

import ast
import re
from dataclasses import dataclass

from intone.optimise.scan.expressions import keyword, last_name, names_in, text_of
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.source import Scope, target_name, walk

CACHE_NAME = re.compile(r"(^|_)(kv|k_buf|v_buf|past|keys?_mem)|cache", re.I)
# names of stores that say nothing by themselves, in a class or function that is named after a cache
STORE_NAME = re.compile(
    r"^_?(k|v|ks|vs|keys?|values?|key_\w+|value_\w+|k_\w+|v_\w+|buffers?|buf|store|storage|slots?|mem|memory|data|pages?|"
    r"entries|tensors?)$"
)
CACHE_OWNER = re.compile(r"cache|kv|memory|pastkey", re.I)
SIZE_WORD = re.compile(
    r"max|size|len|capacity|limit|shape|seqlen|context|num_slots|n_slots|n_ctx|(^|[._ ])cap|end|window|"
    r"room|space|remain|avail|(^|[._ ])(left|free)($|[._ ])",
    re.I,
)
LIMIT_WORD = re.compile(
    r"max|capacity|limit|size|cache|(^|[._ ])cap($|[._ ])|n_ctx|context|slots|length|shape|block", re.I
)
FULL_WORD = re.compile(r"(^|[._ ])(is_)?full($|[._ ])", re.I)
POSITION = re.compile(r"pos|idx|index|slot|end|start|length|offset|cursor|at$|where|head|write|ptr|n$|step|t$", re.I)
CHECKERS = re.compile(r"ensure|reserve|grow|check|validate|resize|realloc|extend_cache|evict")


@dataclass(frozen=True, eq=False)
class Write:
    """A write into a cache. moves: at a slice with a moving begin and an end, past which rows are dropped."""

    node: ast.AST
    target: ast.expr
    value: ast.expr
    moves: bool


def writes_of(scope: Scope, project: Project) -> list[Write]:
    """The writes into a cache that stand in a function."""
    key = ("writes", scope)
    if key not in project.remembered:
        nodes = scope.of(ast.Assign, ast.Call)
        project.remembered[key] = [one for node in nodes if (one := written_to_cache(node, scope, project)) is not None]
    found: list[Write] = project.remembered[key]
    return found


def written_to_cache(node: ast.AST, scope: Scope, project: Project) -> Write | None:
    """cache[..., a:b] = x, cache.index_copy_(1, pos, x), cache[:, slice(a, b)].copy_(x), cache.append(x); or None."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        target = node.targets[0]
        if isinstance(node.value, ast.Constant) or not _is_position(target.slice):
            return None
        if not is_cache(target.value, scope, project) and not _keeps_handed(target, node.value, scope):
            return None
        return Write(node, target, node.value, _moves(target.slice, scope))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        base = node.func.value
        if (
            node.func.attr in ("index_copy_", "scatter_", "index_put_")
            and len(node.args) > 1
            and (is_cache(base, scope, project) or _keeps_handed(base, node.args[-1], scope))
        ):
            return Write(node, ast.Tuple(list(node.args[:-1]), ast.Load()), node.args[-1], False)
        if node.func.attr == "copy_" and isinstance(base, ast.Call) and last_name(base.func) == "narrow":
            inside = base.func.value if isinstance(base.func, ast.Attribute) else base
            return Write(node, base, node.args[0], False) if is_cache(inside, scope, project) else None
        if node.func.attr == "copy_" and isinstance(base, ast.Subscript) and is_cache(base.value, scope, project):
            return Write(node, base, node.args[0], _moves(base.slice, scope))
        if (
            node.func.attr == "append"
            and len(node.args) == 1
            and is_cache(base, scope, project)
            and re.search(r"kv|past|key|value|attn|attention", f"{target_name(base)} {scope.name}", re.I)
        ):
            return Write(node, base, node.args[0], False)
    return None


def _is_position(index: ast.expr) -> bool:
    """An index of a tensor, not the key of a dict."""
    if isinstance(index, (ast.Slice, ast.Tuple, ast.BinOp, ast.Call, ast.Subscript)):
        return True
    name = target_name(index)
    return name is not None and bool(re.search(r"pos|idx|index|slot|offset|cursor|(^|[._])(at|t|i|step|n|head)$", name))


def is_cache(node: ast.expr, scope: Scope, project: Project, depth: int = 3) -> bool:
    """Whether a store is generation's memory: by its name, by the class that keeps it, or by what it was handed."""
    while isinstance(node, ast.Subscript):
        node = node.value
    name = target_name(node)
    if name is None or depth == 0:
        return False
    last = name.rpartition(".")[2]
    if CACHE_NAME.search(last):
        return True
    if STORE_NAME.match(last) and "." in name:
        owner = owner_of(scope)
        base = name.rpartition(".")[0]
        if (
            owner is not None
            and base == "self"
            and (CACHE_OWNER.search(owner.name) or _holds_keys_and_values(scope, project) or _is_of_cache_file(scope))
        ):
            return True
        if CACHE_OWNER.search(base.rpartition(".")[2]):
            return True
    if last in ("layers", "layer") and CACHE_OWNER.search(name):
        return True
    for origin in project.origins(node, scope, _parts, depth=3, stops=_is_named_cache):
        if (
            origin.node is not node
            and not origin.is_annotation
            and target_name(_bare(origin.node))
            and is_cache(origin.node, origin.scope, project, depth - 1)
        ):
            return True
    return False


def _holds_keys_and_values(scope: Scope, project: Project) -> bool:
    """Whether an object keeps tensors of keys and of values that it makes itself: self.k = zeros(...), self.v = ...

    Also as buffers of a module: register_buffer("k", ...), in whatever way they get their names.
    """
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner is not None else []
    made = {
        name
        for method in methods
        for name, bindings in method.bindings.items()
        for b in bindings
        if b.how == "=" and isinstance(b.value, ast.Call) and TENSOR_MAKER.match(last_name(b.value.func) or "")
    }
    if any(last_name(call.func) == "register_buffer" for method in methods for call in method.calls):
        made |= {name for method in methods for node in method.of(ast.Attribute) if (name := target_name(node))}
    return any(pair <= made for pair in PAIRS)


SAYS_CACHE = re.compile(r"(\bkv|keys?[ /-]?(and[ -])?values?)[ -]?(cache|store|pool|memory)", re.I)


def _is_of_cache_file(scope: Scope) -> bool:
    """Whether a file's own words say that it is about a cache of keys and values."""
    return SAYS_CACHE.search(ast.get_docstring(scope.module.tree) or "") is not None


TENSOR_MAKER = re.compile(r"(new_)?(zeros|empty|full|ones)(_like)?$")
PAIRS = ({"self.k", "self.v"}, {"self.keys", "self.values"}, {"self.key", "self.value"}, {"self.ks", "self.vs"})
# what a function that keeps keys and values is handed
HANDED = re.compile(r"^(k|v|ks|vs|keys?|values?)(_(new|in|t|states?|val|cur|chunk))?$|^(new|cur)_(k|v|keys?|values?)$")


# parameters that are stores of keys and values: kc, vc, k_buf, values_out
STORES = re.compile(r"^(k|v|ks|vs|keys?|values?)_?(c|cache|buf|buffer|store|mem|pool|all|pages|prev|old|out)s?$")


def _keeps_handed(target: ast.expr, value: ast.expr, scope: Scope) -> bool:
    """self.buf[0, ..., a:b] = k in a method that is handed k and v."""
    handed = {name[0] if "_" not in name else name.removeprefix("new_").removeprefix("cur_")[0]
              for name in [*scope.parameters, *scope.bindings] if HANDED.match(name)}  # fmt: skip
    name = target_name(_bare(target)) or ""
    own = name.startswith("self.") or name in scope.parameters and bool(STORES.match(name))
    while isinstance(value, ast.Subscript):
        value = value.value
    return own and handed >= {"k", "v"} and isinstance(value, ast.Name) and bool(HANDED.match(value.id))


def _is_named_cache(origin: Origin) -> bool:
    """self.kv_cache, kv.k[layer]: by its name, or a store of an object that is named after a cache."""
    base, _, last = (target_name(_bare(origin.node)) or "").rpartition(".")
    if not last:
        return False
    return bool(CACHE_NAME.search(last) or STORE_NAME.match(last) and CACHE_OWNER.search(base.rpartition(".")[2]))


def _parts(node: ast.expr) -> list[ast.expr]:
    return [node.value] if isinstance(node, ast.Subscript) else []


def _bare(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def _moves(index: ast.expr, scope: Scope) -> bool:
    """[..., start:end] with a start that is no constant; also as slice(start, end), and behind a name."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    for part in parts:
        values = [part]
        if isinstance(part, ast.Name):
            values = [binding.value for binding in scope.bindings.get(part.id, []) if binding.how == "="]
        for value in values:
            if (
                isinstance(value, ast.Slice)
                and value.lower is not None
                and value.upper is not None
                and not isinstance(value.lower, ast.Constant)
            ):
                return True
            if (
                isinstance(value, ast.Call)
                and last_name(value.func) == "slice"
                and len(value.args) > 1
                and not isinstance(value.args[0], ast.Constant)
            ):
                return True
    return False


# --- what is done at the end ------------------------------------------------------------------------------------------


def compares_size(test: ast.expr) -> bool:
    """A comparison in which a size, length or maximum appears; or a question whether something is full."""
    for part in walk(test):
        if isinstance(part, ast.Compare):
            names = names_in(part) | {last_name(c.func) or "" for c in walk(part) if isinstance(c, ast.Call)}
            ordered = any(isinstance(op, (ast.Gt, ast.GtE, ast.Lt, ast.LtE)) for op in part.ops)
            if ordered and SIZE_WORD.search(" ".join(names)):
                return True
            equal = any(isinstance(op, (ast.Eq, ast.NotEq)) for op in part.ops)
            if equal and re.search(r"max_|capacity|limit|n_ctx|(^|[._ ])cap($|[._ ])", " ".join(names)):
                return True
        if isinstance(part, (ast.Name, ast.Attribute)) and FULL_WORD.search(target_name(part) or ""):
            return True
    return False


def is_limit(value: ast.expr) -> bool:
    """pos < self.n, where places are kept by it: whatever the limit is called."""
    below = isinstance(value, ast.Compare) and isinstance(value.ops[0], ast.Lt)
    return below and not isinstance(value.left, ast.Constant)  # type: ignore[attr-defined]


def refuses_overflow(scope: Scope, project: Project) -> bool:
    """Whether a function raises, grows or answers where something is too long, itself or in a check that it calls."""
    for node in scope.of(ast.Assert, ast.If, ast.Call):
        if isinstance(node, ast.Assert) and compares_size(node.test):
            return True
        if isinstance(node, ast.If) and compares_size(node.test):
            for statement in [*node.body, *node.orelse]:
                if any(_is_loud(part) for part in walk(statement)):
                    return True
        if isinstance(node, ast.Call) and CHECKERS.search(last_name(node.func) or ""):
            return True
    return any(
        isinstance(node, ast.Raise) and any(isinstance(above, ast.If) for above in function.module.up(node))
        for call in scope.calls for function in project.callees(call, scope)[:1] for node in function.of(ast.Raise)
        if function is not scope and not function.of(ast.Return)
    )  # fmt: skip


def _is_loud(part: ast.AST) -> bool:
    if isinstance(part, ast.Raise):
        return True
    if isinstance(part, ast.Return):
        return returns_answer(part)
    if isinstance(part, ast.Call):
        name = last_name(part.func) or ""
        return bool(CHECKERS.search(name)) or name in ("cat", "pad", "warn", "warning", "error", "roll", "print")
    return False


def returns_answer(node: ast.Return) -> bool:
    """A return of False or of an error is an answer that a caller can read."""
    return isinstance(node.value, ast.Constant) and node.value.value is not None


def only_leaves(body: list[ast.stmt]) -> bool:
    """Whether a block does nothing but return what is there already, pass or continue."""
    if len(body) != 1:
        return False
    only = body[0]
    if isinstance(only, ast.Return):
        return not returns_answer(only) and not (isinstance(only.value, ast.Call) and "super" not in text_of(only))
    return isinstance(only, (ast.Pass, ast.Continue))


def checks_end(scope: Scope) -> bool:
    """Whether a function compares something with a size: if, assert, while, min(), or modulo for a ring."""
    for node in scope.of(ast.If, ast.Assert, ast.While, ast.IfExp, ast.Call, ast.BinOp):
        if isinstance(node, (ast.If, ast.Assert, ast.While, ast.IfExp)) and compares_size(node.test):
            return True
        if isinstance(node, ast.Call) and last_name(node.func) == "min":
            return True
        if isinstance(node, ast.Call) and CHECKERS.search(last_name(node.func) or ""):
            return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return True
    return False


def clamps(call: ast.Call) -> bool:
    """min(end, self.max_len), position.clamp(max=limit), torch.clamp(position, max=limit), np.minimum."""
    name = last_name(call.func)
    limits = " ".join(names_in(call)) + " " + " ".join(text_of(arg) for arg in call.args)
    if name in ("min", "minimum") and len(call.args) > 1:
        return bool(LIMIT_WORD.search(limits))
    if name in ("clamp", "clamp_", "clip", "clamp_max", "clamp_max_"):
        upper = keyword(call, "max")
        places = call.args[1:] if isinstance(call.func, ast.Attribute) and name != "clamp_max" else call.args
        return upper is not None or bool(places) and bool(LIMIT_WORD.search(limits))
    return False
