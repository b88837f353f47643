"""A rule on waiting for the device inside a model's forward pass."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.purpose import is_in_message
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Parameter, Scope, walk
from intone.optimise.scan.values import is_module_class, is_property


@rule(
    "S32",
    "a forward pass waits for the device",
    kind="host-sync",
    severity="medium",
    why="A value read inside the model waits for the device in every layer or pass, and breaks compiled "
    "code into pieces.",
    fix="Keep lengths and positions as Python numbers beside the tensors, or as tensors all the way; hand them in.",
    source="optimiser.md D5; nanochat-facts.md 4.1.3",
)
def sync_in_forward(module: Module, project: Project) -> Iterator[Place]:
    """.item() or .tolist() in a module's forward, or in what it calls to run."""
    for place in _read_in_passes(module, project):
        unproven = _is_unproven(place.scope or module.scope_of.get(place.node, module.top))
        yield replace(place, confidence="low") if unproven else place


# the form of a model that is written down for another runtime, where each length is a symbol
EXPORTED = re.compile(r"(^|[/_.])export(s|ed|able|er)?($|[/_.])", re.I)
# modules that make data on the host before there is a batch
PREPARES = re.compile(r"(Transforms?|Augment(ation|er)?|Preprocess(or|ing)?|ImageProcessor|Tokenizer|Collat(e|or))$")


def _is_unproven(scope: Scope) -> bool:
    """Whether a module's pass need not be one of a model on a device: it prepares data, or is for an export."""
    owner = owner_of(scope)
    prepares = owner is not None and PREPARES.search(owner.name) is not None
    return prepares or EXPORTED.search(f"{scope.module.path}/{scope.name}") is not None


def _read_in_passes(module: Module, project: Project) -> Iterator[Place]:
    for scope in module.scopes[1:]:
        if re.search(r"(^|_)cpu(_|$)", scope.simple_name):
            continue  # it works on the host, as it says
        if not _runs_in_forward(scope, project):
            continue
        for call in scope.calls:
            if not _reads_in_forward(call, scope, project):
                continue
            if is_periodic(Reached(call, scope), scope.node, project) or _has_word(call, "numpy|np"):
                continue
            if is_in_message(call, module):
                continue
            if _is_switched_off(call, scope, project):
                continue
            yield Place(call, f"`{code_of(call, 40)}` is read in every forward pass", (_how_reached(scope, project),))
            break
        else:
            test = next((test for node in scope.of(*TESTS) if (test := _asked(node, scope, project)) is not None), None)
            if test is not None:
                told = f"`if {code_of(test, 40)}` waits in every forward pass"
                yield Place(test, told, (_how_reached(scope, project),))
                continue
            cut = next(
                (end for node in scope.of(ast.Slice) if (end := _cut_by(node, scope, project)) is not None), None
            )
            masked = next((node for node in scope.of(ast.Subscript) if _is_masked(node, scope, project)), None)
            if masked is not None:
                told = f"`{code_of(masked, 40)}` waits in every forward pass to know how many entries it takes"
                yield Place(masked, told, (_how_reached(scope, project),), severity="low")
                continue
            if cut is not None:
                told = f"the cut at `{code_of(cut, 40)}` waits in every forward pass"
                yield Place(cut, told, (_how_reached(scope, project),))


