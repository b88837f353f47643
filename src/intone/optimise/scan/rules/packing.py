"""A rule on preparing data: work per document must not grow with the number of documents."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import is_inside, train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
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
    remakes,
    words_of,
)

FEW = 256  # waiting texts: looking at so few costs less than making one of them into tokens; guess
PACKS = re.compile(r"pack|bin|fit|bucket|chunk|concat|fill|group|place|arrange|lay_out|build_rows", re.I)
# what the four looks at a node are about
LOOKED_AT = (ast.Call, ast.For, ast.AsyncFor, ast.ListComp, ast.Compare, ast.Delete, ast.Assign)
TAKES = ("pop", "remove", "popleft", "__delitem__")
GROWS = ("append", "extend", "insert", "add", "put")


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
        outermost = [node for node in scope.of(*LOOPS) if isinstance(node, LOOPS) and not module.loops_around(node)]
        for loop in outermost:
            if any(one is loop or is_inside(one, loop, module) for one in hot):
                continue
            work = Work(loop, scope, reached(loop, scope, project, 2), project)
            for item in work.items:
                if type(item.node) not in LOOKED_AT:
                    continue
                found = _prefix_sum(item) or _scanned(item, work) or _moved(item, work) or _grown_anew(item, work)
                if found and not work.is_after_error(item):
                    message, evidence, severity = found
                    way = [item.path()] if item.chain else []
                    yield Place(item.node, message, (*evidence, *way), severity=severity, scope=item.scope)  # type: ignore[arg-type]
                    break


Found = tuple[str, tuple[str, ...], str | None]


# --- searches ---------------------------------------------------------------------------------------------------------


ONE_ENTRY = (".remove()", ".index()", ".count()", "in")


def _scanned(item: Reached, work: Work) -> Found | None:
    """A search over all texts or rows for each one: a loop, min(), next(), in, index(), sorted()."""
    walked = _walked_by(item)
    if walked is None:
        return None
    name, how = walked
    holders = work.holders(name, item)
    if work.is_fresh(holders) or not (work.is_of_texts(holders, item) or is_fitting(item.node)):
        return None
    if how in ONE_ENTRY and work.is_hashed(holders):
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
    moving = {
        n for loop in item.scope.module.loops_around(node) if isinstance(loop, ast.For) for n in names_in(loop.target)
    }
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
    if isinstance(node, ast.ListComp) and node.generators[0].ifs:
        name = list_name(node.generators[0].iter)
        return (name, "a list comprehension with a test") if name else None
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        name = target_name(node.comparators[0])
        if name is not None and _is_list(name, item.scope):
            return name, "in"
    return None


def _is_numpy(node: ast.Call) -> bool:
    return bool(node.keywords) and last_name(node.func) not in ("sort",)


def _sorted_once(item: Reached) -> bool:
    return not item.chain and not item.scope.module.loops_around(item.node)


def _is_list(name: str, scope: Scope) -> bool:
    at: Scope | None = scope
    while at is not None:
        for binding in at.bindings.get(name, []):
            value = binding.value
            if (
                isinstance(value, (ast.List, ast.ListComp))
                or isinstance(value, ast.Call)
                and last_name(value.func) == "list"
            ):
                return True
        at = at.outer
    if name.startswith("self."):
        for method in scope.module.scopes:
            if method.owner is not None and method.owner is scope.owner:
                for binding in method.bindings.get(name, []):
                    if isinstance(binding.value, (ast.List, ast.ListComp)):
                        return True
    return False


# --- moves and copies -------------------------------------------------------------------------------------------------


def _moved(item: Reached, work: Work) -> Found | None:
    """buffer.pop(0), buffer.insert(0, x), buffer = buffer[n:], del buffer[:n]: all the rest is moved each time."""
    node, scope = item.node, item.scope
    if not isinstance(node, (ast.Call, ast.Delete, ast.Assign)):
        return None
    if not item.chain and not scope.module.loops_around(node):
        return None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "insert"):
        name = target_name(node.func.value)
        first = node.args[0] if node.args else None
        zero = isinstance(first, ast.Constant) and first.value == 0
        short = name is not None and work.is_window(item, name)
        if name and zero and not short and _is_kept(name, item, work) and not _is_deque(name, item, work):
            return f"`{code_of(node, 40)}` moves the whole list at every turn", _code_at(item, 50), None
    if isinstance(node, ast.Delete) and isinstance(node.targets[0], ast.Subscript):
        target = node.targets[0]
        name = target_name(target.value)
        front = isinstance(target.slice, ast.Constant) and target.slice.value == 0
        front = (
            front
            or isinstance(target.slice, ast.Slice)
            and target.slice.lower is None
            and target.slice.upper is not None
        )
        if name and front and _is_kept(name, item, work):
            return f"`{code_of(node, 40)}` moves the whole list at every turn", _code_at(item, 50), None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        for name, value in _assigned(node):
            cut = isinstance(value, ast.Subscript) and target_name(value.value) == name and _is_tail(value.slice)
            gone = value.args[0] if isinstance(value, ast.Call) and last_name(value.func) == "delete" else None
            taken = gone is not None and target_name(gone) == name
            if name and (cut or taken) and _is_kept(name, item, work) and (taken or _is_stream(name, item, work)):
                return f"`{code_of(node, 50)}` copies all the rest at every turn", _code_at(item, 50), None
    return None


def _code_at(item: Reached, limit: int) -> tuple[str]:
    return (f"{item.scope.module.path}:{item.line}: {code_of(item.node, limit)}",)


def _assigned(node: ast.Assign) -> list[tuple[str | None, ast.expr]]:
    """(name, value) of an assignment, also of its parts: row, rest = rest[:n], rest[n:]."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return [(target_name(one), part) for one, part in zip(target.elts, value.elts, strict=True)]
    return [(target_name(target), value)]


