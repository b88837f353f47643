"""Rules on waiting for the device: reading a value back stops the queue of work until everything before it is done."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, last_name
from intone.optimise.scan.loops import interval_of_one, is_periodic, train_loops
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, inner_loops, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Binding, Module, Scope, target_name
from intone.optimise.scan.values import LOSS_NAME, chooses_token, is_model_call

READS = ("item", "tolist", "cpu", "numpy")
NO_GRAD = re.compile(r"no_grad|inference_mode")
# what turns a tensor that it is handed into text or a number at once
SHOWS = (
    "print", "print0", "tqdm_write", "set_postfix", "set_description", "add_scalar", "add_scalars", "info", "debug",
    "warning", "log_metric", "log_metrics", "report_scalar",
)  # fmt: skip
# what gives a number or a copy on the host
HOST = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "len",
    "perf_counter",
    "time",
    "get_last_lr",
    "float",
    "int",
    "size",
    "dim",
    "numel",
)
LOSSES = (
    "torch.nn.functional.cross_entropy", "torch.nn.utils.clip_grad_norm_", "torch.nn.functional.nll_loss",
    "torch.nn.functional.mse_loss", "torch.nn.functional.kl_div",
)  # fmt: skip
DEPTH = 12  # names and calls on the way back to the model's output; guess
SOURCE = "optimiser.md D5; nanochat-facts.md 4.1.3"


@rule(
    "S30",
    "a training loop waits for the device",
    kind="host-sync",
    severity="medium",
    why="Reading a tensor's value (.item(), float(), print) waits until all kernels before it are done; the "
    "device then idles "
    "while Python prepares the next ones.",
    fix="Add up on the device and read once every few steps, behind the same test as the log line.",
    source=SOURCE,
)
def sync_in_training(module: Module, project: Project) -> Iterator[Place]:
    """Values of device tensors read at every micro-batch, or more than once per step, not behind a counter."""
    if _is_cpu_only(module, project):
        return
    for loop in train_loops(module, project):
        reads = [
            (item, what)
            for item, what in _reads(loop.step_turn(project), project)
            if not is_periodic(item, loop.around, project) and not _in_evaluation(item, loop.around)
        ]
        micro = [(item, what) for item, what in reads if loop.in_inner(item)]
        step = [(item, what) for item, what in reads if not loop.in_inner(item)]
        if micro:
            every = "micro-batch" if loop.accumulates else "step"
            one = interval_of_one(micro[0][0], loop.around, project)
            yield _place(
                micro,
                f"waits for the device at every {every}",
                "medium" if loop.accumulates or len(micro) > 1 else "low",
                *([f"`{one}` holds at every turn: the interval is 1"] if one else []),
            )
        elif len(step) > 1 or any(item.chain for item, _ in step):
            times = f"{len(step)} times" if len(step) > 1 else "once"
            one = interval_of_one(step[0][0], loop.around, project)
            more = [f"`{one}` holds at every turn: the interval is 1"] if one else []
            yield _place(step, f"waits for the device {times} at every optimizer step", "low", *more)


def _place(reads: list[tuple[Reached, str]], words: str, severity: str, *more: str) -> Place:
    item, what = reads[0]
    lines = [f"{other.scope.module.path}:{other.line}: {text}" for other, text in reads[:5]]
    lines += more
    if item.chain:
        lines.append(item.path())
    return Place(item.node, f"`{what}` {words}", tuple(lines), severity=severity, scope=item.scope)  # type: ignore[arg-type]


def _is_cpu_only(module: Module, project: Project) -> bool:
    """Whether a file sets its device to the CPU, and no file of its program names another one."""
    sets = any(
        isinstance(node, ast.Assign)
        and any((target_name(target) or "").endswith("device") for target in node.targets)
        and re.fullmatch(r"(torch\.device\()?['\"]cpu['\"]\)?", ast.unparse(node.value))
        for node in ast.walk(module.tree)
    )
    return sets and not any("cuda" in other.text for other in neighbours(module, project))


def _in_evaluation(item: Reached, outer: ast.AST) -> bool:
    """Inside no_grad in the loop, by a block or a decorator: an evaluation, which comes only now and then."""
    for site_scope in (item.scope, *(site.scope for site in item.chain[1:])):
        decorators = getattr(site_scope.node, "decorator_list", [])
        if item.chain and any(NO_GRAD.search(ast.unparse(decorator)) for decorator in decorators):
            return True
    for _, above, _ in item.up():
        if above is outer:
            return False
        if isinstance(above, ast.With) and NO_GRAD.search(" ".join(ast.unparse(i) for i in above.items)):
            return True
    return False


def _reads(items: Sequence[Reached], project: Project) -> Iterator[tuple[Reached, str]]:
    """What reads a device tensor's value among what a loop runs, each with its code."""
    for item in items:
        if _is_forward(item):
            continue
        what = None
        if isinstance(item.node, ast.Call):
            what = _read_by(item.node, item.scope, project)
        elif isinstance(item.node, (ast.If, ast.While, ast.Assert, ast.IfExp)):
            what = _tested(item.node.test, item.scope, project)
        elif isinstance(item.node, ast.FormattedValue):
            what = _formatted(item.node.value, item.scope, project)
        if what:
            yield item, what


