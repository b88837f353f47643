"""A rule on libraries that divide an accumulated loss by themselves, and code that divides it once more."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.scaling import is_count, scalings
from intone.optimise.scan.seldom import ACCUM
from intone.optimise.scan.source import Module, Scope

# method of a class that a library's trainer calls, and what the class builds on
STEPS = {"training_step": re.compile(r"LightningModule$"), "compute_loss": re.compile(r"Trainer$")}


@rule(
    "S59",
    "a loss that a library scales is scaled by hand too",
    kind="accumulation",
    severity="high",
    why="Accelerate, Lightning, DeepSpeed and transformers' Trainer divide the loss by the number of micro-batches "
    "themselves: divided once more, the steps are that many times too small.",
    fix="Hand over the mean loss of the micro-batch as it is.",
    source="optimiser.md D19 and G3; the libraries' pages on gradient accumulation",
)
def scaled_by_hand_too(module: Module, project: Project) -> Iterator[Place]:
    """accelerator.backward(loss / n), training_step() of Lightning that returns loss / n, and the like."""
    for loop in train_loops(module, project):
        for item in loop.backwards:
            library = _scales_itself(item, loop, project)
            if library is None:
                continue
            for scaling in scalings(item, loop, project):
                number = only_value(scaling.factor, scaling.scope, project)
                fixed = isinstance(number, int) and number > 1
                if scaling.divides and (fixed or is_count(scaling.factor, scaling.scope, project)):
                    home = scaling.home or scaling.scope
                    told = f"{home.module.path}:{scaling.line}: {scaling.text}"
                    words = f"`{code_of(item.node, 40)}` divides by the number of micro-batches, as the code does too"
                    if home is item.scope:
                        yield Place(item.node, words, (told, library), scope=item.scope)
                    else:  # in what computes the loss
                        yield Place(scaling.node, words, (told, library), scope=home, also=((item.node, item.scope),))
                    break
    for scope in module.scopes[1:]:
        base = _library_base(scope)
        divided = _divided_by_count(scope) if base is not None else None
        if divided is not None:
            words = f"the trainer divides by the number of micro-batches, as `{scope.simple_name}` does too"
            yield Place(divided, words, (code_of(divided, 60), f"the class builds on {base}"))


def _scales_itself(item: Reached, loop: TrainLoop, project: Project) -> str | None:
    """Which library divides in a backward call, in words; None where none does."""
    call = item.node
    assert isinstance(call, ast.Call)
    if not isinstance(call.func, ast.Attribute) or not call.args:
        return None
    holder = call.func.value
    for origin in project.origins(holder, item.scope, depth=4):
        made = origin.node
        if isinstance(made, ast.Call) and last_name(made.func) == "Accelerator":
            told = any(keyword(made, word) for word in ("gradient_accumulation_steps", "gradient_accumulation_plugin"))
            return f"made by {code_of(made, 50)}" if told else None
        if isinstance(made, ast.Call) and text_of(made.func) == "deepspeed.initialize":
            return f"made by {code_of(made, 50)}"
    if "accelerator" in text_of(holder).lower() and ".accumulate(" in text_of(loop.around):
        return "it runs inside accumulate()"
    if "engine" in text_of(holder) and re.search(r"^\s*(import|from) deepspeed", item.scope.module.text, re.M):
        return "it is DeepSpeed's"
    return None


def _library_base(scope: Scope) -> str | None:
    """The class of a library that calls a method as a part of its own training."""
    owner, wanted = owner_of(scope), STEPS.get(scope.simple_name)
    if owner is None or wanted is None or re.search(r"automatic_optimization\s*=\s*False", scope.module.text):
        return None
    return next((name for base in owner.bases if wanted.search(name := last_name(base) or "")), None)


def _divided_by_count(scope: Scope) -> ast.AST | None:
    """loss / self.args.gradient_accumulation_steps, loss /= n"""
    for node in scope.body:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            factor, divided = node.right, node.left
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            factor, divided = node.value, node.target
        else:
            continue
        counted = any(ACCUM.search(name.rpartition(".")[2]) for name in names_in(factor))
        if counted and "loss" in text_of(divided):
            return node
    return None
