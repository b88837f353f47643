"""A rule on devices: a torch.device is not a string, and comparing the two is always false."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.devicekinds import device_evidence, is_made_with_number, is_numbered, text_evidence
from intone.optimise.scan.expressions import called, code_of, last_name
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Binding, Module, Scope, walk

DEVICE_WORD = re.compile(r"^(cpu|cuda|mps|xpu|hpu|npu|meta|xla)(:\d+)?$")
NUMBERED = re.compile(r"^(cpu|cuda|mps|xpu|hpu|npu|xla)(:|$)")  # the beginning of a text that goes on with a number


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
        for compared in scope.of(ast.Compare):
            if (found := _against_text(compared, scope, project)) is not None:
                yield Place(compared, *found)
        for node in scope.of(ast.Compare, ast.Match, ast.Call, ast.Subscript):
            for value, words in _compared(node, scope):
                if (told := _never_equal(node, value, scope, project)) is not None:
                    yield Place(node, told, (f"compared with {words}",))
                    continue
                devices, strings = device_evidence(value, scope, project)
                devices = [one for one in devices if not _is_made_behind(one.node, node, module)]
                if not devices:
                    continue
                yield Place(
                    node,
                    f"`{code_of(value, 30)}` is a torch.device, and {words} is a string",
                    tuple(_where(origin) for origin in devices[:2])
                    + tuple(f"elsewhere a string: {_where(o)}" for o in strings[:1]),
                    confidence="medium" if len(strings) > len(devices) + 2 else "high",
                )


def _is_made_behind(made: ast.AST, compared: ast.AST, module: Module) -> bool:
    """if name != "cpu": name = torch.device(name): the device is made where the comparison has been answered."""
    below = made
    for above in module.up(made) if made in module.parents else ():
        if isinstance(above, ast.If) and below in above.body and any(part is compared for part in walk(above.test)):
            return True
        below = above
    return False


def _against_text(node: ast.Compare, scope: Scope, project: Project) -> tuple[str, tuple[str, ...]] | None:
    """x.device == wanted, where `wanted` is a text by its type or by all that it is made of; message and evidence."""
    if len(node.ops) != 1 or not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        return None
    sides = (node.left, node.comparators[0])
    for one, other in (sides, sides[::-1]):
        if _is_bare_device(other, scope) and is_made_with_number(one, scope, project):
            words = f"`{code_of(one, 30)}` has a number, as in cuda:0, and `{code_of(other, 30)}` has none"
            return words, ("devices with and without a number are never equal",)
    if not all(isinstance(side, (ast.Name, ast.Attribute, ast.Call)) for side in sides):
        return None
    if not any("dev" in code_of(side, 200).lower() for side in sides):
        return None
    for one, other in (sides, sides[::-1]):
        if isinstance(other, ast.Name) and _is_device_word(other, scope):
            continue  # told where it is compared with names of devices
        devices, strings = device_evidence(one, scope, project)
        texts = text_evidence(other, scope, project) if devices and not strings else []
        if texts and not device_evidence(other, scope, project)[0]:
            words = f"`{code_of(one, 30)}` is a torch.device, and `{code_of(other, 30)}` is a string"
            return words, (_where(devices[0]), _where(texts[0]))
    return None


def _is_bare_device(node: ast.expr, scope: Scope) -> bool:
    """torch.device("cuda"), written out here: a device without a number."""
    if not isinstance(node, ast.Call) or called(node, scope) != "torch.device" or len(node.args) != 1 or node.keywords:
        return False
    first = node.args[0]
    return isinstance(first, ast.Constant) and first.value in ("cuda", "xpu", "hip")


def _never_equal(node: ast.AST, value: ast.expr, scope: Scope, project: Project) -> str | None:
    """str(x.device) == "cuda", device.type == "cuda:0": texts on both sides that are never the same; in words."""
    if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        return None
    numbered_text = _is_device_word(node.left, scope) or _is_device_word(node.comparators[0], scope)
    if numbered_text and isinstance(value, ast.Attribute) and value.attr == "type":
        other = node.left if value is node.comparators[0] else node.comparators[0]
        if not isinstance(other, (ast.Constant, ast.Name)) and re.search(r"(device|dev)\.type$", code_of(value, 60)):
            return f"`{code_of(value, 30)}` is the kind of device without a number"
    sides = [side for side in (node.left, node.comparators[0]) if isinstance(side, ast.Constant)]
    words = [side.value for side in sides if isinstance(side.value, str)]
    if any(word in ("cuda", "mps", "xpu") for word in words) and is_numbered(value, scope, project):
        return f"`{code_of(value, 30)}` ends in a number, as in cuda:0"
    numbered = any(":" in word for word in words) and isinstance(value, ast.Attribute) and value.attr == "type"
    if numbered and re.search(r"(device|dev)\.type$", code_of(value, 60)):
        return f"`{code_of(value, 30)}` is the kind of device without a number"
    return None


def _compared(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.expr, str]]:
    """(value, the strings) where something is compared with names of devices."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right, op = node.left, node.comparators[0], node.ops[0]
        if isinstance(op, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
            for one, other in ((left, right), (right, left)):
                if _is_device_word(one, scope):
                    yield other, code_of(one, 20)
        elif isinstance(op, (ast.In, ast.NotIn)):
            if _are_device_words(right, scope):
                yield left, code_of(right, 30)
            elif _is_device_word(left, scope):
                yield right, code_of(left, 20)
    elif isinstance(node, ast.Match):
        if any(
            isinstance(p, ast.MatchValue) and _is_device_word(p.value, scope)
            for case in node.cases
            for p in walk(case.pattern)
        ):
            yield node.subject, "every case"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        if node.func.attr in ("startswith", "__eq__", "__ne__") and _is_device_word(node.args[0], scope):
            yield node.func.value, code_of(node.args[0], 20)
        elif node.func.attr == "get" and _are_device_words(node.func.value, scope):
            yield node.args[0], f"every key of `{code_of(node.func.value, 20)}`"
        elif node.func.attr in ("eq", "ne") and len(node.args) == 2:  # of the package operator
            for one, other in (node.args, node.args[::-1]):
                if _is_device_word(one, scope):
                    yield other, code_of(one, 20)
        elif node.func.attr == "__contains__" and _are_device_words(node.func.value, scope):
            yield node.args[0], code_of(node.func.value, 30)
    elif isinstance(node, ast.Subscript) and _are_device_words(node.value, scope) and isinstance(node.ctx, ast.Load):
        yield node.slice, f"every key of `{code_of(node.value, 20)}`"


def _are_device_words(node: ast.expr, scope: Scope, seen: frozenset[str] = frozenset()) -> bool:
    """("cuda", "mps"), {"cuda": x}, frozenset(...) of them, or a name here or in the file that holds such."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return bool(node.elts) and all(_is_device_word(part, scope, seen) for part in node.elts)
    if isinstance(node, ast.Dict):
        return bool(node.keys) and all(key is not None and _is_device_word(key, scope, seen) for key in node.keys)
    if isinstance(node, ast.Call):
        made = isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset", "tuple", "list")
        return made and len(node.args) == 1 and _are_device_words(node.args[0], scope, seen)
    if isinstance(node, ast.Name) and node.id not in seen:
        values = [b.value for b in _bindings(node.id, scope) if b.how == "=" and not isinstance(b.value, ast.Name)]
        return any(_are_device_words(value, scope, seen | {node.id}) for value in values)
    return False


def _is_device_word(node: ast.expr, scope: Scope, seen: frozenset[str] = frozenset()) -> bool:
    """A text that names a device, with its number too ("cuda", f"cuda:{rank}"), or a name that holds only such."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(DEVICE_WORD.match(node.value))
    if isinstance(node, ast.JoinedStr):  # f"cuda:{rank}", f"cuda"
        first = node.values[0] if node.values else None
        return isinstance(first, ast.Constant) and bool(NUMBERED.match(str(first.value)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):  # "cuda:" + str(rank)
        return isinstance(node.left, ast.Constant) and bool(NUMBERED.match(str(node.left.value)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        text = node.func.value
        return isinstance(text, ast.Constant) and bool(NUMBERED.match(str(text.value)))
    if isinstance(node, ast.Name) and node.id not in seen:
        bindings = _bindings(node.id, scope)
        return bool(bindings) and all(
            b.how == "=" and not isinstance(b.value, ast.Name) and _is_device_word(b.value, scope, seen | {node.id})
            or b.how == "iter" and isinstance(b.value, (ast.Tuple, ast.List, ast.Set, ast.Name, ast.Dict))
            and _are_device_words(b.value, scope, seen | {node.id})
            or b.how == "iter" and b.index in (None, 0) and isinstance(b.value, ast.Call)
            and last_name(b.value.func) in ("items", "keys") and isinstance(b.value.func, ast.Attribute)
            and _are_device_words(b.value.func.value, scope, seen | {node.id})
            for b in bindings
        )  # fmt: skip
    return False


def _bindings(name: str, scope: Scope) -> list[Binding]:
    """What is bound to a name in a function, or at the top of its file where the function knows no such name."""
    if name in scope.bindings or name in scope.parameters:
        return [] if name in scope.parameters else scope.bindings[name]
    return scope.module.top.bindings.get(name, [])


def _where(origin: Origin) -> str:
    kind = "annotated" if origin.is_annotation else "made"
    return f"{kind} `{code_of(origin.node, 50)}` at {origin.scope.module.path}:{origin.node.lineno}"
