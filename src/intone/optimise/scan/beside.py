"""Which functions run beside others: handlers that a pool of threads runs, and coroutines that give way to others."""

import ast
import re

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.expressions import code_of, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.source import Scope
from intone.optimise.scan.values import chooses_token

ROUTE = re.compile(r"^\w+(\.\w+)*\.(get|post|put|route|api_route|websocket)\(")
LOCK = re.compile(r"lock|mutex|semaphore", re.I)
POOLS = ("submit", "to_thread", "run_in_executor", "run_in_threadpool", "Thread")
# what is handed a coroutine, or a function that makes one, and runs it beside others
TASKS = (
    "create_task", "ensure_future", "gather", "start_soon", "run_coroutine_threadsafe", "start_server", "add_post",
    "add_get", "add_put", "add_route", "add_api_route", "add_websocket_route", "Route", "WebSocketRoute", "post",
)  # fmt: skip
STREAMS = ("StreamingResponse", "EventSourceResponse")  # they go on with a generator whenever the client takes more
DEPTH = 3  # calls from a handler to what it runs; guess


def beside_others(call: ast.Call, scope: Scope, project: Project, depth: int = DEPTH) -> tuple[Scope, str] | None:
    """(the handler that leads to a call, why others run at the same time), or None; also where a lock stands around.

    Only handlers that draw tokens behind the call: in threads anywhere, in a coroutine after it gave way to others.
    """
    if _is_locked(call, scope):
        return None
    how = threads_run(scope, project)
    if how is not None:
        return (scope, how) if any(_draws(item.node, item.scope) for item in _all_of(scope, project)) else None
    if isinstance(scope.node, ast.AsyncFunctionDef) and _gives_way(scope, project, behind=call):
        how = _tasks_run(scope, project)
        if how is not None:
            return scope, how
    for site in project.callers(scope)[:6] if depth else ():
        found = beside_others(site.call, site.scope, project, depth - 1)
        if found is not None:
            return found
    return None


def _is_locked(node: ast.AST, scope: Scope) -> bool:
    return any(
        isinstance(above, (ast.With, ast.AsyncWith))
        and LOCK.search(" ".join(text_of(item.context_expr) for item in above.items))
        for above in scope.module.up(node)
    )


def _all_of(scope: Scope, project: Project) -> list[Reached]:
    return reached(scope.node, scope, project)


def _draws(node: ast.AST, scope: Scope) -> bool:
    """Whether a node draws tokens: by itself, or as a method of a library's model that generates."""
    return isinstance(node, ast.Call) and (last_name(node.func) == "generate" or chooses_token(node, scope))


def threads_run(scope: Scope, project: Project) -> str | None:
    """Why several threads may run a function at once, in words: a handler of a web server, or handed to a pool."""
    node, text = scope.node, scope.module.text
    if isinstance(node, ast.FunctionDef):
        routed = _route_of(node)
        if routed is not None:
            return f"`{scope.simple_name}` is a handler (@{code_of(routed, 40)}) that a pool of threads runs"
        if scope.owner is not None and re.match(r"do_(GET|POST|PUT)$", scope.simple_name) and "Threading" in text:
            return f"a thread runs `{scope.name}` for each request"
        if scope.is_generator and (streamed := _streamed(scope, project)) is not None:
            return f"`{scope.simple_name}` is streamed by a pool of threads ({streamed})"
    for starter in POOLS:
        for site in project.sites.get(starter, [])[:20]:
            if "ProcessPool" in site.scope.module.text:
                continue
            words = [*site.call.args, *(word.value for word in site.call.keywords if word.arg == "target")]
            named = (arg for arg in words[:2] if last_name(arg) == scope.simple_name)
            if any(scope in functions_of(arg, site.scope, project) for arg in named):
                return f"`{scope.simple_name}` is handed to threads at {site.scope.module.path}:{site.call.lineno}"
    return None


def _route_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.expr | None:
    return next((item for item in node.decorator_list if ROUTE.search(text_of(item))), None)


def _streamed(scope: Scope, project: Project) -> str | None:
    """Where a response goes on with a generator, as file:line."""
    for site in project.callers(scope)[:6]:
        above = site.scope.module.parents.get(site.call)
        if isinstance(above, ast.Call) and last_name(above.func) in STREAMS:
            return f"{site.scope.module.path}:{above.lineno}"
    return None


