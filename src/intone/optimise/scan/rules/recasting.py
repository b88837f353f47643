"""Rules on number formats: what is cast again at every step for nothing, and fp32 copies of large outputs."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import is_periodic, train_loops
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_call, is_model_name, is_module_class

CASTS = ("to", "type", "type_as", "half", "bfloat16", "float")
WEIGHT_NAME = re.compile(r"self\.(\w+\.)?(\w*weight\w*|W|w_\w+|kernel|w\d?)")
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "einsum", "embedding", "conv1d", "baddbmm")


@rule(
    "S40",
    "all logits as fp32 copies",
    kind="recast",
    severity="low",
    why="Logits are the largest tensor of a small model: a copy of all of them in fp32, for every position, "
    "often decides how "
    "many rows fit and moves gigabytes per step.",
    fix="Compute head and loss in chunks of rows so that only one chunk exists in fp32, or use a fused "
    "loss; check loss and "
    "gradients against fp32.",
    source="optimiser.md D13; nanochat-facts.md 4.2.10",
)
def fp32_logits(module: Module, project: Project) -> Iterator[Place]:
    """logits.float() on all positions on the way to a loss, also where a helper computes the loss."""
    for scope in module.scopes:
        if not _computes_loss(scope, project):
            continue
        for call in scope.calls:
            value = _cast_to_fp32(call, scope)
            value = _whole(value) if value is not None else None
            if isinstance(value, ast.Call) and _is_of_chunk(value, scope):
                continue
            if isinstance(value, ast.Call) and _is_head(value, scope, project):
                yield Place(call, "the logits of all positions are copied to fp32 for the loss", (code_of(call, 60),))
                break
            name = next((one for one in _meant(value, scope) if _is_logits(one, scope, project)), None)
            if name is None:
                continue
            yield Place(call, f"`{name}` of all positions is copied to fp32 for the loss", (f"{code_of(call, 60)}",))
            break


def _whole(value: ast.expr) -> ast.expr:
    """What a cast is about without a cut of positions, shapes and the field of an output: model(x).logits[:, :-1]."""
    while True:
        if isinstance(value, ast.Subscript) and not _keeps_last(value.slice):
            value = value.value
        elif isinstance(value, ast.Call) and last_name(value.func) in ("view", "reshape", "flatten", "contiguous"):
            if not isinstance(value.func, ast.Attribute):
                return value
            value = value.func.value
        elif isinstance(value, ast.Attribute) and value.attr == "logits" and isinstance(value.value, ast.Call):
            value = value.value
        else:
            return value


def _is_of_chunk(value: ast.Call, scope: Scope) -> bool:
    """head(part) in a loop over parts: for part in hidden.chunk(8), for i in range(0, n, size)."""
    return any(
        binding.how == "iter" and re.search(r"chunk|split\(|unbind|range\(", text_of(binding.value))
        for arg in value.args for name in names_in(arg) for binding in scope.bindings.get(name, [])
    )  # fmt: skip


def _keeps_last(index: ast.expr) -> bool:
    """[:, -1], [-1]: one position; [:, :-1] are all but one."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return any("-1" in text_of(part) for part in parts if not (isinstance(part, ast.Slice) and part.lower is None))


def _meant(value: ast.expr | None, scope: Scope) -> list[str]:
    """The names of what is cast; in (z.float() for z in (student, teacher)) those of both."""
    name = target_name(value) if value is not None else None
    walked = [b.value for b in scope.bindings.get(name or "", []) if b.how == "iter"]
    listed = [part for one in walked if isinstance(one, (ast.Tuple, ast.List)) for part in one.elts]
    if walked:
        return [one for part in listed if (one := target_name(part)) is not None] or [name or ""]
    return [name] if name is not None else []


