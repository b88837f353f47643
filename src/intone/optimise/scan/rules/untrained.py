"""Rules on models that nobody trains: loaded to answer or to teach, they need neither dropout nor a graph."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import KEEPS_OBJECT, classes_of
from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.modes import is_off, mode_of, model_name, off_here
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.evaluation import DROPS, is_optimised
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_model_call, is_model_name, is_module_class, is_optimizer

SETS_EVAL = re.compile(r"\.eval\(\s*\)|\.train\((mode=)?False\)|set_to_inference|for_inference")
TRAINS = re.compile(r"\.backward\(|LightningModule|TrainingArguments|Trainer\(|manual_backward|training_step")
# what writes down a model as it is at this moment, dropout included
EXPORTS = (
    "torch.jit.trace", "torch.onnx.export", "torch.export.export", "torch.jit.script", "torch.onnx.dynamo_export",
    "torch.jit.freeze", "torch.ao.quantization.quantize_dynamic", "torch.quantization.quantize_dynamic",
    "torch._export.aot_compile", "coremltools.convert",
)  # fmt: skip


@rule(
    "S48",
    "a loaded model answers in training mode",
    kind="eval-mode",
    severity="medium",
    why="A module is made in training mode, and loading weights does not change it: dropout and the statistics of "
    "batches stay on, so the answers are noisy and worse than the model.",
    fix="Call .eval() where the weights are loaded, or before the model is written down.",
    source="PyTorch reference of Module.eval",
)
def loaded_in_training_mode(module: Module, project: Project) -> Iterator[Place]:
    """model = Net(config); model.load_state_dict(...) in a program that only runs it; jit.trace of such a model."""
    yield from _made_and_run(module, project)
    files = neighbours(module, project)
    trained = any(file.mentions(TRAINS) for file in files)
    if not trained and _is_run(files, project):
        for scope in module.scopes:
            for call in scope.calls:
                if mode_of(call, scope, project) == "train" and not _is_put_back(call, scope):
                    why = ("nothing is trained in this program",)
                    yield Place(call, f"`{code_of(call, 40)}` puts a model that only answers into training mode", why)
    sets_eval = any(file.mentions(SETS_EVAL) for file in files)
    for scope in module.scopes if not sets_eval else ():
        for call in scope.calls:
            if called(call, scope) in EXPORTS and call.args and _may_drop(call.args[0], scope, project):
                told = "it is written down as it is: with dropout, if it has any, and the statistics of batches"
                yield Place(call, f"`{code_of(call.args[0], 30)}` is exported in training mode", (told,))
    if trained or not _is_run(files, project):
        return
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) != "load_state_dict" or not isinstance(call.func, ast.Attribute):
                continue
            held = call.func.value
            if is_optimizer(held, scope, project) or not _may_drop(held, scope, project):
                continue
            if sets_eval and may_be_set(held, files, project):
                continue
            yield Place(
                call,
                f"`{code_of(held, 30)}` is loaded to be run and stays in training mode",
                ("no .eval() for it in this program, and nothing is trained in it",),
                confidence="high" if classes_of(held, scope, project) else "medium",
            )
            break


# libraries whose models are made in training mode, trained weights or not
IN_TRAINING_MODE = re.compile(
    r"(torchvision\.models\.(\w+\.)?(?!get_weight|list_models|get_model_)[a-z]\w*|timm\.(models\.)?create_model|"
    r"segmentation_models_pytorch\.\w+|open_clip\.create_model\w*)$"
)


def _made_and_run(module: Module, project: Project) -> Iterator[Place]:
    """teacher = torchvision.models.resnet50(weights=...), which is only run, in training mode."""
    files = neighbours(module, project)
    trains = any(file.mentions(TRAINS) for file in files)
    for scope in module.scopes:
        for name, bindings in scope.bindings.items():
            last = name.rpartition(".")[2]
            if trains and not TEACHES.search(last):
                continue
            made = next((m for b in bindings if b.how == "=" and (m := _maker(b.value)) is not None), None)
            if made is None or not IN_TRAINING_MODE.match(called(made, scope)):
                continue
            runs = [call for file in files for at in file.scopes for call in at.calls if _runs_it(call, last)]
            if runs and not any(_is_set_or_trained(last, file, project) for file in files):
                told = f"line {runs[0].lineno}: {code_of(runs[0], 40)}; no .eval() for it, and no optimizer has it"
                yield Place(made, f"`{name}` is made in training mode and only run", (told,))


def _runs_it(call: ast.Call, last: str) -> bool:
    """net(x), self.net.forward_features(x), net.encode_image(x)"""
    if last_name(call.func) == last:
        return True
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    asked = re.match(r"(forward|encode|extract|predict|embed|generate|features)(_|$)", method) is not None
    return asked and isinstance(call.func, ast.Attribute) and last_name(call.func.value) == last


def may_be_set(held: ast.expr, files: list[Module], project: Project) -> bool:
    """Whether an .eval() of a program may be of a model: by its names, those it is handed on under, or none it has.

    What a helper is handed, what is walked over, and what an object calls on itself may be any model.
    """
    names = {last_name(held) or ""}
    scopes = [scope for file in files for scope in file.scopes]
    for _ in range(3):
        for scope in scopes:
            for name, bindings in scope.bindings.items():
                if any(b.how in ("=", "part") and _gives(b.value, names, scope, project) for b in bindings):
                    names.add(name.rpartition(".")[2])
    for scope in scopes:
        for call in scope.calls:
            if last_name(call.func) not in ("eval", "train", "set_to_inference", "for_inference"):
                continue
            base = call.func.value if isinstance(call.func, ast.Attribute) else None
            while isinstance(base, ast.Call) and isinstance(base.func, ast.Attribute):
                base = base.func.value  # net.to(device).eval()
            asked = target_name(base) if base is not None else None
            if asked is None:
                return True
            root = asked.partition(".")[0]
            walked = any(b.how == "iter" for b in scope.bindings.get(root, []))
            if asked.rpartition(".")[2] in names or asked in ("self", "cls") or walked or asked in scope.parameters:
                return True
    return False


def _gives(value: ast.expr, names: set[str], scope: Scope, project: Project) -> bool:
    """Whether a value is what one of the names holds: itself, wrapped, moved, in a tuple, or handed back."""
    if isinstance(value, ast.Call):
        parts = [*value.args, *([value.func.value] if isinstance(value.func, ast.Attribute) else [])]
        returned = [one for function in project.callees(value, scope)[:2] for one in function.returns]
        return any(last_name(part) in names for part in parts) or any(
            last_name(part) in names for one in returned for part in (one.elts if isinstance(one, ast.Tuple) else [one])
        ) or any(isinstance(part, ast.Call) and _gives(part, names, scope, project) for part in parts)  # fmt: skip
    if isinstance(value, (ast.Tuple, ast.List)):
        return any(last_name(part) in names for part in value.elts)
    return last_name(value) in names


def _maker(value: ast.expr) -> ast.Call | None:
    """The call that makes a model, behind what puts it elsewhere; None where .eval() is among that."""
    while (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call)
    ):
        if value.func.attr not in KEEPS_OBJECT or value.func.attr == "eval":
            return None
        value = value.func.value
    return value if isinstance(value, ast.Call) else None


def _is_set_or_trained(last: str, file: Module, project: Project) -> bool:
    """Whether a file sets the mode of what has a name, asks for its parameters, or hands it to what may do so."""
    for scope in file.scopes:
        for call in scope.calls:
            func = call.func
            if isinstance(func, ast.Attribute) and func.attr in ("eval", "train", "parameters", "named_parameters"):
                words = {word for name in names_in(func.value) for word in name.split(".")}
                walked = {
                    word for name in names_in(func.value) for b in scope.bindings.get(name, []) if b.how == "iter"
                    for one in names_in(b.value) for word in one.split(".")
                }  # fmt: skip
                frozen = func.attr.endswith("parameters") and "requires_grad" in text_of(scope.node)
                if last in words | walked and not frozen:
                    return True
            handed = any(last_name(arg) == last for arg in [*call.args, *(word.value for word in call.keywords)])
            if handed and (last_name(func) or "")[:1].isupper():
                return True  # a part of something larger, or a trainer's
            if handed and any(SETS_EVAL.search(text_of(one.node)) for one in project.callees(call, scope)[:2]):
                return True
    return False


def _is_put_back(call: ast.Call, scope: Scope) -> bool:
    """model.train(was), or a mode that is set back behind an eval() in the same function."""
    return bool(call.args or call.keywords) or any(
        last_name(other.func) == "eval" and other.lineno < call.lineno for other in scope.calls
    )


def _may_drop(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a model is made here by its class, and that has dropout or the like as far as the code shows."""
    if not isinstance(node, (ast.Name, ast.Attribute)):
        return False
    if any(
        mode_of(call, scope, project) == "train" and target_name(call.func.value) == target_name(node)  # type: ignore[attr-defined]
        for call in scope.calls
    ):
        return True  # put into training mode right here
    classes = [(file, made) for file, made in classes_of(node, scope, project) if is_module_class(made)]
    if classes:
        return any(file.mentions(DROPS) for file, _ in classes)
    makers = [
        origin.node for origin in project.origins(node, scope, depth=3)
        if isinstance(origin.node, ast.Call) and origin.node is not node
    ]  # fmt: skip
    if any(READY.search(text_of(made)) for made in makers):
        return False
    named = is_model_name(target_name(node) or "")
    return named and any(MAKES.match(last_name(made.func) or "") for made in makers)


