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
    if counted_entries(scope):
        return True
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


def counted_entries(scope: Scope) -> set[str]:
    """The entries of a checkpoint, whatever they are called, that become a counter: done = state["updates"], done += 1.

    Not those of a counter by which batches are passed over.
    """
    found: set[str] = set()
    for name, bindings in scope.bindings.items():
        counted = any(isinstance(b.node, ast.AugAssign) and isinstance(b.node.op, ast.Add) for b in bindings)
        if not counted or any(_passes_by(node, name) for node in scope.body):
            continue
        for binding in bindings if counted else ():
            value = binding.value
            while isinstance(value, ast.Call) and last_name(value.func) == "int" and value.args:
                value = value.args[0]
            if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
                found.add(str(value.slice.value))
            elif isinstance(value, ast.Call) and last_name(value.func) in ("get", "pop") and value.args:
                key = value.args[0]
                found |= {str(key.value)} if isinstance(key, ast.Constant) and isinstance(key.value, str) else set()
    return found


def _passes_by(node: ast.AST, name: str) -> bool:
    """Whether a counter says how many batches to pass over: it < done % n, islice(rows, done), sampler.start = done."""
    if isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Continue):
        return isinstance(node.test, ast.Compare) and any(
            isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for op in node.test.ops
        ) and name in names_in(node.test)  # fmt: skip
    if isinstance(node, ast.Call) and name in names_in(node):
        return bool(re.search(r"islice|skip|seek|advance|forward|set_(start|position|state)|start_at", text_of(node)))
    kept = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    return kept and name in names_in(node.value)  # type: ignore[attr-defined]


RESTORES_ORDER = re.compile(
    r"set_rng_state|set_state\(|setstate|bit_generator\.state|loader\w*\.load_state_dict|sampler\w*\.load_state_dict|"
    r"dataset\w*\.load_state_dict|StatefulDataLoader|skip_first_batches|islice\(|fast_forward|resume_state|dataloader_state|data_state|"
    r"loader_state|sampler_state|start_index|skip_batches|\.skip\(|data_iter_step"
)


def restores_order(module: Module) -> bool:
    """Whether the code of a file restores a place or order of the data; comments say nothing.

    Not by islice(rows, 20), which takes the first rows, nor by a state that the same function took before, which only
    keeps an evaluation out of the stream.
    """
    if not module.mentions(RESTORES_ORDER):
        return False
    words = {match[0].rstrip("(") for match in RESTORES_ORDER.finditer(text_of(module.tree))}
    if words - {"islice", "set_rng_state", "setstate", "set_state"}:
        return True
    for word in words:
        calls = [
            node
            for node in module.nodes
            if isinstance(node, ast.Call) and (last_name(node.func) or "").startswith(word)
        ]
        if not calls or any(
            _begins_later(call) if word == "islice" else not _was_taken_here(call, module) for call in calls
        ):
            return True
    return False


def _begins_later(call: ast.Call) -> bool:
    """islice(rows, start, None), islice(rows, done)"""
    return len(call.args) > 2 or any(
        re.search(r"start|skip|step|resume|done|seen|consumed|offset", text_of(arg)) for arg in call.args[1:]
    )


def _was_taken_here(call: ast.Call, module: Module) -> bool:
    """state = torch.get_rng_state() ... torch.set_rng_state(state), in one function"""
    scope = module.scope_of.get(call, module.top)
    made = [b.value for arg in call.args[:1] for b in scope.bindings.get(target_name(arg) or "", [])]
    return bool(made) and all(
        isinstance(one, ast.Call) and bool(re.fullmatch(r"get_?(rng_)?state(_all)?", last_name(one.func) or ""))
        for one in made
    )
