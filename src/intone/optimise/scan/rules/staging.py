"""Rules on buffers between host and device: given up early, or pinned where they cannot be."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import classes_of, functions_of
from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, keyword, names_in, text_of
from intone.optimise.scan.ondevice import to_cpu
from intone.optimise.scan.options import is_told
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.copies import HOST_WAITS, base_of
from intone.optimise.scan.rules.pinned import pins, reused_buffer
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name

# what holds buffers that anybody may take
POOL = re.compile(r"free|pool|idle|avail|spare|recycle|empt|unused|ready_bufs|slots", re.I)
GIVES_BACK = ("put", "put_nowait", "append", "appendleft", "add", "release", "give_back", "free", "recycle", "push")
WRITES = ("copy_", "fill_", "zero_", "random_", "resize_", "index_copy_", "put_", "set_")


@rule(
    "S63",
    "a buffer is given up while its copy may still run",
    kind="async-copy",
    severity="high",
    why="A non-blocking copy returns before the bytes are read: who writes into the buffer now changes the batch that "
    "the device gets, now and then.",
    fix="Record an event after the copy and wait for it before the buffer is written or given back.",
    source="nanochat-facts.md 0.10; PyTorch notes on pinned memory",
)
def given_up_early(module: Module, project: Project) -> Iterator[Place]:
    """x = buf.to(device, non_blocking=True); self.free.put(buf), or buf.copy_(next rows), with no wait between."""
    told: set[ast.AST] | None = None
    for scope in module.scopes:
        for call in scope.calls:
            source = _sent(call, scope, project)
            name = target_name(base_of(source)) if source is not None else None
            if name is None:
                continue
            after = _given_up(name, call, scope, project)
            if after is None:
                continue
            if told is None:
                told = {place.node for place in reused_buffer(module, project)}
            if call not in told:
                yield Place(
                    call,
                    f"`{name}` is {'given back' if _is_given_back(after, name) else 'written again'} at line "
                    f"{getattr(after, 'lineno', 0)}, and nothing waits for its copy",
                    (code_of(call, 60), code_of(after, 60)),
                )


def _sent(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """The host tensor that a non-blocking copy to the device reads."""
    flag = keyword(call, "non_blocking")
    if flag is None or is_never(flag, scope, project) or not isinstance(call.func, ast.Attribute) or to_cpu(call):
        return None
    if call.func.attr in ("to", "cuda"):
        return call.func.value
    return call.args[0] if call.func.attr == "copy_" and call.args else None


def _given_up(name: str, call: ast.Call, scope: Scope, project: Project) -> ast.AST | None:
    """What gives a buffer back to a pool, or writes into it, behind its copy in the same block, before any wait."""
    module = scope.module
    statement: ast.AST = call
    for above in module.up(call):
        if isinstance(above, ast.stmt):
            statement = above
            break
    holder = module.parents.get(statement)
    behind = _behind(statement, holder)
    if isinstance(holder, ast.With):  # with torch.cuda.stream(s): the statements behind the block count too
        behind = [*behind, *_behind(holder, module.parents.get(holder))]
    for later in behind:
        if HOST_WAITS.search(text_of(later)):
            return None
        for node in own_nodes(later):
            if isinstance(node, ast.Call) and _is_given_back(node, name):
                return node
            if _overwrites(node, name) and _is_pinned(name, scope, project):
                return node
        if isinstance(later, ast.Assign) and _overwrites(later, name) and _is_pinned(name, scope, project):
            return later
    return None


def _behind(statement: ast.AST, holder: ast.AST | None) -> list[ast.stmt]:
    """The statements behind one in its block."""
    for name in ("body", "orelse"):
        block = getattr(holder, name, None)
        if isinstance(block, list) and statement in block:
            return block[block.index(statement) + 1 :]
    return []


def _is_given_back(node: ast.AST, name: str) -> bool:
    """self.free.put(buf), pool.append(slot)"""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in GIVES_BACK:
        return False
    handed = any(target_name(base_of(arg)) == name for arg in node.args)
    return handed and bool(POOL.search(target_name(node.func.value) or ""))


def _overwrites(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
        return target_name(base_of(node.func.value)) == name
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Subscript) and target_name(base_of(target)) == name for target in node.targets
    )


def _is_pinned(name: str, scope: Scope, project: Project) -> bool:
    owner = project.owner_of(scope) if name.startswith("self.") else None
    places = project.class_scopes(owner[1]) if owner is not None else [scope]
    return any(
        b.how == "=" and isinstance(b.value, ast.Call) and pins(b.value, place, project)
        for place in places for b in place.bindings.get(name, [])
    )  # fmt: skip


@rule(
    "S64",
    "a loader pins what lies on the device",
    kind="async-copy",
    severity="high",
    why="Only host memory can be pinned: the loader's thread raises at the first batch, or the copy to the device is "
    "made row by row in the workers, where nothing runs beside it.",
    fix="Let the data set and collate function give host tensors; pin them, and copy the whole batch in the loop.",
    source="PyTorch notes on memory pinning",
)
def pins_device_rows(module: Module, project: Project) -> Iterator[Place]:
    """DataLoader(rows, collate_fn=to_cuda, pin_memory=True)"""
    for scope in module.scopes:
        for call in scope.calls:
            if not called(call, scope).endswith("DataLoader") or not is_told(call, "pin_memory", scope, project):
                continue
            collate = keyword(call, "collate_fn")
            makers = functions_of(collate, scope, project)[:2] if collate is not None else []
            rows = call.args[0] if call.args else keyword(call, "dataset")
            for _, node in classes_of(rows, scope, project) if rows is not None else ():
                makers += [one for one in project.class_scopes(node) if one.simple_name == "__getitem__"]
            for maker in makers:
                moved = next((part for value in maker.returns for part in _moves(value, maker)), None)
                if moved is not None:
                    yield Place(
                        call,
                        "the loader is told to pin what already lies on the device",
                        (f"{code_of(moved, 50)} at {maker.module.path}:{moved.lineno}",),
                    )
                    break


@rule(
    "S72",
    "a loader cannot pin batches of a class of its own",
    kind="async-copy",
    severity="low",
    why="The loader's pinning goes into tuples, lists and dicts, and asks objects for pin_memory(): a batch that is an "
    "object without that method stays in pageable memory, so its non-blocking copies wait all the same.",
    fix="Give the batch's class a pin_memory() that pins its tensors and returns itself, or hand over a dict.",
    source="PyTorch reference of torch.utils.data: memory pinning of custom types",
)
def unpinned_object(module: Module, project: Project) -> Iterator[Place]:
    """DataLoader(..., collate_fn=make, pin_memory=True), where make returns Batch(...) that cannot be pinned."""
    told: set[ast.AST] = set()
    for site in project.sites.get("DataLoader", []):
        collate = keyword(site.call, "collate_fn")
        if collate is None or not is_told(site.call, "pin_memory", site.scope, project):
            continue
        makers = functions_of(collate, site.scope, project)[:2]
        places = [place for maker in makers for value in maker.returns for place in classes_of(value, maker, project)]
        for node in (node for file, node in places if file is module):
            methods = project.class_scopes(node)
            if any(one.simple_name == "pin_memory" for one in methods) or _is_collection(node):
                continue
            for method, call in ((one, call) for one in methods for call in one.calls):
                if _sent(call, method, project) is not None and call not in told:
                    told.add(call)
                    made = f"`{node.name}` has no pin_memory(), so the loader at line {site.call.lineno} skips it"
                    yield Place(call, "the copy is of memory that was not pinned", (made,), scope=method)


def _is_collection(node: ast.ClassDef) -> bool:
    """A class that the loader goes into: a named tuple, a dict, a list; others are unknown."""
    bases = " ".join(text_of(base) for base in node.bases)
    return bool(re.search(r"NamedTuple|dict|Dict|list|tuple|Mapping|BatchEncoding|BatchFeature|Data\b", bases))


def _moves(value: ast.expr, scope: Scope) -> Iterator[ast.Call]:
    """The calls by which a returned value, or what its names are bound to, was put on the device."""
    values = [value, *(b.value for name in names_in(value) for b in scope.bindings.get(name, []) if b.how == "=")]
    for one in values:
        for part in ast.walk(one):
            if not isinstance(part, ast.Call) or not isinstance(part.func, ast.Attribute):
                continue
            there = part.func.attr == "to" and re.search(r"cuda|device|gpu", text_of(part).rpartition("(")[2])
            if there or part.func.attr == "cuda":
                yield part
