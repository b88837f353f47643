"""What reads a device tensor's value on the host: calls, tests, cuts, and texts that it is written into."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, text_of
from intone.optimise.scan.ondevice import READS, has_read, is_tensor, on_device, to_cpu
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.seldom import goes_on_seldom
from intone.optimise.scan.source import Scope, target_name
from intone.optimise.scan.values import is_property

# what turns a tensor that it is handed into text or a number at once
SHOWS = (
    "print", "print0", "tqdm_write", "set_postfix", "set_description", "add_scalar", "add_scalars", "info", "debug",
    "warning", "log_metric", "log_metrics", "report_scalar", "pprint", "log_scalar", "set_postfix_str", "writerow",
    "add_histogram", "log_scalars", "write_scalar",
)  # fmt: skip
NUMBERS = ("float", "int", "bool", "str", "repr", "round", "format")  # built-in: a number or text of a tensor
WAITS = (
    "torch.cuda.synchronize", "torch.mps.synchronize", "torch.cuda.empty_cache", "torch.accelerator.synchronize",
    "torch.distributed.barrier",
)  # fmt: skip
# what gives as many entries as the values say: their number is read to make room for them
COUNTED = ("nonzero", "argwhere", "unique", "masked_select")
REDUCES = ("sum", "max", "min", "amax", "amin", "argmax", "count_nonzero")


def reads_in(items: Sequence[Reached], project: Project) -> Iterator[tuple[Reached, str]]:
    """What reads a device tensor's value among what a loop runs, each with its code."""
    properties = _reading_properties(project)
    for item in items:
        if item.is_in_forward:
            continue  # the rule on forward passes tells it
        what = None
        if isinstance(item.node, ast.Call):
            what = _read_by(item.node, item.scope, project)
        elif isinstance(item.node, (ast.If, ast.While, ast.Assert, ast.IfExp)):
            what = tested(item.node.test, item.scope, project)
        elif isinstance(item.node, ast.Slice):
            what = _cut_by(item.node, item.scope, project)
        elif isinstance(item.node, ast.FormattedValue):
            what = _formatted(item.node.value, item.scope, project)
        elif isinstance(item.node, ast.BinOp) and isinstance(item.node.op, ast.Mod):
            what = _written(item.node, item.scope, project)
        elif isinstance(item.node, ast.Attribute) and item.node.attr in properties:
            what = _read_by_property(item.node, item.scope, project)
        if what:
            yield item, what


def _reading_properties(project: Project) -> dict[str, list[Scope]]:
    """Name -> the properties of the project called so in which a value is read from a tensor, or may be."""
    key = ("properties that read", None)
    if key not in project.remembered:
        found: dict[str, list[Scope]] = {}
        for module in project.modules:
            for scope in module.scopes[1:]:
                reads = any(last_name(call.func) in READS for call in scope.calls) if scope.owner is not None else False
                if reads and is_property(scope):
                    found.setdefault(scope.simple_name, []).append(scope)
        project.remembered[key] = found
    properties: dict[str, list[Scope]] = project.remembered[key]
    return properties


def _read_by_property(node: ast.Attribute, scope: Scope, project: Project) -> str | None:
    """stats.mean, where the property computes (self.total / self.n).item()."""
    owners = [owner for _, owner in classes_of(node.value, scope, project)]
    for one in _reading_properties(project)[node.attr]:
        if one.owner in owners and any(_read_by(call, one, project) for call in one.calls):
            return code_of(node, 40)
    return None


