"""Rules on waiting for the device: reading a value back stops the queue of work until everything before it is done."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.loops import Loop, decode_loops, is_inside, is_periodic, train_loops
from intone.optimise.scan.project import Project, called, code_of, last_name, names_in, owner_of
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Binding, Module, Scope, own_nodes, target_name
from intone.optimise.scan.values import LOSS_NAME, chooses_token, is_model_call, is_module_class

READS = ("item", "tolist", "cpu", "numpy")
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
    if _is_cpu_only(module):
        return
    for loop in train_loops(module, project):
        inner, outer = loop.inner, loop.outer or loop.inner
        if inner is None or outer is None:
            continue
        reads = [
            (node, what)
            for node, what in _reads(outer, loop.scope, project)
            if not is_periodic(node, outer, module) and not _in_evaluation(node, outer, module)
        ]
        micro = [(node, what) for node, what in reads if is_inside(node, inner, module)]
        step = [(node, what) for node, what in reads if not is_inside(node, inner, module)]
        if micro:
            every = "micro-batch" if loop.accumulates else "step"
            yield _place(
                micro,
                f"waits for the device at every {every}",
                "medium" if loop.accumulates or len(micro) > 1 else "low",
            )
        elif len(step) > 1:
            yield _place(step, f"waits for the device {len(step)} times at every optimizer step", "low")


def _place(reads: list[tuple[ast.AST, str]], words: str, severity: str) -> Place:
    node, what = reads[0]
    lines = [f"line {other.lineno}: {text}" for other, text in reads[:5]]  # type: ignore[attr-defined]
    return Place(node, f"`{what}` {words}", tuple(lines), severity=severity)  # type: ignore[arg-type]


def _is_cpu_only(module: Module) -> bool:
    """Whether a file sets its device to the CPU and nothing else."""
    return bool(re.search(r"device\s*=\s*(torch\.device\()?[\"']cpu[\"']", module.text)) and "cuda" not in module.text


def _in_evaluation(node: ast.AST, outer: Loop, module: Module) -> bool:
    """Inside `with torch.no_grad()` in the loop: an evaluation, which comes only now and then."""
    for above in module.up(node):
        if above is outer:
            return False
        if isinstance(above, ast.With) and re.search(
            r"no_grad|inference_mode", " ".join(ast.unparse(i) for i in above.items)
        ):
            return True
    return False


def _reads(loop: Loop, scope: Scope, project: Project) -> Iterator[tuple[ast.AST, str]]:
    """The places in a loop that read a device tensor's value, each with its code."""
    for node in own_nodes(loop):
        if not isinstance(node, ast.Call):
            continue
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in READS and not node.args:
            if _on_device(func.value, scope, project, 5) and not _inside_read(node, scope):
                yield node, code_of(node, 40)
        elif isinstance(func, ast.Name) and func.id in ("float", "int", "bool") and len(node.args) == 1:
            if _on_device(node.args[0], scope, project, 5) and not _has_read(node.args[0]):
                yield node, code_of(node, 40)
        elif (
            isinstance(func, ast.Name)
            and func.id in ("print", "print0", "tqdm_write")
            or last_name(func) in ("set_postfix", "set_description")
        ):
            for arg in [*node.args, *(word.value for word in node.keywords)]:
                for part in _printed(arg):
                    if _on_device(part, scope, project, 5) and not _has_read(part):
                        yield node, f"{last_name(func)}({code_of(part, 20)})"
                        break
        elif called(node, scope) == "torch.cuda.synchronize":
            yield node, "torch.cuda.synchronize()"


def _printed(arg: ast.expr) -> list[ast.expr]:
    if isinstance(arg, ast.JoinedStr):
        return [part.value for part in arg.values if isinstance(part, ast.FormattedValue)]
    return [arg]


def _has_read(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) in READS for part in ast.walk(node))


def _inside_read(node: ast.Call, scope: Scope) -> bool:
    """x.cpu().numpy(): one wait, told once."""
    above = scope.module.parents.get(node)
    outer = scope.module.parents.get(above) if above else None
    return isinstance(above, ast.Attribute) and above.attr in READS and isinstance(outer, ast.Call)


