"""A rule on memory that one stream allocates and another one reads: it may be given away while it is read."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, keyword, last_name, text_of
from intone.optimise.scan.ondevice import to_cpu
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, own_nodes, walk

# what keeps memory from being given away too early, or keeps all of it for good
KEEPS = re.compile(r"record_stream|\.synchronize\(|CUDAGraph|static_")


@rule(
    "S73",
    "a batch's memory is given away while it may still be read",
    kind="async-copy",
    severity="medium",
    why="The allocator knows only the stream that a tensor was made on: when the last name for it is gone, the next "
    "copy on that stream gets its memory, while the main stream may still be reading the batch.",
    fix="Call batch.record_stream(torch.cuda.current_stream()) where the batch is handed out, or let the copying "
    "stream wait for the main one before each copy.",
    source="PyTorch reference of Tensor.record_stream",
)
def given_away(module: Module, project: Project) -> Iterator[Place]:
    """with torch.cuda.stream(s): x = x.cuda(non_blocking=True); later current.wait_stream(s), and no record_stream."""
    for scope in module.scopes:
        for node in scope.of(ast.With):
            entered = {
                code_of(arg) for item in node.items if isinstance(item.context_expr, ast.Call)
                and called(item.context_expr, scope) in ("torch.cuda.stream", "torch.cuda.StreamContext")
                for arg in item.context_expr.args
            }  # fmt: skip
            copies = [call for call in own_nodes(node) if isinstance(call, ast.Call) and _allocates(call)]
            owner = project.owner_of(scope)
            again = owner is not None or bool(module.loops_around(node)) or scope.is_generator
            if not entered or not copies or not again:
                continue
            around = owner[1] if owner is not None else scope.node
            waits = [call for call in walk(around) if isinstance(call, ast.Call) and _is_wait(call)]
            own = [call for call in waits if code_of(call.func.value) in entered]  # type: ignore[attr-defined]
            if not waits or own or KEEPS.search(text_of(around)):
                continue
            yield Place(
                waits[0],
                f"`{code_of(copies[0], 40)}` is made on a stream of its own, and nothing says that another reads it",
                (f"line {copies[0].lineno}: {code_of(copies[0], 60)}", "no record_stream"),
                also=((copies[0], scope),),
                scope=_scope_of(waits[0], module),
            )


def _scope_of(node: ast.AST, module: Module) -> Scope:
    return module.scope_of.get(node, module.top)


def _allocates(call: ast.Call) -> bool:
    """x.to(device, non_blocking=True), x.cuda(non_blocking=True): copy_ writes into what is there."""
    return last_name(call.func) in ("to", "cuda") and keyword(call, "non_blocking") is not None and not to_cpu(call)


def _is_wait(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("wait_stream", "wait_event")
