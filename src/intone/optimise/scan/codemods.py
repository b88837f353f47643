"""What to change for a finding where that follows from the code alone; fixes.py makes patches of it."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from intone.optimise.scan.devicekinds import device_evidence
from intone.optimise.scan.expressions import called, keyword, last_name
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.scaling import count_of
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import backward_loss, chooses_token, token_passes


@dataclass
class Fix:
    """A change of one file. expressions: node -> its new code. statements: node -> the lines that take its place."""

    expressions: dict[ast.expr, str] = field(default_factory=dict)
    statements: dict[ast.stmt, list[str]] = field(default_factory=dict)
    decorators: dict[ast.AST, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)


def _code(scope: Scope, node: ast.AST) -> str:
    """An expression as the file spells it."""
    return ast.get_source_segment(scope.module.text, node) or ast.unparse(node)


Codemod = Callable[[ast.AST, Scope, Project], "Fix | str"]  # a text says why it has to be done by hand


def device_comparison(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """device == "cuda" -> device.type == "cuda"; torch.device(device).type where it may be a string too."""
    if isinstance(node, ast.Compare):
        left, right = node.left, node.comparators[0]
        value = right if isinstance(left, ast.Constant) else left
        inside = isinstance(node.ops[0], (ast.In, ast.NotIn)) and isinstance(left, ast.Constant)
        words, op = (left if value is right else right), node.ops[0]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return Fix({node.func.value: _type_of(node.func.value, scope, project)}, imports=_torch(scope))
    else:
        return "a match statement: match on device.type"
    kind = _type_of(value, scope, project)
    if inside:
        sign = "!=" if isinstance(op, ast.NotIn) else "=="
        return Fix({node: f"{kind} {sign} {_code(scope, words)}"}, imports=_torch(scope))
    if isinstance(op, (ast.Is, ast.IsNot)):
        sign = "!=" if isinstance(op, ast.IsNot) else "=="
        return Fix({node: f"{kind} {sign} {_code(scope, words)}"}, imports=_torch(scope))
    return Fix({value: kind}, imports=_torch(scope))


def _type_of(value: ast.expr, scope: Scope, project: Project) -> str:
    _, strings = device_evidence(value, scope, project)
    text = _code(scope, value)
    return f"torch.device({text}).type" if strings else f"{text}.type"


def _torch(scope: Scope) -> set[str]:
    return set() if scope.module.imports.get("torch") == "torch" else {"torch"}


def weights_only(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """torch.load(...) -> torch.load(..., weights_only=True); yaml.load -> yaml.safe_load."""
    if not isinstance(node, ast.Call):
        return "no call"
    name = called(node, scope)
    if name == "torch.load":
        only = keyword(node, "weights_only")
        if only is not None:
            return Fix({only: "True"})
        return Fix({node: _with_keyword(scope, node, "weights_only", "True")})
    if name.startswith("yaml.") and isinstance(node.func, ast.Attribute):
        return Fix({node: f"{_code(scope, node.func.value)}.safe_load({_code(scope, node.args[0])})"})
    return "keep weights as safetensors and the rest as JSON instead of a pickle, and convert old files once"


def _with_keyword(scope: Scope, call: ast.Call, name: str, value: str) -> str:
    parts = [_code(scope, arg) for arg in call.args]
    parts += [
        f"{word.arg}={_code(scope, word.value)}" if word.arg else f"**{_code(scope, word.value)}"
        for word in call.keywords
    ]
    return f"{_code(scope, call.func)}({', '.join([*parts, f'{name}={value}'])})"


def no_grad(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """@torch.no_grad() on the function that evaluates."""
    if not isinstance(scope.node, (ast.FunctionDef, ast.AsyncFunctionDef)) or list(_loops_here(scope, project)):
        return "the evaluation stands in the training loop: put its forward passes in `with torch.no_grad():`"
    return Fix(decorators={scope.node: "torch.no_grad()"}, imports=_torch(scope))


def _loops_here(scope: Scope, project: Project) -> list[TrainLoop]:
    return [loop for loop in train_loops(scope.module, project) if loop.scope is scope]


def draw_per_row(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """[tokens[0]] * n -> tokens, with the probabilities of the draw expanded to n rows before it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        copied, count = (node.left, node.right) if isinstance(node.left, ast.List) else (node.right, node.left)
        token = copied.elts[0] if isinstance(copied, ast.List) else None
        value = token.value if isinstance(token, ast.Subscript) else None
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and last_name(node.func) in ("expand", "repeat")
        and node.args
    ):
        value, count = node.func.value, node.args[0]
    else:
        value, count = None, None
    hand = "draw from probabilities of shape (rows, vocabulary): expand the logits of the prompt before sampling"
    if value is None or count is None:
        return hand
    draws = {
        origin.node
        for origin in project.origins(
            value,
            scope,
            token_passes,
            stops=lambda at: isinstance(at.node, ast.Call) and chooses_token(at.node, at.scope),
        )
        if isinstance(origin.node, ast.Call) and origin.scope is scope and not scope.module.loops_around(origin.node)
    }
    if len(draws) != 1:
        return hand
    draw = draws.pop()
    assert isinstance(draw, ast.Call)
    if not draw.args or not isinstance(draw.args[0], ast.Name):
        return hand
    fix = Fix({draw.args[0]: f"{_code(scope, draw.args[0])}.expand({_code(scope, count)}, -1)"})
    line = _statement(scope.module, node)
    assert isinstance(node, ast.expr)
    if isinstance(line, ast.Assign) and line.value is node and _code(scope, line.targets[0]) == _code(scope, value):
        # tokens = [tokens[0]] * n has nothing left to do
        block = getattr(scope.module.parents.get(line), "body", [])
        fix.statements[line] = [] if len(block) > 1 else ["pass"]
    else:
        fix.expressions[node] = _code(scope, value)
    return fix


