"""Which values lie on the device, as far as the code shows: losses, what a model gave, what was copied there."""

import ast
import re

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.classes import class_methods
from intone.optimise.scan.expressions import called, keyword, last_name, text_of
from intone.optimise.scan.origins import back_from_member
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Binding, Scope, target_name, walk
from intone.optimise.scan.values import LOSS_NAME, chooses_token, is_model_call, is_model_name

DEPTH = 12  # names and calls on the way back to the model's output; guess
# what reads a tensor's value
READS = ("item", "tolist", "cpu", "numpy")
# what gives a number or a copy on the host
HOST = {
    *READS, "len", "perf_counter", "time", "get_last_lr", "float", "int", "bool", "str", "size", "dim", "numel",
    "nelement", "element_size", "stride", "data_ptr", "is_floating_point", "get_device", "is_contiguous", "keys",
    "hash", "id", "isinstance", "hasattr", "type",
}  # fmt: skip
LOSSES = (
    "torch.nn.functional.cross_entropy", "torch.nn.utils.clip_grad_norm_", "torch.nn.functional.nll_loss",
    "torch.nn.functional.mse_loss", "torch.nn.functional.kl_div", "torch.nn.utils.get_total_norm",
)  # fmt: skip
DEVICE_NAME = re.compile(r"(^|[._])(device|dev|cuda|gpu)(_\w+)?$|^(local_)?rank$", re.I)
ROWS = ("argmax", "softmax", "topk", "unbind", "split", "chunk", "flatten", "view", "detach", "squeeze", "sum", "mean")
# methods of accelerate, Lightning's fabric and the like that hand on what all processes have of a tensor
EXCHANGES = ("gather", "gather_for_metrics", "all_gather", "all_reduce", "reduce", "pad_across_processes")
WALKS = ("items", "values", "enumerate", "zip", "list", "tuple", "reversed", "iter", "tqdm", "trange", "track")
# what a tensor, or what a model gave, knows about itself on the host
KNOWN_ON_HOST = (
    "shape", "device", "dtype", "ndim", "is_cuda", "requires_grad", "layout", "itemsize", "nbytes", "training",
    "config", "grad_fn", "is_leaf", "names", "past_key_values",
)  # fmt: skip

# attributes that are the tensor, or parts of it
SEEN_AS = ("T", "mT", "H", "data", "real", "imag", "values", "indices")


def on_device(node: ast.expr, scope: Scope, project: Project, depth: int = DEPTH, *, by_name: bool = True) -> bool:
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


def is_tensor(node: ast.expr, scope: Scope, project: Project) -> bool:
    """A tensor on the device by what it is made of, not only by a name like loss: that may be a number by now."""
    if isinstance(node, ast.Constant) or isinstance(node, ast.Attribute) and node.attr in ("grad", *KNOWN_ON_HOST):
        return False
    return on_device(node, scope, project, by_name=False)


def has_read(node: ast.AST) -> bool:
    """Whether a tensor's value is read somewhere in an expression."""
    return any(isinstance(part, ast.Call) and last_name(part.func) in READS for part in walk(node))


def to_cpu(call: ast.Call) -> bool:
    """x.to("cpu"), x.to(device=torch.device("cpu"))"""
    if last_name(call.func) != "to":
        return False
    wanted = call.args[0] if call.args else keyword(call, "device")
    return wanted is not None and "cpu" in text_of(wanted).replace("torch.device", "")


