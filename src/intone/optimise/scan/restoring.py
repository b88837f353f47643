"""Where a program takes a training up again: what it restores, and whether it reads how far the training was."""

import ast
import re

from intone.optimise.scan.expressions import last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_optimizer


def restores(module: Module, project: Project) -> list[tuple[Scope, ast.Call]]:
    """Where a file restores an optimizer: opt.load_state_dict(...), or in a loop over several objects' names."""
    return [
        (scope, call)
        for scope in module.scopes
        for call in scope.calls
        if _by_engine(call, scope, project)
        or last_name(call.func) == "load_state_dict"
        and isinstance(call.func, ast.Attribute)
        and (
            re.search(r"opt", text_of(call))
            or is_optimizer(call.func.value, scope, project)
            or _restores_step(call, scope)
        )
    ]


def _by_engine(call: ast.Call, scope: Scope, project: Project) -> bool:
    """engine.load_checkpoint(folder), accelerator.load_state(folder): weights, optimizer and all, but not the data."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("load_checkpoint", "load_state"):
        return False
    base = (target_name(call.func.value) or "").rpartition(".")[2]
    return bool(re.search(r"engine|accelerator|fabric|booster|ds_model|strategy", base)) or any(
        isinstance(origin.node, ast.Call) and last_name(origin.node.func) in ENGINES
        for origin in project.origins(call.func.value, scope, depth=6)
    )  # fmt: skip


ENGINES = ("Accelerator", "Fabric", "Booster", "initialize")


def _restores_step(call: ast.Call, scope: Scope) -> bool:
    """Whether a step or epoch is read out of what the weights are read from: state["step"]."""
    held = names_in(call.args[0]) if call.args else set()
    return any(
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.slice, ast.Constant)
        and bool(
            re.fullmatch(
                r"(global_|start_|current_)?(step|epoch|iter|iteration|iter_num)(s|_num)?", str(node.slice.value)
            )
        )
        and target_name(node.value) in held
        for node in scope.body
    )


PROGRESS = re.compile(r"(^|[._])(step|epoch|iter|iteration|iter_num|progress)(s|_num)?$")


def takes_up_progress(scope: Scope) -> bool:
    """Whether a function that restores reads how far the training was: state["step"], progress = json.load(file)."""
    for node in scope.body:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Constant):
            if PROGRESS.search(str(node.slice.value)):
                return True
        elif isinstance(node, ast.Call) and last_name(node.func) == "get" and node.args:
            if isinstance(node.args[0], ast.Constant) and PROGRESS.search(str(node.args[0].value)):
                return True
        elif isinstance(node, ast.Assign) and PROGRESS.search(target_name(node.targets[0]) or ""):
            calls = [part for part in walk(node.value) if isinstance(part, ast.Call)]
            if any("load" in (last_name(call.func) or "") for call in calls):
                return True
    return any(  # return int(file.read()), of a file beside the checkpoint
        isinstance(value, ast.Call) and last_name(value.func) == "int" and "read" in text_of(value)
        for value in scope.returns
    )
