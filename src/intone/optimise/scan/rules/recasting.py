"""Rules on number formats: what is cast again at every step for nothing, and fp32 copies of large outputs."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import decode_loops, train_loops
from intone.optimise.scan.project import Project, called, code_of, last_name, owner_of
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name
from intone.optimise.scan.values import is_model_name, is_module_class

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
    """logits.float() on all positions on the way to a loss."""
    for scope in module.scopes:
        if not any(
            last_name(call.func) in ("cross_entropy", "CrossEntropyLoss", "nll_loss", "log_softmax")
            for call in scope.calls
        ):
            continue
        for call in scope.calls:
            value = _cast_to_fp32(call, scope)
            name = target_name(value) if value is not None else None
            if name is None or not re.search(r"logit", name) or module.loops_around(call) and _is_chunk(name, scope):
                continue
            if not _from_head(name, scope, set()) or _is_chunk(name, scope):
                continue
            yield Place(call, f"`{name}` of all positions is copied to fp32 for the loss", (f"{code_of(call, 60)}",))
            break


def _cast_to_fp32(call: ast.Call, scope: Scope) -> ast.expr | None:
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr == "float" and not call.args:
        return call.func.value
    words = [*call.args, *(word.value for word in call.keywords)]
    if call.func.attr in ("to", "type") and any(
        ast.unparse(word) in ("torch.float32", "torch.float") for word in words
    ):
        return call.func.value
    return None


def _from_head(name: str, scope: Scope, seen: set[str]) -> bool:
    """Whether a name holds the output of a head or a model at all positions."""
    if name in seen:
        return False
    seen.add(name)
    for binding in scope.bindings.get(name, []):
        value = binding.value
        if isinstance(value, ast.Subscript) and re.search(r"-1", ast.unparse(value.slice)):
            return False
        for part in ast.walk(value):
            if isinstance(part, ast.Call):
                called_name = target_name(part.func) or ""
                last = called_name.rpartition(".")[2]
                if re.search(r"head|unembed|output|logits|proj_out", last) or is_model_name(called_name):
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
    """F.linear(x, self.weight.to(x.dtype)) in a module's forward; model.half() in a hot loop."""
    for scope in module.scopes:
        owner = owner_of(scope)
        if owner is None or not is_module_class(owner) or scope.simple_name not in ("forward", "__call__"):
            continue
        for call in scope.calls:
            if last_name(call.func) not in PRODUCTS:
                continue
            cast = next((cast for arg in call.args if (cast := _cast_weight(arg, scope))), None)
            if cast is not None and not _is_quantised(owner, cast):
                yield Place(
                    cast,
                    f"`{code_of(cast, 40)}` copies the weight in every forward pass",
                    (f"used by {code_of(call, 60)}",),
                )
                break
    yield from _model_cast_in_loop(module, project)


def _cast_weight(arg: ast.expr, scope: Scope) -> ast.Call | None:
    """self.weight.to(...), also behind a local name."""
    values = [b.value for b in scope.bindings.get(arg.id, []) if b.how == "="] if isinstance(arg, ast.Name) else [arg]
    for value in values:
        for call in [part for part in ast.walk(value) if isinstance(part, ast.Call)]:
            if isinstance(call.func, ast.Attribute) and call.func.attr in CASTS:
                name = target_name(call.func.value) or ""
                if WEIGHT_NAME.fullmatch(name) and _goes_down(call):
                    return call
    return None


def _goes_down(call: ast.Call) -> bool:
    """A cast to the format that is computed in; one to fp32 is for precision, one to a device is no cast."""
    text = ast.unparse(call).partition("(")[2]
    return "device" not in text and "float32" not in text and last_name(call.func) != "float"


def _is_quantised(owner: ast.ClassDef, cast: ast.Call) -> bool:
    """Weights kept in 8 bits or less are cast on purpose."""
    text = ast.unparse(owner)
    return bool(re.search(r"int8|int4|uint8|float8|e4m3|quant|scales", text, re.I))


def _model_cast_in_loop(module: Module, project: Project) -> Iterator[Place]:
    hot: list[tuple[ast.AST, Scope]] = [
        (loop.inner, loop.scope) for loop in train_loops(module, project) if loop.inner is not None
    ]
    hot += [(loop.loop, loop.scope) for loop in decode_loops(module, project)]
    seen: set[ast.AST] = set()
    for loop, scope in hot:
        for call in [node for node in own_nodes(loop) if isinstance(node, ast.Call)]:
            if call in seen or not isinstance(call.func, ast.Attribute) or call.func.attr not in CASTS:
                continue
            name = target_name(call.func.value) or ""
            weights = re.search(r"(^|\.)(p|param|w|weight|master\w*)(\.data)?$", name) and not called(
                call, scope
            ).endswith("grad")
            casts = call.func.attr not in ("to", "type") or re.search(
                r"float|half|dtype", ast.unparse(call).partition("(")[2]
            )
            if casts and (is_model_name(name) or weights):
                seen.add(call)
                yield Place(
                    call,
                    f"`{code_of(call, 40)}` casts the weights at every turn of the loop",
                    (f"the loop begins with `{module.line_of(loop)[:60]}`",),
                )