def _is_made_on_device(node: ast.expr, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    def again(part: ast.expr, left: int = depth) -> bool:
        return on_device(part, scope, project, left, by_name=by_name)

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
    if isinstance(node, ast.Dict):
        return any(again(part) for part in node.values)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return again(node.elt)
    if isinstance(node, ast.DictComp):
        return again(node.value)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return _entry_on_device(node, node.slice.value, scope, project, depth, by_name)
    if isinstance(node, (ast.Subscript, ast.Starred, ast.NamedExpr)):
        return again(node.value)
    if isinstance(node, ast.IfExp):
        return again(node.body) or again(node.orelse)
    if isinstance(node, ast.Attribute) and node.attr == "grad":
        return True
    if isinstance(node, ast.Attribute) and node.attr in ("loss", "logits"):
        given = by_name or _is_given_by_model(node.value, scope, project)
        return given and not _is_plain_field(node, scope, project)
    if isinstance(node, ast.Attribute) and node.attr not in KNOWN_ON_HOST and (
        _is_given_by_model(node.value, scope, project) or node.attr in SEEN_AS and again(node.value)
    ):  # fmt: skip
        return True  # out.hidden_states, x.T
    bound = target_name(node)
    if bound is None:
        return False
    bindings = [pair for pair in _bindings(bound, scope, project) if not _makes_of(node, pair[0])]
    if any(_from_host(binding) for binding, _ in bindings if binding.how == "="):
        return False
    for binding, at in bindings:
        parts = returned_parts(binding, at, project)
        if parts and all(_is_read(part) for part, _ in parts):
            return False
        if parts:  # of a tuple that is handed back only its own part counts
            if any(on_device(part, there, project, depth - 1, by_name=by_name) for part, there in parts):
                return True
            continue
        value = _followed(binding)
        if value is not None and on_device(value, at, project, depth - 1, by_name=by_name):
            return True
        walked_over = walked(binding, at, project)
        if any(on_device(part, there, project, depth - 1, by_name=by_name) for part, there in walked_over):
            return True
    if not bindings and _handed_over(bound, scope, project, depth, by_name):
        return True
    if not bindings and isinstance(node, ast.Attribute) and _is_kept_on_device(node, scope, project, depth, by_name):
        return True
    computed = any(isinstance(b.value, ast.Call) or b.how == "part" for b, _ in bindings)
    return by_name and computed and bool(LOSS_NAME.search(bound))


def _is_given_by_model(node: ast.expr, scope: Scope, project: Project) -> bool:
    """out.loss with out = model(ids)"""
    made = [node] if isinstance(node, ast.Call) else []
    if isinstance(node, ast.Name):
        made = [b.value for b in scope.bindings.get(node.id, []) if b.how == "=" and isinstance(b.value, ast.Call)]
    return any(is_model_call(call, scope, project) for call in made)


def _is_kept_on_device(node: ast.Attribute, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    """state.done, of an object whose class, maker or user puts a device tensor there; no number was read into it."""
    if node.attr in KNOWN_ON_HOST or depth < 2:
        return False
    for place in classes_of(node.value, scope, project)[:2]:
        kept = [one for one in back_from_member(project, place, node.attr, scope) if not one.is_annotation]
        if any(_is_read(one.node) for one in kept):
            return False
        if any(on_device(one.node, one.scope, project, depth - 2, by_name=by_name) for one in kept):
            return True
    return False


def walked(binding: Binding, scope: Scope, project: Project) -> list[tuple[ast.expr, Scope]]:
    """What a loop gets from a generator of the project, or from an object that it walks over: for x, y in feed(rows).

    Of tuples the part that the name is.
    """
    if binding.how != "iter":
        return []
    value, place = binding.value, binding.index
    while isinstance(value, ast.Call) and last_name(value.func) in ("enumerate", "tqdm", "iter") and value.args:
        if last_name(value.func) == "enumerate":
            if place == 0:
                return []
            place = None  # a part of a part: whatever is yielded
        value = value.args[0]
    givers = project.callees(value, scope)[:2] if isinstance(value, ast.Call) else []
    found = [(given, giver) for giver in givers for given in giver.yields]
    if not found:
        ways = [one for at in classes_of(value, scope, project)[:2] for one in class_methods(at, project)]
        for one in ways:
            if one.simple_name == "__iter__":
                found += [(given, one) for given in one.yields]
            elif one.simple_name == "__next__":
                found += [(given, one) for given in one.returns]
    parts = []
    for given, giver in found[:6]:
        cut = isinstance(given, ast.Tuple) and place is not None and place < len(given.elts)
        parts.append((given.elts[place] if cut else given, giver))  # type: ignore[attr-defined]
    return parts


def _makes_of(node: ast.expr, binding: Binding) -> bool:
    """value = value.item(): what the name is given is made of what it was at this very place."""
    return binding.how == "=" and has_read(binding.value) and any(part is node for part in walk(binding.value))


def _entry_on_device(node: ast.Subscript, key: str, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    """stats["loss"]: only what is put into the dict under this key counts, where the code shows its making."""
    name = target_name(node.value)
    bindings = _bindings(name, scope, project) if name is not None else []
    if not bindings and name in scope.parameters and by_name and not project.callers(scope):
        return bool(LOSS_NAME.search(key))  # outputs["loss"] of a hook that a library calls
    if not bindings:
        return on_device(node.value, scope, project, depth, by_name=by_name)
    for binding, at in bindings:
        values: list[ast.expr | None] = [_followed(binding)]
        if isinstance(binding.value, ast.Dict) and binding.how == "=":
            keys = zip(binding.value.keys, binding.value.values, strict=True)
            values = [value for word, value in keys if isinstance(word, ast.Constant) and word.value == key]
        elif binding.how == "add" and isinstance(binding.node, ast.Assign):
            target = binding.node.targets[0]
            same = isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)
            values = [binding.value] if same and target.slice.value == key else []  # type: ignore[attr-defined]
        if any(v is not None and on_device(v, at, project, depth - 1, by_name=by_name) for v in values):
            return True
    return False


def _is_plain_field(node: ast.Attribute, scope: Scope, project: Project) -> bool:
    """row.loss of a class of the project that says that it is a number of Python's: loss: float | None."""
    types = [
        text_of(statement.annotation)
        for _, owner in classes_of(node.value, scope, project)
        for statement in owner.body
        if isinstance(statement, ast.AnnAssign) and target_name(statement.target) == node.attr
    ]
    return bool(types) and all(PLAIN.fullmatch(written) for written in types)


PLAIN = re.compile(r"(Optional\[)?(float|int|str|bool|None|[ |])+\]?")


def returned_parts(binding: Binding, scope: Scope, project: Project) -> list[tuple[ast.expr, Scope]]:
    """loss, count = step(): the parts of the tuples that a function of the project returns for a name, with it."""
    if binding.how != "part" or not isinstance(binding.value, ast.Call) or binding.index is None:
        return []
    return [
        (value.elts[binding.index], function)
        for function in project.callees(binding.value, scope)[:2] for value in function.returns
        if isinstance(value, ast.Tuple) and binding.index < len(value.elts)
    ]  # fmt: skip


def _is_read(node: ast.expr) -> bool:
    """Whether a value was read from the device on the way: float(loss) / n."""
    return has_read(node) or any(
        isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("float", "int")
        for part in walk(node)
    )


def _followed(binding: Binding) -> ast.expr | None:
    """The value that a name has by a binding, or the list, dict or tuple of which it is one part."""
    if binding.how in ("=", "part", "op"):
        return binding.value
    if binding.how == "add":
        return None if last_name(getattr(binding.node, "func", binding.value)) in ("fill_", "copy_") else binding.value
    if binding.how != "iter":
        return None
    value, place = binding.value, binding.index
    while isinstance(value, ast.Call) and (walks := last_name(value.func)) in WALKS:
        if place == 0 and walks in ("enumerate", "items"):
            return None  # a number, a key
        if isinstance(value.func, ast.Attribute):
            value = value.func.value
        elif walks == "zip" and place is not None and place < len(value.args):
            value, place = value.args[place], None
        elif value.args:
            value, place = value.args[0], None
        else:
            return None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ROWS:
        return value  # for token in logits.argmax(-1)
    return value if isinstance(value, (ast.Name, ast.Attribute, ast.Dict, ast.List, ast.Tuple)) else None


def _call_on_device(node: ast.Call, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    last = last_name(node.func)
    if isinstance(node.func, ast.Attribute) and _is_moved_away(node.func.value, scope):
        return False
    if is_model_call(node, scope, project) or chooses_token(node, scope, greedy=True):
        return True
    cast = last in ("float", "int", "bool") and isinstance(node.func, ast.Attribute)  # x.float() stays where it is
    if last in HOST and not cast or to_cpu(node):
        return False
    name = called(node, scope)
    if name in LOSSES and node.args and _is_moved_away(node.args[0], scope):
        return False
    if name in LOSSES or _is_put_there(node, name, scope, project):
        return True
    for function in project.callees(node, scope)[:2]:
        given = [*function.returns[:4], *function.yields[:4]]
        if any(on_device(value, function, project, depth - 1, by_name=by_name) for value in given):
            return True
    inside: list[ast.expr] = [node.func.value] if isinstance(node.func, ast.Attribute) else []
    builtin = isinstance(node.func, ast.Name) and node.func.id in BUILTINS
    of_torch = name.startswith("torch.") and not name.startswith("torch.tensor")
    args = node.args if builtin or of_torch or last in EXCHANGES else []
    if builtin:
        args = [*args, *(word.value for word in node.keywords if word.arg)]
    return any(on_device(part, scope, project, depth, by_name=by_name) for part in [*inside, *args])


BUILTINS = ("sum", "min", "max", "abs", "list", "tuple", "dict", "next", "sorted", "reversed")


def _is_moved_away(node: ast.expr, scope: Scope) -> bool:
    """x = logits.cpu(), and nothing else is called so: what is computed of it is on the host."""
    name = target_name(node) or ""
    if name in scope.parameters:
        return False  # value = value.cpu() reads what was handed over
    made = [b.value for b in scope.bindings.get(name, [])]
    return bool(made) and all(isinstance(one, ast.Call) and (has_read(one) or to_cpu(one)) for one in made)


def _is_put_there(node: ast.Call, name: str, scope: Scope, project: Project) -> bool:
    """x.to(device), x.cuda(), torch.zeros((), device=device): not a model, which is put there too but is no tensor.

    Also where the device has another name: x.to(place), with place = torch.device("cuda", rank).
    """
    if isinstance(node.func, ast.Attribute) and is_model_name(target_name(node.func.value) or ""):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda" and not name.startswith("torch."):
        return True
    wanted = keyword(node, "device")
    if wanted is None and last_name(node.func) == "to" and node.args:
        wanted = node.args[0]
    if wanted is None or not (name.startswith("torch.") or last_name(node.func) == "to"):
        return False
    if isinstance(wanted, ast.Constant):
        return isinstance(wanted.value, str) and wanted.value.startswith("cuda")
    if DEVICE_NAME.search(target_name(wanted) or ""):
        return True
    return any(_names_device(origin.node, origin.scope) for origin in project.origins(wanted, scope, depth=3))


def _names_device(node: ast.expr, scope: Scope) -> bool:
    """The words "cuda:0", f"cuda:{rank}", torch.device("cuda", rank), other.device: a device that is not the host."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith("cuda")
    if isinstance(node, ast.JoinedStr):
        return text_of(node)[2:].startswith("cuda")
    if isinstance(node, ast.Attribute):
        return node.attr == "device"
    return isinstance(node, ast.Call) and called(node, scope) == "torch.device" and "cuda" in text_of(node)


def _handed_over(name: str, scope: Scope, project: Project, depth: int, by_name: bool) -> bool:
    """A parameter, or *args or **kwargs, for which callers hand over a device tensor."""
    if name not in scope.parameters and name not in scope.rest:
        return False
    for site in project.callers(scope)[:4]:
        for value in project.handed(site, scope, name):
            if on_device(value, site.scope, project, depth - 1, by_name=by_name):
                return True
    return False


def _bindings(name: str, scope: Scope, project: Project) -> list[tuple[Binding, Scope]]:
    """What is bound to a name here, in the functions around, or to an attribute in the other methods of the class."""
    at: Scope | None = scope
    while at is not None:
        if name in at.bindings:
            return [(binding, at) for binding in at.bindings[name]]
        if name in at.parameters or name in at.rest:
            return []
        at = at.outer
    owner = project.owner_of(scope) if name.startswith("self.") else None
    methods = class_methods(owner, project) if owner is not None else []
    return [(binding, method) for method in methods for binding in method.bindings.get(name, [])]


def _from_host(binding: Binding) -> bool:
    """The name holds a Python number somewhere: it was read before."""
    value = binding.value
    if not isinstance(value, ast.Call) or has_read(value):
        return has_read(value)
    if last_name(value.func) in ("perf_counter", "time"):
        return True
    # x.float() is a tensor, and float("inf") what a name is until the first value comes
    number = isinstance(value.func, ast.Name) and value.func.id in ("float", "int", "len", "bool", "round")
    return number and not all(isinstance(arg, ast.Constant) for arg in value.args)