def _is_forward(item: Reached) -> bool:
    """Inside a module's forward: the rule on forward passes tells it."""
    return item.is_in_forward


def _read_by(node: ast.Call, scope: Scope, project: Project) -> str | None:
    """The code of a call that reads a device tensor's value, or None."""
    func = node.func
    if isinstance(func, ast.Attribute) and func.attr in READS and not node.args:
        func = _without_copy(func)
        if _on_device(func.value, scope, project, DEPTH) and not _inside_read(node, scope):
            return code_of(node, 40)
    elif isinstance(func, ast.Name) and func.id in ("float", "int", "bool") and len(node.args) == 1:
        if _on_device(node.args[0], scope, project, DEPTH) and not _has_read(node.args[0]):
            return code_of(node, 40)
    elif called(node, scope) in ("torch.cuda.synchronize", "torch.mps.synchronize"):
        if re.search(r"bench|profil|warm", f"{scope.name} {scope.module.path}"):
            return None  # a measurement has to wait
        return f"{code_of(func, 40)}()"
    elif called(node, scope) in ("math.isnan", "math.isfinite", "math.isinf", "math.exp", "math.log") and node.args:
        if _on_device(node.args[0], scope, project, DEPTH) and not _has_read(node.args[0]):
            return code_of(node, 40)
    elif last_name(func) in SHOWS or (last_name(func) == "log" and node.args and isinstance(node.args[0], ast.Dict)):
        for arg in [*node.args, *(word.value for word in node.keywords)]:
            for part in _printed(arg):
                if _on_device(part, scope, project, DEPTH) and not _has_read(part):
                    return f"{last_name(func)}({code_of(part, 20)})"
    return None


def _without_copy(func: ast.Attribute) -> ast.Attribute:
    """loss.detach().cpu().item -> loss.detach().cpu: the first of several reads in a chain."""
    inside = func.value
    if isinstance(inside, ast.Call) and isinstance(inside.func, ast.Attribute) and inside.func.attr in READS:
        return _without_copy(inside.func)
    return func


def _formatted(value: ast.expr, scope: Scope, project: Project) -> str | None:
    """f"{loss:.3f}": to write a tensor into a text is to read it."""
    if _has_read(value) or not _on_device(value, scope, project, DEPTH):
        return None
    return f"f'{{{code_of(value, 30)}}}'"


