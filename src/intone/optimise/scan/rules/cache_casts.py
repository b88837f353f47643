"""A rule on generation's memory that is kept in one number format and read in another."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.cachewrites import is_cache
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, names_in, text_of
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_module_class

FORMATS = re.compile(r"dtype|float|half|bf16|fp16|fp32")
NARROW = re.compile(r"int8|int4|uint8|float8|e4m3|e5m2|quant|(\b|_)scales?\b", re.I)
KEEPS_STATE = re.compile(r"save|load|state_dict|export|offload|__init__|reset|init|convert|^to$|swap")


@rule(
    "S74",
    "the whole cache is cast at every token",
    kind="recast",
    severity="medium",
    why="All keys and values of all earlier tokens are read and written again in another format before attention reads "
    "them a third time: generation is bound by just that traffic.",
    fix="Keep the cache in the format that attention computes in, and cast only the new token's keys and values.",
    source="optimiser.md D14",
)
def cache_recast(module: Module, project: Project) -> Iterator[Place]:
    """attention(q, cache.k.to(q.dtype), cache.v.to(q.dtype)); model(tok, keys.float(), values.float()) in a loop."""
    turns = [reached(decode.loop, decode.scope, project) for decode in decode_loops(module, project)]
    hot = {id(item.node) for turn in turns for item in turn}
    for scope in module.scopes[1:]:
        owner = owner_of(scope)
        attends = "attention" in text_of(scope.node) or "softmax" in text_of(scope.node)
        runs = owner is not None and is_module_class(owner) and attends and not KEEPS_STATE.search(scope.simple_name)
        if NARROW.search(text_of(owner if owner is not None else scope.node)):
            continue  # kept in few bits on purpose
        for call in scope.calls:
            if (runs or id(call) in hot) and _casts_cache(call, scope, project):
                yield Place(call, f"`{code_of(call, 40)}` casts all that is cached", ("it runs at every token",))
                break


def _casts_cache(call: ast.Call, scope: Scope, project: Project) -> bool:
    """cache.k.float(), past[0].to(q.dtype), k_cache[:, :n].type_as(q)"""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr not in ("to", "float", "half", "bfloat16", "type_as", "type"):
        return False
    told = " ".join(text_of(part) for part in [*call.args, *(word.value for word in call.keywords)])
    if func.attr in ("to", "type") and not FORMATS.search(told):
        return False
    held = func.value
    while isinstance(held, ast.Subscript):
        held = held.value
    name = target_name(held)
    if name is None or name.rpartition(".")[2] in ("cos", "sin", "mask") or not is_cache(held, scope, project):
        return False
    return not any(isinstance(b.value, ast.Call) and name in names_in(b.value) for b in scope.bindings.get(name, []))
