"""Rules on pinned memory and streams: a buffer or batch must not be used while its copy may still run."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.ondevice import to_cpu
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, is_inside, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.copies import HOST_WAITS, WAITS, base_of
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name, walk
from intone.optimise.scan.values import is_model_name


@rule(
    "S36",
    "one pinned buffer for copies that may still run",
    kind="async-copy",
    severity="high",
    why="The next batch is written into the buffer while the device may still be copying the last one out "
    "of it: rows get mixed, "
    "rarely and without an error.",
    fix="Use two or more buffers in turn with an event each, or wait for the copy's event before writing again.",
    source="nanochat-facts.md 0.10 and 4.2.12",
)
def reused_buffer(module: Module, project: Project) -> Iterator[Place]:
    """A pinned tensor made once, filled at every turn or call, and copied to the device without waiting."""
    for scope in module.scopes:
        for name, binding, maker in _pinned_buffers(scope, project):
            for call in scope.calls:
                flag = keyword(call, "non_blocking")
                if flag is None and last_name(call.func) == "copy_" and len(call.args) > 1:
                    flag = call.args[1]
                if flag is None or is_never(flag, scope, project) or not isinstance(call.func, ast.Attribute):
                    continue
                source = call.args[0] if call.func.attr == "copy_" and call.args else call.func.value
                if not names_in(source) & _views(name, scope, project) or to_cpu(call):
                    continue
                region = _again(call, binding, maker, scope)
                if region is None or _waits(region, scope, project):
                    continue
                if not _filled_in(name, region, scope, project) and not _filled_by_others(name, scope, project):
                    continue
                maybe = () if is_true(flag) else (f"asynchronous where `{code_of(flag, 30)}` holds",)
                yield Place(
                    call,
                    f"`{name}` is filled again while its last copy may still run",
                    (
                        f"pinned and made once at line {binding.lineno}",
                        "nothing waits for the copy before the buffer is written again",
                        *maybe,
                    ),
                    confidence="high" if is_true(flag) else "medium",
                )


def _waits(region: ast.AST, scope: Scope, project: Project) -> bool:
    """Whether the host waits in a loop or method: itself, in what it calls, or elsewhere for an event that is recorded.

    That one stream waits for another does not keep the host from writing.
    """
    text = text_of(region)
    calls = [item.node.func for item in reached(region, scope, project, 2) if isinstance(item.node, ast.Call)]
    if HOST_WAITS.search(text) or any(HOST_WAITS.search(text_of(func) + "(") for func in calls):
        return True
    owner = project.owner_of(scope)
    around = text_of(owner[1]) if owner is not None else scope.module.text
    return RECORDS.search(text) is not None and HOST_WAITS.search(around) is not None


RECORDS = re.compile(r"\.record\(|record_event\(|Event\(")


def _again(call: ast.Call, binding: ast.Call, maker: Scope, scope: Scope) -> ast.AST | None:
    """What runs again and again with one buffer: a loop behind its making, or a method of the object that keeps it."""
    if maker is not scope:
        return scope.node
    loops = scope.module.loops_around(call)
    if loops and not is_inside(binding, loops[-1], scope.module):
        return loops[-1]
    return None


def _pinned_buffers(scope: Scope, project: Project) -> Iterator[tuple[str, ast.Call, Scope]]:
    """(name, the call that makes it, its function) of the pinned tensors that a function uses and that live on."""
    places = [scope]
    owner = project.owner_of(scope)
    if owner is not None:
        places += [method for method in project.class_scopes(owner[1]) if method is not scope]
    if scope.outer is not None:
        places.append(scope.outer)
    for place in places:
        for name, bindings in place.bindings.items():
            if place is not scope and not name.startswith("self.") and place is not scope.outer:
                continue
            for binding in bindings:
                made = [one for one in _parts(binding.value) if isinstance(one, ast.Call) and pins(one, place, project)]
                if binding.how == "=" and made:
                    yield name, made[0], place


def _parts(value: ast.expr) -> list[ast.expr]:
    """What is made for a name: of several buffers in turn, or of one for each entry of a batch, each of them."""
    if isinstance(value, ast.ListComp):
        return [value.elt]
    if isinstance(value, ast.DictComp):
        return [value.value]
    if isinstance(value, ast.Dict):
        return list(value.values)
    return list(value.elts) if isinstance(value, (ast.List, ast.Tuple)) else [value]


def pins(value: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call makes a pinned tensor: empty(..., pin_memory=True), x.pin_memory()."""
    flag = keyword(value, "pin_memory")
    if flag is not None and not called(value, scope).endswith("DataLoader"):
        return not is_never(flag, scope, project)
    if last_name(value.func) == "pin_memory":
        return True
    return isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call) and pins(
        value.func.value, scope, project
    )  # fmt: skip


