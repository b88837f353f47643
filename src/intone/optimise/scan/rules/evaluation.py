"""Rules on evaluation and generation: no graph of gradients, and the right mode before and after."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.modes import is_in_eval_mode, is_off, mode_of, model_name, sets_eval
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.ondevice import READS, is_tensor, on_device
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, is_inside, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_backward, is_model_call, is_model_name, is_module_class

EVALUATES = re.compile(
    r"(^|_)(eval|evals|evaluate|evaluation|evaluator|validate|validation|valid|val|estimate_loss|test_loss|dev_loss|heldout|"
    r"test|test_epoch|embed|classify|rerank|translate|transcribe|summari[sz]e|answer|reply|serve|forecast|recall_at|"
    r"held_out|holdout|generate|perplexity|ppl|bpb|bits_per_byte|accuracy|predict|infer|inference|score|benchmark_eval|"
    r"run_eval|run_val|complete|sample_text|sample_tokens|greedy_decode|decode_text|chat|respond)($|_)",
    re.I,
)
HELD_OUT = re.compile(r"(^|[._])(val|valid|validation|dev|test|eval|heldout|held_out|holdout)(_|$|[._])", re.I)
DROPS = re.compile(r"Dropout|dropout|BatchNorm|drop_path|attn_pdrop")


@rule(
    "S45",
    "evaluation keeps the graph of gradients",
    kind="eval-mode",
    severity="medium",
    why="Without no_grad every activation is kept for a backward pass that never comes: several times the "
    "memory, and slower; "
    "losses that are added up keep all their graphs.",
    fix="Put @torch.no_grad() (or inference_mode) on the function, or a with block around the forward passes.",
    source="PyTorch notes on autograd",
)
def graph_in_evaluation(module: Module, project: Project) -> Iterator[Place]:
    """A function that evaluates or generates, runs a model, and neither it nor its callers switch gradients off."""
    for scope, (run, *_) in _evaluations(module, project):
        if is_off(run, project) or _may_train(scope):
            continue
        yield Place(
            run.anchor,
            f"`{scope.simple_name}` runs `{code_of(run.node, 40)}` with gradients on",
            (
                "no no_grad or inference_mode on the function, around the call, or around its callers",
                *_where(run),
            ),
            confidence="high" if project.callers(scope) else "medium",
            scope=scope,
        )
    yield from _bare_evaluation(module, project)


def _evaluations(module: Module, project: Project) -> Iterator[tuple[Scope, list[Reached]]]:
    """(function, where it first runs each model) of the functions of a file that evaluate and train nothing."""
    trained = _on_the_way_to_loss(project)
    seldom = _now_and_then(project)
    decoding = {decode.scope: decode for decode in decode_loops(module, project)}
    for scope in module.scopes:
        if scope in trained or isinstance(scope.node, ast.Lambda):
            continue
        top = scope is module.top
        if top and any(True for _ in train_loops(module, project)) and _now_and_then_loop(scope, project) is None:
            continue
        named = EVALUATES.search(scope.simple_name) or scope in decoding or scope in seldom
        named = named or any(mode_of(call, scope, project) == "eval" for call in scope.calls)
        kept = not top and kept_in_eval(scope, project)
        region = scope.node if named or kept or _only_reads(scope, project) else _held_out_loop(scope)
        if region is None:
            continue
        items = _calls_in(region, scope, project, top=top)
        if any(is_backward(item.node) for item in items):  # type: ignore[arg-type]
            within = _now_and_then_loop(scope, project)
            items = _calls_in(within, scope, project, top=top) if within is not None else []
        runs: dict[str | None, Reached] = {}
        for item in items:
            if _runs_model(item, project):
                runs.setdefault(model_name(item, project), item)
        if runs:
            yield scope, list(runs.values())


def _calls_in(region: ast.AST, scope: Scope, project: Project, *, top: bool) -> list[Reached]:
    items = [item for item in reached(region, scope, project) if isinstance(item.node, ast.Call)]
    return [item for item in items if not item.chain] if top else items


def _now_and_then_loop(scope: Scope, project: Project) -> ast.AST | None:
    """A loop over other rows that a training loop runs every so many steps, written into the same function."""
    for loop in train_loops(scope.module, project):
        for node in scope.of(ast.For) if loop.scope is scope else ():
            inside = is_inside(node, loop.inner, scope.module)
            calls = [part for part in walk(node) if isinstance(part, ast.Call)]
            if inside and not any(is_backward(call) for call in calls) and is_periodic(
                Reached(node, scope), loop.inner, project
            ) and any(is_model_call(call, scope, project) for call in calls):  # fmt: skip
                return node
    return None


def kept_in_eval(scope: Scope, project: Project) -> bool:
    """Whether a function runs a model that its object, or its file, has put into evaluation mode for good."""
    module = scope.module
    if not module.mentions(SETS_EVAL) or module.mentions(TRAINS) or scope.simple_name in ("__init__", "forward"):
        return False
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner is not None else []
    makers = [method for method in methods if method.simple_name == "__init__"]
    held = {
        name for place in [module.top, *makers] for name, bindings in place.bindings.items() for b in bindings
        if b.how == "=" and isinstance(b.value, ast.Call) and SETS_EVAL.search(text_of(b.value) + " ")
    }  # fmt: skip
    held |= {
        target_name(call.func.value) or "" for place in [module.top, *makers] for call in place.calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "eval" and not call.args
    }  # fmt: skip
    return any(target_name(call.func) in held and is_model_call(call, scope, project) for call in scope.calls)


SETS_EVAL = re.compile(r"\.eval\(\s*\)")
TRAINS = re.compile(r"\.backward\(|training_step")


def _only_reads(scope: Scope, project: Project) -> bool:
    """A function that hands back numbers of what a model gave, and no tensor that could be trained on."""
    if scope.owner is not None and is_module_class(scope.owner):
        return False
    reads = any(
        isinstance(call.func, ast.Attribute) and call.func.attr in READS and on_device(call.func.value, scope, project)
        for call in scope.calls
    )
    return reads and not any(is_tensor(value, scope, project) for value in scope.returns)


def _now_and_then(project: Project) -> set[Scope]:
    """The functions that a training loop calls only every so many steps: where they run the model, they evaluate."""
    key = ("seldom", None)
    if key not in project.remembered:
        found: dict[Scope, None] = {}
        for module in project.modules:
            for loop in train_loops(module, project):
                entered = {item.scope: item for item in loop.step_turn(project) if item.chain}
                for item in entered.values():
                    top = _first_seldom(item, loop, project)
                    if top is not None and any(_runs_model(one, project) for one in reached(top.node, top, project)):
                        found[top] = None
        project.remembered[key] = set(found)
    seldom: set[Scope] = project.remembered[key]
    return seldom


def _first_seldom(item: Reached, loop: TrainLoop, project: Project) -> Scope | None:
    """The outermost function on the way to a node that runs only now and then."""
    scopes = [*(site.scope for site in item.chain[1:]), item.scope]
    for number, scope in enumerate(scopes):
        site = item.chain[number]
        if is_periodic(Reached(site.call, site.scope, item.chain[:number]), loop.around, project):
            return scope if scope.simple_name != "forward" else None
    return None


def _runs_model(item: Reached, project: Project) -> bool:
    if item.is_in_forward:
        return False
    return isinstance(item.node, ast.Call) and is_model_call(item.node, item.scope, project)


def _held_out_loop(scope: Scope) -> ast.AST | None:
    """A loop over rows that are held out: for x, y in val_loader."""
    for node in scope.of(ast.For, ast.AsyncFor):
        if isinstance(node, (ast.For, ast.AsyncFor)) and any(HELD_OUT.search(name) for name in names_in(node.iter)):
            return node
    return None


def _on_the_way_to_loss(project: Project) -> set[Scope]:
    """The functions that run in every turn of a training loop: what they compute may be trained on."""
    key = ("trained", None)
    if key not in project.remembered:
        found: set[Scope] = set()
        for module in project.modules:
            for loop in train_loops(module, project):
                entered = {item.scope: item for item in loop.turn(project) if item.chain}  # one way into each
                found |= {scope for scope, item in entered.items() if _feeds_loss(item, loop, project)}
        project.remembered[key] = found
    trained: set[Scope] = project.remembered[key]
    return trained


def _feeds_loss(item: Reached, loop: TrainLoop, project: Project) -> bool:
    """Whether a function may hand back what is trained on: it runs at every turn, and its result is used."""
    first = item.chain[0]
    alone = isinstance(first.scope.module.parents.get(first.call), ast.Expr)
    last = item.chain[-1]
    return not alone and not is_periodic(Reached(last.call, last.scope, item.chain[:-1]), loop.inner, project)


def _may_train(scope: Scope) -> bool:
    """A loss that is handed back may be trained on by whoever called; so may the forward of a module."""
    if scope.owner is not None and "LightningModule" in " ".join(text_of(base) for base in scope.owner.bases):
        return True  # its trainer switches gradients off around validation and prediction
    return scope.simple_name in ("forward", "training_step") or any("reward" in name for name in scope.parameters)


def _bare_evaluation(module: Module, project: Project) -> Iterator[Place]:
    """model.eval() in a training loop, then forward passes without no_grad until model.train()."""
    for loop in train_loops(module, project):
        outer = loop.around if loop.outer_scope is loop.scope else loop.inner
        modes = sorted(
            (
                call
                for call in loop.scope.calls
                if mode_of(call, loop.scope, project) and is_inside(call, outer, module)
            ),
            key=lambda c: c.lineno,
        )
        for number, call in enumerate(modes):
            if mode_of(call, loop.scope, project) != "eval":
                continue
            later = (other for other in modes[number + 1 :] if mode_of(other, loop.scope, project) == "train")
            end = next((other.lineno for other in later), None)
            if end is None:
                continue
            for run in loop.scope.calls:
                between = call.lineno < run.lineno < end and is_model_call(run, loop.scope, project)
                if between and not is_off(Reached(run, loop.scope), project):
                    yield Place(
                        run,
                        f"`{code_of(run, 40)}` evaluates with gradients on",
                        (f"between .eval() at line {call.lineno} and .train() at line {end}",),
                    )
                    break


@rule(
    "S46",
    "evaluation in training mode",
    kind="eval-mode",
    severity="medium",
    why="Dropout stays on, so the measured loss is noisy and too high, and generated text is worse than the model.",
    fix="Call model.eval() before and model.train() after.",
    source="PyTorch reference of Module.eval",
)
def not_in_eval_mode(module: Module, project: Project) -> Iterator[Place]:
    """A function that evaluates a model of a program that trains it with dropout, and nobody calls .eval()."""
    yield from _named_only(module, project)
    drops = any(other.mentions(DROPS) for other in neighbours(module, project))
    for scope, runs in _evaluations(module, project):
        for run in runs:
            assert isinstance(run.node, ast.Call)
            if not drops and not _is_handed_in(run, module, project):
                continue
            if target_name(run.node.func) in ("self", "self.forward") or not _trains(module, project, scope):
                continue
            if _is_set(run, runs, scope, project):
                continue
            name = f"`{model_name(run, project) or code_of(run.node.func, 30)}`" if len(runs) > 1 else "the model"
            known = "the model has dropout, and this program trains it"
            open_ = "the model is handed in, so it may have dropout, and this program trains it"
            yield Place(
                run.anchor,
                f"`{scope.simple_name}` runs {name} without .eval()",
                (known if drops else open_, *_where(run)),
                "high" if drops else "low",
                scope=scope,
            )


def _is_set(run: Reached, runs: Sequence[Reached], scope: Scope, project: Project) -> bool:
    """Whether somebody sets the mode of the model of one of the runs of a function.

    Of several models each is looked at by its name where its weights go to an optimizer: one that nobody trains has
    the mode that it was loaded with.
    """
    name = model_name(run, project)
    others = frozenset(other for one in runs if (other := model_name(one, project)) not in (None, name))
    if run is runs[0]:
        root = (name or "").partition(".")[0]
        handed = root if not run.chain and root in scope.parameters else None
        if not _is_set_for(handed, frozenset(), scope, project):
            return False
    if name is None or not others or not is_optimised(name, project):
        return True
    others = frozenset(other for other in others if not _is_made_of(other, name, scope))
    return _is_set_for(name, others, scope, project)


def _is_set_for(model: str | None, others: frozenset[str], scope: Scope, project: Project) -> bool:
    """Whether a function, what leads to it, or a method of its object calls .eval() for a model; None: for any."""
    if is_in_eval_mode(scope, project, model=model, others=others):
        return True
    methods = project.class_scopes(scope.owner) if scope.owner is not None else []
    held = model if model is not None and model.startswith("self.") else None
    return any(sets_eval(method, project, held, others) for method in methods)


def is_optimised(name: str, project: Project) -> bool:
    """Whether an optimizer gets a model's parameters, somewhere under this name: AdamW(student.parameters())."""
    last = name.rpartition(".")[2]
    sites = [*project.sites.get("parameters", []), *project.sites.get("named_parameters", [])]
    return any(
        isinstance(site.call.func, ast.Attribute) and last_name(site.call.func.value) == last
        and not _only_looks(site.call, site.scope)
        for site in sites
    )  # fmt: skip