def _is_switched_off(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call stands behind `if flag:` and every forward pass that calls the function hands flag=False."""
    below: ast.AST = call
    for above in scope.module.up(call):
        if above is scope.node:
            return False
        if isinstance(above, ast.If) and below in above.body and isinstance(above.test, ast.Name):
            flag = above.test.id
            sites = [site for site in project.callers(scope)[:8] if _runs_in_forward(site.scope, project, 2)]
            values = [project.argument(site, scope, flag) for site in sites] if flag in scope.parameters else []
            values = [value if value is not None else scope.parameters[flag].default for value in values]
            if values and all(isinstance(value, ast.Constant) and not value.value for value in values):
                return True
        below = above
    return False


def _cut_by(node: ast.Slice, scope: Scope, project: Project) -> ast.expr | None:
    """x[:, : lengths.max()]: where to cut is read from the device."""
    for end in (node.lower, node.upper):
        if isinstance(end, ast.Call) and last_name(end.func) in REDUCES and _is_of_tensor(end, scope, project):
            return end
    return None


def _is_masked(node: ast.Subscript, scope: Scope, project: Project) -> bool:
    """x[mask], with mask = ids == 3: as many entries as the mask has, which is read to make room for them."""
    if not isinstance(node.ctx, ast.Load) or not _keeps_tensor(node, _tensors(scope, project)):
        return False
    if not scope.module.loops_around(node):
        return False  # one wait in a pass; of each expert or part it is many
    mask: ast.expr = node.slice
    if isinstance(mask, ast.Name):
        made = [b.value for b in scope.bindings.get(mask.id, []) if b.how == "="]
        if len(made) != 1:
            return False
        mask = made[0]
    while isinstance(mask, ast.UnaryOp) and isinstance(mask.op, ast.Invert):
        mask = mask.operand
    return isinstance(mask, ast.Compare) and _keeps_tensor(mask, _tensors(scope, project))


TESTS = (ast.If, ast.While, ast.Assert, ast.IfExp)


def _asked(node: ast.AST, scope: Scope, project: Project) -> ast.expr | None:
    """if mask.any(), if x.abs().max() > limit, assert torch.isfinite(x).all(): a question about a tensor's values."""
    if not isinstance(node, TESTS) or is_periodic(Reached(node, scope), scope.node, project):
        return None
    for part in walk(node.test):
        if isinstance(part, ast.Call) and last_name(part.func) in QUESTIONS and _is_of_tensor(part, scope, project):
            return node.test
        if isinstance(part, ast.Compare) and not any(isinstance(op, (ast.Is, ast.IsNot)) for op in part.ops):
            sides = [side for side in (part.left, *part.comparators) if isinstance(side, ast.Call)]
            if any(last_name(side.func) in REDUCES and _is_of_tensor(side, scope, project) for side in sides):
                return node.test
    return None


QUESTIONS = ("any", "all", "isnan", "isfinite", "equal", "allclose")
REDUCES = ("sum", "max", "min", "mean", "norm", "amax", "amin", "std", "var", "count_nonzero")
COUNTED = ("nonzero", "argwhere", "unique", "masked_select")


def _is_of_tensor(call: ast.Call, scope: Scope, project: Project) -> bool:
    """mask.sum(), torch.any(x > 3): a method of a tensor, or a function of torch about one."""
    if not isinstance(call.func, ast.Attribute):
        return False
    names = {name.partition(".")[0] for name in names_in(call)}
    return bool(names & _tensors(scope, project)) and not names & {"np", "numpy", "math", "re"}


def _tensors(scope: Scope, project: Project) -> set[str]:
    """Names of a forward pass that hold tensors: its inputs that are no settings, and what is computed from them."""
    key = ("tensors", scope)
    if key not in project.remembered:
        found = {
            name for name, one in scope.parameters.items()
            if name not in ("self", "cls") and not _is_setting(one)
        }  # fmt: skip
        for _ in range(3):
            for name, bindings in scope.bindings.items():
                if any(b.how in ("=", "part") and _keeps_tensor(b.value, found) for b in bindings):
                    found.add(name)
        project.remembered[key] = found
    tensors: set[str] = project.remembered[key]
    return tensors


def _is_setting(parameter: Parameter) -> bool:
    """A parameter that is a number or text by its type or default."""
    written = text_of(parameter.annotation) if parameter.annotation is not None else ""
    plain = bool(re.search(r"\b(int|float|bool|str|list|dict|List|Dict)\b", written)) and "Tensor" not in written
    value = parameter.default
    return plain or isinstance(value, ast.Constant) and value.value is not None


def _keeps_tensor(value: ast.expr, tensors: set[str]) -> bool:
    """Whether an expression of tensors is one: not a size, a shape or a number that was read."""
    hosts = ("size", "dim", "len", "numel", "item", "tolist", "int", "float", "range", "isinstance", "get", "type")
    for part in walk(value):
        if isinstance(part, ast.Attribute) and part.attr in ("shape", "device", "dtype", "ndim"):
            return False
        if isinstance(part, ast.Call) and last_name(part.func) in hosts and not (
            last_name(part.func) in ("int", "float") and isinstance(part.func, ast.Attribute)
        ):  # fmt: skip
            return False
    computed = isinstance(value, (ast.Call, ast.BinOp, ast.Subscript, ast.Compare, ast.UnaryOp))
    return computed and bool({name.partition(".")[0] for name in names_in(value)} & tensors)


def _reads_in_forward(call: ast.Call, scope: Scope, project: Project) -> bool:
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("item", "tolist", "cpu", "numpy") and not call.args:
        return True
    if called(call, scope) in ("torch.cuda.synchronize",):
        return True
    if last_name(call.func) in COUNTED and _is_of_tensor(call, scope, project):
        return True
    if isinstance(call.func, ast.Name) and call.func.id == "range":
        counted = [arg for arg in call.args if isinstance(arg, ast.Call) and last_name(arg.func) in REDUCES]
        return any(_is_of_tensor(arg, scope, project) for arg in counted)
    if isinstance(call.func, ast.Name) and call.func.id in ("int", "float") and len(call.args) == 1:
        inside = call.args[0]  # int(mask.sum()), float(x.max())
        if isinstance(inside, ast.Call) and isinstance(inside.func, ast.Attribute):
            return (
                inside.func.attr in ("sum", "max", "min", "mean", "norm", "any", "all")
                and not isinstance(inside.func.value, ast.Name)
                or inside.func.attr in ("sum", "max", "min", "mean", "norm")
                and _is_input(inside.func.value, scope)
            )
    return False


def _is_input(node: ast.expr, scope: Scope) -> bool:
    """A parameter of the forward pass, which is a tensor where a tensor's method is called on it."""
    return isinstance(node, ast.Name) and node.id in scope.parameters


def _runs_in_forward(scope: Scope, project: Project, depth: int = 3) -> bool:
    """Whether a function is forward of a module, or is called from one (three calls deep)."""
    key = ("in forward", (scope, depth))
    if key not in project.remembered:
        project.remembered[key] = _leads_from_forward(scope, project, depth)
    found: bool = project.remembered[key]
    return found


def _leads_from_forward(scope: Scope, project: Project, depth: int) -> bool:
    owner = owner_of(scope)
    if scope.simple_name == "forward" and owner is not None and is_module_class(owner):
        return True
    if scope in _hooks(project):
        return True
    if depth == 0 or scope.simple_name in ("<lambda>", "__init__", "generate") or scope.simple_name == "<module>":
        return False
    if is_property(scope):
        return _property_in_forward(scope, project)
    callers = [site.scope for site in project.callers(scope)[:8] if site.scope is not scope]
    return any(_runs_in_forward(caller, project, depth - 1) for caller in callers)


def _hooks(project: Project) -> set[Scope]:
    """The functions that modules call at every pass: layer.register_forward_hook(watch)."""
    key = ("hooks of modules", None)
    if key not in project.remembered:
        adders = (
            "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_hook",
            "register_full_backward_pre_hook", "register_backward_hook", "register_post_accumulate_grad_hook",
            "register_multi_grad_hook",
        )  # fmt: skip
        project.remembered[key] = {
            function for name in adders for site in project.sites.get(name, []) if site.call.args
            for function in functions_of(site.call.args[0], site.scope, project)
        }  # fmt: skip
    found: set[Scope] = project.remembered[key]
    return found


def _property_in_forward(scope: Scope, project: Project) -> bool:
    """A property that a module's forward reads: cache.length."""
    key = ("read in forward", None)
    if key not in project.remembered:
        forwards = [
            other for other in project.functions.get("forward", [])
            if (owner := owner_of(other)) is not None and is_module_class(owner)
        ]  # fmt: skip
        project.remembered[key] = {
            node.attr for other in forwards for node in other.body if isinstance(node, ast.Attribute)
        }
    return scope.simple_name in project.remembered[key]


def _how_reached(scope: Scope, project: Project) -> str:
    if scope.simple_name == "forward":
        return "in forward itself"
    sites = [site for site in project.callers(scope) if _runs_in_forward(site.scope, project, 2)]
    return f"called at {sites[0].scope.module.path}:{sites[0].call.lineno}" if sites else "called from forward"


def _has_word(node: ast.expr, words: str) -> bool:
    return any(re.fullmatch(words, name.partition(".")[0]) for name in names_in(node))
