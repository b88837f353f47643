"""What code is for, where that decides whether a cost or danger is real: evaluation, tools that run once, messages."""

import ast
import re

from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import imported_by
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Module, Scope

EVALUATES = re.compile(
    r"(^|[._/])(eval|evals|evaluat\w*|valid|validat\w*|val|tests?|downstream|metrics?|bench|benchmarks?|perplexity|"
    r"score[rs]?|scoring|harness|mmlu|icl)(?=$|[._/0-9])",
    re.I,
)
# files of tools, and functions that make one file of others
TOOLS = re.compile(
    r"(^|[._/])(convert\w*|prepare\w*|preprocess\w*|export\w*|merge\w*|unshard\w*|reshard\w*|inspect\w*|compare\w*|"
    r"migrat\w*|download\w*|quantize|quantise|cleaner|(to|from)[._]hf|permute|consolidat\w*|maker)(?=$|[._/0-9])",
    re.I,
)
CONVERTS = re.compile(r"(^|_)(convert|merge)(_|$)")


def is_evaluation(scope: Scope, project: Project) -> bool:
    """Whether code evaluates, by the names of its file, class and function, or since all that call it do."""
    if EVALUATES.search(_named(scope)):
        return True
    sites = project.callers(scope)[:6] if scope.node is not scope.module.tree else []
    return bool(sites) and all(EVALUATES.search(_named(site.scope)) for site in sites)


def is_run_once(scope: Scope, project: Project) -> bool:
    """Whether code belongs to a tool that a person runs once and can run again: converts, prepares, inspects.

    By the name of its function, or of its file, unless that trains or what trains builds on it.
    """
    module = scope.module
    if CONVERTS.search(scope.simple_name):
        return True
    named = TOOLS.search(module.path.removesuffix(".py").replace("_", "."))
    return named is not None and module.path not in _trained_with(project)


def _trained_with(project: Project) -> set[str]:
    """The files that train, and those that they import from."""
    key = ("trained with", None)
    if key not in project.remembered:
        trains = [module for module in project.modules if any(True for _ in train_loops(module, project))]
        used = [other.path for module in trains for other in imported_by(module, project)]
        project.remembered[key] = {*used, *(module.path for module in trains)}
    found: set[str] = project.remembered[key]
    return found


def _named(scope: Scope) -> str:
    """eval/downstream.TaskMetric.update -> eval/downstream.Task_Metric.update, in words that underscores part."""
    whole = f"{scope.module.path.removesuffix('.py')}.{scope.name}"
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", whole)
    return parted.replace("_", ".")


def is_in_message(node: ast.AST, module: Module) -> bool:
    """Whether code only runs where something is wrong: in the message of an assertion, or of what is raised."""
    below = node
    for above in module.up(node):
        if isinstance(above, ast.Raise) or isinstance(above, ast.Assert) and below is above.msg:
            return True
        if isinstance(above, ast.stmt):
            return False
        below = above
    return False


IN_PASSES = re.compile(
    r"(^|[._/])(generat\w*|forward|decode|sampl\w*|cache|metadata|attention|images?|infer\w*|chat)(?=$|[._/])",
    re.I,
)


def is_of_a_batch(scope: Scope) -> bool:
    """Whether code deals with the few rows of one batch or request, not with a set of data: by its names."""
    return IN_PASSES.search(_named(scope)) is not None
