"""A rule on seeds of requests: who asks for none must not get the same numbers as everybody else."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.beside import ROUTE
from intone.optimise.scan.constants import Known, known_values
from intone.optimise.scan.expressions import called, code_of, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.randomness import one_stream, seeding_of, shared_generator, stream_of
from intone.optimise.scan.rules.streams import set_back_by_one
from intone.optimise.scan.seeds import SEEDERS, SEEDING
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import chooses_token

HANDLES = re.compile(r"^(do_(GET|POST|PUT)|on_message|websocket_endpoint)$")


@rule(
    "S16",
    "every request begins with one seed",
    kind="rng",
    severity="medium",
    why="A request that names no seed sets the stream of the whole process to a fixed number: all such requests for "
    "one prompt get the same text, whatever the temperature, and all else that draws begins anew with them.",
    fix="Let no seed mean a fresh one, and give each request a generator of its own.",
    source="optimiser.md D22",
)
def one_seed_for_requests(module: Module, project: Project) -> Iterator[Place]:
    """torch.manual_seed(request.seed) in a handler, with a seed that is a number unless somebody gives another."""
    for scope in module.scopes[1:]:
        for call in scope.calls:
            name = called(call, scope)
            root = (target_name(call.func) or "").partition(".")[0]
            if not (SEEDING.search("." + name.rpartition(".")[2]) or name in SEEDERS) or root not in module.imports:
                continue
            number = _number(call.args[0], scope, project) if call.args else None
            handler = _handler(scope, project) if number is not None else None
            if number is None or handler is None:
                continue
            if any(place.node is call for place in set_back_by_one(module, project)):
                continue  # told as what disturbs others
            yield Place(
                call,
                f"a request without a seed gets the numbers of seed {number.value}, as all others do",
                (
                    f"`{handler.simple_name}` in {handler.module.path} answers requests",
                    f"the seed is {number.value} by {number.scope.module.path}:{number.node.lineno}",
                ),
            )
            break


@rule(
    "S66",
    "all requests draw from one stream",
    kind="rng",
    severity="medium",
    why="The tokens of a request depend on which others came before it: the same request with the same seed gives "
    "another text, and no answer can be made again.",
    fix="Make a generator for each request, from its seed or from a fresh one that is written down.",
    source="optimiser.md D22; nanochat-facts.md 2.4",
)
def one_stream_for_requests(module: Module, project: Project) -> Iterator[Place]:
    """class Engine: gen = torch.Generator().manual_seed(0), from which the draws of every handler come."""
    for scope in module.scopes[1:]:
        if not _is_handler(scope):
            continue
        items = reached(scope.node, scope, project)
        for item in items:
            call = item.node
            if not isinstance(call, ast.Call) or not chooses_token(call, item.scope):
                continue
            stream = stream_of(call, item.scope)
            made = one_stream(stream, item, project) if stream is not None else None
            if made is None or any(other.scope is made[1] for other in items):
                continue  # made anew for each request
            seeded = seeding_of(*made, project)
            if seeded is None or any(made[0] is place.node for place in shared_generator(made[1].module, project)):
                continue
            yield Place(
                made[0],
                f"`{code_of(stream, 30)}` is one stream for all requests",  # type: ignore[arg-type]
                (
                    f"`{scope.simple_name}` in {module.path} answers requests",
                    f"drawn from by {code_of(call, 50)} at {item.scope.module.path}:{call.lineno}",
                ),
                scope=made[1],
                also=((call, item.scope),),
            )
            break
    yield from _stream_of_file(module, project)


# programs that answer requests, by what they import or call
SERVES = re.compile(
    r"gradio|fastapi|flask|aiohttp|grpc|streamlit|uvicorn|websockets|http\.server|bottle|sanic|tornado|starlette|litestar|"
    r"zmq|redis|pika|kafka|nats|socketserver|telegram|discord"
)


def _stream_of_file(module: Module, project: Project) -> Iterator[Place]:
    """gen = Generator().manual_seed(0) of a file that serves, and pipe(prompt, generator=gen) in a function of it."""
    if not module.mentions(SERVES):
        return
    for name, bindings in module.top.bindings.items():
        made = bindings[0].value
        if len(bindings) != 1 or not isinstance(made, ast.Call) or "Generator(" not in text_of(made):
            continue
        seeded = [call for call in walk(made) if isinstance(call, ast.Call) and last_name(call.func) == "manual_seed"]
        seeded += [call for call in module.top.calls if text_of(call.func) == f"{name}.manual_seed"]
        again = any(text_of(call.func) == f"{name}.manual_seed" for one in module.scopes[1:] for call in one.calls)
        if not seeded or again or any(place.node is made for place in shared_generator(module, project)):
            continue
        for scope in module.scopes[1:]:
            handed = [call for call in scope.calls for word in call.keywords if target_name(word.value) == name]
            handed = [call for call in handed if any(word.arg in ("generator", "gen", "rng") for word in call.keywords)]
            if handed and name not in scope.bindings and name not in scope.parameters:
                yield Place(
                    made,
                    f"`{name}` is one stream for all requests",
                    (f"drawn from by {code_of(handed[0], 50)} at {module.path}:{handed[0].lineno}",),
                    confidence="medium",
                    also=((handed[0], scope),),
                )
                break


def _is_handler(scope: Scope) -> bool:
    """Whether a server calls a function for each request: by its decorator or name."""
    routed = any(ROUTE.search(text_of(item)) for item in getattr(scope.node, "decorator_list", []))
    return routed or HANDLES.match(scope.simple_name) is not None


def _number(seed: ast.expr, scope: Scope, project: Project) -> Known | None:
    """The number that a seed is where nobody gives one; None where there is none, or where it is drawn."""
    if any(isinstance(part, ast.Call) and "rand" in (last_name(part.func) or "") for part in walk(seed)):
        return None
    known = known_values(seed, scope, project)
    return next((one for one in known if type(one.value) is int), None)


def _handler(scope: Scope, project: Project, depth: int = 2) -> Scope | None:
    """The function that answers requests and leads to another one, where it draws tokens."""
    if _is_handler(scope):
        draws = any(
            isinstance(item.node, ast.Call)
            and (last_name(item.node.func) == "generate" or chooses_token(item.node, item.scope))
            for item in reached(scope.node, scope, project)
        )
        return scope if draws else None
    for site in project.callers(scope)[:4] if depth else ():
        found = _handler(site.scope, project, depth - 1)
        if found is not None:
            return found
    return None
