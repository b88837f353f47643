"""A request that joins those under way and seeds the stream from which all of them draw."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place
from intone.optimise.scan.rules.randomness import stream_of
from intone.optimise.scan.seeds import MAKERS, seed_of
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import chooses_token

# what an object keeps of all requests that are under way
UNDER_WAY = re.compile(
    r"(^|[._])(active|running|live|pending|slots?|lanes?|jobs?|reqs|requests|seqs|sequences|rows|batch|sessions|in_flight|"
    r"states|groups)$",
    re.I,
)


def joins_and_seeds(module: Module, project: Project) -> Iterator[Place]:
    """def admit(self, job, slot): self.rng.manual_seed(job.seed); self.jobs[slot] = job, and run() draws for all jobs.

    The stream may be one of the object, of the file or of the process, seeded here or by a method made for that, or
    replaced by a new one.
    """
    for scope in module.scopes[1:]:
        given = from_caller(scope)
        if scope.simple_name == "__init__" or RESETS.search(scope.simple_name) or not _puts_beside(scope, given):
            continue
        for call in scope.calls:
            seeding, at = _seeding_behind(call, scope, given, project)
            stream = _stream_seeded(seeding, at) if seeding is not None else None
            if seeding is None or stream is None:
                continue
            owner = at.owner if stream.startswith("self.") else scope.owner
            places = project.class_scopes(owner) if owner is not None else module.scopes
            draw = next(
                (
                    (method, other) for method in places for other in method.calls
                    if chooses_token(other, method) and _draws_stream(other, method, stream)
                    and _runs_beside(method, scope, project)
                ),
                None,
            )  # fmt: skip
            if draw is not None:
                yield Place(
                    call,
                    f"`{scope.simple_name}` seeds {f'`{stream}`' if stream else 'the stream of the process'} for one "
                    "request, and all that are under way draw from it",
                    (f"drawn by {code_of(draw[1], 50)} in `{draw[0].simple_name}` at {module.path}:{draw[1].lineno}",),
                )
                break


def _puts_beside(scope: Scope, given: set[str]) -> bool:
    """self.jobs[slot] = job, self.active.append(request): what a function is given joins others that are kept."""

    own = {name for name, bindings in scope.bindings.items() if any(b.how != "add" for b in bindings)}
    own |= set(scope.parameters)

    def kept(node: ast.expr) -> bool:
        name = target_name(node) or ""
        return name.startswith("self.") or bool(name) and name not in own

    for node in scope.of(ast.Subscript):
        if isinstance(node.ctx, ast.Store) and kept(node.value) and names_in(node.slice) & given:
            return True
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("append", "add", "insert", "appendleft")
        and kept(call.func.value)
        and UNDER_WAY.search(target_name(call.func.value) or "") is not None
        for call in scope.calls
    )


def _seeding_behind(call: ast.Call, scope: Scope, given: set[str], project: Project) -> tuple[ast.Call | None, Scope]:
    """(the call that seeds with what a function was given, its function): itself, or in a method such as reseed()."""
    seed = seed_of(call, scope)
    if seed is not None and last_name(call.func) not in ("set_rng_state", "setstate"):
        return (call, scope) if names_in(seed) & given else (None, scope)
    handed = {name for arg in [*call.args, *(word.value for word in call.keywords)] for name in names_in(arg)}
    if not handed & given:
        return None, scope
    for function in project.callees(call, scope)[:2]:
        if not RESETS.search(function.simple_name) or function.owner is None:
            continue
        for inner in function.calls:
            seed = seed_of(inner, function)
            if seed is not None and names_in(seed) & from_caller(function):
                return inner, function
    return None, scope


def _stream_seeded(call: ast.Call, scope: Scope) -> str | None:
    """The name of the stream that is seeded: self.rng, GEN of the file, "" for that of the process; None: a local."""
    base = call.func.value if isinstance(call.func, ast.Attribute) else None
    root = (target_name(call.func) or "").partition(".")[0]
    if root in scope.module.imports and called(call, scope) not in MAKERS:
        return ""
    name = target_name(base) if base is not None and called(call, scope) not in MAKERS else None
    if name is None:  # self.rng = torch.Generator().manual_seed(seed)
        above = scope.module.parents.get(call)
        name = target_name(above.targets[0]) if isinstance(above, ast.Assign) and above.value is call else None
        return name if name is not None and name.startswith("self.") else None
    return name if name.startswith("self.") or name in scope.module.top.bindings else None


def _draws_stream(draw: ast.Call, scope: Scope, stream: str) -> bool:
    handed = stream_of(draw, scope)
    if handed is None:
        return not stream and not keyword(draw, "generator")
    return target_name(handed) == stream


def _runs_beside(method: Scope, scope: Scope, project: Project) -> bool:
    """Whether a method draws also where a function does not lead to it: in the loop over all that are under way."""
    if method is scope:
        return False
    if not leads_to(scope, method, project):
        return True
    sites = project.callers(method)
    return any(site.scope is not scope and not leads_to(scope, site.scope, project) for site in sites)


RESETS = re.compile(r"(^|_)(seed|reseed|reset|set_seed|manual_seed|restart|clear|load_state_dict)($|_)")


def from_caller(scope: Scope) -> set[str]:
    """The parameters of a function and what it reads of them: seed, request.seed, body = await request.json()."""
    given = set(scope.parameters) - {"self", "cls"}
    for name, bindings in scope.bindings.items():
        if any(binding.how == "=" and names_in(binding.value) & given for binding in bindings):
            given.add(name)
    used = {name for node in scope.body if isinstance(node, ast.Attribute) for name in names_in(node)}
    return given | {name for name in used if name.partition(".")[0] in given}


def leads_to(scope: Scope, method: Scope, project: Project) -> bool:
    """Whether one function calls another, itself or by one between."""
    return any(item.scope is method for item in reached(scope.node, scope, project, 2))
