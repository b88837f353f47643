"""A rule on streams that are made once, with the function or class that they belong to."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of, names_in
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seeds import MAKERS, chain_of
from intone.optimise.scan.source import Module


@rule(
    "S93",
    "a default argument is one stream for all calls",
    kind="rng",
    severity="medium",
    why="A default is made once, when the function is defined: all requests and rows that name no stream draw from it "
    "in turn, so what one gets depends on all that were before it, and every start gives the same numbers.",
    fix="Let the default be None and make a stream in the call, from the request's seed or from fresh entropy.",
    source="Python tutorial on default argument values",
)
def stream_as_default(module: Module, project: Project) -> Iterator[Place]:
    """def draw(probs, gen=torch.Generator().manual_seed(0)): ..."""
    for scope in module.scopes[1:]:
        for name, parameter in scope.parameters.items():
            made = parameter.default
            if not isinstance(made, ast.Call) or not any(maker in chain_of(made, scope) for maker in MAKERS):
                continue
            used = next((call for call in scope.calls if name in names_in(call)), None)
            if used is not None:
                yield Place(
                    made,
                    f"`{name}` is one stream for all calls of `{scope.simple_name}` that hand over none",
                    (f"drawn from by {code_of(used, 60)} at line {used.lineno}",),
                )