READY = re.compile(r"from_pretrained|jit\.load|hub\.load|pipeline|pretrained=True")  # in evaluation mode already
MAKES = re.compile(r"[A-Z]\w*$|from_config$|create_model$|build_\w*model$|\w*_(cls|class)$")


def _is_run(files: list[Module], project: Project) -> bool:
    """Whether a program runs a model, outside of its own classes."""
    key = ("runs a model", files[0])
    if key not in project.remembered:
        project.remembered[key] = any(
            is_model_call(call, scope, project) or last_name(call.func) == "generate"
            or _asks_module(call, scope, project)
            for file in files for scope in file.scopes for call in scope.calls
            if scope.simple_name != "forward" and not (scope.owner is not None and is_module_class(scope.owner))
        )  # fmt: skip
    found: bool = project.remembered[key]
    return found


def _asks_module(call: ast.Call, scope: Scope, project: Project) -> bool:
    """net.greedy(pixels), self.net.score(pair): a method of a module of the project is asked for an answer."""
    if not isinstance(call.func, ast.Attribute) or not (call.args or call.keywords) or call.func.attr in KEEPS_OBJECT:
        return False
    return any(
        method.owner is not None and is_module_class(method.owner) and method.simple_name == call.func.attr
        and not NO_ANSWER.match(method.simple_name)
        for method in project.callees(call, scope)[:3]
    )  # fmt: skip


