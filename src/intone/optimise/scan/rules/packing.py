"""A rule on preparing data: work per document must not grow with the number of documents."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.finding import Confidence
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.moving import Found, converted, flattened, grown_anew, is_list, moved
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_of_a_batch
from intone.optimise.scan.reach import Reached, is_inside, reached, turns_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import LOOPS, Module, Scope, own_nodes, target_name
from intone.optimise.scan.waiting import (
    ANYTHING,
    OVER_DATA,
    TEXTS,
    Work,
    asks_room,
    comprehended,
    is_fitting,
    list_name,
    masked_by,
    words_of,
)

FEW = 256  # waiting texts: looking at so few costs less than making one of them into tokens; guess
PACKS = re.compile(r"pack|bin|fit|bucket|chunk|concat|fill|group|place|arrange|lay_out|build_rows", re.I)
# what the four looks at a node are about
LOOKED_AT = (ast.Call, ast.For, ast.AsyncFor, ast.ListComp, ast.Compare, ast.Delete, ast.Assign, ast.AugAssign)
TAKES = ("pop", "remove", "popleft", "__delitem__")
GROWS = ("append", "extend", "insert", "add", "put")
# names of methods that are called once for each text
ADDS = re.compile(r"^_?(add|push|place|put|insert|feed|append|offer|accept|pack|fit|assign|take|enqueue|submit)($|_)")


@rule(
    "S70",
    "packing in quadratic time",
    kind="packing",
    severity="medium",
    why="Each placed text looks at, or moves, all texts that wait: twice the texts, four times the work. "
    "The loader becomes what "
    "training waits for.",
    fix="Sort by length once, keep texts in buckets by length (or a heap, or bisect), take from the end, "
    "use a deque; collect "
    "pieces in a list and join once.",
    source="nanochat-facts.md 4.2.13",
)
def quadratic_packing(module: Module, project: Project) -> Iterator[Place]:
    """A scan over all waiting texts for every one placed; pop(0); buffers made anew by concatenation at every turn."""
    hot: set[ast.AST] = {decode.loop for decode in decode_loops(module, project)}
    hot |= {loop.inner for loop in train_loops(module, project)} | {
        loop.around for loop in train_loops(module, project)
    }
    for scope in module.scopes:
        yield from _flattened(scope)
        for loop in _walks(scope, project):
            if any(one is loop or is_inside(one, loop, module) for one in hot):
                continue
            work = Work(loop, scope, reached(loop, scope, project, 2), project)
            for item in work.items:
                if type(item.node) not in LOOKED_AT:
                    continue
                found = _prefix_sum(item) or _scanned(item, work) or moved(item, work) or grown_anew(item, work)
                found = found or converted(item, work)
                if found and not work.is_after_error(item):
                    message, evidence, severity = found
                    way = [item.path()] if item.chain else []
                    sure: Confidence = "low" if module.mentions(PLOTS) else "high"  # a handful of curves or folders
                    yield Place(item.node, message, (*evidence, *way), sure, severity, item.scope)  # type: ignore[arg-type]
                    break


def _walks(scope: Scope, project: Project) -> Iterator[Any]:
    """The outermost loops of a function; or a method that takes one text and that nothing of the project calls."""
    outermost = [node for node in scope.of(*LOOPS) if not scope.module.loops_around(node)]
    takes = scope.owner is not None and bool(ADDS.search(scope.simple_name)) and len(scope.parameters) > 1
    walked = {name for loop in outermost if isinstance(loop, ast.For) for name in names_in(loop.iter)}
    if takes and not walked & (set(scope.parameters) - {"self"}) and not project.callers(scope):
        yield scope.node
    else:
        yield from outermost


def _flattened(scope: Scope) -> Iterator[Place]:
    """sum(lists, []), [sum(lengths[:i]) for i in range(n)]: no loop stands around these."""
    for call in scope.calls:
        if (code := flattened(call, scope)) is not None:
            if is_of_a_batch(scope):
                continue  # as many parts as a batch has rows
            yield Place(call, "each list that is added copies all lists before it", (code,), severity="low")
        elif text_of(call).endswith(".pop(0)") and _pops_in_turn(call, scope):
            yield Place(call, f"`{code_of(call, 40)}` moves the whole list at every turn", (code_of(call, 40),))
        elif (found := _prefix_sum(Reached(call, scope))) is not None and not scope.module.loops_around(call):
            yield Place(call, found[0], found[1])


PLOTS = re.compile(r"^\s*(import|from) (matplotlib|seaborn|plotly)", re.M)


# --- searches ---------------------------------------------------------------------------------------------------------


def _pops_in_turn(call: ast.Call, scope: Scope) -> bool:
    """[buffer.pop(0) for _ in range(n)], of a list that an object keeps."""
    name = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
    turns = turns_around(call, scope)
    comprehended_ = bool(turns) and not isinstance(turns[0], LOOPS)
    return comprehended_ and name is not None and name.startswith("self.") and is_list(name, scope)


ONE_ENTRY = (".remove()", ".index()", ".count()", "in")


def _scanned(item: Reached, work: Work) -> Found | None:
    """A search over all texts or rows for each one: a loop, min(), next(), in, index(), sorted()."""
    walked = _walked_by(item)
    if walked is None:
        return None
    name, how = walked
    holders = work.holders(name, item)
    if how in ONE_ENTRY and (work.is_hashed(holders) or _is_walked_itself(name, item)):
        again = not work.is_hashed(holders)
        told = (f"{item.scope.module.path}:{item.line}: {how} over the list that the loop walks over",)
        return (f"every entry of `{name}` is looked for in all of `{name}`", told, None) if again else None
    one_by_one = how == "in" and _over_documents(item)  # if document not in kept: kept.append(document)
    named = one_by_one or work.is_of_texts(holders, item) or is_fitting(item.node)
    if work.is_fresh(holders) or not named:
        return None
    takes, grows = work.is_touched(holders, TAKES) or _marks_taken(item, work), work.is_touched(holders, GROWS)
    fills = work.is_filled(holders)
    grows = grows or fills and (how != "a loop" or is_fitting(item.node))  # of places made before: free = [size] * n
    if not takes and not grows or work.is_of_slots(holders, item):
        return None
    quick = how in ("sum", "any", "all", "max", "min", "sorted", "a mask")
    if quick and not takes and not fills and not _is_packing(item, work):
        return None
    bound = work.is_few(holders) if takes else None
    if bound is not None and _number(bound) <= FEW:
        return None
    more = [f"the buffer holds at most {bound}: the work per text is that large, not unbounded"] if bound else []
    line = f"{item.scope.module.path}:{item.line}"
    if takes:
        evidence = (f"{line}: walks over `{name}` for each text that is placed ({how})", *more)
        return f"all of `{name}` is searched for every text that is placed", evidence, "low" if bound else None
    return f"every text looks at all of `{name}`", (f"{line}: {how} over a list that grows",), None


def _over_documents(item: Reached) -> bool:
    """Whether the innermost loop around a node walks over data with a `for`."""
    loops = item.scope.module.loops_around(item.node)
    walked = loops[0] if loops else None
    return isinstance(walked, ast.For) and bool(OVER_DATA.search(f"{text_of(walked.iter)} {text_of(walked.target)}"))


def _is_walked_itself(name: str, item: Reached) -> bool:
    """for text in texts: texts.index(text), of a list of texts by its name."""
    loops = item.scope.module.loops_around(item.node)
    walked = any(isinstance(loop, ast.For) and list_name(loop.iter) == name for loop in loops)
    return walked and last_name(getattr(item.node, "func", ast.Name(""))) in ("index", "count")


MARKS = re.compile(r"(^|[._])(used|taken|placed|done|free|gone|left|assigned|packed|remaining|alive|available)$", re.I)


def _marks_taken(item: Reached, work: Work) -> bool:
    """used[i] = True, taken.add(i): texts stay in the list and are passed over, in a loop inside another one."""
    if not isinstance(item.node, ast.For) or not item.scope.module.loops_around(item.node) and not item.chain:
        return False
    asked = any(
        MARKS.search(name) for node in own_nodes(item.node) if isinstance(node, (ast.If, ast.Compare))
        for name in names_in(node.test if isinstance(node, ast.If) else node)
    )  # fmt: skip
    for other in work.items:
        node = other.node
        marked: ast.expr | None = None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            marked = node.targets[0].value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add":
            marked = node.func.value
        if asked and marked is not None and MARKS.search(target_name(marked) or ""):
            return True
    return False


def _prefix_sum(item: Reached) -> Found | None:
    """sum(lengths[:i]) at every turn: all earlier ones again."""
    node = item.node
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "sum" or not node.args:
        return None
    arg = node.args[0]
    walked = arg.generators[0].iter if isinstance(arg, (ast.GeneratorExp, ast.ListComp)) else arg
    if not isinstance(walked, ast.Subscript) or not isinstance(walked.slice, ast.Slice) or walked.slice.upper is None:
        return None
    name = target_name(walked.value) or ""
    loops = [loop for loop in turns_around(node, item.scope) if not isinstance(loop, ast.While)]
    targets = [part.target for loop in loops for part in getattr(loop, "generators", [loop])]
    moving = {name for target in targets for name in names_in(target)}
    if (
        walked.slice.lower is not None
        or not names_in(walked.slice.upper) & moving
        or not any(TEXTS.match(word) or ANYTHING.match(word) or word == "len" for word in words_of(name))
    ):
        return None
    line = f"{item.scope.module.path}:{item.line}: {code_of(node, 60)}"
    return f"the lengths in `{name}` are summed from the beginning at every turn", (line,), None


def _is_packing(item: Reached, work: Work) -> bool:
    return any(PACKS.search(scope.name) for scope in (item.scope, work.scope))


def _number(bound: str) -> float:
    text = bound.rpartition("=")[2]
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _walked_by(item: Reached) -> tuple[str, str] | None:
    """(the list, how) where a node goes over a list that may be long."""
    node = item.node
    if isinstance(node, (ast.For, ast.AsyncFor)):
        name = list_name(node.iter)
        tests = [part for part in own_nodes(node) if isinstance(part, ast.Compare) or asks_room(part)]
        sized = any(
            re.search(r"len|size|remain|space|room|cap|fit|left|free|used|tokens|width|can_|<|>", text_of(t))
            for t in tests
        )
        return (name, "a loop") if name and sized else None
    if isinstance(node, ast.Call):
        last = last_name(node.func)
        if isinstance(node.func, ast.Name) and last in ("min", "max", "next", "sorted", "sum", "any", "all", "filter"):
            for arg in node.args:
                if (name := comprehended(arg, item.scope)) is not None:
                    return name, last
            return None
        if (masked := masked_by(node)) is not None:
            return masked, "a mask"
        if (
            isinstance(node.func, ast.Attribute)
            and last in ("index", "remove", "sort", "count")
            and not _is_numpy(node)
        ):
            name = target_name(node.func.value)
            return (name, f".{last}()") if name and (last != "sort" or not _sorted_once(item)) else None
    if isinstance(node, ast.ListComp) and re.search(r"len\(|sum\(|\.(used|free|room)", text_of(node.elt)):
        name = list_name(node.generators[0].iter)
        return (name, "a list of lengths") if name else None
    if isinstance(node, ast.ListComp) and node.generators[0].ifs:
        name = list_name(node.generators[0].iter)
        return (name, "a list comprehension with a test") if name else None
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        name = target_name(node.comparators[0])
        if name is not None and is_list(name, item.scope):
            return name, "in"
    return None


def _is_numpy(node: ast.Call) -> bool:
    return bool(node.keywords) and last_name(node.func) not in ("sort",)


def _sorted_once(item: Reached) -> bool:
    return not item.chain and not item.scope.module.loops_around(item.node)