# --- coroutines -------------------------------------------------------------------------------------------------------


def _tasks_run(scope: Scope, project: Project, depth: int = DEPTH) -> str | None:
    """Why an event loop may have several of a coroutine under way, in words: a handler, a task, or awaited by one."""
    node = scope.node
    if not isinstance(node, ast.AsyncFunctionDef):
        return None
    routed = _route_of(node)
    if routed is not None:
        return f"`{scope.simple_name}` is a handler (@{code_of(routed, 40)}) that gives way to others where it waits"
    if scope.is_generator and (streamed := _streamed(scope, project)) is not None:
        return f"`{scope.simple_name}` is streamed ({streamed}) and gives way to others at each piece"
    for starter in TASKS:
        for site in project.sites.get(starter, [])[:20]:
            for arg in site.call.args:
                handed = arg.func if isinstance(arg, ast.Call) else arg
                if last_name(handed) == scope.simple_name and scope in functions_of(handed, site.scope, project):
                    place = f"{site.scope.module.path}:{site.call.lineno}"
                    return f"`{scope.simple_name}` runs beside others ({starter} at {place}) and gives way to them"
    for site in project.callers(scope)[:6] if depth else ():
        if site.scope is not scope and not _is_locked(site.call, site.scope):
            found = _tasks_run(site.scope, project, depth - 1)
            if found is not None:
                return found
    return None


def _gives_way(scope: Scope, project: Project, *, behind: ast.AST | None = None, depth: int = DEPTH) -> bool:
    """Whether other coroutines may run between a place in a coroutine (its beginning) and a draw of tokens after it."""
    after = _end(behind) if behind is not None else (0, 0)
    pauses: list[ast.AST] = []
    for node in scope.body:
        if not isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield)) or _end(node) <= after:
            continue
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call) and _begin(node) >= after:
            waits = _waited_draw(node.value, scope, project, depth)
            if waits:
                return True
            if waits is False:
                continue  # a coroutine of the project that goes straight on to its draw
        pauses.append(node)
    draws = [node for node in scope.body if isinstance(node, ast.Call) and _begin(node) >= after]
    return any(
        _is_between(pause, draw, after, scope)
        for draw in draws if pauses and _leads_to_draw(draw, scope, project) for pause in pauses
    )  # fmt: skip


def _is_between(pause: ast.AST, draw: ast.Call, after: tuple[int, int], scope: Scope) -> bool:
    """Whether what waits does so before a draw, or between those of two turns of a loop."""
    around = list(scope.module.up(pause))
    if draw in around or any(loop in around or loop is pause for loop in scope.module.loops_around(draw)
                             if _begin(loop) >= after):  # fmt: skip
        return True
    if isinstance(pause, (ast.AsyncFor, ast.AsyncWith)):  # it waits where it begins
        return after <= _begin(pause) < _begin(draw)
    return _end(pause) <= _begin(draw)


def _waited_draw(call: ast.Call, scope: Scope, project: Project, depth: int) -> bool | None:
    """Of a call that is awaited: whether others may run before its draw; None where it draws nothing that we see."""
    callees = [function for function in project.callees(call, scope) if isinstance(function.node, ast.AsyncFunctionDef)]
    drawing = [one for one in callees if any(_draws(item.node, item.scope) for item in _all_of(one, project))]
    if drawing:
        return depth > 0 and any(_gives_way(one, project, depth=depth - 1) for one in drawing)
    if callees:
        return None
    return True if last_name(call.func) == "generate" or _hands_to_threads(call, scope, project) else None


def _hands_to_threads(call: ast.Call, scope: Scope, project: Project) -> bool:
    """to_thread(model.generate, ids), run_in_executor(None, answer, ids): what draws is handed to a thread."""
    for arg in call.args[:2] if last_name(call.func) in POOLS else ():
        if last_name(arg) == "generate":
            return True
        for one in functions_of(arg, scope, project)[:2]:
            if any(_draws(item.node, item.scope) for item in _all_of(one, project)):
                return True
    return False


def _leads_to_draw(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call draws tokens, by itself or in what it runs, or hands a function that does to a thread."""
    if _draws(call, scope) or _hands_to_threads(call, scope, project):
        return True
    functions = project.callees(call, scope)[:3]
    return any(_draws(item.node, item.scope) for one in functions for item in _all_of(one, project))


def _begin(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _end(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0