def _is_logits(name: str, scope: Scope, project: Project) -> bool:
    """Whether a name holds logits of all positions: it reads so, or it is a model's output that goes into the loss."""
    if _is_chunk(name, scope):
        return False
    if re.search(r"logit|(^|_)(out|outputs?|pred|preds|scores)$", name):
        return _from_head(name, scope, project, set())
    if name in scope.parameters:
        return False
    goes_in = any(name in names_in(arg) for call in scope.calls if last_name(call.func) in LOSSES for arg in call.args)
    return goes_in and any(
        binding.how == "=" and isinstance(binding.value, ast.Call) and is_model_call(binding.value, scope, project)
        for binding in scope.bindings.get(name, [])
    )


LOSSES = ("cross_entropy", "CrossEntropyLoss", "nll_loss", "log_softmax", "logsumexp", "chunked_cross_entropy")


def _computes_loss(scope: Scope, project: Project) -> bool:
    """Whether a function computes a loss itself, or hands logits to a function or object that does."""
    for call in scope.calls:
        name = last_name(call.func) or ""
        if name in LOSSES or re.search(r"(^|_)(criterion|loss_fn|loss_func|ce|xent)$", name):
            return True
        if any(last_name(inner.func) in LOSSES for f in project.callees(call, scope)[:2] for inner in f.calls) and any(
            "logit" in name for arg in call.args for name in names_in(arg)
        ):
            return True
    return any(
        any(last_name(c.func) in LOSSES or re.search(r"loss", last_name(c.func) or "") for c in site.scope.calls)
        for site in project.callers(scope)[:4]
        if any("logit" in text_of(value) for value in scope.returns)
    )


def _is_head(value: ast.Call, scope: Scope, project: Project) -> bool:
    """self.lm_head(x), model(x)"""
    name = (target_name(value.func) or "").rpartition(".")[2]
    return bool(re.search(r"head|unembed|logits|proj_out", name)) or is_model_call(value, scope, project)


def _cast_to_fp32(call: ast.Call, scope: Scope) -> ast.expr | None:
    if last_name(call.func) in ("log_softmax", "softmax") and text_of(keyword(call, "dtype") or call.func) in (
        "torch.float32", "torch.float",
    ):  # fmt: skip
        method = isinstance(call.func, ast.Attribute) and not called(call, scope).startswith("torch.")
        return call.func.value if method else call.args[0] if call.args else None  # type: ignore[attr-defined]
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr == "float" and not call.args:
        return call.func.value
    words = [*call.args, *(word.value for word in call.keywords)]
    if call.func.attr in ("to", "type") and any(text_of(word) in ("torch.float32", "torch.float") for word in words):
        return call.func.value
    return None


def _from_head(name: str, scope: Scope, project: Project, seen: set[str]) -> bool:
    """Whether a name holds the output of a head or a model at all positions."""
    if name in seen:
        return False
    seen.add(name)
    for binding in scope.bindings.get(name, []):
        value = binding.value
        if isinstance(value, ast.Subscript) and re.search(r"-1", text_of(value.slice)):
            return False
        for part in walk(value):
            if isinstance(part, ast.Call):
                called_name = target_name(part.func) or ""
                last = called_name.rpartition(".")[2]
                if re.search(r"head|unembed|output|logits|proj_out", last) or is_model_name(called_name):
                    return True
                if is_model_call(part, scope, project):
                    return True
    return name in scope.parameters


def _is_chunk(name: str, scope: Scope) -> bool:
    return bool(re.search(r"chunk|piece|part|slice|block", name)) or any(
        b.how == "iter" for b in scope.bindings.get(name, [])
    )


