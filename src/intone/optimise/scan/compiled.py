"""Which calls compile a model, which of them have an effect, and whether what a loop runs was compiled."""

import ast
import re
from dataclasses import dataclass

from intone.optimise.scan.calls import WRAPS, functions_of
from intone.optimise.scan.constants import is_never, known_values
from intone.optimise.scan.expressions import called, code_of, dotted, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop
from intone.optimise.scan.modes import model_name
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_backward, is_model_call, is_model_name, is_module_class

OTHER_COMPILERS = re.compile(
    r"torch_xla|thunder|\bjax\b|deepspeed\.initialize|\bmlx\b|\.jit\(|CUDAGraph|make_graphed_callables|"
    r"dynamo_backend\s*=\s*['\"](?!no|NO)|dynamo_plugin\s*="
)


# a program whose switches are set in files that belong to it: what stands in the code says little
SET_IN_FILES = re.compile(r"\b(OmegaConf|hydra|pyrallis|draccus)\b|yaml\.(safe_|full_)?load\(|\btoml(lib)?\.load")
SWITCHED_OFF = re.compile(
    r"(TORCHDYNAMO_DISABLE|TORCH_COMPILE_DISABLE)['\"]\s*\]?\s*[=,]\s*['\"]1|_dynamo\.config\.disable\s*=\s*True"
)


@dataclass(frozen=True, eq=False)
class Compile:
    """A call or decorator that compiles. idle: why it has no effect, in words; None where it has one.

    function: what a decorator stands at; None for a call.
    """

    call: ast.expr
    scope: Scope
    idle: str | None
    function: Scope | None = None

    def option(self, name: str) -> ast.expr | None:
        """What it is told under a name, or None."""
        return keyword(self.call, name) if isinstance(self.call, ast.Call) else None

    @property
    def is_of_torch(self) -> bool:
        """Whether it is torch.compile itself, not a method that compiles in place."""
        return self.function is not None or (
            isinstance(self.call, ast.Call) and called(self.call, self.scope) == "torch.compile"
        )


def compile_calls(module: Module, project: Project) -> list[Compile]:
    """What compiles something in a file: torch.compile(...), model.compile(), @torch.compile."""
    key = ("compile_calls", module)
    if key not in project.remembered:
        project.remembered[key] = _compile_calls(module, project)
    found: list[Compile] = project.remembered[key]
    return found


def _compile_calls(module: Module, project: Project) -> list[Compile]:
    found = _decorated(module, project)
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            if (
                name == "torch.compile"
                or (name.endswith((".compile", ".compile_model")) and not name.startswith(("re.", "regex.")))
            ) and not _is_regex(call):
                found.append(Compile(call, scope, _why_idle(call, scope, project)))
    return found


def _decorated(module: Module, project: Project) -> list[Compile]:
    """@torch.compile, @torch.compile(dynamic=False), @partial(torch.compile, fullgraph=True)"""
    found = []
    for scope in module.scopes[1:] if "compile" in module.text else ():
        for item in getattr(scope.node, "decorator_list", []):
            head = item.func if isinstance(item, ast.Call) else item
            if last_name(head) == "partial" and isinstance(item, ast.Call) and item.args:
                head = item.args[0]
            if dotted(head, scope) == "torch.compile":
                found.append(Compile(item, scope.outer or scope, _why_idle_function(item, scope, project), scope))
    return found


def _why_idle_function(item: ast.expr, function: Scope, project: Project) -> str | None:
    if isinstance(item, ast.Call) and is_true(keyword(item, "disable")):
        return "disable=True"
    if (switch := SWITCHED_OFF.search(function.module.text)) is not None:
        return f"`{switch[0][:40]}` switches compiling off"
    return None if runs_model(function, project) else f"only `{function.simple_name}` is, which runs no model"


def runs_model(function: Scope, project: Project) -> bool:
    """Whether a function is a part of a model, runs one or goes backward, itself or in what it calls."""
    key = ("runs a model", function)
    if key not in project.remembered:
        owner = owner_of(function)
        project.remembered[key] = (
            owner is not None
            and is_module_class(owner)
            or any(
                isinstance(item.node, ast.Call)
                and (is_backward(item.node) or is_model_call(item.node, item.scope, project))
                for item in reached(function.node, function, project, 3)
            )
        )
    found: bool = project.remembered[key]
    return found


def _is_regex(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)


