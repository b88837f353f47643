"""A rule on compiled code that is made anew at every request, or that gets another Python number at every turn."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.compiled import Compile, compile_calls, is_compiled
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.lengths import fixes_shapes
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, is_inside, loops_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.compiling import compiled_again
from intone.optimise.scan.seldom import guards_of
from intone.optimise.scan.source import Module, Scope, target_name, walk

# functions that answer one request, and decorators by which a server calls them
REQUEST = re.compile(
    r"(^|_)(generate|predict|infer|inference|embed|encode|decode|score|complete|chat|respond|reply|answer|handle|serve|"
    r"sample|transcribe|translate|classify|rerank|step|call|forward|stream|evaluate|validate)($|_)"
)
ROUTE = re.compile(r"\.(post|get|put|route|websocket|remote|method|function|fn)\b")
KEPT = re.compile(r"lru_cache|functools\.cache|@cache|cached_property|singleton")


@rule(
    "S44",
    "compiled code is made or specialised again and again",
    kind="compile",
    severity="high",
    why="What is compiled inside a function is compiled for that call; a Python number is a constant of compiled code "
    "with fixed shapes, so each new one compiles or records it again: seconds of standstill each time.",
    fix="Compile once, where the model is made, and keep the result; hand over numbers that change as tensors.",
    source="PyTorch documentation of torch.compile: recompilation; optimiser.md D3",
)
def made_again(module: Module, project: Project) -> Iterator[Place]:
    """def generate(self, ids): step = torch.compile(self.model); fast(tokens, position) with a count of the loop."""
    hot = {loop.inner for loop in train_loops(module, project)}
    decoding = {decode.scope for decode in decode_loops(module, project)}
    for one in compile_calls(module, project):
        if not one.is_of_torch or not isinstance(one.call, ast.Call) or one.function is not None or one.idle:
            continue
        if compiled_again(one, project) is not None:
            continue  # S22 tells it
        if (told := _per_request(one, decoding, project)) is not None and not any(
            loop in hot for loop in module.loops_around(one.call)
        ):
            yield Place(one.call, "the model is compiled again at every request", (told,), confidence="medium")
        elif fixes_shapes(one) and (met := _gets_number(one, project)) is not None:
            call, scope, number = met
            yield Place(
                call,
                f"compiled code gets the Python number `{number}`, which is another one at every turn",
                (f"{one.scope.module.path}:{one.call.lineno}: {code_of(one.call, 60)}",),
                confidence="medium",
                scope=scope,
                also=((one.call, one.scope),),
            )


def _per_request(one: Compile, decoding: set[Scope], project: Project) -> str | None:
    """Why a function that compiles runs once for each request, in words; None where it does not or keeps the result."""
    scope, made = one.scope, one.scope.module.parents.get(one.call)
    asked = [last_name(item) for item in getattr(scope.node, "decorator_list", [])]
    if "property" in asked and isinstance(made, ast.Return) and not any(_is_guarded(above) for above in _ifs(one)):
        return f"`{scope.simple_name}` is a property: it compiles whenever it is read"
    if scope.node is scope.module.tree or not isinstance(one.call, ast.Call) or not one.call.args:
        return None
    kept = target_name(made.targets[0]) if isinstance(made, ast.Assign) else ""
    name = target_name(one.call.args[0]) or ""
    root = name.partition(".")[0]
    if kept is None or not name or root in scope.bindings and root != kept:
        return None  # a model that is made in the function
    if (told := _asked_for(one.call, root, scope, project)) is not None:
        return told
    if "." in kept or kept in scope.globals or isinstance(made, ast.Return) or _runs_once(one.call, scope, project):
        return None
    method = scope.owner is not None and root == "self" and REQUEST.search(scope.simple_name) is not None
    if method:
        return f"`{scope.simple_name}` is called for each request, and `{code_of(one.call, 40)}` is not kept"
    for nest in loops_around(one.call, scope, project) if scope in decoding else ():
        for frame in nest:
            if not frame.chain:
                continue
            handed = project.argument(frame.chain[-1], scope, root) if root in scope.parameters else None
            turned = {name for name in names_in(handed)} if handed is not None else set()
            fresh = any(
                above is frame.loop
                for one_ in turned for b in frame.scope.bindings.get(one_, []) for above in frame.module.up(b.node)
            ) or isinstance(handed, ast.Call)  # fmt: skip
            if not fresh:
                return f"`{scope.simple_name}` is called in the loop at {frame.module.path}:{frame.loop.lineno}"
    return None


def _asked_for(call: ast.Call, root: str, scope: Scope, project: Project, depth: int = 3) -> str | None:
    """Which request or loop runs a call each time, whatever holds the result then; None where none does, or once.

    root: the name of what is compiled; a model that is made where the call stands is another one each time.
    """
    if scope.node is scope.module.tree or _runs_once(call, scope, project):
        return None
    decorators = " ".join(text_of(item) for item in getattr(scope.node, "decorator_list", []))
    if ROUTE.search(decorators):
        return f"`{scope.simple_name}` is called for each request, and compiles each time"
    for site in project.callers(scope)[:4] if depth else ():
        handed = project.argument(site, scope, root) if root in scope.parameters else None
        names = names_in(handed) if handed is not None else frozenset()
        made = [b.node for name in names for b in site.scope.bindings.get(name, [])]
        if isinstance(handed, ast.Call) or made and site.scope.node is not site.scope.module.tree:
            continue  # of a model of its own
        loops = site.scope.module.loops_around(site.call)
        around = [loop for loop in loops if not any(is_inside(node, loop, site.scope.module) for node in made)]
        once = _runs_once(site.call, site.scope, project) or scope.simple_name == "__init__"
        heads = [loop.target for loop in loops if isinstance(loop, (ast.For, ast.AsyncFor))]
        turned = {name for head in heads for name in names_in(head)}
        of_loop = any(names_in(part) & turned for part in [site.call.func, *site.call.args])  # block.compile_it()
        if around and not once and not of_loop and not SETS_UP.search(site.scope.simple_name):
            return f"`{scope.simple_name}` is called in the loop at {site.scope.module.path}:{around[0].lineno}"
        above = target_name(handed) if handed is not None else root
        if (told := _asked_for(site.call, above or "", site.scope, project, depth - 1)) is not None:
            return told
    return None


SETS_UP = re.compile(r"(^|_)(bench\w*|profile|sweep|compare|test\w*|warm\w*|init|setup|build|prepare|main)($|_)")


def _runs_once(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a function keeps what it makes: cached, behind `if self.fast is None`, or behind a return before it."""
    decorators = " ".join(text_of(item) for item in getattr(scope.node, "decorator_list", []))
    if KEPT.search(decorators):
        return True
    tests = [test for test, *_ in guards_of(Reached(call, scope), scope.node)]
    return any(re.search(r"is None|is not None|\bnot\b|\bin\b|hasattr|compiled|ready|first", text_of(t)) for t in tests)


