"""Rules on copies to and from the device: when they can run beside other work, and when that is a race."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import code_of, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.ondevice import to_cpu
from intone.optimise.scan.options import is_on, options
from intone.optimise.scan.pageable import FACTORIES, pageable
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Binding, Module, Scope, target_name, walk

WAITS = re.compile(r"synchronize|wait_stream|wait_event|\.record\(|Event\(|\.query\(|\.wait\(")
# what the host itself waits by; wait_stream and wait_event let only another stream of the device wait
HOST_WAITS = re.compile(r"synchronize|\.query\(|\.wait\(|\.result\(")


@rule(
    "S34",
    "asynchronous copy of pageable memory",
    kind="async-copy",
    severity="low",
    why="non_blocking=True only helps from pinned memory: a pageable tensor is copied through a staging "
    "buffer while the program "
    "waits.",
    fix="Pin the host tensor first (pin_memory=True in the factory or the DataLoader, or .pin_memory()).",
    source="optimiser.md D7; PyTorch notes on pinned memory",
)
def pageable_copy(module: Module, project: Project) -> Iterator[Place]:
    """x.to(device, non_blocking=True) where x is made in pageable memory, or by a loader that does not pin."""
    for scope in module.scopes:
        for call in scope.calls:
            if isinstance(module.parents.get(call), ast.Expr) and last_name(call.func) == "pin_memory":
                told = ("pin_memory() gives a pinned copy and leaves the tensor as it is",)
                yield Place(call, f"the pinned copy of `{code_of(call.func, 40)}` is thrown away", told)
            source = _async_source(call, scope, project) or _sent_by_partial(call, scope)
            if source is None or _ends_on_host(call, scope, project):
                continue
            made = pageable(source, call, scope, project)
            if made:
                yield Place(
                    call, f"`{code_of(source, 40)}` is not in pinned memory, so the copy blocks all the same", (made,)
                )


def _async_source(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """What is copied by x.to(..., non_blocking=True), x.cuda(non_blocking=True), y.copy_(x, non_blocking=True)."""
    if not isinstance(call.func, ast.Attribute) or not _is_async(call, scope, project):
        return None
    if call.func.attr in ("to", "cuda"):
        return call.func.value
    return call.args[0] if call.func.attr == "copy_" and call.args else None


def _sent_by_partial(call: ast.Call, scope: Scope) -> ast.expr | None:
    """What is copied by send(x) with send = functools.partial(torch.Tensor.to, device="cuda", non_blocking=True)."""
    if not isinstance(call.func, ast.Name) or not call.args:
        return None
    name = call.func.id
    for binding in scope.bindings.get(name) or scope.module.top.bindings.get(name, []):
        made = binding.value
        if isinstance(made, ast.Call) and last_name(made.func) == "partial" and made.args:
            whole = last_name(made.args[0]) in ("to", "cuda") and is_true(keyword(made, "non_blocking"))
            return call.args[0] if whole and "cpu" not in text_of(made) else None
    return None


def _is_async(call: ast.Call, scope: Scope, project: Project) -> bool:
    """non_blocking=True, also behind a constant or setting, among keywords handed on with **, or second in copy_."""
    flag = keyword(call, "non_blocking")
    if flag is None and last_name(call.func) == "copy_" and len(call.args) > 1:
        flag = call.args[1]
    if flag is None:
        return is_on(call, "non_blocking", scope, project)
    return is_true(flag) or only_value(flag, scope, project) is True


def _ends_on_host(call: ast.Call, scope: Scope, project: Project) -> bool:
    """As to_host, also where a name, or a dict that is handed on with **, says which device."""
    if last_name(call.func) != "to" or to_cpu(call):
        return to_cpu(call)
    wanted = [(call.args[0], scope)] if call.args else [
        (option.value, option.scope) for option in options(call, "device", scope, project)
    ]  # fmt: skip
    ends = [origin.node for node, at in wanted for origin in project.origins(node, at, depth=3)]
    return bool(ends) and all(re.fullmatch(r"(torch\.device\()?['\"]cpu['\"]\)?", text_of(node)) for node in ends)


@rule(
    "S35",
    "an asynchronous copy is read before it is done",
    kind="async-copy",
    severity="high",
    why="A non-blocking copy to the host returns before the bytes are there: what is read next is old or "
    "half new, now and then.",
    fix="Wait for an event recorded after the copy before the host reads, or leave non_blocking out.",
    source="PyTorch notes on pinned memory and non_blocking",
)
def read_too_early(module: Module, project: Project) -> Iterator[Place]:
    """x.to("cpu", non_blocking=True), then .item(), .numpy(), .tolist() or print with nothing waited for between."""
    for scope in module.scopes:
        for call in scope.calls:
            if not isinstance(call.func, ast.Attribute) or not _is_async(call, scope, project):
                continue
            if not _ends_on_host(call, scope, project) and not (
                call.func.attr == "copy_" and _is_host_buffer(call.func.value, scope, project)
            ):
                continue
            direct = module.parents.get(call)
            if isinstance(direct, ast.Attribute) and direct.attr in READERS:
                yield Place(
                    call,
                    f"`{code_of(call, 40)}` is read in the same breath",
                    (f".{direct.attr}() right behind it",),
                )
                continue
            read = _read_later(call, scope, project)
            if read is not None:
                name, reader, at = read
                yield Place(
                    call,
                    f"`{name}` is read at {at.module.path}:{reader.lineno}, with nothing that waits for the copy",
                    (code_of(call, 60),),
                )
            elif not any(file.mentions(HOST_WAITS) for file in neighbours(module, project)):
                told = "no event, stream or device is waited for anywhere in the program"
                yield Place(call, f"nothing ever waits for `{code_of(call, 40)}`", (told,), confidence="medium")


def _read_later(call: ast.Call, scope: Scope, project: Project) -> tuple[str, ast.Call, Scope] | None:
    """(name, the call that reads it, its function): here, where the copy is handed back to, or in another method."""
    assert isinstance(call.func, ast.Attribute)
    holds = [n for n, bs in scope.bindings.items() for b in bs if _copies_in(call, b)]
    if call.func.attr == "copy_":
        holds = [target_name(base_of(call.func.value)) or ""]
    for name in holds:
        if reader := _reader_after(name, call, scope, project):
            return name, reader, scope
    holds += sorted({other for name in holds for other in _also_called(name, scope)} - set(holds))
    for name in holds:
        if name.startswith("self.") and (found := _read_by_method(name, scope, project)) is not None:
            return name, *found
    returned = [value for value in scope.returns if call in list(walk(value)) or names_in(value) & set(holds)]
    if not returned or HOST_WAITS.search(text_of(scope.node)):
        return None
    for site in project.callers(scope)[:6]:
        module = site.scope.module
        above = module.parents.get(site.call)
        outer = module.parents.get(above) if above is not None else None
        if (
            isinstance(above, ast.Attribute)
            and above.attr in ("numpy", "item", "tolist")
            and isinstance(outer, ast.Call)
        ):
            return code_of(site.call, 30), outer, site.scope
        for name, bindings in site.scope.bindings.items():
            if any(site.call in list(walk(b.value)) for b in bindings) and (
                reader := _reader_after(name, site.call, site.scope, project)
            ):
                return name, reader, site.scope
    return None


def _copies_in(call: ast.Call, binding: Binding) -> bool:
    """Whether a name holds a copy, or a list or dict of such: not a number that was read of it."""
    return binding.how != "op" and call in list(walk(binding.value))


def _read_by_method(name: str, scope: Scope, project: Project) -> tuple[ast.Call, Scope] | None:
    """Where another method reads what one copies into an attribute; neither the class nor who asks for it waits."""
    owner = project.owner_of(scope)
    if owner is None or HOST_WAITS.search(text_of(owner[1])):
        return None
    for method in project.class_scopes(owner[1]):
        for other in method.calls if method is not scope else ():
            if not _reads_bytes(other, _also_called(name, method)):
                continue
            if any(HOST_WAITS.search(text_of(site.scope.node)) for site in project.callers(method)[:6]):
                return None
            return other, method
    return None


def base_of(node: ast.expr) -> ast.expr:
    """What an index is taken of: buffer[i][j] -> buffer."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def _is_host_buffer(node: ast.expr, scope: Scope, project: Project) -> bool:
    """A pinned tensor, made here or kept by the object."""
    for origin in project.origins(base_of(node), scope, depth=3):
        if isinstance(origin.node, ast.Call) and (
            is_true(keyword(origin.node, "pin_memory")) or last_name(origin.node.func) == "pin_memory"
        ):
            return True
    return False


