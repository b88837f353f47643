"""A rule on dropout that evaluation mode does not reach: functions that are told nothing of the mode, new modules."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, names_in, text_of
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import is_module_class

FUNCTIONS = re.compile(r"torch\.nn\.functional\.(\w*dropout\d?d?|multi_head_attention_forward)$|torch\.dropout$")
ATTENTION = re.compile(r"(^|\.)(scaled_dot_product_attention|flash_attn\w*_func)$")
MODULES = re.compile(r"torch\.nn\.(\w*Dropout\d?d?)$")
ON_PURPOSE = re.compile(r"monte.?carlo|\bmc_|mc.?dropout|uncertain|augment|corrupt|perturb|ensemble", re.I)
ASKS_MODE = re.compile(r"\btraining\b|is_train|\bdeterministic\b|\bself\.eval|inference")


@rule(
    "S42",
    "dropout stays on in evaluation mode",
    kind="eval-mode",
    severity="high",
    why="A function knows nothing of .eval(): without training=self.training it drops at every call, so evaluation and "
    "generation are noisy and worse than the model.",
    fix="Use a module made in __init__, or hand over training=self.training; for attention "
    "dropout_p=p if self.training else 0.",
    source="PyTorch reference of torch.nn.functional.dropout and scaled_dot_product_attention",
)
def drops_always(module: Module, project: Project) -> Iterator[Place]:
    """F.dropout(x, p), scaled_dot_product_attention(..., dropout_p=p), nn.Dropout(p)(x) in a forward pass."""
    for scope in module.scopes[1:]:
        for call in scope.calls:
            told = _drops(call, scope, project)
            if told is not None and not _asks_mode(scope, project) and not _is_on_purpose(scope):
                yield Place(call, f"`{code_of(call, 50)}` drops in evaluation too", (told,))
                break


def _drops(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """How a call drops whatever the mode is, in words; None for one that is told the mode, or drops nothing."""
    name = called(call, scope)
    if FUNCTIONS.match(name):
        flag = keyword(call, "training") or (call.args[2] if len(call.args) > 2 and "dropout" in name else None)
        share = keyword(call, "p") or keyword(call, "dropout_p") or (call.args[1] if len(call.args) > 1 else None)
        if flag is not None and not is_true(flag) or _is_nothing(share, scope, project):
            return None
        return "training=True" if flag is not None else "training is True where nothing is said"
    if ATTENTION.search(name):
        share = keyword(call, "dropout_p") or (call.args[4] if len(call.args) > 4 and "scaled" in name else None)
        if share is None or _is_nothing(share, scope, project) or isinstance(share, (ast.IfExp, ast.BinOp)):
            return None
        return f"dropout_p is `{code_of(share, 30)}` in every mode"
    if isinstance(call.func, ast.Call) and MODULES.match(called(call.func, scope)):
        return "a module that is made in the pass is in training mode"
    return None


def _is_nothing(share: ast.expr | None, scope: Scope, project: Project) -> bool:
    """Whether a share of what is dropped is 0 by all that the code says."""
    values = [known.value for known in known_values(share, scope, project)] if share is not None else []
    return bool(values) and all(value in (0, 0.0, None) for value in values)


def _asks_mode(scope: Scope, project: Project) -> bool:
    """Whether a function, or the class that keeps the share, deals with the mode by itself."""
    owner = owner_of(scope)
    text = text_of(owner if owner is not None and is_module_class(owner) else scope.node)
    text = re.sub(r"training=True", "", text)
    if ASKS_MODE.search(text):
        return True
    sites = project.callers(scope)[:4]  # of a share that callers choose
    return any(ASKS_MODE.search(text_of(site.call)) for site in sites)


def _is_on_purpose(scope: Scope) -> bool:
    around = f"{scope.name} {scope.module.path} {text_of(scope.node)[:600]}"
    return bool(ON_PURPOSE.search(around)) or "mc" in names_in(scope.node)