def pin_first(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """x.to(device).pin_memory() -> x.pin_memory().to(device, non_blocking=True)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        copy = node.func.value
        assert isinstance(copy.func, ast.Attribute)
        pinned = ast.Call(ast.Attribute(copy.func.value, "pin_memory", ast.Load()), [], [])
        moved = ast.Call(ast.Attribute(pinned, copy.func.attr, ast.Load()), copy.args, copy.keywords)
        return Fix({node: ast.unparse(ast.fix_missing_locations(moved))})
    return "make the tensor on the host and pin it, or leave pin_memory out"


def unscale_first(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """scaler.unscale_(optimizer) before clip_grad_norm_."""
    names = _scaler_and_optimizer(scope)
    line = _statement(scope.module, node)
    if names is None or not isinstance(line, ast.Expr | ast.Assign):
        return "call scaler.unscale_(optimizer) before the gradients are clipped"
    return Fix(statements={line: [f"{names[0]}.unscale_({names[1]})", _code(scope, line)]})


def step_by_scaler(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """optimizer.step() -> scaler.step(optimizer); scaler.update()."""
    names = _scaler_and_optimizer(scope)
    line = _statement(scope.module, node)
    if names is None or not isinstance(line, ast.Expr) or not isinstance(node, ast.Call):
        return "step through the scaler: scaler.step(optimizer), then scaler.update()"
    assert isinstance(node.func, ast.Attribute)
    return Fix(statements={line: [f"{names[0]}.step({_code(scope, node.func.value)})", f"{names[0]}.update()"]})


def _scaler_and_optimizer(scope: Scope) -> tuple[str, str] | None:
    scaler = next(
        (
            _code(scope, c.func.value)
            for c in scope.calls
            if last_name(c.func) == "scale" and isinstance(c.func, ast.Attribute)
        ),
        None,
    )
    optimizer = next(
        (_code(scope, c.args[0]) for c in scope.calls if last_name(c.func) == "step" and c.args), "optimizer"
    )
    return (scaler, optimizer) if scaler else None


def scaled_loss(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """loss.backward() -> (loss / n).backward() where the loop says how many micro-batches there are."""
    assert isinstance(node, ast.Call)
    loss = backward_loss(node)
    loops = [loop for loop in _loops_here(scope, project) if node in [item.node for item in loop.backwards]]
    count = count_of(loops[0], project) if loops else None
    if loss is None or count is None or count[1] is not scope:
        return "divide the loss by the number of micro-batches before backward"
    return Fix({loss: f"({_code(scope, loss)} / {_code(scope, count[0])})"})


def write_then_rename(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """torch.save(x, path) -> torch.save(x, temporary); os.replace(temporary, path)."""
    line = _statement(scope.module, node)
    hand = "write to a temporary name in the same folder, flush, then os.replace"
    if (
        not isinstance(node, ast.Call)
        or not isinstance(line, ast.Expr)
        or line.value is not node
        or len(node.args) != 2
    ):
        return hand
    target = node.args[1]
    handle = isinstance(target, ast.Name) and any(b.how == "with" for b in scope.bindings.get(target.id, []))
    if handle or any(isinstance(above, ast.Lambda) for above in scope.module.up(node)):
        return hand
    final = _code(scope, target)
    lines = [] if isinstance(target, ast.Name) else [f"final_path = {final}"]
    name = final if isinstance(target, ast.Name) else "final_path"
    rest = "".join(f", {word.arg}={_code(scope, word.value)}" for word in node.keywords)
    lines += [
        f'temporary_path = f"{{{name}}}.tmp"',
        f"{_code(scope, node.func)}({_code(scope, node.args[0])}, temporary_path{rest})",
        f"os.replace(temporary_path, {name})",
    ]
    return Fix(statements={line: lines}, imports=set() if scope.module.imports.get("os") == "os" else {"os"})


def sort_files(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """os.listdir(x) -> sorted(os.listdir(x))."""
    assert isinstance(node, ast.expr)
    return Fix({node: f"sorted({_code(scope, node)})"})


def steady_hash(node: ast.AST, scope: Scope, project: Project) -> Fix | str:
    """hash(x) % n -> zlib.crc32(str(x).encode()) % n."""
    found = next(
        (part for part in ast.walk(node) if isinstance(part, ast.Call) and last_name(part.func) == "hash"), None
    )
    if found is None:
        return "use hashlib"
    imports = set() if scope.module.imports.get("zlib") == "zlib" else {"zlib"}
    return Fix({found: f"zlib.crc32(str({_code(scope, found.args[0])}).encode())"}, imports=imports)


def _statement(module: Module, node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.stmt):
        return node
    return next((above for above in module.up(node) if isinstance(above, ast.stmt)), None)


CODEMODS: Mapping[str, Codemod] = {
    "S01": draw_per_row,
    "S33": device_comparison,
    "S37": pin_first,
    "S45": no_grad,
    "S52": scaled_loss,
    "S55": unscale_first,
    "S56": step_by_scaler,
    "S60": write_then_rename,
    "S61": weights_only,
    "S76": sort_files,
    "S77": steady_hash,
}
