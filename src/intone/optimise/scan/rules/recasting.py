"""A rule on number formats: fp32 copies of all logits, the largest tensor of a small model."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, dotted, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_call, is_model_name


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
    yield from _in_generation(module, project)
    yield from _for_last(module, project)
    yield from _all_steps(module, project)
    for scope in module.scopes:
        if not _computes_loss(scope, project):
            continue
        for call in scope.calls:
            value = _cast_to_fp32(call, scope) or _cast_by_helper(call, scope, project)
            value = _whole(value) if value is not None and not _is_regressed(call, scope) else None
            if isinstance(value, ast.Call) and (_is_of_chunk(value, scope) or GIVES_NUMBER.search(text_of(value.func))):
                continue
            if isinstance(value, ast.Call) and _is_head(value, scope, project):
                yield Place(call, "the logits of all positions are copied to fp32 for the loss", (code_of(call, 60),))
                break
            name = next((one for one in _meant(value, scope) if _is_logits(one, scope, project)), None)
            if name is None:
                continue
            yield Place(call, f"`{name}` of all positions is copied to fp32 for the loss", (f"{code_of(call, 60)}",))
            break


# models that give a number for a text, not logits of its positions
GIVES_NUMBER = re.compile(r"reward|critic|value_|scorer|judge|verif", re.I)


def _in_generation(module: Module, project: Project) -> Iterator[Place]:
    """logits = model(ids).float(); logits[:, -1]: the prompt's positions are copied too, and one is used."""
    for decode in decode_loops(module, project):
        for item in reached(decode.loop, decode.scope, project):
            call = item.node
            value = _cast_to_fp32(call, item.scope) if isinstance(call, ast.Call) and not item.is_in_forward else None
            if value is None or isinstance(value, ast.Subscript):
                continue
            value = _whole(value)
            if isinstance(value, ast.Attribute) and value.attr == "logits":  # out = model(ids); out.logits.float()
                made = item.scope.bindings.get(target_name(value.value) or "", [])
                value = next((b.value for b in made if isinstance(b.value, ast.Call)), value)
            if isinstance(value, ast.Call) and is_model_call(value, item.scope, project) and _cut_later(item):
                words = "the logits of all positions are copied to fp32, and only the last one's are used"
                yield Place(call, words, (code_of(call, 60),), scope=item.scope)
                break


def _for_last(module: Module, project: Project) -> Iterator[Place]:
    """full = head(hidden).float(); return full[:, -1]: outside of a loop too, and where a caller cuts."""
    for scope in module.scopes:
        for call in scope.calls:
            cast = _cast_to_fp32(call, scope)
            if cast is None:
                continue
            value = _whole(cast)
            if isinstance(value, ast.Call):
                whole = _is_head(value, scope, project)
            else:
                name = target_name(value)
                whole = name is not None and "logit" in name and _is_logits(name, scope, project)
                whole = whole and name not in scope.parameters
                whole = whole or _is_cut_at_once(call, scope) and _chooses(scope)
            if whole and _is_read_last(call, scope, project):
                words = "the logits of all positions are copied to fp32, and only the last one's are used"
                yield Place(call, words, (code_of(call, 60),))
                break


def _is_cut_at_once(cast: ast.Call, scope: Scope) -> bool:
    """scores.float()[:, -1], whatever it is called."""
    above = scope.module.parents.get(cast)
    return isinstance(above, ast.Subscript) and above.value is cast and isinstance(above.slice, ast.Tuple)


def _chooses(scope: Scope) -> bool:
    """Whether a function makes probabilities or tokens of what it has."""
    chosen = ("softmax", "log_softmax", "multinomial", "argmax", "topk", "logsumexp")
    return any(last_name(call.func) in chosen for call in scope.calls)


def _is_read_last(node: ast.expr, scope: Scope, project: Project, depth: int = 2) -> bool:
    """Whether of a value nothing but the last position is read: here, or by all that call the function."""
    above = scope.module.parents.get(node)
    if isinstance(above, ast.Subscript) and above.value is node:
        return _keeps_last(above.slice) or _picks_ends(above.slice)
    if isinstance(above, ast.Return) and depth:
        sites = project.callers(scope)
        return bool(sites) and all(_is_read_last(site.call, site.scope, project, depth - 1) for site in sites)
    name = target_name(above.targets[0]) if isinstance(above, ast.Assign) and len(above.targets) == 1 else None
    if name is None or "." in name or above is None:
        return False
    read = [
        scope.module.parents.get(one) for one in scope.module.reads.get(name, [])
        if scope.module.scope_of.get(one) is scope and getattr(one, "lineno", 0) > above.lineno  # type: ignore[attr-defined]
    ]  # fmt: skip
    cuts = [one for one in read if isinstance(one, ast.Subscript) and target_name(one.value) == name]
    return bool(cuts) and len(cuts) == len(read) and all(
        _keeps_last(one.slice) or _picks_ends(one.slice) for one in cuts
    )  # fmt: skip