def _views(name: str, scope: Scope, project: Project) -> set[str]:
    """A buffer's name, and the names of views of it; of an attribute also those that other methods keep."""
    found = {name} | {
        other
        for other, bindings in scope.bindings.items()
        for b in bindings
        if b.how in ("=", "iter")  # for key, part in self.host.items()
        and name in names_in(b.value)
        and isinstance(b.value, (ast.Subscript, ast.Call))
        and not (isinstance(b.value, ast.Call) and last_name(b.value.func) in ("to", "cuda", "clone"))
    }
    owner = project.owner_of(scope) if name.startswith("self.") else None
    for method in project.class_scopes(owner[1]) if owner is not None else ():
        found |= {
            other for other, bindings in method.bindings.items() for b in bindings
            if other.startswith("self.") and b.how == "=" and _is_view(b.value, name)
        }  # fmt: skip
    return found


def _is_view(value: ast.expr, name: str) -> bool:
    """buf.numpy(), buf[:n], buf.view(-1): the same memory under another name."""
    while isinstance(value, (ast.Call, ast.Subscript, ast.Attribute)) and target_name(value) != name:
        if isinstance(value, ast.Call):
            if not isinstance(value.func, ast.Attribute) or value.func.attr not in SAME_MEMORY:
                return False
            value = value.func
        value = value.value
    return target_name(value) == name


SAME_MEMORY = (
    "numpy", "view", "reshape", "narrow", "flatten", "squeeze", "unsqueeze", "t", "transpose", "detach", "view_as",
    "select", "unflatten", "movedim", "permute",
)  # fmt: skip


def _filled_in(name: str, region: ast.AST, scope: Scope, project: Project) -> bool:
    """Whether a buffer, or a view of it, is written in a loop or method, or in what that calls."""
    views = _views(name, scope, project)
    within: dict[Scope, set[str]] = {scope: views}
    for item in reached(region, scope, project):
        node = item.node
        if item.scope not in within:
            within[item.scope] = _known_within(item, name, within.get(item.chain[-1].scope, views), project)
        known = within[item.scope]
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Subscript) and _is_view_of(t.value, known) for t in node.targets
        ):
            return True
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in FILLS
            and _is_view_of(node.func.value, known)
        ):
            return True
        if isinstance(node, ast.Call) and any(
            (word.arg == "out" and names_in(word.value) & known) for word in node.keywords
        ):
            return True
        put = isinstance(node, ast.Call) and last_name(node.func) in PUTS and bool(node.args)
        if put and names_in(node.args[0]) & known:  # type: ignore[attr-defined]
            return True
        if isinstance(node, ast.Call) and _is_filled_by(node, item.scope, known, project):
            return True
    return False


def _filled_by_others(name: str, scope: Scope, project: Project) -> bool:
    """Whether other methods of an object write into a buffer that it keeps, and nothing of the class ever waits."""
    owner = project.owner_of(scope) if name.startswith("self.") else None
    if owner is None or HOST_WAITS.search(text_of(owner[1])):
        return False
    others = [one for one in project.class_scopes(owner[1]) if one is not scope and one.simple_name != "__init__"]
    return any(_filled_in(name, one.node, one, project) for one in others)


def _is_filled_by(call: ast.Call, scope: Scope, known: set[str], project: Project) -> bool:
    """unpack(block, stage), reader.read_into(stage): handed to what we do not see, which gives nothing back."""
    if not isinstance(scope.module.parents.get(call), ast.Expr) or project.callees(call, scope):
        return False
    if last_name(call.func) in LOOKS or is_model_name(target_name(call.func) or ""):
        return False
    return any(_is_view_of(arg, known) for arg in [*call.args, *(word.value for word in call.keywords)])


# what is handed a tensor and does not write into it
LOOKS = (
    "print", "append", "put", "put_nowait", "add", "copy_", "send", "isend", "info", "debug", "save", "warning", "log",
    "appendleft", "insert", "extend", "len", "assert_close", "write", "record_stream", "broadcast", "all_reduce",
)  # fmt: skip
FILLS = (
    "copy_", "fill_", "random_", "zero_", "index_copy_", "index_fill_", "scatter_", "set_", "fill", "put", "put_",
    "masked_scatter_", "masked_fill_", "normal_", "uniform_",
)  # fmt: skip
PUTS = ("copyto", "readinto", "readinto1", "recv_into", "put", "memmove", "memcpy", "putmask", "place", "take_into")
WRAPS = ("from_numpy", "as_tensor", "asarray", "memoryview", "frombuffer", "from_dlpack")