@rule(
    "S41",
    "weights cast again at every pass",
    kind="recast",
    severity="medium",
    why="The whole weight is read in one format and written in another before it is used: 8 bytes per "
    "parameter and token "
    "instead of 2 when generating, where reading weights is all that counts.",
    fix="For generation keep a copy in the format that is computed in; for training use autocast's cached "
    "casts or let the "
    "compiler fuse the cast.",
    source="nanochat-facts.md 4.1.1",
)
def weight_recast(module: Module, project: Project) -> Iterator[Place]:
    """F.linear(x, self.weight.to(x.dtype)) in a module's forward or what it calls; model.half() in a hot loop."""
    for scope in module.scopes:
        owner = owner_of(scope)
        inside = owner is not None and is_module_class(owner) and scope.simple_name != "__init__"
        if not inside and not _runs_for_forward(scope, project):
            continue
        if scope.simple_name in LOADING or not any(last_name(call.func) in CASTS for call in scope.calls):
            continue
        if owner is not None and _is_quantised(owner):
            continue
        for call in scope.calls:
            if last_name(call.func) not in PRODUCTS:
                continue
            cast = next((cast for arg in call.args if (cast := _cast_weight(arg, scope, project))), None)
            if cast is not None:
                yield _copied_weight(cast, call)
                break
        else:
            yield from _product_by_operator(scope, project)
    yield from _model_cast_in_loop(module, project)
    yield from _casts_not_kept(module)


def _casts_not_kept(module: Module) -> Iterator[Place]:
    """autocast(..., cache_enabled=False): each use of a weight casts it again; only recorded graphs need that."""
    if re.search(r"CUDAGraph|make_graphed_callables", module.text):
        return
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) == "autocast" and is_false(keyword(call, "cache_enabled")):
                told = "cache_enabled=False: a weight that is used twice is cast twice"
                yield Place(call, "autocast keeps no casts of the weights", (told,))


LOADING = (
    "__init__",
    "from_pretrained",
    "load",
    "reset_parameters",
    "convert",
    "_init_weights",
    "init_weights",
    "load_weights",
)


def _product_by_operator(scope: Scope, project: Project) -> Iterator[Place]:
    """x @ self.weight.to(x.dtype).T"""
    for node in scope.of(ast.BinOp):
        if isinstance(node.op, ast.MatMult):
            cast = _cast_weight(node.right, scope, project) or _cast_weight(node.left, scope, project)
            if cast is not None:
                yield _copied_weight(cast, node)
                return


def _copied_weight(cast: ast.Call, user: ast.expr) -> Place:
    up = last_name(cast.func) == "float" or "float32" in text_of(cast)
    told = f"used by {code_of(user, 60)}"
    more = ("to fp32, where a copy kept in that format would do",) if up else ()
    words = f"`{code_of(cast, 40)}` copies the weight in every forward pass"
    return Place(cast, words, (told, *more), severity="low" if up else None)


def _runs_for_forward(scope: Scope, project: Project) -> bool:
    """A plain function that a module's forward calls with its weight: matmul_cast(x, self.weight)."""
    if scope.owner is not None or scope.node is scope.module.tree:
        return False
    for site in project.callers(scope)[:6]:
        owner = owner_of(site.scope)
        if (
            owner is not None
            and is_module_class(owner)
            and site.scope.simple_name != "__init__"
            and not _is_quantised(owner)
        ):
            return True
    return False


def _cast_weight(arg: ast.expr, scope: Scope, project: Project) -> ast.Call | None:
    """self.weight.to(...), also behind a local name, or a parameter that callers hand a weight."""
    values = [b.value for b in scope.bindings.get(arg.id, []) if b.how == "="] if isinstance(arg, ast.Name) else [arg]
    for value in values:
        for call in [part for part in walk(value) if isinstance(part, ast.Call)]:
            if isinstance(call.func, ast.Attribute) and call.func.attr in CASTS and _is_other_format(call):
                inside = call.func.value
                if _is_weight(inside, scope, project):
                    return call
    return None