def _on_device(node: ast.expr, scope: Scope, project: Project, depth: int) -> bool:
    """Whether a value is, as far as the code shows, a tensor of the device: a loss, or made from a model's output."""
    if depth == 0:
        return False
    if isinstance(node, ast.Call):
        last = last_name(node.func)
        if is_model_call(node, scope, project) or chooses_token(node, scope, greedy=True):
            return True
        if last in ("item", "tolist", "cpu", "numpy", "len", "perf_counter", "time", "get_last_lr", "float", "int"):
            return False
        name = called(node, scope)
        if name in (
            "torch.nn.functional.cross_entropy",
            "torch.nn.utils.clip_grad_norm_",
            "torch.nn.functional.nll_loss",
        ):
            return True
        inside: list[ast.expr] = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        args = node.args if name.startswith("torch.") and not name.startswith("torch.tensor") else []
        return any(_on_device(part, scope, project, depth) for part in [*inside, *args])
    if isinstance(node, ast.BinOp):
        return _on_device(node.left, scope, project, depth) or _on_device(node.right, scope, project, depth)
    if isinstance(node, ast.UnaryOp):
        return _on_device(node.operand, scope, project, depth)
    if isinstance(node, ast.Compare):
        return any(_on_device(part, scope, project, depth) for part in [node.left, *node.comparators])
    if isinstance(node, ast.Subscript):
        return _on_device(node.value, scope, project, depth)
    if isinstance(node, ast.Attribute) and node.attr in ("loss", "logits"):
        return True
    bound = target_name(node)
    if bound is None:
        return False
    bindings = _bindings(bound, scope)
    if any(_from_host(binding, scope) for binding in bindings if binding.how == "="):
        return False
    if any(_on_device(b.value, scope, project, depth - 1) for b in bindings if b.how in ("=", "part", "op")):
        return True
    computed = any(isinstance(b.value, ast.Call) or b.how == "part" for b in bindings)
    return computed and bool(LOSS_NAME.search(bound))


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
        reads = [
            (node, what)
            for node, what in _reads(decode.loop, decode.scope, project)
            if node not in seen and not is_periodic(node, decode.loop, module)
        ]
        reads += [
            (call, code_of(call, 40))
            for call in own_nodes(decode.loop)
            if isinstance(call, ast.Call)
            and last_name(call.func) in ("item", "tolist")
            and not call.args
            and isinstance(call.func, ast.Attribute)
            and call not in seen
            and call not in [node for node, _ in reads]
            and _is_token(call.func.value, decode.scope, project)
        ]
        seen.update(node for node, _ in reads)
        if reads:
            yield _place(reads, "waits for the device at every token", "medium")


def _is_token(node: ast.expr, scope: Scope, project: Project) -> bool:
    from intone.optimise.scan.values import is_chosen

    return is_chosen(node, scope, project, greedy=True)


@rule(
    "S32",
    "a forward pass waits for the device",
    kind="host-sync",
    severity="medium",
    why="A value read inside the model waits for the device in every layer or pass, and breaks compiled "
    "code into pieces.",
    fix="Keep lengths and positions as Python numbers beside the tensors, or as tensors all the way; hand them in.",
    source=SOURCE,
)
def sync_in_forward(module: Module, project: Project) -> Iterator[Place]:
    """.item() or .tolist() in a module's forward, or in what it calls to run."""
    for scope in module.scopes[1:]:
        if not _runs_in_forward(scope, project):
            continue
        for call in scope.calls:
            if last_name(call.func) not in ("item", "tolist") or call.args or not isinstance(call.func, ast.Attribute):
                continue
            if is_periodic(call, scope.node, module) or _has_word(call.func.value, "numpy|np"):
                continue
            yield Place(call, f"`{code_of(call, 40)}` is read in every forward pass", (_how_reached(scope, project),))
            break


def _runs_in_forward(scope: Scope, project: Project, depth: int = 2) -> bool:
    """Whether a function is forward of a module, or is called from one (two calls deep)."""
    owner = owner_of(scope)
    if scope.simple_name == "forward" and owner is not None and is_module_class(owner):
        return True
    if depth == 0 or scope.simple_name in ("<lambda>", "__init__", "generate") or scope.simple_name == "<module>":
        return False
    if len(project.functions.get(scope.simple_name, [])) > 2:
        return False
    callers = [site.scope for site in project.sites.get(scope.simple_name, []) if site.scope is not scope]
    return any(_runs_in_forward(caller, project, depth - 1) for caller in callers)


def _how_reached(scope: Scope, project: Project) -> str:
    if scope.simple_name == "forward":
        return "in forward itself"
    sites = [site for site in project.sites.get(scope.simple_name, []) if _runs_in_forward(site.scope, project, 1)]
    return f"called at {sites[0].scope.module.path}:{sites[0].call.lineno}" if sites else "called from forward"


def _has_word(node: ast.expr, words: str) -> bool:
    return any(re.fullmatch(words, name.partition(".")[0]) for name in names_in(node))
