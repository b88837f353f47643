"""A rule on devices: a torch.device is not a string, and comparing the two is always false."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import device_evidence

DEVICE_WORD = re.compile(r"^(cpu|cuda|mps|xpu|hpu|npu|meta|xla)(:\d+)?$")


@rule(
    "S33",
    "torch.device compared with a string",
    kind="device-string",
    severity="high",
    why="torch.device('cuda') == 'cuda' is False and raises nothing: the branch for the GPU is never taken, "
    "and pinning, "
    "asynchronous copies or fast paths are dead code.",
    fix="Compare device.type with the string, or make a torch.device of both sides.",
    source="nanochat-facts.md 0.10, measured there",
)
def device_string(module: Module, project: Project) -> Iterator[Place]:
    """device == "cuda", device in ("cuda", "cpu"), "cuda" in device, match device: where device is a torch.device."""
    for scope in module.scopes:
        for node in scope.body:
            for value, words in _compared(node, scope):
                devices, strings = device_evidence(value, scope, project)
                if not devices:
                    continue
                yield Place(
                    node,
                    f"`{code_of(value, 30)}` is a torch.device, and {words} is a string",
                    tuple(_where(origin) for origin in devices[:2])
                    + tuple(f"elsewhere a string: {_where(o)}" for o in strings[:1]),
                    confidence="medium" if len(strings) > len(devices) + 2 else "high",
                )


def _compared(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.expr, str]]:
    """(value, the strings) where something is compared with names of devices."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right, op = node.left, node.comparators[0], node.ops[0]
        if isinstance(op, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
            for one, other in ((left, right), (right, left)):
                if _is_device_word(one, scope):
                    yield other, code_of(one, 20)
        elif isinstance(op, (ast.In, ast.NotIn)):
            if (
                isinstance(right, (ast.Tuple, ast.List, ast.Set))
                and right.elts
                and all(_is_device_word(e, scope) for e in right.elts)
            ):
                yield left, code_of(right, 30)
            elif _is_device_word(left, scope):
                yield right, code_of(left, 20)
    elif isinstance(node, ast.Match):
        if any(
            isinstance(p, ast.MatchValue) and _is_device_word(p.value, scope)
            for case in node.cases
            for p in ast.walk(case.pattern)
        ):
            yield node.subject, "every case"
    elif (
        (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("startswith", "__eq__")
        )
        and node.args
        and _is_device_word(node.args[0], scope)
    ):
        yield node.func.value, code_of(node.args[0], 20)


def _is_device_word(node: ast.expr, scope: Scope) -> bool:
    """A string that names a device; also a constant of the module that holds one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(DEVICE_WORD.match(node.value))
    if isinstance(node, ast.Name) and node.id.isupper():
        return any(
            _is_device_word(b.value, scope)
            for b in scope.module.top.bindings.get(node.id, [])
            if isinstance(b.value, ast.Constant)
        )
    return False


def _where(origin: Origin) -> str:
    kind = "annotated" if origin.is_annotation else "made"
    return f"{kind} `{code_of(origin.node, 50)}` at {origin.scope.module.path}:{origin.node.lineno}"