def _read_by(node: ast.Call, scope: Scope, project: Project) -> str | None:
    """The code of a call that reads a device tensor's value, or None."""
    func, func_name = node.func, last_name(node.func)
    name = called(node, scope)
    later = keyword(node, "non_blocking") is not None  # waited for elsewhere, or read too early, which S35 tells
    if isinstance(func, ast.Attribute) and not later and (func.attr in READS and not node.args or to_cpu(node)):
        func = _without_copy(func)
        if on_device(func.value, scope, project) and not _inside_read(node, scope):
            return code_of(node, 40)
    elif isinstance(func, ast.Name) and func.id in NUMBERS and node.args:
        if on_device(node.args[0], scope, project) and not has_read(node.args[0]):
            return code_of(node, 40)
    elif isinstance(func, ast.Name) and func.id == "map" and len(node.args) > 1:  # map(float, losses)
        reads = isinstance(node.args[0], ast.Name) and node.args[0].id in NUMBERS
        if reads and on_device(node.args[1], scope, project) and not has_read(node.args[1]):
            return code_of(node, 40)
    elif isinstance(func, ast.Name) and func.id in ("min", "max", "sorted") and node.args:
        if any(is_tensor(arg, scope, project) for arg in node.args) and not has_read(node):
            return code_of(node, 40)
    elif name in WAITS:
        if re.search(r"bench|profil|warm", f"{scope.name} {scope.module.path}"):
            return None  # a measurement has to wait
        return f"{code_of(func, 40)}()"
    elif name in ("math.isnan", "math.isfinite", "math.isinf", "math.exp", "math.log") and node.args:
        if on_device(node.args[0], scope, project) and not has_read(node.args[0]):
            return code_of(node, 40)
    elif (
        isinstance(func, ast.Attribute)
        and func.attr == "get_scale"
        and "scaler" in text_of(func.value)
        or func_name in COUNTED
        and is_tensor(node, scope, project)
        or _makes_room(node, scope, project)
    ):
        return code_of(node, 40)
    elif isinstance(func, ast.Name) and func.id == "range":
        return next((code_of(node, 40) for arg in node.args if _is_reduced(arg, scope, project)), None)
    elif _shows(node):
        return _shown(node, scope, project)
    return None


def _makes_room(node: ast.Call, scope: Scope, project: Project) -> bool:
    """torch.where(mask), repeat_interleave(x, counts): how much comes out is read from the device."""
    if called(node, scope) == "torch.where":
        return len(node.args) == 1 and is_tensor(node.args[0], scope, project)
    if last_name(node.func) != "repeat_interleave" or keyword(node, "output_size") is not None:
        return False
    counts = node.args[1 if called(node, scope).startswith("torch.") else 0 :]
    return bool(counts) and not isinstance(counts[0], ast.Constant) and is_tensor(counts[0], scope, project)


def _is_reduced(node: ast.expr, scope: Scope, project: Project) -> bool:
    """mask.sum(1).max(): a number that a tensor says, as a tensor; also behind a name."""
    if isinstance(node, ast.Name):
        made = [b.value for b in scope.bindings.get(node.id, [])]
        return len(made) == 1 and isinstance(made[0], ast.Call) and _is_reduced(made[0], scope, project)
    reduces = isinstance(node, ast.Call) and last_name(node.func) in REDUCES
    return reduces and not has_read(node) and is_tensor(node, scope, project)


def _cut_by(node: ast.Slice, scope: Scope, project: Project) -> str | None:
    """x[:, : lengths.max()]: where to cut is read from the device."""
    ends = [end for end in (node.lower, node.upper) if end is not None]
    return next((f"[: {code_of(end, 30)}]" for end in ends if _is_reduced(end, scope, project)), None)


def _shows(node: ast.Call) -> bool:
    """print(loss), "{}".format(loss), wandb.log({"loss": loss})"""
    last = last_name(node.func)
    if last == "format":
        return isinstance(node.func, ast.Attribute) and isinstance(node.func.value, (ast.Constant, ast.Name))
    return last in SHOWS or last == "log" and bool(node.args) and isinstance(node.args[0], ast.Dict)


def _shown(node: ast.Call, scope: Scope, project: Project) -> str | None:
    for arg in [*node.args, *(word.value for word in node.keywords)]:
        for part in _printed(arg):
            if on_device(part, scope, project) and not has_read(part):
                return f"{last_name(node.func)}({code_of(part, 20)})"
    return None


def _without_copy(func: ast.Attribute) -> ast.Attribute:
    """loss.detach().cpu().item -> loss.detach().cpu: the first of several reads in a chain."""
    inside = func.value
    if isinstance(inside, ast.Call) and isinstance(inside.func, ast.Attribute) and inside.func.attr in READS:
        return _without_copy(inside.func)
    return func


def _formatted(value: ast.expr, scope: Scope, project: Project) -> str | None:
    """f"{loss:.3f}": to write a tensor into a text is to read it."""
    if has_read(value) or not on_device(value, scope, project):
        return None
    return f"f'{{{code_of(value, 30)}}}'"


