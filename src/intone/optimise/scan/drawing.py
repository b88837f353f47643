"""Functions that draw a token at each call: they run for every step of every text, whatever they are called."""

import ast

from intone.optimise.scan.expressions import names_in
from intone.optimise.scan.project import Project
from intone.optimise.scan.seeds import WRITES, seed_of
from intone.optimise.scan.source import FunctionNode, Scope, target_name
from intone.optimise.scan.values import chooses_token


def draws_per_call(seeding: ast.Call, scope: Scope, project: Project) -> str | None:
    """The name of the function that seeds and then draws one token, outside of loops; None where it is another.

    Not where its callers say with which seed, nor where a script calls it once. Of functions that write a text
    another rule asks what a call gets that names no seed.
    """
    if not isinstance(scope.node, FunctionNode) or scope.simple_name in ("__init__", "main"):
        return None
    if WRITES.search(scope.simple_name):
        return None
    seed = seed_of(seeding, scope)
    given = {name for name in names_in(seed) if name in scope.parameters} if seed is not None else set()
    sites = project.callers(scope)[:6]
    if any(project.argument(site, scope, name) is not None for site in sites for name in given):
        return None
    if sites and all(site.scope.simple_name in ("main", "<module>", "run") and _once(site.call, site.scope)
                     for site in sites):  # fmt: skip
        return None
    held = _held(seeding, scope)
    for call in scope.calls:
        later = call.lineno >= seeding.lineno and call is not seeding and not scope.module.loops_around(call)
        if later and chooses_token(call, scope) and (held is None or held in names_in(call)):
            return scope.simple_name
    return None


def _once(call: ast.Call, scope: Scope) -> bool:
    return not scope.module.loops_around(call)


def _held(seeding: ast.Call, scope: Scope) -> str | None:
    """The name of the stream that is seeded, where it is not that of the process."""
    for name, bindings in scope.bindings.items():
        if any(seeding in (b.value, *ast.walk(b.value)) for b in bindings):
            return name
    base = target_name(seeding.func.value) if isinstance(seeding.func, ast.Attribute) else None
    return base if base in scope.bindings or (base or "").startswith("self.") else None