NO_ANSWER = re.compile(
    r"^_*(load|save|init|reset|set|from|to|freeze|configure|compile|resize|register|get_num|num|count)"
)


TEACHES = re.compile(
    r"(^|_)(teacher|ref|reference|frozen|old_(policy|model|actor)|target_(net|model|encoder|network)|ref_\w+|sft_model|"
    r"reward_model|rm)($|_|\d)"
)
FROZEN = re.compile(r"requires_grad(_\(\s*(requires_grad=)?False|\s*=\s*False)")


@rule(
    "S49",
    "a model that is not trained keeps its graph",
    kind="eval-mode",
    severity="medium",
    why="The model that only gives targets is run like the one that is trained: its activations are kept for a "
    "backward pass, which costs memory and time at every step, and gradients may be written into it.",
    fix="Run it under torch.no_grad() in evaluation mode, or freeze its parameters.",
    source="PyTorch notes on autograd",
)
def untrained_with_graph(module: Module, project: Project) -> Iterator[Place]:
    """loss = kl(student(x), teacher(x)) with neither no_grad nor detach nor frozen parameters."""
    told: set[str] = set()
    for scope in module.scopes:
        for call in scope.calls:
            name = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            if name is None or mode_of(call, scope, project) != "train" or call.args or call.keywords:
                continue
            last = name.rpartition(".")[2]
            if TEACHES.search(last) and not is_optimised(last, project):
                why = ("nothing trains it: what it gives differs from call to call by its dropout",)
                yield Place(call, f"`{name}` only gives targets and is put into training mode", why)
    for loop in train_loops(module, project):
        for item in [*loop.turn(project), *loop.step_turn(project)]:
            if not isinstance(item.node, ast.Call) or item.is_in_forward:
                continue
            own = target_name(item.node.func) or ""
            if is_model_call(item.node, item.scope, project):
                known = TEACHES.search(own.rpartition(".")[2]) is not None
                name = own if known else model_name(item, project) or own
            elif _is_handed_teacher(item.node, item.scope, project):
                known, name = True, own
            else:
                known, name = False, _run_by_helper(item.node, item.scope, project) or ""
            last = name.rpartition(".")[2]
            if not TEACHES.search(last) or last in told or is_optimised(last, project):
                continue
            if is_off(item, project) or _is_detached(item) or _is_frozen(item, project):
                continue
            told.add(last)
            named = next((site for site in reversed(item.chain) if last in " ".join(names_in(site.call))), None)
            named = None if known else named
            yield Place(
                item.node if named is None else named.call,  # the helper runs whatever model it is handed
                f"`{code_of(item.node, 40)}` keeps a graph at every step, and `{last}` is not trained",
                (
                    "no no_grad, detach() or requires_grad=False for it",
                    f"the loss goes backward at line {loop.backwards[0].line}",
                ),
                scope=item.scope if named is None else named.scope,
            )


