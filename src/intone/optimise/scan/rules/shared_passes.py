"""A rule on one function for training and evaluation, whose evaluation is run as if it were trained on."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of, names_in, text_of
from intone.optimise.scan.loops import backward_calls
from intone.optimise.scan.modes import NO_GRAD, is_off
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import is_model_call


@rule(
    "S43",
    "the evaluation of a shared pass keeps the graph",
    kind="eval-mode",
    severity="medium",
    why="The pass over held-out rows goes through the same code as training, and only the backward call is left out: "
    "every activation is kept for it all the same.",
    fix="Put the pass into torch.set_grad_enabled(train), or call it under torch.no_grad() where it evaluates.",
    source="PyTorch notes on autograd",
)
def graph_in_shared_pass(module: Module, project: Project) -> Iterator[Place]:
    """def run(model, rows, opt=None): ...; if opt is not None: loss.backward(), called without an optimizer."""
    for scope in module.scopes[1:]:
        if not backward_calls(scope, project) or NO_GRAD.search(text_of(scope.node)):
            continue
        flag = _flag_of(scope, project)
        site = next(
            (site for site in project.callers(scope) if flag and _is_left_out(site, scope, flag, project)), None
        )
        if flag is None or site is None or is_off(Reached(site.call, site.scope), project):
            continue
        run = next(
            (item for item in reached(scope.node, scope, project) if not item.is_in_forward
             and isinstance(item.node, ast.Call) and is_model_call(item.node, item.scope, project)), None,
        )  # fmt: skip
        if run is not None:
            told = f"{site.scope.module.path}:{site.call.lineno}: {code_of(site.call, 50)} trains nothing"
            words = f"`{code_of(run.anchor, 40)}` keeps the graph where `{flag}` says that nothing is trained"
            yield Place(run.anchor, words, (told,), also=((site.call, site.scope),))


def _flag_of(scope: Scope, project: Project) -> str | None:
    """The parameter on which it depends whether a function goes backward."""
    for call in backward_calls(scope, project):
        for above in scope.module.up(call):
            if above is scope.node:
                break
            if isinstance(above, ast.If) and (flags := names_in(above.test) & set(scope.parameters)):
                return sorted(flags)[0]
    return None


def _is_left_out(site: Site, scope: Scope, flag: str, project: Project) -> bool:
    """run(model, rows, train=False), run(model, rows): a call that hands over nothing to train with, or says so."""
    value = project.argument(site, scope, flag)
    value = scope.parameters[flag].default if value is None else value
    if not isinstance(value, ast.Constant):
        return False
    return value.value is None or value.value is False or value.value in ("val", "valid", "eval", "test", "validation")
