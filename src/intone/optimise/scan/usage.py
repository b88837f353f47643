"""Which callees are models by what is done with their output, whatever they are called."""

import ast
import builtins
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.calls import KEEPS_OBJECT
from intone.optimise.scan.expressions import called, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name
from intone.optimise.scan.values import KEEPS, backward_loss, is_backward, is_bound_to_model


def models_by_use(project: Project) -> set[str]:
    """file:name of what is called and whose output becomes a loss or a token: a model, whatever it is called."""
    if "models" not in project.known_names:
        project.known_names["models"] = set()  # what asks while this is looked for gets what is known
        found = set()
        for module in project.modules:
            for scope in module.scopes:
                for call in scope.calls:
                    used = _logits_in(call, scope, project)
                    if used is not None:
                        found |= _unknown_callees(used, scope, project)
                    if (named := _put_into_eval(call)) is not None:
                        found.add(f"{module.path}:{named}")
                found |= {f"{module.path}:{name}" for name in _compiled_from(scope, project)}
        project.known_names["models"] = found
    return project.known_names["models"]


def _compiled_from(scope: Scope, project: Project) -> Iterator[str]:
    """self.draft_step = torch.compile(self.draft.__call__), with self.draft a model: the names of what runs one."""
    for name, bindings in scope.bindings.items():
        for binding in bindings:
            made = binding.value
            if not isinstance(made, ast.Call) or called(made, scope) != "torch.compile" or not made.args:
                continue
            whole = target_name(made.args[0]) or ""
            inner = whole.removesuffix(".forward").removesuffix(".__call__")
            if inner not in (whole, name) and is_bound_to_model(inner, scope, project):
                yield name


def _put_into_eval(call: ast.Call) -> str | None:
    """encoder.eval(), gen.parameters(): only a module has these; frame.eval(text) is told an expression."""
    func = call.func
    of_module = ("eval", "parameters", "named_parameters")
    if isinstance(func, ast.Attribute) and func.attr in of_module and not call.args and not call.keywords:
        base = func.value
        while isinstance(base, ast.Call) and isinstance(base.func, ast.Attribute) and base.func.attr in KEEPS_OBJECT:
            base = base.func.value  # net.to(device).eval()
        name = target_name(base)
        return name if name not in ("self", "cls") else None
    return None


def _logits_in(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """The logits that a call turns into a loss or a token, or None."""
    last = called(call, scope).rpartition(".")[2]
    if last in ("cross_entropy", "nll_loss", "log_softmax", "multinomial") and call.args:
        return call.args[0]
    if called(call, scope).startswith("torch.nn.functional.") and last.endswith("_loss") and call.args:
        return call.args[0]
    if (
        last in ("argmax", "softmax", "log_softmax")
        and isinstance(call.func, ast.Attribute)
        and not imported(call, scope)
    ):
        return call.func.value  # net(x)[:, -1].argmax(-1)
    if last in ("argmax", "softmax") and called(call, scope).startswith("torch.") and call.args:
        return call.args[0]
    if is_backward(call) and not project.callees(call, scope):
        return backward_loss(call)
    return None


def imported(call: ast.Call, scope: Scope) -> bool:
    """Whether a function of a package is called, not a method of an object."""
    root = (target_name(call.func) or "").partition(".")[0]
    return root in scope.module.imports


TENSOR_METHODS = {
    "float", "view", "reshape", "squeeze", "unsqueeze", "softmax", "log_softmax", "div", "div_", "mean", "sum", "to",
    "flatten", "transpose", "contiguous", "type", "masked_fill", "exp", "clone", "permute", "scale", "half", "cpu",
    "pow", "square", "abs", "log", "clamp", "mul", "add", "sub", "neg",
}  # fmt: skip


def _logit_passes(node: ast.expr) -> Sequence[ast.expr]:
    """The parts of an expression that logits come through: slices, sums, reshaping, softmax."""
    if isinstance(node, ast.Subscript) or isinstance(node, ast.Attribute) and node.attr in ("logits", "loss", "sample"):
        return [node.value]
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TENSOR_METHODS:
        return (
            [*node.args[:1], node.func.value]
            if node.func.attr in ("softmax", "log_softmax", "scale")
            else [node.func.value]
        )
    return []


SCORES = re.compile(r"logit|prob|scores?\b|logp")


def _unknown_callees(node: ast.expr, scope: Scope, project: Project) -> set[str]:
    """file:name of the callees at the ends of a value's ways that are no function of the project or of a library."""
    found = set()
    for origin in project.origins(node, scope, _logit_passes, depth=5):
        end = origin.node
        if not isinstance(end, ast.Call) or (name := target_name(end.func)) is None or not (end.args or end.keywords):
            continue
        if any(SCORES.search(text_of(arg)) for arg in end.args):
            continue  # a penalty or filter of scores, not the model that gives them
        root, last = name.partition(".")[0], name.rpartition(".")[2]
        imported = root in origin.scope.module.imports or root in dir(builtins)
        method = "." in name and last in (TENSOR_METHODS | KEEPS | set(dir(str)) | {"get", "next", "pop", "item"})
        if not imported and not method and not project.callees(end, origin.scope) and last not in project.classes:
            found.add(f"{origin.scope.module.path}:{name}")
    return found
