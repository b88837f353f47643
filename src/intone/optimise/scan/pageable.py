"""Which host tensors lie in pageable memory, by how they are made, and by whether anything in their program pins."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, is_false, keyword, last_name, text_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.ondevice import is_tensor
from intone.optimise.scan.options import hides_options, options
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_name

FACTORIES = (
    "tensor", "stack", "from_numpy", "zeros", "empty", "full", "as_tensor", "cat", "ones", "arange", "randint",
    "frombuffer", "LongTensor", "randn", "rand", "randperm", "eye", "linspace", "FloatTensor", "IntTensor", "Tensor",
    "BoolTensor", "hstack", "vstack", "concat", "concatenate", "pad_sequence", "default_collate", "one_hot", "normal",
    "tril", "triu", "logspace", "empty_strided", "from_file", "asarray", "scalar_tensor",
)  # fmt: skip
# functions of libraries that read a file into a tensor or array
READERS = re.compile(
    r"^(torchaudio\.load|torchvision\.io\.\w+|safetensors\.torch\.\w+|torchvision\.transforms\.functional\.\w+|"
    r"soundfile\.read|numpy\.\w+|torch\.load)$"
)
# packages whose loaders pin unless they are told not to, or that hand over batches of the device
PINNERS = ("accelerate", "lightning", "pytorch_lightning", "lightning_fabric", "ffcv", "nvidia", "composer", "fastai")


def pageable(source: ast.expr, call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Why what a copy to the device reads is not in pinned memory, in words; None where it may be pinned."""
    return (
        _unpinned(source, call, scope, project)
        or _made_anew(source, call, scope, project)
        or _never_pinned(source, call, scope, project)
    )