# methods that read the bytes of a host tensor
READERS = (
    "item", "numpy", "tolist", "sum", "mean", "max", "min", "argmax", "argmin", "any", "all", "norm", "softmax", "topk",
    "sort", "float", "clone", "std", "cumsum",
)  # fmt: skip


def _reader_after(name: str, call: ast.Call, scope: Scope, project: Project) -> ast.Call | None:
    """The first call behind a copy that reads the name's bytes on the host, unless something waits before it."""
    names = _also_called(name, scope)
    for other in sorted(scope.calls, key=lambda node: (node.lineno, node.col_offset)):
        if (other.lineno, other.col_offset) <= (call.end_lineno or call.lineno, call.end_col_offset or 0):
            continue
        if HOST_WAITS.search(text_of(other)) or any(
            HOST_WAITS.search(text_of(function.node)) for function in project.callees(other, scope)[:2]
        ):
            return None
        if _reads_bytes(other, names):
            return other
    return None


def _reads_bytes(call: ast.Call, names: set[str]) -> bool:
    """x.numpy(), float(x), print(x) of a host tensor with one of these names."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in READERS and names & names_in(call.func.value):
        return True
    shows = last_name(call.func) in ("print", "float", "int", "save", "write", "dump")
    return shows and any(names & names_in(arg) for arg in call.args)


def _also_called(name: str, scope: Scope) -> set[str]:
    """A name and those of its parts: for one in host, a, b = host, first = host[0], for key, one in host.items().

    Also of the list that it is put into: parts.append(host).
    """
    names = {name}
    for _ in range(2):
        for other, bindings in scope.bindings.items():
            if any(b.how in ("=", "part", "iter", "add") and _is_part_of(b.value, names) for b in bindings):
                names.add(other)
    return names


def _is_part_of(value: ast.expr, names: set[str]) -> bool:
    while True:
        if isinstance(value, ast.Subscript):
            value = value.value
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in VIEWS:
            value = value.func.value
        elif isinstance(value, ast.Call) and last_name(value.func) in ("zip", "enumerate", "list", "tuple", "iter"):
            return any(_is_part_of(arg, names) for arg in value.args)
        else:
            return target_name(value) in names


VIEWS = ("items", "values", "view", "reshape", "flatten", "squeeze", "unsqueeze", "get", "pop", "popleft", "unbind")


@rule(
    "S37",
    "pinning memory of the device",
    kind="async-copy",
    severity="high",
    why="Only host memory can be pinned: this raises at the first GPU it meets.",
    fix="Pin before the copy: tensor.pin_memory().to(device, non_blocking=True).",
    source="PyTorch reference of Tensor.pin_memory",
)
def pinned_on_device(module: Module, project: Project) -> Iterator[Place]:
    """x.to(device).pin_memory(), x.cuda().pin_memory(), empty(..., device="cuda", pin_memory=True)."""
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) == "pin_memory" and isinstance(call.func, ast.Attribute):
                made = _put_on_device(call.func.value, scope, project)
                if made is not None:
                    yield Place(call, f"`{code_of(call.func.value, 40)}` lies on the device", (made,))
            elif is_true(keyword(call, "pin_memory")) and last_name(call.func) in FACTORIES:
                device = keyword(call, "device")
                if isinstance(device, ast.Constant) and str(device.value).startswith("cuda"):
                    yield Place(call, "the tensor is made on the device and is to be pinned", (code_of(call, 60),))


def _put_on_device(node: ast.expr, scope: Scope, project: Project) -> str | None:
    """Where a value was copied to the device or made there, whatever way it came; None unless it always was."""
    told = None
    for origin in project.origins(node, scope, depth=4, stops=lambda at: isinstance(at.node, ast.Call)):
        made = origin.node
        if made is scope.module.parents.get(scope.module.parents.get(node, node)):
            continue  # x = x.pin_memory(): the name afterwards
        if not isinstance(made, ast.Call):
            if origin.is_annotation:
                continue
            return None
        text = text_of(made).partition("(")[2]
        there = last_name(made.func) == "cuda" or last_name(made.func) == "to" and not to_cpu(made) and bool(
            re.search(r"device|cuda|gpu", text)
        )  # fmt: skip
        device = keyword(made, "device")
        there = there or isinstance(device, ast.Constant) and str(device.value).startswith("cuda")
        if not there:
            return None
        told = f"{code_of(made, 60)} at {origin.scope.module.path}:{made.lineno}"
    return told
