"""What a loop over data moves or copies as a whole at every turn: lists, arrays and texts that it makes longer."""

import ast
import re

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.reach import Reached, is_inside
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Scope, own_nodes, target_name, walk
from intone.optimise.scan.waiting import OVER_DATA, TEXTS, Work, list_name, remakes, words_of

Found = tuple[str, tuple[str, ...], str | None]


def is_list(name: str, scope: Scope) -> bool:
    """Whether a name is bound to a list somewhere."""
    at: Scope | None = scope
    while at is not None:
        for binding in at.bindings.get(name, []):
            value = binding.value
            made = isinstance(value, ast.Call) and last_name(value.func) == "list"
            if binding.how != "add" and (made or isinstance(value, (ast.List, ast.ListComp))):
                return True
        at = at.outer
    if name.startswith("self."):
        for method in scope.module.scopes:
            if method.owner is not None and method.owner is scope.owner:
                for binding in method.bindings.get(name, []):
                    if binding.how != "add" and isinstance(binding.value, (ast.List, ast.ListComp)):
                        return True
    return False


def moved(item: Reached, work: Work) -> Found | None:
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
        zero = zero or _is_searched_pop(node, name, item)
        short = name is not None and work.is_window(item, name)
        named = not (name and _is_drained(name, item))
        if name and zero and not short and _is_kept(name, item, work, named=named) and not _is_deque(name, item, work):
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
            if cut and _is_view(name, item):
                continue
            if name and (cut or taken) and _is_kept(name, item, work) and (taken or _is_stream(name, item, work)):
                return f"`{code_of(node, 50)}` copies all the rest at every turn", _code_at(item, 50), None
    return None


# words of code that lays texts or rows out
LAYS = re.compile(r"tok|doc|\bids\b|row|pack|eos|sample|record|text|block|chunk|batch", re.I)


def _is_drained(name: str, item: Reached) -> bool:
    """while waiting: ... waiting.pop(0): a list that is emptied from its front, whatever it is called."""
    loops = item.scope.module.loops_around(item.node)
    tested = any(isinstance(loop, ast.While) and name in names_in(loop.test) for loop in loops)
    above = item.scope.module.parents.get(item.node)
    runs = isinstance(above, ast.Call) and above.func is item.node  # waiting.pop(0)(): what is taken is no text
    words = " ".join([item.scope.simple_name, *names_in(item.scope.node)])
    return tested and not runs and LAYS.search(words) is not None


def _is_view(name: str | None, item: Reached) -> bool:
    """doc = doc[cut:] of an array, which copies nothing: one of which the size or type is asked as of an array."""
    asked = ("size", "shape", "dtype", "numel", "ndim")
    return any(isinstance(node, ast.Attribute) and node.attr in asked and target_name(node.value) == name
               for node in item.scope.body)  # fmt: skip


def _is_searched_pop(node: ast.Call, name: str | None, item: Reached) -> bool:
    """waiting.pop(i) in a loop inside another one: an entry found somewhere, and all behind it moves."""
    loops = item.scope.module.loops_around(item.node)
    made = [b.value for b in item.scope.bindings.get(name or "", []) if b.how == "="]
    ordered = any(isinstance(value, ast.Call) and last_name(value.func) in ("sorted", "list") for value in made)
    searched = last_name(node.func) == "pop" and len(node.args) == 1 and isinstance(node.args[0], ast.Name)
    return searched and len(loops) > 1 and ordered


def _code_at(item: Reached, limit: int) -> tuple[str]:
    return (f"{item.scope.module.path}:{item.line}: {code_of(item.node, limit)}",)


