"""A rule on reading a tensor row by row: one wait for the device for each row, where one for all would do."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.ondevice import has_read, on_device, to_cpu
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import COMPREHENSIONS, Reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import counter_guard
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name, walk

READS = ("item", "tolist", "cpu", "numpy")
PARTS = ("split", "unbind", "chunk", "squeeze", "flatten", "view")
REDUCES = ("sum", "max", "min", "mean", "argmax", "argmin", "any", "all", "norm", "count_nonzero", "nonzero")


@rule(
    "S39",
    "one wait for each row of a tensor",
    kind="host-sync",
    severity="low",
    why="A loop over the rows reads a number of each: as many small kernels and waits for the device as rows.",
    fix="Compute all rows' numbers in one tensor expression, and read them once with .tolist(), or not at all.",
    source="optimiser.md D5",
)
def read_row_by_row(module: Module, project: Project) -> Iterator[Place]:
    """for row in mask: row.sum().item(); [int(m[i].max()) for i in range(m.shape[0])], with m on the device."""
    hot = {loop.inner for loop in train_loops(module, project)} | {d.loop for d in decode_loops(module, project)}
    for scope in module.scopes:
        for loop in scope.body:
            if loop in hot or not isinstance(loop, (ast.For, *COMPREHENSIONS)):
                continue
            if any(above in hot for above in module.up(loop)):
                continue  # the rules on training and generation tell it
            if counter_guard(Reached(loop, scope), scope.node, project) is not None:
                continue  # once in many steps
            for name, turned in _walked(loop):
                if not _lies_on_device(name, scope, project):
                    continue
                read = next((node for node in own_nodes(loop) if _reads(node, turned, name, loop, scope)), None)
                if read is not None:
                    yield Place(
                        read,
                        f"`{code_of(read, 40)}` waits for the device for each row of `{name}`",
                        (f"the loop is at line {getattr(loop, 'lineno', 0)}",),
                    )
                    break


def _walked(loop: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """(a tensor's name, the names that turn) of a loop over its rows, or over their numbers."""
    heads = [(part.target, part.iter) for part in getattr(loop, "generators", [])] or [(loop.target, loop.iter)]  # type: ignore[attr-defined]
    for target, walked in heads:
        turned = {name for name in names_in(target) if "." not in name}
        inside = [walked]
        if isinstance(walked, ast.Call) and isinstance(walked.func, ast.Name):
            inside = list(walked.args) if walked.func.id in ("zip", "enumerate", "reversed") else []
            if walked.func.id == "range" and walked.args:  # range(len(x)), range(x.shape[0]), range(x.size(0))
                inside = [
                    part.value if isinstance(part, ast.Attribute) else part.args[0]
                    for part in walk(walked.args[-1])
                    if isinstance(part, ast.Attribute) and part.attr in ("shape", "size")
                    or isinstance(part, ast.Call) and last_name(part.func) == "len" and part.args
                ]  # fmt: skip
        for part in inside:
            while isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in PARTS:
                part = part.func.value  # logits.squeeze(0).split(lengths)
            if (name := target_name(part)) is not None:
                yield name, turned


def _lies_on_device(name: str, scope: Scope, project: Project) -> bool:
    """Whether a tensor is on the device: by what it was made of, or because what is computed is put beside it."""
    bindings = scope.bindings.get(name, [])
    for binding in bindings:
        value = binding.value
        moved = isinstance(value, ast.Call) and to_cpu(value)
        if has_read(value) or moved or binding.how == "add" or isinstance(value, (ast.List, ast.ListComp, ast.Dict)):
            return False
    beside = any(
        isinstance(node, ast.Attribute) and node.attr == "device" and target_name(node.value) == name
        for node in scope.body
    )
    if beside:
        return True
    found = next((node for node in scope.body if target_name(node) == name and isinstance(node, ast.expr)), None)
    return found is not None and bool(bindings) and on_device(found, scope, project, by_name=False)


def _reads(node: ast.AST, turned: set[str], name: str, loop: ast.AST, scope: Scope) -> bool:
    """row.sum().item(), int(row.sum()), x[i].item(), n.item() with n = row.sum()"""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr in READS and not node.args:
        value: ast.expr = node.func.value
        if node.func.attr != "item" and not any(
            isinstance(part, ast.Call) and last_name(part.func) in REDUCES for part in walk(value)
        ):
            return False  # rows as they are: one copy each, and nothing is computed for it
    elif isinstance(node.func, ast.Name) and node.func.id in ("int", "float", "bool") and len(node.args) == 1:
        value = node.args[0]
        reduces = isinstance(value, ast.Call) and last_name(value.func) in REDUCES
        if not reduces and target_name(value) not in turned and not isinstance(value, ast.Subscript) or has_read(value):
            return False
    else:
        return False
    if any(isinstance(part, ast.Call) and last_name(part.func) == "len" for part in walk(value)):
        return False
    inside = set(map(id, own_nodes(loop)))
    made = {
        other for other, bindings in scope.bindings.items()
        for b in bindings if b.how == "=" and id(b.node) in inside and names_in(b.value) & turned
    }  # fmt: skip
    roots = {one.partition(".")[0] for one in names_in(value)}
    indexed = any(isinstance(part, ast.Subscript) and names_in(part.slice) & turned for part in walk(value))
    if indexed and not roots & made:
        return name.partition(".")[0] in roots
    return bool(roots & (turned | made)) and not _is_number(value, turned, scope)


def _is_number(value: ast.expr, turned: set[str], scope: Scope) -> bool:
    """A name that is a Python number by now: bound to what was read."""
    return any(has_read(b.value) for name in names_in(value) - turned for b in scope.bindings.get(name, []))
