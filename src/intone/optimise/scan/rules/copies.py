"""Rules on copies to and from the device: when they can run beside other work, and when that is a race."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import is_inside
from intone.optimise.scan.project import Project, called, code_of, is_true, keyword, last_name, names_in
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name

FACTORIES = (
    "tensor",
    "stack",
    "from_numpy",
    "zeros",
    "empty",
    "full",
    "as_tensor",
    "cat",
    "ones",
    "arange",
    "randint",
    "frombuffer",
    "LongTensor",
)
WAITS = re.compile(r"synchronize|wait_stream|wait_event|\.record\(|Event\(|\.query\(|\.wait\(")


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
            source = _async_source(call)
            if source is None or _to_host(call):
                continue
            made = _unpinned(source, call, scope, project)
            if made:
                yield Place(
                    call, f"`{code_of(source, 40)}` is not in pinned memory, so the copy blocks all the same", (made,)
                )


def _async_source(call: ast.Call) -> ast.expr | None:
    """What is copied by x.to(..., non_blocking=True), x.cuda(non_blocking=True), y.copy_(x, non_blocking=True)."""
    if not isinstance(call.func, ast.Attribute) or not is_true(keyword(call, "non_blocking")):
        return None
    if call.func.attr in ("to", "cuda"):
        return call.func.value
    return call.args[0] if call.func.attr == "copy_" and call.args else None


def _to_host(call: ast.Call) -> bool:
    """x.to("cpu", ...)"""
    return (
        last_name(call.func) == "to"
        and bool(call.args)
        and "cpu" in ast.unparse(call.args[0]).replace("torch.device", "")
    )


def _unpinned(node: ast.expr, call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Where a tensor is made in pageable memory, or None where it may be pinned."""
    origins = project.origins(node, scope, _copy_passes, depth=4)
    told = None
    for origin in origins:
        made = origin.node
        if made is call:
            continue
        if not isinstance(made, ast.Call):
            return None
        if "pin_memory" in ast.unparse(made):
            return None
        name = called(made, origin.scope)
        if (
            name.startswith("torch.")
            and name.rpartition(".")[2] in FACTORIES
            and not _made_on_device(made, origin.scope, project)
        ):
            told = f"made by {code_of(made, 50)} at line {made.lineno}"
        elif name.endswith("DataLoader") and not any(word.arg is None for word in made.keywords):
            told = f"{code_of(made, 40)} at line {made.lineno} has no pin_memory=True"
        else:
            return None
    return told


def _copy_passes(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "view",
            "reshape",
            "long",
            "contiguous",
            "to",
            "int",
            "float",
            "unsqueeze",
        ):
            return [node.func.value]
        if last_name(node.func) in ("next", "iter", "enumerate", "tqdm", "cycle", "zip") and node.args:
            return [node.args[0]]
    return []


def _made_on_device(call: ast.Call, scope: Scope, project: Project) -> bool:
    device = keyword(call, "device")
    return device is not None and not (isinstance(device, ast.Constant) and device.value == "cpu")


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
            if not (isinstance(call.func, ast.Attribute) and is_true(keyword(call, "non_blocking"))):
                continue
            name, reader = None, None
            if _to_host(call):
                direct = module.parents.get(call)
                if isinstance(direct, ast.Attribute) and direct.attr in ("numpy", "item", "tolist"):
                    yield Place(
                        call,
                        f"`{code_of(call, 40)}` is read in the same breath",
                        (f".{direct.attr}() right behind it",),
                    )
                    continue
                name = next(
                    (n for n, bs in scope.bindings.items() for b in bs if call in list(ast.walk(b.value))), None
                )
            elif call.func.attr == "copy_" and _is_host_buffer(call.func.value, scope):
                name = target_name(call.func.value)
            if name:
                reader = _reader_after(name, call, scope)
            if reader is not None:
                yield Place(
                    call,
                    f"`{name}` is read at line {reader.lineno}, with nothing that waits for the copy between",
                    (code_of(call, 60),),
                )


def _is_host_buffer(node: ast.expr, scope: Scope) -> bool:
    name = target_name(node)
    if name is None:
        return False
    bindings = scope.bindings.get(name, [])
    return any(is_true(keyword(b.value, "pin_memory")) for b in bindings if isinstance(b.value, ast.Call))


