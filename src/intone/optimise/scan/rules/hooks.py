"""A rule on what a trainer's hooks generate: between two steps the model is in training mode, with gradients on."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, text_of
from intone.optimise.scan.modes import is_off, mode_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import is_model_call, is_model_name

# of Lightning and of transformers; around their own validation both switch the mode and the gradients themselves
HOOKS = re.compile(
    r"^on_(train_(batch|epoch)_(start|end)|step_(begin|end)|epoch_(begin|end)|log|save|before_zero_grad|substep_end|"
    r"before_optimizer_step|after_backward|train_end)$"
)
TRAINERS = re.compile(r"LightningModule|(^|[ .])\w*Callback\b")
PREVIEWS = re.compile(r"(^|_)(preview|sample|samples|generate|continue|complete|demo|show|validate|evaluate|eval)($|_)")


@rule(
    "S65",
    "a training hook runs the model in training mode",
    kind="eval-mode",
    severity="medium",
    why="The trainer calls its hooks between two steps, while the model is in training mode and gradients are on: "
    "previews are written with dropout, and keep a graph for a backward pass that never comes.",
    fix="Call .eval() before and .train() after, under torch.no_grad().",
    source="Lightning and transformers references of callbacks",
)
def previews_in_training_mode(module: Module, project: Project) -> Iterator[Place]:
    """def on_train_batch_end(self, ...): print(self.sample("Once")), with neither eval() nor no_grad on the way."""
    told: set[ast.AST] = set()
    for scope in module.scopes[1:]:
        bases = " ".join(text_of(base) for base in scope.owner.bases) if scope.owner is not None else ""
        step = scope.simple_name == "training_step"
        if not TRAINERS.search(bases) or not (step or HOOKS.match(scope.simple_name)):
            continue
        items = reached(scope.node, scope, project)
        if any(isinstance(item.node, ast.Call) and mode_of(item.node, item.scope, project) for item in items):
            continue
        run = next((item for item in items if _previews(item, project)), None)
        if run is None or run.node in told or step and not is_periodic(run, scope.node, project):
            continue
        told.add(run.node)
        off = is_off(run, project)
        yield Place(
            run.node,
            f"`{code_of(run.node, 40)}` runs in training mode" + ("" if off else ", with gradients on"),
            (
                f"`{scope.name}` runs between two steps of the training",
                "no .eval() on the way",
                *([run.path()] if run.chain else []),
            ),
            confidence="medium",
            scope=run.scope,
        )


def _previews(item: Reached, project: Project) -> bool:
    """Whether a node generates or evaluates: generate(), a model in a loop over tokens or in a function named so."""
    if not isinstance(item.node, ast.Call) or item.is_in_forward:
        return False
    base = item.node.func.value if isinstance(item.node.func, ast.Attribute) else None
    if last_name(item.node.func) == "generate" and base is not None and not project.callees(item.node, item.scope):
        return is_model_name(text_of(base)) or text_of(base) in ("self", "pl_module", "model")
    if not is_model_call(item.node, item.scope, project):
        return False
    decodes = any(decode.scope is item.scope for decode in decode_loops(item.scope.module, project))
    return decodes or _is_preview(item.scope)


def _is_preview(scope: Scope) -> bool:
    return PREVIEWS.search(scope.simple_name) is not None