def _picks_ends(index: ast.expr) -> bool:
    """[ends], [rows, lengths - 1]: the last position of each text, by its number."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    if any(isinstance(part, (ast.Slice, ast.Constant)) for part in parts):
        return False
    return bool(re.search(r"(^|_)(ends?|last\w*|final\w*|tails?)$|len\w* - 1|(^|_)last_|cumsum", text_of(parts[-1])))


def _all_steps(module: Module, project: Project) -> Iterator[Place]:
    """kept.append(logits); torch.stack(kept, 1).float() in the same loop: every step copies what all before it gave."""
    for scope in module.scopes:
        for call in scope.calls:
            value = _cast_to_fp32(call, scope)
            kept = _joined(value, scope) if value is not None else None
            for loop in scope.module.loops_around(call) if kept is not None else ():
                if kept is not None and (put := _kept_in(kept, loop, scope, project)) is not None:
                    words = f"`{kept}` holds the logits of all steps, and every step copies all of them to fp32"
                    told = f"line {getattr(put, 'lineno', 0)}: {code_of(put, 50)}"
                    yield Place(call, words, (code_of(call, 60), told), severity="medium")
                    break


JOINS = ("stack", "cat", "concat", "concatenate", "vstack", "hstack")


def _joined(value: ast.expr, scope: Scope, depth: int = 3) -> str | None:
    """The name of a list, tensor or buffer of several steps that a value is all of; a part of it needs an end."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in SHAPES:
        value = value.func.value
    if isinstance(value, ast.Call) and last_name(value.func) in JOINS and value.args:
        return target_name(value.args[0])
    if isinstance(value, ast.Subscript):  # buf[:, : t + 1]
        parts = value.slice.elts if isinstance(value.slice, ast.Tuple) else [value.slice]
        ends = [part for part in parts if isinstance(part, ast.Slice) and part.lower is None and part.upper is not None]
        return target_name(value.value) if ends and len(ends) + parts.count(ends[0]) > 1 else None
    if not isinstance(value, ast.Name) or depth == 0:
        return None
    made = [b.value for b in scope.bindings.get(value.id, []) if b.how == "="]
    for one in made:
        if isinstance(one, ast.Call) and last_name(one.func) in JOINS and one.args:
            grows = isinstance(one.args[0], (ast.Tuple, ast.List)) and value.id in names_in(one.args[0])
            return value.id if grows else target_name(one.args[0])
    return None


SHAPES = ("view", "reshape", "flatten", "contiguous", "transpose", "permute", "squeeze", "movedim")


def _kept_in(kept: str, loop: ast.AST, scope: Scope, project: Project) -> ast.AST | None:
    """Where a loop puts one step's logits beside those that are kept; None where it keeps something else, or fp32."""
    for node in walk(loop):
        put: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("append", "extend") and target_name(node.func.value) == kept:
                put = node.args[0]
        elif isinstance(node, ast.AugAssign) and target_name(node.target) == kept:
            put = node.value
        elif isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
            put = node.value if target_name(target.value) == kept else None
        elif isinstance(node, ast.Assign) and target_name(node.targets[0]) == kept:
            inside = node.value.args[0] if isinstance(node.value, ast.Call) and node.value.args else node.value
            put = inside if kept in names_in(inside) else None
        if put is not None and _gives_logits(put, kept, scope, project):
            return node
    return None


def _gives_logits(put: ast.expr, kept: str, scope: Scope, project: Project) -> bool:
    if any(isinstance(part, ast.Call) and _cast_to_fp32(part, scope) is not None for part in walk(put)):
        return False  # cast once, when it is kept
    for name in names_in(put) - {kept}:
        made = [b.value for b in scope.bindings.get(name, []) if b.how == "="]
        if any(isinstance(part, ast.Call) and _cast_to_fp32(part, scope) is not None for v in made for part in walk(v)):
            return False
        if re.search(r"logit", name):
            return True
    return any(isinstance(part, ast.Call) and _is_head(part, scope, project) for part in walk(put))


def _cut_later(item: Reached) -> bool:
    """Whether what is cast gets a name of which only the last position is read."""
    above = item.scope.module.parents.get(item.node)
    name = target_name(above.targets[0]) if isinstance(above, ast.Assign) else None
    read = [node for node in item.scope.of(ast.Subscript) if target_name(node.value) == name]
    return name is not None and any(_keeps_last(node.slice) for node in read)


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
    if _is_chunk(name, scope) or _is_attention(name, scope) or _is_handed_chunk(name, scope, project):
        return False
    if re.search(r"logit|(^|_)(out|outputs?|pred|preds|scores)$", name):
        return _from_head(name, scope, project, set())
    # whatever it is called and whoever made it: what a loss over classes gets first are the logits
    return any(name in names_in(call.args[0]) for call in scope.calls if last_name(call.func) in LOSSES and call.args)


REGRESSIONS = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss",
    "gaussian_nll_loss", "cosine_similarity", "binary_cross_entropy_with_logits",
)  # fmt: skip