def _reader_after(name: str, call: ast.Call, scope: Scope) -> ast.Call | None:
    """The first call behind a copy that reads the name's bytes on the host, unless something waits before it."""
    for other in sorted(scope.calls, key=lambda node: (node.lineno, node.col_offset)):
        if (other.lineno, other.col_offset) <= (call.end_lineno or call.lineno, call.end_col_offset or 0):
            continue
        if WAITS.search(ast.unparse(other)):
            return None
        if (
            isinstance(other.func, ast.Attribute)
            and other.func.attr in ("item", "numpy", "tolist")
            and name in names_in(other.func.value)
        ):
            return other
        if last_name(other.func) in ("print", "float", "int", "save", "write") and any(
            name in names_in(arg) for arg in other.args
        ):
            return other
    return None


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
    """A pinned tensor made before a loop, filled in it, and copied to the device without waiting."""
    for scope in module.scopes:
        for name, binding in _pinned_buffers(scope):
            for call in scope.calls:
                flag = keyword(call, "non_blocking")
                if (
                    flag is None
                    or (isinstance(flag, ast.Constant) and not flag.value)
                    or not isinstance(call.func, ast.Attribute)
                ):
                    continue
                source = call.args[0] if call.func.attr == "copy_" and call.args else call.func.value
                loops = module.loops_around(call)
                if name not in names_in(source) or not loops or is_inside(binding, loops[-1], module):
                    continue
                outer = loops[-1]
                if WAITS.search(ast.unparse(outer)) or not _filled_in(name, outer, scope):
                    continue
                maybe = () if is_true(flag) else (f"asynchronous where `{code_of(flag, 30)}` holds",)
                yield Place(
                    call,
                    f"`{name}` is filled again while its last copy may still run",
                    (
                        f"pinned and made once at line {binding.lineno}",
                        "nothing in the loop waits for the copy",
                        *maybe,
                    ),
                    confidence="high" if is_true(flag) else "medium",
                )


def _pinned_buffers(scope: Scope) -> Iterator[tuple[str, ast.Call]]:
    for name, bindings in scope.bindings.items():
        for binding in bindings:
            if binding.how == "=" and isinstance(binding.value, ast.Call):
                flag = keyword(binding.value, "pin_memory")
                pinned = flag is not None and not (isinstance(flag, ast.Constant) and not flag.value)
                if (pinned and not called(binding.value, scope).endswith("DataLoader")) or last_name(
                    binding.value.func
                ) == "pin_memory":
                    yield name, binding.value


def _filled_in(name: str, loop: ast.AST, scope: Scope) -> bool:
    """Whether a buffer, or a view of it, is written in a loop."""
    views = {name} | {
        other
        for other, bindings in scope.bindings.items()
        for b in bindings
        if b.how == "="
        and name in names_in(b.value)
        and isinstance(b.value, (ast.Subscript, ast.Call))
        and not is_inside(b.node, loop, scope.module)
    }
    for node in ast.walk(loop):
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Subscript) and target_name(t.value) in views for t in node.targets
        ):
            return True
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("copy_", "fill_", "random_")
        ):
            base = node.func.value
            while isinstance(base, ast.Subscript):
                base = base.value
            if target_name(base) in views:
                return True
        if isinstance(node, ast.Call) and any(
            word.arg == "out" and names_in(word.value) & views for word in node.keywords
        ):
            return True
    return False


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
                inside = call.func.value
                if isinstance(inside, ast.Call) and (
                    last_name(inside.func) == "cuda"
                    or last_name(inside.func) == "to"
                    and not _to_host(inside)
                    and "device" in ast.unparse(inside)
                ):
                    yield Place(call, f"`{code_of(inside, 40)}` lies on the device", (code_of(call, 60),))
            elif is_true(keyword(call, "pin_memory")) and last_name(call.func) in FACTORIES:
                device = keyword(call, "device")
                if isinstance(device, ast.Constant) and str(device.value).startswith("cuda"):
                    yield Place(call, "the tensor is made on the device and is to be pinned", (code_of(call, 60),))
