"""In which mode a model runs: with or without gradients, for training or for evaluation."""

import ast
import re
from typing import Literal

from intone.optimise.scan.calls import classes_of, functions_of
from intone.optimise.scan.expressions import last_name
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.source import Scope, target_name
from intone.optimise.scan.values import is_model_name, is_module_class

Mode = Literal["eval", "train"]
# set_grad_enabled with anything but True: off, or off where the caller says so
NO_GRAD = re.compile(r"no_grad|inference_mode|set_grad_enabled\((?!True)|jit\.ignore")
DEPTH = 3


def is_off(item: Reached, project: Project, depth: int = DEPTH) -> bool:
    """Whether gradients are off where a model runs: there, around it, in what leads to it, or at every caller."""
    places = [(item.node, item.scope), *((site.call, site.scope) for site in item.chain)]
    if any(off_here(scope, node, project) for node, scope in places):
        return True
    top = item.chain[0].scope if item.chain else item.scope
    at = top.outer
    if at is not None and at.simple_name != "<module>" and off_here(at, top.node, project):
        return True
    sites = project.callers(top)
    if depth == 0 or not sites:
        return False
    return all(is_off(Reached(site.call, site.scope), project, depth - 1) for site in sites[:10])


def off_here(scope: Scope, node: ast.AST, project: Project) -> bool:
    """Whether gradients are off at a node by its own function: a decorator, a with block, a switch before it."""
    for item in getattr(scope.node, "decorator_list", []):
        if NO_GRAD.search(ast.unparse(item)) or _switches_off(item, scope.outer or scope, project):
            return True
    for above in scope.module.up(node):
        if above is scope.node:
            break
        if isinstance(above, (ast.With, ast.AsyncWith)) and any(
            NO_GRAD.search(ast.unparse(item)) or _switches_off(item.context_expr, scope, project)
            for item in above.items
        ):
            return True
    for call in scope.calls:
        before = call.lineno < getattr(node, "lineno", 0)
        if last_name(call.func) == "set_grad_enabled" and before and not isinstance(
            scope.module.parents.get(call), ast.withitem
        ):  # fmt: skip
            return "False" in ast.unparse(call)
        if last_name(call.func) == "requires_grad_" and "False" in ast.unparse(call) and before:
            return True
        if last_name(call.func) in ("enter_context", "__enter__") and before and NO_GRAD.search(ast.unparse(call)):
            return True
    return False


def _switches_off(node: ast.expr, scope: Scope, project: Project) -> bool:
    """with testing(model): a block or decorator of the project's own, in which gradients are switched off."""
    func = node.func if isinstance(node, ast.Call) else node
    functions = functions_of(func, scope, project)
    for place in classes_of(node, scope, project) if isinstance(node, ast.Call) else ():
        functions += [method for method in project.class_scopes(place[1]) if method.simple_name == "__enter__"]
    return any(NO_GRAD.search(ast.unparse(function.node)) for function in functions[:4])


def mode_of(call: ast.Call, scope: Scope, project: Project) -> Mode | None:
    """What model.eval(), model.train() or model.train(False) sets; None for calls that set no mode of a model."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("eval", "train"):
        return None
    if len(call.args) > 1 or any(word.arg != "mode" for word in call.keywords):
        return None
    base = call.func.value
    if not is_model_name(target_name(base) or "") and not _is_module(base, scope, project):
        return None
    return "eval" if call.func.attr == "eval" or "False" in ast.unparse(call) else "train"


def _is_module(base: ast.expr, scope: Scope, project: Project) -> bool:
    return any(is_module_class(node) for _, node in classes_of(base, scope, project))