def _is_view_of(node: ast.expr, known: set[str]) -> bool:
    """stage.numpy()[a:b], np.asarray(stage), stage[:n].view(-1): memory of one of the names."""
    while target_name(base_of(node)) not in known:
        node = base_of(node)
        if isinstance(node, ast.Attribute) and node.attr in ("data", "T", "mT"):
            node = node.value
        elif not isinstance(node, ast.Call):
            return False
        elif isinstance(node.func, ast.Attribute) and node.func.attr in SAME_MEMORY:
            node = node.func.value
        elif last_name(node.func) in WRAPS and node.args:
            node = node.args[0]
        else:
            return False
    return True


def _known_within(item: Reached, name: str, views: set[str], project: Project) -> set[str]:
    """The names that a function which is called has for a buffer: its own attribute, a parameter, views of those."""
    known = _views(name, item.scope, project) if name.startswith("self.") else set()
    for parameter in item.scope.parameters if item.chain else ():
        value = project.argument(item.chain[-1], item.scope, parameter)
        if value is not None and names_in(value) & views:
            known |= _views(parameter, item.scope, project)
    return known


@rule(
    "S38",
    "a batch from another stream is used before it is there",
    kind="async-copy",
    severity="high",
    why="A copy that was started on a stream of its own runs beside the main one; without wait_stream or an event the "
    "model reads memory that is not written yet, now and then.",
    fix="Before the batch is used: torch.cuda.current_stream().wait_stream(stream), and record_stream on its tensors.",
    source="PyTorch notes on CUDA streams",
)
def unwaited_stream(module: Module, project: Project) -> Iterator[Place]:
    """with torch.cuda.stream(s): x = x.to(device, non_blocking=True), and nothing in the class or file waits for s."""
    for scope in module.scopes:
        for node in scope.of(ast.With):
            if not any(_enters_stream(item.context_expr, scope) for item in node.items):
                continue
            copies = [
                call for call in own_nodes(node)
                if isinstance(call, ast.Call) and last_name(call.func) in ("to", "cuda", "copy_")
                and keyword(call, "non_blocking") is not None and not to_cpu(call)
            ]  # fmt: skip
            owner = project.owner_of(scope)
            entered = {code_of(arg) for item in node.items for arg in getattr(item.context_expr, "args", [])}
            if copies and not _is_waited_for(entered, owner[1] if owner is not None else module.tree):
                left = _hands_out(scope, project)  # the wait is missing where the batch is handed on
                place, at = left if left is not None else (copies[0], scope)
                yield Place(
                    place,
                    f"`{code_of(copies[0], 40)}` runs on a stream that nothing waits for",
                    (
                        f"line {node.lineno}: {module.line_of(node)[:60]}",
                        *([f"handed on at line {getattr(place, 'lineno', 0)}"] if left is not None else []),
                    ),
                    scope=at,
                    also=((copies[0], scope),) if left is not None else (),
                )


def _hands_out(scope: Scope, project: Project) -> tuple[ast.AST, Scope] | None:
    """Where another method of the object gives the batch away: a yield in __iter__, the return of __next__ or next."""
    owner = project.owner_of(scope)
    for method in project.class_scopes(owner[1]) if owner is not None else ():
        if method is scope or scope not in [f for call in method.calls for f in project.callees(call, method)]:
            continue
        if method.yields:
            return next(node for node in method.of(ast.Yield)), method
        if method.simple_name != "__init__" and method.returns:
            return method.of(ast.Return)[-1], method
    return None


def _is_waited_for(entered: set[str], around: ast.AST) -> bool:
    """Whether anything waits for a stream: that the stream itself waits for others does not count."""
    for call in walk(around):
        if not isinstance(call, ast.Call) or not WAITS.search(text_of(call.func) + "("):
            continue
        own = isinstance(call.func, ast.Attribute) and code_of(call.func.value) in entered
        if not own or last_name(call.func) not in ("wait_stream", "wait_event", "wait"):
            return True
    return False


def _enters_stream(node: ast.expr, scope: Scope) -> bool:
    return isinstance(node, ast.Call) and called(node, scope) in ("torch.cuda.stream", "torch.cuda.StreamContext")