def _only_looks(parameters: ast.Call, scope: Scope) -> bool:
    """next(model.parameters()).device, sum(p.numel() for p in ...), for p in ...: p.requires_grad_(False)"""
    for above in scope.module.up(parameters):
        if isinstance(above, (ast.For, ast.AsyncFor)):
            return True
        if isinstance(above, ast.Call) and last_name(above.func) in LOOKS:
            return True
        if isinstance(above, ast.stmt):
            break
    return False


LOOKS = ("next", "sum", "any", "all", "len", "clip_grad_norm_", "max", "min", "set", "print")


def _is_made_of(one: str, other: str, scope: Scope) -> bool:
    """Whether one name wraps what the other is, as compiled = torch.compile(model) does."""
    at: Scope | None = scope
    while at is not None:
        for name, inside in ((one, other), (other, one)):
            if any(inside in names_in(binding.value) for binding in at.bindings.get(name, [])):
                return True
        at = at.outer
    return False


def _named_only(module: Module, project: Project) -> Iterator[Place]:
    """`model.eval` with no call behind it; model.training = False, which the layers inside do not see."""
    for scope in module.scopes:
        for node in scope.of(ast.Expr, ast.Assign):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr in ("eval", "train")
            ):
                if is_model_name(target_name(node.value.value) or ""):
                    told = ("a name alone does nothing: the call is missing",)
                    yield Place(node, f"`{code_of(node.value, 40)}` is named and not called", told)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (
                called(node.value, scope) in ("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad")
            ):  # fmt: skip
                told = ("it is a context: only `with` or a decorator switches gradients off",)
                yield Place(node, f"`{code_of(node.value, 40)}` alone changes nothing", told)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                target = node.targets[0]
                named = target.attr == "training" and is_model_name(target_name(target.value) or "")
                if named and isinstance(node.value, ast.Constant):
                    told = ("dropout and norms inside keep their own flag; .eval() and .train() set all of them",)
                    yield Place(node, f"`{code_of(node, 40)}` sets the mode of the outermost module only", told)


def _is_handed_in(run: Reached, module: Module, project: Project) -> bool:
    """Whether nothing in the code base says what the model is: whether it has dropout is for its maker to know."""
    assert isinstance(run.node, ast.Call)
    if classes_of(run.node.func, run.scope, project):
        return False
    root = (target_name(run.node.func) or "").partition(".")[0]
    files = neighbours(module, project)
    return root in run.scope.parameters and not any(
        is_module_class(node) for places in project.classes.values() for file, node in places if file in files
    )


def _where(run: Reached) -> list[str]:
    """The place of a forward pass that another function runs."""
    return [f"the model runs at {run.scope.module.path}:{run.line}, {run.path()}"] if run.chain else []


def _trains(module: Module, project: Project, scope: Scope) -> bool:
    """Whether the model is trained by this file, or by a file that calls this function."""
    around = {id(module): module} | {id(site.scope.module): site.scope.module for site in project.callers(scope)}
    for site in project.callers(scope)[:6]:
        around |= {id(up.scope.module): up.scope.module for up in project.callers(site.scope)[:6]}
    return any(any(True for _ in train_loops(other, project)) for other in around.values())