def _unpinned(node: ast.expr, call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Where a tensor is made in pageable memory, or None where it may be pinned."""
    told = None
    for origin in project.origins(node, scope, _copy_passes, depth=6):
        made, at = origin.node, origin.scope
        if made is call or origin.is_annotation or made is node and len(told or "") > 0:
            continue
        if at is scope and (made in scope.returns or call in walk(made)):
            continue  # what this function makes of the copy itself
        if not isinstance(made, ast.Call):
            if isinstance(made, ast.Constant) and made.value is None or _is_loop_variable(made, at):
                continue
            told = _handed_loader(made, at, project)
            if told is None:
                return None
            continue
        name = called(made, at)
        if name.endswith("DataLoader"):
            told = _pageable_loader(made, at, project)
            if told is None:
                return None
        elif last_name(made.func) == "pin_memory" or _may_pin(made, at, project):
            return None
        elif (
            (
                name.startswith("torch.")
                and name.rpartition(".")[2] in FACTORIES
                and not _made_on_device(made, at, project)
            )
            or _is_tokenizer(made)
            or READERS.match(name)
        ):
            told = f"made by {code_of(made, 50)} at {at.module.path}:{made.lineno}"
        else:
            return None
    return told


def _handed_loader(node: ast.expr, scope: Scope, project: Project) -> str | None:
    """for batch in loader, of a loader that nobody here hands in, where no loader that this file makes pins."""
    name = target_name(node)
    if name is None or name not in scope.parameters or not re.search(r"loader|(^|_)dl$|batches$", name):
        return None
    sites = [s for s in project.sites.get("DataLoader", []) if s.scope.module is scope.module]
    told = [_pageable_loader(site.call, site.scope, project) for site in sites]
    return told[0] if told and all(one is not None for one in told) else None


def _is_tokenizer(made: ast.Call) -> bool:
    """tokenizer(texts, return_tensors="pt"), processor.apply_chat_template(..., return_tensors="pt")"""
    wanted = keyword(made, "return_tensors")
    return isinstance(wanted, ast.Constant) and wanted.value in ("pt", "np")


def _is_loop_variable(node: ast.expr, scope: Scope) -> bool:
    """A counter that stands in a tuple beside the batch: for step, batch in enumerate(loader)."""
    return isinstance(node, ast.Name) and any(b.how == "iter" for b in scope.bindings.get(node.id, []))


def _pageable_loader(made: ast.Call, scope: Scope, project: Project) -> str | None:
    if hides_options(made, scope, project):
        return None
    said = options(made, "pin_memory", scope, project)
    if any(not is_never(one.value, one.scope, project) for one in said):
        return None
    pin = said[0].value if said else None
    why = "has no pin_memory=True" if pin is None else f"has pin_memory={code_of(pin, 30)}, which is off"
    return f"{code_of(made, 40)} at {scope.module.path}:{made.lineno} {why}"


def _may_pin(made: ast.Call, scope: Scope, project: Project) -> bool:
    pin = keyword(made, "pin_memory")
    return pin is not None and not is_never(pin, scope, project)


def _copy_passes(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, (ast.Tuple, ast.List)):
        return list(node.elts)
    if isinstance(node, ast.Dict):
        return list(node.values)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return [node.elt]
    if isinstance(node, ast.DictComp):
        return [node.value]
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "view", "reshape", "long", "contiguous", "to", "int", "float", "unsqueeze", "items", "values", "half",
            "bfloat16", "type", "t", "transpose", "permute", "squeeze", "flatten", "clone", "detach", "expand",
            "get", "pop",
        ):  # fmt: skip
            return [node.func.value]
        if last_name(node.func) in ("next", "iter", "enumerate", "tqdm", "cycle", "zip", "islice") and node.args:
            return [node.args[0]]
    return []


def _made_on_device(call: ast.Call, scope: Scope, project: Project) -> bool:
    device = keyword(call, "device")
    return device is not None and not (isinstance(device, ast.Constant) and device.value == "cpu")


# --- what is made of a pinned batch -----------------------------------------------------------------------------------

MAKES_NEW = (
    "float", "half", "bfloat16", "double", "div", "mul", "add", "sub", "clone", "repeat", "roll", "flip", "gather",
    "index_select", "masked_fill", "repeat_interleave", "clamp", "cat", "stack", "concat", "where", "one_hot", "pad",
    "normalize", "rot90", "hstack", "vstack", "fliplr",
)  # fmt: skip
VIEWS = ("view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "flatten", "contiguous", "t")


def _made_anew(source: ast.expr, call: ast.Call, scope: Scope, project: Project) -> str | None:
    """(x / 255).to(device, non_blocking=True), x = x.float() before: a new tensor of a pinned batch is not pinned."""
    value, at = _last_made(source, call, scope), call
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in VIEWS:
        value = _last_made(value.func.value, at, scope)
    inner = _operand(value, scope)
    if inner is None or _is_sent(inner, value, scope):
        return None
    for origin in project.origins(inner, scope, _copy_passes, depth=6):
        made = origin.node
        if isinstance(made, ast.Call) and called(made, origin.scope).endswith("DataLoader"):
            return f"`{code_of(value, 40)}` is a new tensor, in pageable memory whatever the loader pins"
    return None


def _is_sent(node: ast.expr, before: ast.AST, scope: Scope) -> bool:
    """Whether what is computed with was put on the device before, here or by the name's last value."""
    while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Call):
            if last_name(node.func) in ("to", "cuda"):
                return True
            node = node.func
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
    last = _last_made(node, before, scope)
    return isinstance(last, ast.Call) and last is not node and _is_sent(last, last, scope)


def _last_made(node: ast.expr, before: ast.AST, scope: Scope) -> ast.expr:
    """What a name was given last before a call, by the order of lines; anything else itself."""
    line = getattr(before, "lineno", 0)
    if not isinstance(node, ast.Name):
        return node
    made = [
        b for b in scope.bindings.get(node.id, [])
        if b.how in ("=", "iter", "part") and getattr(b.node, "lineno", line) < line
    ]  # fmt: skip
    last = max(made, key=lambda b: getattr(b.node, "lineno", 0), default=None)
    return last.value if last is not None and last.how == "=" else node


def _operand(value: ast.expr, scope: Scope) -> ast.expr | None:
    """What a new tensor is computed of: x in x / 255, x.float(), torch.cat([x, y]), x[order] with a permutation."""
    if isinstance(value, ast.BinOp) and not isinstance(value.op, (ast.MatMult, ast.Mod)):
        return value.right if isinstance(value.left, ast.Constant) else value.left
    if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Name):
        made = [b.value for b in scope.bindings.get(value.slice.id, []) if isinstance(b.value, ast.Call)]
        order = any(last_name(one.func) in ("randperm", "argsort", "permutation", "nonzero") for one in made)
        return value.value if order else None
    if not isinstance(value, ast.Call) or last_name(value.func) not in MAKES_NEW:
        return None
    if called(value, scope).startswith("torch."):
        first = value.args[0] if value.args else None
        return first.elts[0] if isinstance(first, (ast.List, ast.Tuple)) and first.elts else first
    return value.func.value if isinstance(value.func, ast.Attribute) else None


