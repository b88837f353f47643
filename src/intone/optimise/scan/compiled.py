"""Which calls compile a model, which of them have an effect, and whether what a loop runs was compiled."""

import ast
import re
from dataclasses import dataclass

from intone.optimise.scan.calls import WRAPS
from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, text_of
from intone.optimise.scan.loops import TrainLoop
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_call

OTHER_COMPILERS = re.compile(
    r"torch_xla|thunder|\bjax\b|deepspeed\.initialize|\bmlx\b|\.jit\(|CUDAGraph|make_graphed_callables"
)


SWITCHED_OFF = re.compile(
    r"(TORCHDYNAMO_DISABLE|TORCH_COMPILE_DISABLE)['\"]\s*\]?\s*[=,]\s*['\"]1|_dynamo\.config\.disable\s*=\s*True"
)


@dataclass(frozen=True, eq=False)
class Compile:
    """A call that compiles. idle: why it has no effect, in words; None where it has one."""

    call: ast.Call
    scope: Scope
    idle: str | None


def compile_calls(module: Module, project: Project) -> list[Compile]:
    """The calls of a file that compile something: torch.compile(...), model.compile()."""
    key = ("compile_calls", module)
    if key not in project.remembered:
        project.remembered[key] = _compile_calls(module, project)
    found: list[Compile] = project.remembered[key]
    return found


def _compile_calls(module: Module, project: Project) -> list[Compile]:
    found = []
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            if (
                name == "torch.compile"
                or (name.endswith((".compile", ".compile_model")) and not name.startswith(("re.", "regex.")))
            ) and not _is_regex(call):
                found.append(Compile(call, scope, _why_idle(call, scope, project)))
    return found


def _is_regex(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)


def _why_idle(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Switched off, thrown away or never used."""
    if is_true(keyword(call, "disable")):
        return "disable=True"
    if (switch := SWITCHED_OFF.search(scope.module.text)) is not None:
        return f"`{switch[0][:40]}` switches compiling off"
    backend = keyword(call, "backend")
    if isinstance(backend, ast.Constant) and backend.value in ("eager", "aot_eager"):
        return f"backend={backend.value!r} compiles nothing"
    below: ast.AST = call
    for above in scope.module.up(call):
        if above is scope.node:
            break
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test:
            off = is_never(above.test, scope, project)
            on = (
                isinstance(above, ast.If)
                and below in above.orelse
                or isinstance(above, ast.IfExp)
                and below is above.orelse
            )
            if off and not on:
                return f"it stands behind `{code_of(above.test, 40)}`, which is off by default"
        below = above
    above_call = scope.module.parents.get(call)
    if called(call, scope) != "torch.compile":
        return None
    if isinstance(above_call, ast.Expr):
        return "its result is thrown away"
    if isinstance(above_call, ast.Assign) and len(above_call.targets) == 1:
        name = target_name(above_call.targets[0])
        if name is not None and not _is_used(name, above_call, scope, project):
            return f"its result `{name}` is used nowhere"
    return None


def _is_used(name: str, made: ast.Assign, scope: Scope, project: Project) -> bool:
    """Whether what a name holds is read anywhere but in its own making."""
    last = name.rpartition(".")[2]
    inside = set(walk(made))
    modules = project.modules if "." in name or scope.node is scope.module.tree else [scope.module]
    if scope.outer is not None and last in scope.globals:
        modules = project.modules
    words = (f".{last}" if "." in name else last, f"import {last}")
    return any(node not in inside for module in modules for word in words for node in module.reads.get(word, []))


def is_compiled(node: ast.expr, scope: Scope, project: Project) -> ast.Call | None:
    """The compile call that a callee or model came through, or None."""
    for origin in project.origins(node, scope, _unwrapped, depth=5, stops=_is_compile):
        if isinstance(origin.node, ast.Call) and _is_compile(origin):
            return origin.node if _why_idle(origin.node, origin.scope, project) is None else None
    return None


def _is_compile(origin: object) -> bool:
    node, scope = origin.node, origin.scope  # type: ignore[attr-defined]
    return isinstance(node, ast.Call) and called(node, scope) == "torch.compile"


def _unwrapped(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        if last_name(node.func) in WRAPS and last_name(node.func) != "compile" and node.args:
            return [node.args[0]]
        if isinstance(node.func, ast.Attribute) and last_name(node.func) in ("to", "cuda", "train", "eval"):
            return [node.func.value]
    if isinstance(node, ast.Attribute) and node.attr in ("forward", "module", "__call__"):
        return [node.value]
    return []


def is_decorated(module: Module) -> bool:
    """Whether a function of a file is compiled by a decorator."""
    if "compile" not in module.text:
        return False
    for scope in module.scopes[1:]:
        for item in getattr(scope.node, "decorator_list", []):
            if "torch.compile" in text_of(item):
                return True
    return False


def model_calls(loop: TrainLoop, project: Project) -> list[Reached]:
    """Where a training loop runs its model."""
    return [
        item for item in loop.turn(project)
        if isinstance(item.node, ast.Call)
        and not item.is_in_forward
        and is_model_call(item.node, item.scope, project)
    ]  # fmt: skip


def files_of(loop: TrainLoop, project: Project) -> list[Module]:
    """The files that have a say in how a loop's model runs: of the loop, its callers, and who makes its object."""
    found = {loop.scope.module.path: loop.scope.module, loop.outer_scope.module.path: loop.outer_scope.module}
    todo = [(loop.scope, 3), (loop.outer_scope, 3)]
    seen: set[Scope] = set()
    while todo:
        scope, left = todo.pop()
        if scope in seen or left == 0:
            continue
        seen.add(scope)
        sites = list(project.callers(scope)[:6])
        if scope.owner is not None:
            sites += project.sites.get(scope.owner.name, [])[:6]
        for site in sites:
            found[site.scope.module.path] = site.scope.module
            todo.append((site.scope, left - 1))
    return list(found.values())
