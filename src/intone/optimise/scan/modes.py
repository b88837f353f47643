"""In which mode a model runs: with or without gradients, for training or for evaluation."""

import ast
import re
from typing import Literal

from intone.optimise.scan.calls import classes_of, functions_of
from intone.optimise.scan.classes import names_class
from intone.optimise.scan.expressions import last_name, names_in, text_of
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached, reached
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
        if NO_GRAD.search(text_of(item)) or _switches_off(item, scope.outer or scope, project):
            return True
    for above in scope.module.up(node):
        if above is scope.node:
            break
        if isinstance(above, (ast.With, ast.AsyncWith)) and any(
            NO_GRAD.search(text_of(item)) or _switches_off(item.context_expr, scope, project) for item in above.items
        ):
            return True
    for call in scope.calls:
        before = call.lineno < getattr(node, "lineno", 0)
        if last_name(call.func) == "set_grad_enabled" and before and not isinstance(
            scope.module.parents.get(call), ast.withitem
        ):  # fmt: skip
            return "False" in text_of(call)
        if last_name(call.func) == "requires_grad_" and "False" in text_of(call) and before:
            return True
        if last_name(call.func) in ("enter_context", "__enter__") and before and NO_GRAD.search(text_of(call)):
            return True
    return False


def _switches_off(node: ast.expr, scope: Scope, project: Project) -> bool:
    """with testing(model): a block or decorator of the project's own, in which gradients are switched off."""
    func = node.func if isinstance(node, ast.Call) else node
    functions = functions_of(func, scope, project)
    for place in classes_of(node, scope, project) if isinstance(node, ast.Call) else ():
        functions += [method for method in project.class_scopes(place[1]) if method.simple_name == "__enter__"]
    return any(NO_GRAD.search(text_of(function.node)) for function in functions[:4])


def mode_of(call: ast.Call, scope: Scope, project: Project) -> Mode | None:
    """What model.eval(), model.train() or model.train(False) sets; None for calls that set no mode of a model."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("eval", "train"):
        return None
    if len(call.args) > 1 or any(word.arg != "mode" for word in call.keywords):
        return None
    base = call.func.value
    if call.func.attr == "eval" and not call.args and not call.keywords and target_name(base) not in ("self", "cls"):
        return "eval"  # only a module has a mode; frame.eval(text) is told an expression
    known = is_model_name(target_name(base) or "") or _is_module(base, scope, project)
    if not known and not (call.func.attr == "train" and _has_mode(base, scope)):
        return None
    return "eval" if call.func.attr == "eval" or "False" in text_of(call) else "train"


def _has_mode(base: ast.expr, scope: Scope) -> bool:
    """Whether .eval() is called on the same name in a function: for m in modules: m.eval()."""
    name = target_name(base)
    return name is not None and any(
        isinstance(call.func, ast.Attribute) and call.func.attr == "eval" and not call.args
        and target_name(call.func.value) == name
        for call in scope.calls
    )  # fmt: skip


def _is_module(base: ast.expr, scope: Scope, project: Project) -> bool:
    return any(is_module_class(node) for _, node in classes_of(base, scope, project))


# --- whose mode it is -------------------------------------------------------------------------------------------------


def model_name(run: Reached, project: Project) -> str | None:
    """The name of a model that runs, as the function that the way began in has it; None where it has none there."""
    assert isinstance(run.node, ast.Call)
    name, scope, chain = target_name(run.node.func), run.scope, run.chain
    while name is not None and chain:
        root, dot, rest = name.partition(".")
        if root not in scope.parameters or root in ("self", "cls"):
            return None
        handed = project.argument(chain[-1], scope, root)
        base = target_name(handed) if handed is not None else None
        name = f"{base}{dot}{rest}" if base is not None else None
        scope, chain = chain[-1].scope, chain[:-1]
    return name


def is_in_eval_mode(
    scope: Scope, project: Project, *, model: str | None, others: frozenset[str] = frozenset(), depth: int = DEPTH
) -> bool:
    """Whether the mode is set by a function, or by one that leads to it.

    model: its name in the function; None: that of any model counts. others: names there of models that it is not.
    """
    if sets_eval(scope, project, model, others):
        return True
    for site in project.callers(scope)[:10] if depth else ():
        name = _handed_as(model, site, scope, project)
        rest = {_handed_as(other, site, scope, project) for other in others} if name is not None else set()
        known = frozenset(other for other in rest if other is not None)
        if is_in_eval_mode(site.scope, project, model=name, others=known, depth=depth - 1):
            return True
    return False


def _handed_as(name: str | None, site: Site, scope: Scope, project: Project) -> str | None:
    """The name that a caller has for what it hands over as a parameter."""
    root, dot, rest = (name or "").partition(".")
    if root not in scope.parameters or root in ("self", "cls"):
        return None
    handed = project.argument(site, scope, root)
    base = target_name(handed) if handed is not None else None
    return f"{base}{dot}{rest}" if base is not None else None


def sets_eval(
    scope: Scope, project: Project, model: str | None = None, others: frozenset[str] = frozenset()
) -> bool:  # fmt: skip
    """Whether a function, or what it calls, sets the evaluation mode of a model or of one that may be it."""
    for item in reached(scope.node, scope, project):
        if isinstance(item.node, ast.Call) and len(item.chain) <= 2:
            func = item.node.func
            named = isinstance(func, ast.Attribute) and func.attr == "eval" and not item.node.args
            if named and model is not None and not item.chain:
                base = _base_of(func.value)  # type: ignore[attr-defined]
                if base is not None and (base in others or _is_another(base, model, scope)):
                    continue
            if named or mode_of(item.node, item.scope, project) == "eval":
                return True
    return False


def _base_of(node: ast.expr) -> str | None:
    """teacher.to(device) -> "teacher"."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return target_name(node)