def _is_regressed(cast: ast.Call, scope: Scope) -> bool:
    """mse_loss(pred.float(), noise): a prediction as large as its target, no scores of every class."""
    above = scope.module.parents.get(cast)
    name = target_name(above.targets[0]) if isinstance(above, ast.Assign) and len(above.targets) == 1 else None
    users = [call for call in scope.calls if call is above or name is not None and any(
        name in names_in(arg) for arg in call.args
    )]  # fmt: skip
    losses = [call for call in users if last_name(call.func) in (*REGRESSIONS, *LOSSES)]
    return bool(losses) and all(last_name(call.func) in REGRESSIONS for call in losses)


def _is_attention(name: str, scope: Scope) -> bool:
    """scores = q @ k.transpose(-1, -2): of queries and keys."""
    for value in (b.value for b in scope.bindings.get(name, []) if b.how == "="):
        products = [
            part for part in walk(value)
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.MatMult)
            or isinstance(part, ast.Call) and last_name(part.func) in ("matmul", "bmm", "einsum", "baddbmm")
        ]  # fmt: skip
        words = {one.lower() for part in products for one in names_in(part)}
        if any(re.match(r"(self\.)?(x?q|quer(y|ies))(_|$)", one) for one in words) and any(
            re.match(r"(self\.)?(x?k|keys?)(_|$)", one) for one in words
        ):
            return True
    return False


LOSSES = (
    "cross_entropy", "CrossEntropyLoss", "nll_loss", "log_softmax", "logsumexp", "chunked_cross_entropy", "kl_div",
)  # fmt: skip


def _computes_loss(scope: Scope, project: Project) -> bool:
    """Whether a function computes a loss itself, or hands logits to a function or object that does."""
    for call in scope.calls:
        name = last_name(call.func) or ""
        if name in LOSSES or re.search(r"(^|_)(crit(erion)?|loss(_fn|_func|_function)?|ce|xent|nll)$", name):
            return True
        if any(last_name(inner.func) in LOSSES for f in project.callees(call, scope)[:2] for inner in f.calls) and any(
            "logit" in name for arg in call.args for name in names_in(arg)
        ):
            return True
    if scope.simple_name == "forward" and any("logit" in text_of(value) for value in scope.returns):
        return "cross_entropy(" in scope.module.text  # whoever runs the model computes the loss
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
    """What a call copies to fp32, or wider: x.float(), x.to(torch.float32), softmax(x, dtype=torch.float32)."""
    if last_name(call.func) in ("log_softmax", "softmax") and _is_fp32(keyword(call, "dtype"), scope):
        method = isinstance(call.func, ast.Attribute) and not called(call, scope).startswith("torch.")
        return call.func.value if method else call.args[0] if call.args else None  # type: ignore[attr-defined]
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr in ("float", "double") and not call.args:
        return call.func.value
    words = [*call.args, *(word.value for word in call.keywords)]
    if call.func.attr in ("to", "type") and any(_is_fp32(word, scope) for word in words):
        return call.func.value
    return None


def _is_fp32(node: ast.expr | None, scope: Scope) -> bool:
    """torch.float32 or wider, itself or behind a name."""
    if node is None:
        return False
    if isinstance(node, ast.Name) and node.id not in scope.parameters:
        bindings = scope.bindings.get(node.id) or scope.module.top.bindings.get(node.id, [])
        if any(b.how == "=" and not isinstance(b.value, ast.Name) and _is_fp32(b.value, scope) for b in bindings):
            return True
    return dotted(node, scope) in ("torch.float32", "torch.float", "torch.float64", "torch.double")


def _cast_by_helper(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """up(logits), a function of the project that hands back its argument in fp32."""
    for function in project.callees(call, scope)[:1] if len(call.args) == 1 else ():
        casts = [_cast_to_fp32(value, function) for value in function.returns if isinstance(value, ast.Call)]
        if any(isinstance(value, ast.Name) and value.id in function.parameters for value in casts):
            return call.args[0]
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
    root, dot, _ = name.partition(".")
    if dot and root in scope.bindings and root not in ("self", "cls"):  # out = model(ids); out.logits
        return _from_head(root, scope, project, seen)
    return root in scope.parameters


def _is_chunk(name: str, scope: Scope) -> bool:
    return bool(re.search(r"chunk|piece|part|slice|block", name)) or any(
        b.how == "iter" for b in scope.bindings.get(name, [])
    )


def _is_handed_chunk(name: str, scope: Scope, project: Project, depth: int = 3) -> bool:
    """Whether all who call a loss hand it parts: for part, labels in zip(logits.chunk(8), ...): loss(part, labels)."""
    sites = project.callers(scope)[:6] if name in scope.parameters and depth else []
    handed = [(target_name(project.argument(site, scope, name) or site.call) or "", site.scope) for site in sites]
    return bool(handed) and all(
        _is_chunk(one, at) or _is_handed_chunk(one, at, project, depth - 1) for one, at in handed
    )