def _is_handed_teacher(call: ast.Call, scope: Scope, project: Project) -> bool:
    """ref(batch), where ref is handed in or kept by the object, and nothing of the project is known to be it."""
    name = target_name(call.func) or ""
    root = name.partition(".")[0]
    known = root == "self" or root in scope.parameters
    return bool(call.args) and known and TEACHES.search(name.rpartition(".")[2]) is not None and not (
        project.callees(call, scope)
    )  # fmt: skip


def _run_by_helper(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """log_probs(self.ref, ids): the name of a model that gives targets, where the function called runs it."""
    for function in project.callees(call, scope)[:2]:
        for name in function.parameters:
            handed = project.argument(Site(call, scope), function, name)
            given = target_name(handed) if handed is not None else None
            if given is None or not TEACHES.search(given.rpartition(".")[2]) or TEACHES.search(name):
                continue  # a helper that knows which model it runs is told itself
            if any(target_name(inner.func) == name for inner in function.calls) and not _is_off_in(function, project):
                return given
    return None


def _is_off_in(function: Scope, project: Project) -> bool:
    """Whether a function switches gradients off for all that it does."""
    return bool(function.calls) and off_here(function, function.calls[0], project)


def _is_frozen(item: Reached, project: Project) -> bool:
    """Whether parameters are frozen anywhere in the program: which ones is not followed."""
    return any(file.mentions(FROZEN) for file in neighbours(item.scope.module, project))


def _is_detached(item: Reached) -> bool:
    """teacher(x).detach(), or a name for it that is detached where it is used."""
    module = item.scope.module
    names: set[str] = set()
    for above in module.up(item.node):
        if isinstance(above, ast.Call) and last_name(above.func) in ("detach", "item", "tolist"):
            return True
        if isinstance(above, ast.Assign):
            names = {name for target in above.targets for name in names_in(target)}
        if isinstance(above, ast.stmt):
            break
    return any(
        last_name(call.func) == "detach" and isinstance(call.func, ast.Attribute) and names & names_in(call.func.value)
        for call in item.scope.calls
    )