def _why_idle(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Switched off, thrown away or never used."""
    if (off := keyword(call, "disable")) is not None:
        known = known_values(off, scope, project)
        if known and all(one.value for one in known):
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
            never = is_never(above.test, scope, project) and not _is_fallback(above.test, scope, project)
            on = (
                isinstance(above, ast.If)
                and below in above.orelse
                or isinstance(above, ast.IfExp)
                and below is above.orelse
            )
            if never and not on and not _is_set_in_file(above.test, scope, project):
                return f"it stands behind `{code_of(above.test, 40)}`, which is off by default"
        below = above
    above_call = scope.module.parents.get(call)
    if called(call, scope) != "torch.compile":
        return None
    if call.args and (part := _no_model(call.args[0], scope, project)) is not None:
        return part
    if isinstance(above_call, ast.Expr):
        return "its result is thrown away"
    if isinstance(above_call, ast.Assign) and len(above_call.targets) == 1:
        name = target_name(above_call.targets[0])
        if name is not None and _is_part_replaced(name, call, above_call, scope, project):
            return None
        if name is not None and not _is_used(name, above_call, scope, project):
            return f"its result `{name}` is used nowhere"
        if name is not None and not _is_used_later(name, above_call, scope):
            return f"its result `{name}` comes after the last use of that name, so what was handed over is not compiled"
    return None


def _is_set_in_file(test: ast.expr, scope: Scope, project: Project) -> bool:
    """`if args.compile:`, a field of settings of a program that reads its settings from files."""
    if not isinstance(test, ast.Attribute):
        return False
    return any(file.mentions(SET_IN_FILES) for file in neighbours(scope.module, project))


def on_the_way(run: Reached, project: Project) -> list[Compile]:
    """What compiles in the functions that a model came through: model = parallelize(model, mesh), prepare(model)."""
    at, name = run.chain[0].scope if run.chain else run.scope, model_name(run, project)
    if name is None:
        return []
    calls = [b.value for b in at.bindings.get(name, []) if b.how in ("=", "part") and isinstance(b.value, ast.Call)]
    calls += [
        call for call in at.calls
        if isinstance(at.module.parents.get(call), ast.Expr) and any(target_name(arg) == name for arg in call.args)
    ]  # fmt: skip
    inside = {
        item.node: item.scope.module for call in calls for function in project.callees(call, at)[:2]
        for item in reached(function.node, function, project, 2)
        if isinstance(item.node, ast.Call) and last_name(item.node.func) == "compile"
    }  # fmt: skip
    return [one for node, module in inside.items() for one in compile_calls(module, project) if one.call is node]


def _is_fallback(test: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether what the code says of a switch only holds where settings say nothing: cfg.get("compile", False).

    Of settings that a class or function is given the value stands in the file or call that makes them.
    """
    return any(_is_looked_up(one.node, one.scope) for one in known_values(test, scope, project))


def _is_looked_up(node: ast.AST, scope: Scope) -> bool:
    """Whether a constant is the second argument of get() of a parameter, which is settings that others have written."""
    call = scope.module.parents.get(node)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "get":
        return False
    root = (target_name(call.func.value) or "").partition(".")[0]
    return node in call.args[1:] and root in scope.parameters and root not in ("self", "cls")


LOSS = re.compile(r"^_?(loss|criterion|crit)(_fn|_func|_function|_module)?$")


def _no_model(node: ast.expr, scope: Scope, project: Project) -> str | None:
    """torch.compile(loss_of), torch.compile(opt.step), torch.compile(flex_attention): what is no model, in words."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        functions = functions_of(node, scope, project)
        plain = [one for one in functions if one.simple_name not in ("forward", "__call__")]
        if plain and len(plain) == len(functions) and not any(runs_model(one, project) for one in plain):
            return f"only `{code_of(node, 30)}` is, which runs no model"
        if not functions and LOSS.match(last_name(node) or ""):
            return f"only `{code_of(node, 30)}` is, which runs no model"
        if not functions and (_is_of_optimizer(node) or dotted(node, scope).startswith("torch.nn.attention")):
            return f"only `{code_of(node, 30)}` is"
    return None


def _is_of_optimizer(node: ast.expr) -> bool:
    """opt.step, self.optimizer.step"""
    named = isinstance(node, ast.Attribute) and node.attr == "step"
    return named and re.search(r"opt|sched", target_name(node.value) or "") is not None  # type: ignore[attr-defined]


def _is_used_later(name: str, made: ast.Assign, scope: Scope) -> bool:
    """Whether a name of a function is read after its making, by the order of lines, in a loop, or by an inner one."""
    if "." in name or name in scope.globals:
        return True
    module = scope.module
    loops = module.loops_around(made)
    for node in module.reads.get(name, []):
        inner = module.scope_of.get(node) is not scope
        if inner or node.lineno > (made.end_lineno or made.lineno):  # type: ignore[attr-defined]
            return True
        if any(above in loops for above in module.up(node)) and node not in set(walk(made)):
            return True
    return False


def missed_by(one: Compile, loop: TrainLoop, runs: list[Reached], project: Project) -> str | None:
    """Why a training loop does not run what was compiled: it runs the model by its old name; None where it may.

    fast = torch.compile(model), and the loop or the function that it is handed to gets `model`.
    """
    made = one.scope.module.parents.get(one.call)
    if not isinstance(one.call, ast.Call) or not one.call.args or not isinstance(made, ast.Assign):
        return None
    new, compiled = target_name(made.targets[0]), one.call.args[0]
    while isinstance(compiled, ast.Call) and "deepcopy(" in text_of(
        compiled
    ):  # a copy of the model, whatever it is for
        compiled = compiled.args[0] if compiled.args else getattr(compiled.func, "value", compiled.func)
    old = target_name(compiled)
    if new is None or old is None or new == old or called(one.call, one.scope) != "torch.compile":
        return None
    told = f"the training loop runs `{old}`, not the compiled `{new}`"
    if new.startswith("self."):
        attribute = new.rpartition(".")[2]
        same = owner_of(one.scope) is owner_of(loop.scope)
        read = any(isinstance(i.node, ast.Attribute) and i.node.attr == attribute for i in loop.step_turn(project))
        plain = all((target_name(run.node.func) or "").startswith("self.") for run in runs)  # type: ignore[attr-defined]
        return told if same and plain and not read else None
    runs = [run for run in runs if not is_periodic(run, loop.inner, project)]
    handed = [run.anchor for run in runs] if loop.scope is one.scope else []
    handed += [site.call for site in project.callers(loop.outer_scope) if site.scope is one.scope]
    if (owner := owner_of(loop.outer_scope)) is not None:  # Trainer(model=model).fit()
        handed = [site.call for site in project.sites.get(owner.name, []) if site.scope is one.scope] or handed
    names = [names_in(node) for node in handed]
    return told if names and all(old in known and new not in known for known in names) else None


def _is_part_replaced(name: str, call: ast.Call, made: ast.Assign, scope: Scope, project: Project) -> bool:
    """model.forward = torch.compile(model.forward), pipe.unet = torch.compile(pipe.unet): used with the whole.

    self.forward too, by a call of the object; another part of self is read by its own name.
    """
    holder, _, part = name.rpartition(".")
    if not holder or holder == "self":
        return name in ("self.forward", "self.__call__")
    same = bool(call.args) and target_name(call.args[0]) == name
    words = holder.split(".")
    first = 2 if words[0] == "self" else 1
    wholes = [".".join(words[:count]) for count in range(first, len(words) + 1)]
    return (same or part in ("forward", "__call__")) and any(_is_used(one, made, scope, project) for one in wholes)


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


# methods of a model that run nothing
STILL = re.compile(
    r"^(train|eval|to|cuda|cpu|half|float|bfloat16|apply|zero_grad|step|backward|parameters|named_\w+|no_sync|save\w*|"
    r"(load_)?state_dict|requires_grad_|set_\w+|get_\w+|update\w*|reset\w*|log\w*_dict|register\w*|clip\w*)$"
)


def model_calls(loop: TrainLoop, project: Project) -> list[Reached]:
    """Where a training loop runs its model; where nothing else does, the methods of models: policy.log_prob(x)."""
    calls = [item for item in loop.turn(project) if isinstance(item.node, ast.Call) and not item.is_in_forward]
    found = [item for item in calls if is_model_call(item.node, item.scope, project)]  # type: ignore[arg-type]
    return found or [item for item in calls if _is_of_model(item.node)]  # type: ignore[arg-type]


def _is_of_model(call: ast.Call) -> bool:
    func = call.func
    if not isinstance(func, ast.Attribute) or not call.args or STILL.match(func.attr):
        return False
    return is_model_name(target_name(func.value) or "")


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
