"""Rules on torch.compile: whether training uses it, and whether the shapes it meets stay the same."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project, called, code_of, keyword, last_name
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.batching import padded_rows
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_model_call

OTHER_COMPILERS = re.compile(
    r"torch_xla|thunder|\bjax\b|deepspeed\.initialize|\bmlx\b|\.jit\(|CUDAGraph|make_graphed_callables"
)


def compile_calls(module: Module) -> list[tuple[Scope, ast.Call]]:
    """The calls and decorators that compile something: torch.compile(...), model.compile(), @torch.compile."""
    found = []
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            if name == "torch.compile" or (
                name.endswith((".compile", ".compile_model")) and not name.startswith(("re.", "regex."))
            ):
                found.append((scope, call))
    return found


def _decorated(module: Module) -> bool:
    for scope in module.scopes[1:]:
        for item in getattr(scope.node, "decorator_list", []):
            if "torch.compile" in ast.unparse(item):
                return True
    return False


@rule(
    "S21",
    "training is not compiled",
    kind="compile",
    severity="medium",
    why="Every operation is started from Python by itself: small kernels, each with its launch and its way "
    "through memory.",
    fix="Give the step fixed shapes (packed or padded to a few lengths) and wrap the model in "
    "torch.compile; check that nothing "
    "compiles again after the first steps and that the losses stay within the tolerance of fp32.",
    source="optimiser.md D2; nanochat-facts.md 2.2",
)
def not_compiled(module: Module, project: Project) -> Iterator[Place]:
    """A training loop over batches in a file that compiles no model, and is given none that was compiled elsewhere."""
    loops = [
        loop for loop in train_loops(module, project) if loop.steps and _runs_model(loop.inner, loop.scope, project)
    ]
    if not loops or OTHER_COMPILERS.search(module.text) or _decorated(module):
        return
    if any(not _is_regex(call, scope) for scope, call in compile_calls(module)):
        return
    first = loops[0]
    if _compiled_by_callers(first.scope, project):
        return
    node = first.outer or first.inner
    assert node is not None
    off = [line for line, text in module.comments.items() if re.search(r"\btorch\.compile\(|\.compile\(", text)]
    yield Place(
        node,
        "the training loop runs the model uncompiled",
        (
            "no torch.compile in this file",
            *(f"commented out at line {line}: {module.lines[line - 1].strip()[:70]}" for line in off[:1]),
        ),
        confidence="high" if off else "medium",
    )


def _is_regex(call: ast.Call, scope: Scope) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)


def _runs_model(loop: ast.AST | None, scope: Scope, project: Project) -> bool:
    return loop is not None and any(
        isinstance(node, ast.Call) and is_model_call(node, scope, project) for node in ast.walk(loop)
    )


def _compiled_by_callers(scope: Scope, project: Project) -> bool:
    """Whether somebody who calls this function, or made the model, compiles in the same file."""
    for site in project.callers(scope):
        if site.scope.module is not scope.module and compile_calls(site.scope.module):
            return True
    # a trainer object that is handed its model: whoever makes the trainer may have compiled it
    if scope.owner is not None:
        for site in project.sites.get(scope.owner.name, []):
            if compile_calls(site.scope.module):
                return True
    return False


@rule(
    "S22",
    "compiled code meets shapes that change",
    kind="compile",
    severity="high",
    why="Every new shape compiles again: seconds to minutes of standstill each time, until the limit is "
    "reached and the rest runs "
    "uncompiled.",
    fix="Keep shapes fixed (pack, or pad to a few lengths), mark the one dimension that varies as dynamic, "
    "and compile once, "
    "outside loops and functions that are called again.",
    source="optimiser.md D3",
)
def changing_shapes(module: Module, project: Project) -> Iterator[Place]:
    """A model compiled for fixed shapes and fed rows padded to the longest; torch.compile in a hot loop."""
    loops = {id(loop.inner): loop for loop in train_loops(module, project)}
    padded = list(padded_rows(module, project))
    for scope, call in compile_calls(module):
        if called(call, scope) != "torch.compile":
            continue
        around = [loop for loop in module.loops_around(call) if id(loop) in loops]
        if around or scope.simple_name in ("forward", "training_step", "train_step", "__call__"):
            yield Place(
                call,
                "the model is compiled again at every turn",
                (f"torch.compile stands in `{scope.simple_name}` or its loop",),
            )
            continue
        dynamic = keyword(call, "dynamic")
        fixed = dynamic is None or (isinstance(dynamic, ast.Constant) and dynamic.value is False)
        grows = [place for place in padded if "longest" in place.message]
        if fixed and grows and _is_model(call):
            line = grows[0].node.lineno  # type: ignore[attr-defined]
            yield Place(
                call,
                "the model is compiled for fixed shapes, but batches are as wide as their longest text",
                (f"rows are filled up to the longest of the batch at line {line}", f"{code_of(call, 60)}"),
                confidence="high" if dynamic is not None else "medium",
            )


def _is_model(call: ast.Call) -> bool:
    name = target_name(call.args[0]) if call.args else None
    return (
        bool(name)
        and "model" in (name or "").lower()
        or (bool(call.args) and last_name(call.args[0]) in ("net", "gpt"))
    )