def _is_weight(node: ast.expr, scope: Scope, project: Project) -> bool:
    name = target_name(node) or ""
    if WEIGHT_NAME.fullmatch(name):
        return True
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("t", "transpose", "detach")
    ):
        return _is_weight(node.func.value, scope, project)
    if isinstance(node, ast.Attribute) and node.attr in ("T", "data", "mT"):
        return _is_weight(node.value, scope, project)
    if isinstance(node, ast.Attribute) and node.attr == "weight":
        return True
    if isinstance(node, ast.Name):
        if node.id in scope.parameters:
            for site in project.callers(scope)[:6]:
                value = project.argument(site, scope, node.id)
                if value is not None and (target_name(value) or "").endswith("weight"):
                    return True
        return any(
            b.how == "=" and not isinstance(b.value, ast.Name) and (target_name(b.value) or "").endswith("weight")
            for b in scope.bindings.get(node.id, [])
        )
    return _is_parameter(name, scope, project)


def _is_parameter(name: str, scope: Scope, project: Project) -> bool:
    """self.table, made by nn.Parameter."""
    owner = project.owner_of(scope)
    if not name.startswith("self.") or owner is None:
        return False
    return any(
        isinstance(b.value, ast.Call) and last_name(b.value.func) == "Parameter"
        for method in project.class_scopes(owner[1]) for b in method.bindings.get(name, [])
    )  # fmt: skip


def _is_other_format(call: ast.Call) -> bool:
    """A cast to another format, not a copy to a device."""
    text = text_of(call).rpartition("(")[2]
    return "device" not in text and "cuda" not in text


def _is_quantised(owner: ast.ClassDef) -> bool:
    """Weights kept in 8 bits or less are cast on purpose."""
    return bool(re.search(r"int8|int4|uint8|float8|e4m3|quant|scales", text_of(owner), re.I))


def _model_cast_in_loop(module: Module, project: Project) -> Iterator[Place]:
    hot: list[tuple[ast.AST, Scope]] = []
    for loop in train_loops(module, project):
        hot.append((loop.inner, loop.scope))
    hot += [(decode.loop, decode.scope) for decode in decode_loops(module, project)]
    seen: set[ast.AST] = set()
    for start, scope in hot:
        for item in reached(start, scope, project):
            call = item.node
            if not isinstance(call, ast.Call) or call in seen or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in CASTS or not _is_cast(call) or is_periodic(item, start, project):
                continue
            if item.is_in_forward:
                continue
            if _casts_weights(call, item):
                seen.add(call)
                begins = f"the loop at {module.path}:{start.lineno} begins with `{module.line_of(start)[:60]}`"  # type: ignore[attr-defined]
                yield Place(
                    call,
                    f"`{code_of(call, 40)}` casts the weights at every turn of the loop",
                    (begins, *([item.path()] if item.chain else [])),
                    scope=item.scope,
                )


def _casts_weights(call: ast.Call, item: Reached) -> bool:
    """The model, a parameter or master weight, or the values of a state dict."""
    assert isinstance(call.func, ast.Attribute)
    value = call.func.value
    name = target_name(value) or ""
    if name.endswith(".grad") or called(call, item.scope).endswith("grad"):
        return False
    if is_model_name(name) and not _is_output(name, item):
        return True
    if re.search(r"(^|\.)(p|param|params|w|weight|weights|master\w*|fp32\w*|\w*_fp32|\w*_master)(\.data)?$", name):
        return True
    for binding in item.scope.bindings.get(name, []):  # for name, x in model.state_dict().items()
        if re.search(r"state_dict\(\)|parameters\(\)|master", text_of(binding.value)) and binding.how == "iter":
            return True
    for above in item.scope.module.up(call):
        if isinstance(above, (ast.DictComp, ast.ListComp, ast.GeneratorExp)):
            return bool(re.search(r"state_dict\(\)|parameters\(\)|master", text_of(above.generators[0].iter)))
    return False


def _is_cast(call: ast.Call) -> bool:
    """.half(), .to(dtype): a cast to another format, not a copy to a device."""
    if last_name(call.func) not in ("to", "type"):
        return not call.args
    return bool(re.search(r"float|half|dtype", text_of(call).partition("(")[2]))


def _is_output(name: str, item: Reached) -> bool:
    """A name like a model's that holds what a model made."""
    return any(b.how == "part" for b in item.scope.bindings.get(name, []))