# --- programs that pin nothing ----------------------------------------------------------------------------------------


def _never_pinned(source: ast.expr, call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Why a host tensor cannot be pinned: its program makes host tensors or loaders, and pins nothing at all."""
    name = target_name(source) or ""
    if name in ("self", "cls") or is_model_name(name) or is_tensor(source, scope, project):
        return None
    files = neighbours(scope.module, project)
    if any(_may_pin_somewhere(file, project) for file in files):
        return None
    unknown = False
    for origin in project.origins(source, scope, _copy_passes, depth=8):
        made, at = origin.node, origin.scope
        if origin.is_annotation or made is call or call in walk(made):
            continue
        if isinstance(made, ast.Call) and _is_on_host(made, at, project):
            return f"made by {code_of(made, 50)} at {at.module.path}:{made.lineno}; nothing in the program pins memory"
        unknown = unknown or (target_name(made) or "").partition(".")[0] in {*at.parameters, *_kept(made, at, project)}
    loader = next((site for site in project.sites.get("DataLoader", []) if site.scope.module in files), None)
    if not unknown or loader is None:
        return None
    where = f"{loader.scope.module.path}:{loader.call.lineno}"
    return f"{code_of(loader.call, 40)} at {where}, and nothing in the program pins memory"


def _kept(node: ast.expr, scope: Scope, project: Project) -> Iterator[str]:
    """The word self where an attribute is what the object's maker handed over."""
    name = target_name(node) or ""
    owner = project.owner_of(scope) if name.startswith("self.") else None
    for method in project.class_scopes(owner[1]) if owner is not None else ():
        for binding in method.bindings.get(name, []):
            if (target_name(binding.value) or "") in method.parameters:
                yield "self"


def _is_on_host(made: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call makes a host tensor, or an object that gives such: a loader, a data set, an array."""
    name = called(made, scope)
    if name.endswith("DataLoader") or _is_tokenizer(made) or READERS.match(name):
        return True
    if name.startswith("torch.") and name.rpartition(".")[2] in (*FACTORIES, "zeros_like", "empty_like", "full_like"):
        where = keyword(made, "device")
        like = name.endswith("_like")
        return text_of(where) in HOST if where is not None else not like
    rows = ("__getitem__", "__iter__")
    return any(
        one.simple_name in rows for _, node in classes_of(made, scope, project) for one in project.class_scopes(node)
    )


HOST = ("'cpu'", "torch.device('cpu')")


def _may_pin_somewhere(module: Module, project: Project) -> bool:
    """Whether anything in a file pins memory, asks whether it is pinned, or builds on a package that does."""
    key = ("pins memory", module)
    if key not in project.remembered:
        roots = {full.partition(".")[0] for full in module.imports.values()}
        names = {full.rpartition(".")[2] for full in module.imports.values()}
        trainer = any(name.endswith(("Trainer", "TrainingArguments")) for name in names)
        project.remembered[key] = bool(
            roots & set(PINNERS)
            or trainer
            or re.search(r"is_pinned|cudaHostRegister|cuda\.pinned|pinned_memory", module.text)
            or any(_pins_here(call, scope, project) for scope in module.scopes for call in scope.calls)
            or any(isinstance(node, ast.Dict) and _pins_by_dict(node) for node in module.nodes)
        )
    found: bool = project.remembered[key]
    return found


def _pins_here(call: ast.Call, scope: Scope, project: Project) -> bool:
    return last_name(call.func) == "pin_memory" or _may_pin(call, scope, project)


def _pins_by_dict(node: ast.Dict) -> bool:
    """{"pin_memory": True}"""
    pairs = zip(node.keys, node.values, strict=True)
    return any(isinstance(k, ast.Constant) and k.value == "pin_memory" and not is_false(v) for k, v in pairs)