def _is_another(name: str, model: str, scope: Scope) -> bool:
    """Whether a name is of another model than `student`: both are handed in, or it is one that nobody trains."""
    if name in model or model in name:
        return False
    return {name, model} <= set(scope.parameters) or bool(re.search(r"teacher|reference|reward|critic|judge", name))


# --- modes that a helper sets -----------------------------------------------------------------------------------------


def set_mode(item: Reached, project: Project) -> Mode | None:
    """The mode that a reached node sets: model.eval(), a helper called with the mode, module.training = mode."""
    node = item.node
    if isinstance(node, ast.Assign):  # put back module by module
        training = any(isinstance(target, ast.Attribute) and target.attr == "training" for target in node.targets)
        return "train" if training and not isinstance(node.value, ast.Constant) else None
    if not isinstance(node, ast.Call):
        return None
    if item.chain and _is_told_by_caller(node, item.scope):
        return None  # the call that hands the mode over says which
    return mode_of(node, item.scope, project) or _mode_by_helper(node, item.scope, project)


MAKES = re.compile(r"(^|_)(load|build|make|create|new|from_pretrained|from_checkpoint|from_config|deepcopy)($|_)")


def is_of_own(item: Reached, project: Project) -> bool:
    """Whether the model whose mode a reached call sets is made on the way: an evaluation that loads its own one.

    A model that the function in which the way began has, or that hands on what it is told, is not meant.
    """
    func = item.node.func if isinstance(item.node, ast.Call) else None
    name = _base_of(func.value) if isinstance(func, ast.Attribute) else None
    scope, chain = item.scope, item.chain
    while name is not None and chain:
        made = [b for b in scope.bindings.get(name, []) if b.how in ("=", "part")]
        others = [b.value for b in made if name not in names_in(b.value)]  # model = model.cuda()
        if others:
            return all(_makes_model(value, scope, project) for value in others)
        if name not in scope.parameters:
            return False
        handed = project.argument(chain[-1], scope, name)
        name = target_name(handed) if handed is not None else None
        scope, chain = chain[-1].scope, chain[:-1]
    return False


def _makes_model(value: ast.expr, scope: Scope, project: Project) -> bool:
    """load_model(path), GPT(config), model_cls(config), copy.deepcopy(model): a model of its own, no view of one."""
    if not isinstance(value, ast.Call):
        return False
    last = last_name(value.func) or ""
    if MAKES.search(last):
        wraps = any(is_model_name(target_name(arg) or "") for arg in value.args)
        return last == "deepcopy" or not wraps or names_class(target_name(value.args[0]) or "", scope, project)
    return last in project.classes or names_class(target_name(value.func) or "", scope, project)


def _is_told_by_caller(call: ast.Call, scope: Scope) -> bool:
    """model.train(flag) with a flag that was handed in; model.eval() behind `if not flag`."""
    if last_name(call.func) not in ("eval", "train"):
        return False
    return _flag_of(call, scope) is not None


def _flag_of(call: ast.Call, scope: Scope) -> tuple[str, bool] | None:
    """(parameter, the value of it with which a call of eval() or train() sets the mode for training), or None."""
    handed = call.args[0] if call.args else next((word.value for word in call.keywords), None)
    if last_name(call.func) == "train" and isinstance(handed, ast.Name) and handed.id in scope.parameters:
        return handed.id, True
    below: ast.AST = call
    for above in scope.module.up(call):
        if above is scope.node:
            return None
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test:
            test, otherwise = above.test, below in (above.orelse if isinstance(above, ast.If) else [above.orelse])
            if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
                test, otherwise = test.operand, not otherwise
            if isinstance(test, ast.Name) and test.id in scope.parameters:
                return test.id, (last_name(call.func) == "train") != otherwise
        below = above
    return None


def _mode_by_helper(call: ast.Call, scope: Scope, project: Project) -> Mode | None:
    """set_training(model, False): a function that is told the mode; None where it is told no constant."""
    for function in project.callees(call, scope)[:2]:
        for inner in function.calls:
            if last_name(inner.func) not in ("eval", "train") or mode_of(inner, function, project) is None:
                continue
            flag = _flag_of(inner, function)
            if flag is None:
                continue
            value = project.argument(Site(call, scope), function, flag[0])
            if value is None:
                value = function.parameters[flag[0]].default
            if isinstance(value, ast.Constant) and isinstance(value.value, bool):
                return "train" if value.value == flag[1] else "eval"
            return "train"  # what it was before: put back
    return None