def _is_tail(index: ast.expr) -> bool:
    return isinstance(index, ast.Slice) and index.lower is not None and index.upper is None


def _is_kept(name: str, item: Reached, work: Work, *, named: bool = True) -> bool:
    """Whether a list lives longer than a turn of the loop. named: and reads like one of texts."""
    holders = work.holders(name, item)
    if named and not work.is_of_texts(holders, item):
        return False
    if holders[-1][0] is work.scope and not name.startswith("self."):
        inner = work.scope.module.loops_around(item.anchor)[:1]
        bindings = work.scope.bindings.get(holders[-1][1], [])
        made = [b for b in bindings if b.how in ("=", "iter", "part") and not remakes(b.value, holders[-1][1])]
        if any(b.node in inner or inner and is_inside(b.node, inner[0], work.scope.module) for b in made):
            return False
    elif not name.startswith("self.") and len(holders) == 1 and item.chain:
        return False  # a list of the function's own
    return True


def _is_deque(name: str, item: Reached, work: Work) -> bool:
    for scope, held in work.holders(name, item):
        at: Scope | None = scope
        while at is not None:
            if any("deque" in text_of(b.value) for b in at.bindings.get(held, [])):
                return True
            at = at.outer
        owner = work.project.owner_of(scope)
        if held.startswith("self.") and owner is not None:
            for method in work.project.class_scopes(owner[1]):
                if any("deque" in text_of(b.value) for b in method.bindings.get(held, [])):
                    return True
    return False


def _is_stream(name: str, item: Reached, work: Work) -> bool:
    """Whether a list is cut row by row in an inner loop, or by a function that is called again and again."""
    loops = item.scope.module.loops_around(item.node)
    if loops and isinstance(loops[0], ast.While):
        return name in names_in(loops[0].test) or name.startswith("self.") or "True" in text_of(loops[0].test)
    return bool(item.chain)


def _grown_anew(item: Reached, work: Work) -> Found | None:
    """tokens = tokens + new, np.append, torch.cat([buffer, new]) at every turn."""
    node, scope = item.node, item.scope
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not _over_data(work, item):
        return None
    name, value = target_name(node.targets[0]), node.value
    if name is None or not _is_kept(name, item, work, named=False):
        return None
    if item.chain and not name.startswith("self."):
        return None
    message = f"`{name}` is copied as a whole for every piece that is added"
    if (
        isinstance(value, ast.Call)
        and last_name(value.func) in ("cat", "concat", "concatenate", "append", "hstack", "vstack", "column_stack")
        and value.args
    ):
        parts = value.args[0].elts if isinstance(value.args[0], (ast.List, ast.Tuple)) else value.args
        if any(target_name(part) == name for part in parts) and not _starts_anew(name, item, work):
            return message, _code_at(item, 60), None
    if (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add)
        and target_name(value.left) == name
        and _is_list(name, scope)
        and not _starts_anew(name, item, work)
    ):
        return message, _code_at(item, 60), None
    return None


def _over_data(work: Work, item: Reached) -> bool:
    """Whether the loop, or one inside it around a node, walks over documents, files or batches."""
    loops = [work.loop, *item.scope.module.loops_around(item.node)]
    return any(
        OVER_DATA.search(
            f"{text_of(loop.iter)} {text_of(loop.target)}"
            if isinstance(loop, (ast.For, ast.AsyncFor))
            else text_of(loop.test)
        )
        for loop in loops
    )


def _starts_anew(name: str, item: Reached, work: Work) -> bool:
    """Whether the name is set afresh inside the same loop: it does not grow over the whole data."""
    scope = item.scope
    loops = scope.module.loops_around(item.node)
    region: ast.AST = loops[0] if loops else scope.node
    return any(
        b.node is not item.node and b.how == "=" and is_inside(b.node, region, scope.module)
        for b in scope.bindings.get(name, [])
    )