def _assigned(node: ast.Assign) -> list[tuple[str | None, ast.expr]]:
    """(name, value) of an assignment, also of its parts: row, rest = rest[:n], rest[n:]."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return [(target_name(one), part) for one, part in zip(target.elts, value.elts, strict=True)]
    return [(target_name(target), value)]


def _is_tail(index: ast.expr) -> bool:
    """[n:], all but the beginning; [-n:] is a window that stays as short as it is."""
    if isinstance(index, ast.Slice) and isinstance(index.lower, ast.UnaryOp):
        return False
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


def grown_anew(item: Reached, work: Work) -> Found | None:
    """tokens = tokens + new, np.append, torch.cat([buffer, new]) at every turn."""
    node, scope = item.node, item.scope
    if isinstance(node, ast.AugAssign):
        return _text_added(item, work)
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    if not over_data(work, item) and not _joins_encoded(node.value, work):
        return None
    name, value = target_name(node.targets[0]), node.value
    if re.search(r"next_?(tok|id)|new_?tok", text_of(value)):
        return None  # a text that is generated
    if name is None or not _is_kept(name, item, work, named=False):
        return None
    if item.chain and not name.startswith("self.") or _is_of_dialogue(name, item):
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
    if _holds_itself(value, name) and not _starts_anew(name, item, work):
        return message, _code_at(item, 60), None
    first = value
    while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add):
        first = first.left
    if first is value or target_name(first) != name or _starts_anew(name, item, work):
        return None
    if is_list(name, scope) or _is_text(name, scope) and _adds_text(value, item):
        return message, _code_at(item, 60), None
    return None


def _is_of_dialogue(name: str, item: Reached) -> bool:
    """for message in messages: ids = ids + encode(message), with no loop around: as many pieces as a text has turns."""
    loops = item.scope.module.loops_around(item.node)
    if len(loops) != 1 or not isinstance(loops[0], ast.For) or name.startswith("self."):
        return False
    return TURNS.search(list_name(loops[0].iter) or "") is not None


TURNS = re.compile(r"(messages|turns|dialog(ue)?|conversation|content|history)$")


def _holds_itself(value: ast.expr, name: str) -> bool:
    """[*rows, *new], "".join([text, new]), f"{text}{new}", list(chain(rows, new)), np.r_[ids, new]: made of itself."""
    parts: list[ast.expr] = []
    if isinstance(value, (ast.List, ast.Tuple)) and len(value.elts) > 1:
        parts = [part.value for part in value.elts if isinstance(part, ast.Starred)]
    elif isinstance(value, ast.JoinedStr) and len(value.values) > 1 and any(TEXTS.match(w) for w in words_of(name)):
        parts = [part.value for part in value.values if isinstance(part, ast.FormattedValue)][:1]
    elif isinstance(value, ast.Subscript) and last_name(value.value) in ("r_", "c_"):
        parts = list(value.slice.elts) if isinstance(value.slice, ast.Tuple) else []
    elif isinstance(value, ast.Call) and value.args:
        inside = value.args[0]
        if last_name(value.func) == "join" and isinstance(inside, (ast.List, ast.Tuple)):
            parts = list(inside.elts)
        elif last_name(value.func) == "list" and isinstance(inside, ast.Call) and last_name(inside.func) == "chain":
            parts = list(inside.args)
    return any(target_name(part) == name for part in parts)


def _joins_encoded(value: ast.expr, work: Work) -> bool:
    """cat([everything, encode(path)]) in a loop over what a name or call gives: tokens of one after the other."""
    walked = work.loop.iter if isinstance(work.loop, (ast.For, ast.AsyncFor)) else None
    if walked is None or isinstance(walked, ast.Call) and last_name(walked.func) == "range":
        return False
    calls = [part for part in walk(value) if isinstance(part, ast.Call)]
    return any(re.search(r"enc|tok|ids|load|read", last_name(call.func) or "") for call in calls)


def _text_added(item: Reached, work: Work) -> Found | None:
    """self.text += document: only a plain name of the function may be lengthened without a copy."""
    node = item.node
    assert isinstance(node, ast.AugAssign)
    name = target_name(node.target)
    if not isinstance(node.op, ast.Add) or name is None or not over_data(work, item):
        return None
    if not _is_text(name, item.scope) or not _adds_text(node.value, item) or _starts_anew(name, item, work):
        return None
    named = any(TEXTS.match(word) for word in words_of(name))
    if not named or not _is_kept(name, item, work, named=False) or item.chain and not name.startswith("self."):
        return None
    return f"`{name}` is copied as a whole for every piece that is added", _code_at(item, 60), "low"


def _is_text(name: str, scope: Scope) -> bool:
    """Whether a name begins as an empty text, in the function or in the class."""
    places = [scope]
    if name.startswith("self."):
        places = [one for one in scope.module.scopes if one.owner is not None and one.owner is scope.owner]
    made = [b.value for place in places for b in place.bindings.get(name, []) if b.how == "="]
    return any(isinstance(value, ast.Constant) and isinstance(value.value, (str, bytes)) for value in made)


def _adds_text(value: ast.expr, item: Reached) -> bool:
    """Whether what is added is a piece of data, not the words of a message."""
    if any(isinstance(part, ast.JoinedStr) for part in walk(value)):
        return False
    loops = item.scope.module.loops_around(item.node)
    turning = {name for loop in loops if isinstance(loop, ast.For) for name in names_in(loop.target)}
    names = names_in(value)
    reads = any(isinstance(part, ast.Call) and last_name(part.func) in ("read", "read_text") for part in walk(value))
    return reads or any(OVER_DATA.search(name) for name in names & (turning | set(item.scope.parameters)))


def converted(item: Reached, work: Work) -> Found | None:
    """np.concatenate(pieces), "".join(pieces), torch.tensor(ids) inside the loop that makes the list longer."""
    node, scope = item.node, item.scope
    if not isinstance(node, ast.Call) or last_name(node.func) not in CONVERTS or not node.args:
        return None
    name = target_name(node.args[0])
    if name is None or "." in name or name not in scope.bindings or not is_list(name, scope):
        return None
    loops = scope.module.loops_around(node)
    loop = loops[0] if loops else None
    if loop is None or len(loops) > 1 or not over_data(work, item) or is_periodic(item, loop, work.project):
        return None
    if any(isinstance(above, ast.If) for above in scope.module.up(node) if above in own_nodes(loop)):
        return None
    bindings = scope.bindings[name]
    grows = any(b.how in ("add", "op") and is_inside(b.node, loop, scope.module) for b in bindings)
    anew = any(b.how in ("=", "iter", "part") and is_inside(b.node, loop, scope.module) for b in bindings)
    takes = ("clear", "pop", "popleft")
    emptied = any(last_name(call.func) in takes and name in names_in(call.func) for call in scope.calls)
    if not grows or anew or emptied:
        return None
    return f"all of `{name}` is gone through at every turn, and it grows", _code_at(item, 60), None


CONVERTS = ("join", "concatenate", "cat", "stack", "hstack", "vstack", "tensor", "array", "asarray", "as_tensor")


def flattened(call: ast.Call, scope: Scope) -> str | None:
    """sum(lists, []), reduce(lambda a, b: a + b, lists): each addition copies all before it; the code, or None."""
    data = r"doc|tok|ids|row|list|text|seq|chunk|part|piece|line|example|input|sent|data|corp"
    if not re.search(data, text_of(call), re.I):
        return None
    empty = call.args[1] if len(call.args) > 1 else None
    if isinstance(call.func, ast.Name) and call.func.id == "sum":
        made = isinstance(empty, (ast.List, ast.Tuple)) and not empty.elts
        return code_of(call, 50) if made or isinstance(empty, ast.Call) and text_of(empty) == "list()" else None
    if called(call, scope) in ("functools.reduce", "reduce") and call.args:
        how = call.args[0]
        adds = isinstance(how, ast.Lambda) and isinstance(how.body, ast.BinOp) and isinstance(how.body.op, ast.Add)
        adds = adds or text_of(how) in ("operator.add", "operator.concat", "list.__add__")
        return code_of(call, 50) if adds else None
    return None


def over_data(work: Work, item: Reached) -> bool:
    """Whether the loop, or one inside it around a node, walks over documents, files or batches."""
    heads = []
    for loop in [work.loop, *item.scope.module.loops_around(item.node)]:
        if isinstance(loop, (ast.For, ast.AsyncFor)):
            heads.append(f"{text_of(loop.iter)} {text_of(loop.target)}")
        elif isinstance(loop, ast.While):
            heads.append(text_of(loop.test))
        else:  # a method that is called once for each
            heads.append(" ".join(work.scope.parameters))
    return any(OVER_DATA.search(head) for head in heads)


def _starts_anew(name: str, item: Reached, work: Work) -> bool:
    """Whether the name is set afresh inside the same loop: it does not grow over the whole data."""
    scope = item.scope
    loops = scope.module.loops_around(item.node)
    region: ast.AST = loops[0] if loops else scope.node
    return any(
        b.node is not item.node and b.how == "=" and is_inside(b.node, region, scope.module)
        for b in scope.bindings.get(name, [])
    )