def _written(node: ast.BinOp, scope: Scope, project: Project) -> str | None:
    """ "loss %.3f" % loss"""
    if not (isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)):
        return None
    parts = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
    return next((what for part in parts if (what := _formatted(part, scope, project))), None)


def tested(test: ast.expr, scope: Scope, project: Project, followed: frozenset[str] = frozenset()) -> str | None:
    """if loss > limit, while not done.all(), assert torch.isfinite(loss): a tensor asked for its truth.

    followed: names whose values are being looked at already, for bad = bad or loss > limit.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return tested(test.operand, scope, project, followed)
    if isinstance(test, ast.BoolOp):
        for number, part in enumerate(test.values):
            if goes_on_seldom(test, test.values[:number], scope, project):
                return None
            if (what := tested(part, scope, project, followed)) is not None:
                return what
        return None
    if isinstance(test, ast.Compare):
        if any(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in test.ops):
            return None
        sides = [test.left, *test.comparators]
        device = any(is_tensor(side, scope, project) for side in sides) and not has_read(test)
        return f"if {code_of(test, 40)}" if device else None
    if isinstance(test, ast.Name):  # bad = torch.isnan(loss).any(); if bad:
        if test.id in followed:
            return None
        followed |= {test.id}
        made = [b.value for b in scope.bindings.get(test.id, []) if b.how == "="]
        asks = [one for one in made if isinstance(one, (ast.Compare, ast.Call, ast.UnaryOp, ast.BoolOp))]
        known = asks and all(isinstance(one, ast.Constant) or one in asks for one in made)
        return f"if {test.id}" if known and any(tested(one, scope, project, followed) for one in asks) else None
    if isinstance(test, (ast.BinOp, ast.Subscript, ast.Attribute)):  # if (token == eos) & (step > 3), if done[0]
        return f"if {code_of(test, 40)}" if _is_truth(test, scope, project) else None
    if isinstance(test, ast.Call) and not has_read(test):
        last = last_name(test.func)
        is_question = last in ASKS
        named = called(test, scope).startswith("torch.is") and on_device(test, scope, project)
        if is_question and (named or is_tensor(test, scope, project)):
            return f"if {code_of(test, 40)}"
    return None


def _is_truth(test: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a test is about a tensor of truths: what comparisons gave, or parts of it; not a list that is empty."""
    if has_read(test) or not is_tensor(test, scope, project):
        return False
    if isinstance(test, ast.BinOp):
        return isinstance(test.op, (ast.BitAnd, ast.BitOr)) and any(
            isinstance(side, ast.Compare) or _is_truth(side, scope, project) for side in (test.left, test.right)
        )
    if isinstance(test, ast.Subscript):
        held = [b.value for b in scope.bindings.get(target_name(test.value) or "", []) if b.how == "="]
        return bool(held) and not any(isinstance(one, (ast.List, ast.ListComp, ast.Dict, ast.Tuple)) for one in held)
    return any(
        isinstance(origin.node, (ast.Compare, ast.UnaryOp)) or isinstance(origin.node, ast.Call)
        and last_name(origin.node.func) in ASKS
        for origin in project.origins(test, scope, depth=3)
    )  # fmt: skip


ASKS = (
    "all", "any", "isfinite", "isnan", "isinf", "equal", "eq", "ne", "gt", "lt", "ge", "le", "logical_and",
    "logical_or", "allclose",
)  # fmt: skip


def _printed(arg: ast.expr) -> list[ast.expr]:
    if isinstance(arg, ast.JoinedStr):
        return [part.value for part in arg.values if isinstance(part, ast.FormattedValue)]
    if isinstance(arg, ast.Dict):
        return [part for part in arg.values if part is not None]
    if isinstance(arg, ast.BinOp) and isinstance(arg.op, ast.Mod):  # "loss %f" % loss
        return arg.right.elts if isinstance(arg.right, ast.Tuple) else [arg.right]
    if isinstance(arg, ast.Call) and last_name(arg.func) == "format":
        return list(arg.args)
    return [arg]


def _inside_read(node: ast.Call, scope: Scope) -> bool:
    """x.cpu().numpy(): one wait, told once."""
    above = scope.module.parents.get(node)
    outer = scope.module.parents.get(above) if above else None
    return isinstance(above, ast.Attribute) and above.attr in READS and isinstance(outer, ast.Call)