def _ifs(one: Compile) -> list[ast.If]:
    return [above for above in one.scope.module.up(one.call) if isinstance(above, ast.If)]


def _is_guarded(holder: ast.If) -> bool:
    """if self.fast is None, if key not in self.compiled: it runs once."""
    return bool(re.search(r"is None|\bnot\b|\bin\b", text_of(holder.test)))


def _gets_number(one: Compile, project: Project) -> tuple[ast.Call, Scope, str] | None:
    """(call, its function, the number) where what was compiled gets a count of the loop that it stands in."""
    made = one.scope.module.parents.get(one.call)
    name = target_name(made.targets[0]) if isinstance(made, ast.Assign) else None
    last = (name or "").removesuffix(".forward").rpartition(".")[2]
    for site in project.sites.get(last, [])[:8] if last else ():
        whole = name is not None and name.endswith(".forward")
        if not whole and is_compiled(site.call.func, site.scope, project) is not one.call:
            continue
        loops = site.scope.module.loops_around(site.call)
        counters = {name for loop in loops[:1] for name in _counters(loop)}
        for arg in [*site.call.args, *(word.value for word in site.call.keywords)]:
            plain = isinstance(arg, (ast.Name, ast.BinOp, ast.UnaryOp))
            if (
                plain
                and names_in(arg) & counters
                and not any(isinstance(p, (ast.Call, ast.Subscript)) for p in walk(arg))
            ):
                return site.call, site.scope, code_of(arg, 30)
    return None


def _counters(loop: ast.AST) -> set[str]:
    """The Python numbers that count the turns of a loop: of range(), of enumerate(), or counted up in it."""
    found: set[str] = set()
    if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Call):
        walks = last_name(loop.iter.func)
        if walks in ("range", "trange", "count"):
            found |= set(names_in(loop.target))
        elif walks == "enumerate" and isinstance(loop.target, ast.Tuple):
            found |= set(names_in(loop.target.elts[0]))
    for node in walk(loop):
        counted = isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add)
        if counted and isinstance(node.value, ast.Constant) and isinstance(node.target, ast.Name):  # type: ignore[attr-defined]
            found.add(node.target.id)  # type: ignore[attr-defined]
    return found
