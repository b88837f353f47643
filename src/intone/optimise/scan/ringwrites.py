"""Where a cache that is full is written from its beginning again: places that are taken modulo its size."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from intone.optimise.scan.cachewrites import LIMIT_WORD, Write
from intone.optimise.scan.expressions import last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, walk

# words by which code says that it keeps the last part of a text on purpose
WINDOW = re.compile(
    r"window|\bring|_ring|circular|roll|slid|wrap|evict|sink|streaming_?(llm|cache|attn|kv|window)", re.I
)


@dataclass(frozen=True, eq=False)
class Ring:
    """A place taken modulo a size, or what writes there, with its function; target: what is written."""

    node: ast.AST
    scope: Scope
    target: ast.expr


def wrapped(scope: Scope, project: Project, writes: Sequence[Write], passes: Sequence[ast.Call]) -> Ring | None:
    """cache[:, pos % size] = k, also behind a name or method; cache.write(pos % size, k), which writes there.

    writes: into a cache, in the function. passes: its calls of functions that write into one.
    """
    if is_window(scope):
        return None
    for arg in [arg for call in passes for arg in call.args]:
        ring = next((part for part in walk(arg) if wraps(part)), None)
        if ring is not None and LIMIT_WORD.search(text_of(ring)):
            return Ring(ring, scope, arg)
    for write in writes:
        behind = [b.value for name in names_in(write.target) for b in scope.bindings.get(name, []) if b.how == "="]
        parts = [part for node in [write.target, *behind] for part in walk(node)]
        if any(wraps(part) for part in parts):
            return Ring(write.node, scope, write.target)
        for call in [part for part in parts if isinstance(part, ast.Call)]:  # slot = self.slot()
            for function in project.callees(call, scope)[:2]:
                ring = next((part for value in function.returns for part in walk(value) if wraps(part)), None)
                if ring is not None and not is_window(function):
                    return Ring(ring, function, write.target)
    return None


# words of code that keeps elsewhere what falls out of its first store
TIERS = re.compile(
    r"offload|spill|swap(ped|s)?[_ ]?(in|out)|cold (part|span|block|page|half)|host (memory|pool|block)", re.I
)


def is_window(scope: Scope) -> bool:
    """Whether a class or function says that it keeps the last part of a text on purpose, and no file says otherwise.

    Where the file keeps the rest elsewhere, a window that hands nothing on before it writes loses what the rest lacks.
    """
    around = scope.owner or scope.node
    if not WINDOW.search(text_of(around)):
        return False
    if scope.owner is None or TIERS.search(text_of(around)) or not scope.module.mentions(TIERS):
        return True
    if any(isinstance(node, ast.Call) and HANDS_ON.search(text_of(node.func)) for node in walk(scope.owner)):
        return True
    read = [node for node in walk(scope.owner) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)]
    return any(wraps(part) for node in read for part in walk(node.slice))  # what is overwritten is read before


HANDS_ON = re.compile(r"evict|spill|offload|take|store|push|archive|keep|demote|flush|callback|on_full|sink", re.I)


def wraps(node: ast.AST) -> bool:
    """position % size, position.remainder(size), torch.fmod(position, size)"""
    if isinstance(node, ast.Call) and last_name(node.func) in ("remainder", "fmod", "remainder_", "mod"):
        return bool(node.args)
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and not isinstance(node.left, ast.Constant)
