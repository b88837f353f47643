"""Texts of any length that go into compiled code: prompts as they are, and caches that get longer at every token."""

import ast
import re

from intone.optimise.scan.cachewrites import is_cache
from intone.optimise.scan.compiled import Compile, is_compiled
from intone.optimise.scan.expressions import code_of, is_false, keyword, last_name, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.source import Scope, target_name

ENCODES = re.compile(r"encode|tokeni[sz]e|apply_chat_template|(^|[._])tok(enizer)?$|input_ids")
# widths that a text is brought to before it goes into a model
FIXES = re.compile(r"max_length|pad_to|F\.pad|bucket|round_up|next_power|static|ceil|multiple", re.I)
# modes that keep a graph or a choice of kernels for each shape
PER_SHAPE = ("reduce-overhead", "max-autotune")


def fixes_shapes(one: Compile) -> str | None:
    """What a compile call is told by which every new shape costs again, as code; None where shapes may become free."""
    if is_false(one.option("dynamic")):
        return "dynamic=False"
    mode = one.option("mode")
    if isinstance(mode, ast.Constant) and mode.value in PER_SHAPE and one.option("dynamic") is None:
        return f"mode={mode.value!r}"
    return None


def prompt_handed(one: Compile, project: Project) -> str | None:
    """Where what a call compiles gets a prompt as it was encoded, in words; None where the code shows no such call."""
    bound = one.scope.bindings.items()
    name = next((name for name, bindings in bound if any(b.value is one.call for b in bindings)), None)
    if name is None or not isinstance(one.call, ast.Call):
        return None
    for site in project.sites.get(name.rpartition(".")[2], [])[:8]:
        if is_compiled(site.call.func, site.scope, project) is not one.call or _trains(site.scope, project):
            continue
        parts = [*site.call.args[:2], *(word.value for word in site.call.keywords if word.arg == "input_ids")]
        for part in parts:
            if (encoded := _encoded(part, site.scope, project)) is not None:
                return f"`{encoded}` goes into it at {site.scope.module.path}:{site.call.lineno}"
    return None


def _trains(scope: Scope, project: Project) -> bool:
    return any(loop.scope is scope for loop in train_loops(scope.module, project))


def _encoded(node: ast.expr, scope: Scope, project: Project) -> str | None:
    """The call that turned a text into the ids that an expression holds, unless something brought them to a width."""
    if FIXES.search(text_of(scope.node)):
        return None
    for origin in project.origins(node, scope, _of_ids, depth=5):
        call = origin.node
        if isinstance(call, ast.Call) and ENCODES.search(text_of(call.func)):
            padded = keyword(call, "padding")
            return None if padded is not None and not is_false(padded) else code_of(call, 40)
    return None


def _of_ids(node: ast.expr) -> list[ast.expr]:
    """The parts of an expression that ids come through: tensor([ids]), ids.to(device), encoded.input_ids, ids[None]."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return node.elts[:2]
    if isinstance(node, ast.Subscript) or isinstance(node, ast.Attribute) and node.attr == "input_ids":
        return [node.value]
    if isinstance(node, ast.Call):
        if last_name(node.func) in ("tensor", "as_tensor", "LongTensor", "array", "from_numpy") and node.args:
            return [node.args[0]]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cuda", "long", "unsqueeze", "view"):
            return [node.func.value]
    return []


def longer_keys(item: Reached, project: Project) -> str | None:
    """The cache that a model gets at every token and that hands it longer keys each time, in words."""
    assert isinstance(item.node, ast.Call)
    handed = [*item.node.args[1:], *(word.value for word in item.node.keywords)]
    caches = [arg for arg in handed if re.search(r"cache|past|kv", target_name(arg) or "", re.I)]
    for arg in caches:
        ends = [origin.node for origin in project.origins(arg, item.scope, depth=3)]
        if any("Static" in text_of(end) or "max_cache" in text_of(end) for end in ends):
            return None
        if any(isinstance(end, ast.Call) and last_name(end.func) == "DynamicCache" for end in ends):
            return f"`{code_of(arg, 20)}` is a DynamicCache, which holds one token more each time"
    return _cut_at_end(project) if caches else None


def _cut_at_end(project: Project) -> str | None:
    """Where a cache of the project hands back its keys up to the newest one: return self.k[:, :, :end]."""
    key = ("hands back what is filled", None)
    if key not in project.remembered:
        project.remembered[key] = next(
            (
                f"{scope.module.path}:{value.lineno} hands back {code_of(value, 40)}"
                for module in project.modules for scope in module.scopes[1:] if scope.owner is not None
                for returned in scope.returns
                for value in (returned.elts if isinstance(returned, ast.Tuple) else [returned])
                if isinstance(value, ast.Subscript) and _ends_at_name(value) and is_cache(value, scope, project)
            ),
            None,
        )  # fmt: skip
    found: str | None = project.remembered[key]
    return found


def _ends_at_name(node: ast.Subscript) -> bool:
    """[:, :, :end], [:, : self.length]"""
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    ends = [part.upper for part in parts if isinstance(part, ast.Slice) and part.lower is None]
    return any(isinstance(end, (ast.Name, ast.Attribute, ast.BinOp)) for end in ends)