def _tested(test: ast.expr, scope: Scope, project: Project) -> str | None:
    """if loss > limit, while not done.all(), assert torch.isfinite(loss): a tensor asked for its truth."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _tested(test.operand, scope, project)
    if isinstance(test, ast.BoolOp):
        return next((what for part in test.values if (what := _tested(part, scope, project))), None)
    if isinstance(test, ast.Compare):
        if any(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in test.ops):
            return None
        sides = [test.left, *test.comparators]
        device = any(_is_tensor(side, scope, project) for side in sides) and not _has_read(test)
        return f"if {code_of(test, 40)}" if device else None
    if isinstance(test, ast.Call) and not _has_read(test):
        last = last_name(test.func)
        if last in ("all", "any", "isfinite", "isnan", "isinf", "equal") and _is_tensor(test, scope, project):
            return f"if {code_of(test, 40)}"
    return None


def _is_tensor(node: ast.expr, scope: Scope, project: Project) -> bool:
    """A tensor on the device by what it is made of, not only by a name like loss: that may be a number by now."""
    if isinstance(node, (ast.Attribute, ast.Constant)):
        return False
    return _on_device(node, scope, project, DEPTH, by_name=False)


def _printed(arg: ast.expr) -> list[ast.expr]:
    if isinstance(arg, ast.JoinedStr):
        return [part.value for part in arg.values if isinstance(part, ast.FormattedValue)]
    if isinstance(arg, ast.Dict):
        return [part for part in arg.values if part is not None]
    if isinstance(arg, ast.BinOp) and isinstance(arg.op, ast.Mod):  # "loss %f" % loss
        return arg.right.elts if isinstance(arg.right, ast.Tuple) else [arg.right]
    if isinstance(arg, ast.Call) and last_name(arg.func) == "format":
        return list(arg.args)
    return [arg]


def _has_read(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) in READS for part in ast.walk(node))


def _inside_read(node: ast.Call, scope: Scope) -> bool:
    """x.cpu().numpy(): one wait, told once."""
    above = scope.module.parents.get(node)
    outer = scope.module.parents.get(above) if above else None
    return isinstance(above, ast.Attribute) and above.attr in READS and isinstance(outer, ast.Call)


def _on_device(node: ast.expr, scope: Scope, project: Project, depth: int, *, by_name: bool = True) -> bool:
    """Whether a value is, as far as the code shows, a tensor of the device: a loss, or made from a model's output.

    by_name: a computed value that is called a loss counts.
    """
    if depth == 0:
        return False
    known = project.known_device
    if (node, by_name) not in known:
        known[node, by_name] = False  # a value that is made of itself
        found = _is_made_on_device(node, scope, project, depth, by_name)
        if not found and depth < DEPTH // 2:
            del known[node, by_name]  # perhaps only not deep enough
            return False
        known[node, by_name] = found
    return known[node, by_name]


def _is_made_on_device(node: ast.expr, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    def again(part: ast.expr, left: int = depth) -> bool:
        return _on_device(part, scope, project, left, by_name=by_name)

    if isinstance(node, ast.Call):
        return _call_on_device(node, scope, project, depth, by_name)
    if isinstance(node, ast.BinOp):
        return again(node.left) or again(node.right)
    if isinstance(node, ast.UnaryOp):
        return again(node.operand)
    if isinstance(node, ast.Compare):
        return any(again(part) for part in [node.left, *node.comparators])
    if isinstance(node, (ast.Tuple, ast.List)):
        return any(again(part) for part in node.elts)
    if isinstance(node, ast.Subscript):
        return again(node.value)
    if isinstance(node, ast.IfExp):
        return again(node.body) or again(node.orelse)
    if isinstance(node, ast.Attribute) and node.attr in ("loss", "logits"):
        return by_name
    bound = target_name(node)
    if bound is None:
        return False
    bindings = _bindings(bound, scope)
    if any(_from_host(binding, scope) for binding in bindings if binding.how == "="):
        return False
    if any(again(b.value, depth - 1) for b in bindings if b.how in ("=", "part", "op")):
        return True
    if not bindings and _handed_over(bound, scope, project, depth, by_name):
        return True
    computed = any(isinstance(b.value, ast.Call) or b.how == "part" for b in bindings)
    return by_name and computed and bool(LOSS_NAME.search(bound))


def _call_on_device(node: ast.Call, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    last = last_name(node.func)
    if is_model_call(node, scope, project) or chooses_token(node, scope, greedy=True):
        return True
    if last in HOST:
        return False
    name = called(node, scope)
    if name in LOSSES:
        return True
    for function in project.callees(node, scope)[:2]:
        if any(_on_device(value, function, project, depth - 1, by_name=by_name) for value in function.returns[:4]):
            return True
    inside: list[ast.expr] = [node.func.value] if isinstance(node.func, ast.Attribute) else []
    args = node.args if name.startswith("torch.") and not name.startswith("torch.tensor") else []
    return any(_on_device(part, scope, project, depth, by_name=by_name) for part in [*inside, *args])


def _handed_over(name: str, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    """A parameter that callers hand a device tensor."""
    if name not in scope.parameters:
        return False
    for site in project.callers(scope)[:4]:
        value = project.argument(site, scope, name)
        if value is not None and _on_device(value, site.scope, project, depth - 1, by_name=by_name):
            return True
    return False


def _bindings(name: str, scope: Scope) -> list[Binding]:
    at: Scope | None = scope
    while at is not None:
        if name in at.bindings:
            return at.bindings[name]
        at = at.outer
    return []


def _from_host(binding: Binding, scope: Scope) -> bool:
    """The name holds a Python number somewhere: it was read before."""
    value = binding.value
    if isinstance(value, ast.Call) and last_name(value.func) in ("float", "int", "len", "sum", "perf_counter", "time"):
        return True
    return _has_read(value)


@rule(
    "S31",
    "generation waits for the device at every token",
    kind="host-sync",
    severity="medium",
    why="The next token's kernels are only started after this one's value came back, so the device idles "
    "between tokens.",
    fix="Keep the tokens, the stop test and the lengths on the device; read results one step late or every few tokens.",
    source=SOURCE,
)
def sync_in_decoding(module: Module, project: Project) -> Iterator[Place]:
    """Values read inside a loop that generates token by token."""
    seen: set[ast.AST] = set()
    for decode in decode_loops(module, project):
        turn = [
            item for item in reached(decode.loop, decode.scope, project)
            if isinstance(item.node, ast.Call) and item.node not in seen and not is_periodic(item, decode.loop, project)
        ]  # fmt: skip
        reads = list(_reads(turn, project))
        told = [item.node for item, _ in reads]
        reads += [
            (item, code_of(item.node, 40)) for item in turn
            if item.node not in told and not _is_forward(item) and _reads_token(item, project)
        ]  # fmt: skip
        reads = [(item, what) for item, what in reads if len(inner_loops(item, decode.loop)) <= 1]
        seen.update(item.node for item, _ in reads)
        if reads:
            reads.sort(key=lambda read: (len(read[0].chain), read[0].line))
            yield _place(reads, "waits for the device at every token", "medium")


def _reads_token(item: Reached, project: Project) -> bool:
    call = item.node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.args:
        return False
    return call.func.attr in ("item", "tolist", "cpu") and _is_token(call.func.value, item.scope, project)


def _is_token(node: ast.expr, scope: Scope, project: Project) -> bool:
    from intone.optimise.scan.values import is_chosen

    return is_chosen(node, scope, project, greedy=True)
