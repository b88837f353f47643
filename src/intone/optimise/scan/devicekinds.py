"""Whether a value is a torch.device or the name of one, as far as the code shows."""

import ast
import re

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.expressions import called, last_name, text_of
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.source import Scope, target_name
from intone.optimise.scan.values import is_model_name

# names that stand for a bag of settings: their .device is what somebody typed, not a torch.device
BAGS = re.compile(r"^(args?|cfg|conf|config|opts?|options|hps?|hparams|params|settings|flags|FLAGS|parsed)$")


TEXT = re.compile(r"str|Optional\[str\]|str \| None")  # types of a text


def device_evidence(node: ast.expr, scope: Scope, project: Project) -> tuple[list[Origin], list[Origin]]:
    """(where a value is a torch.device, where it is a string)."""
    devices, strings = [], []
    held = project.origins(
        node, scope, lambda part: _held(part, scope, project), stops=lambda at: _says_text(at, project)
    )
    for origin in held:
        kind = _device_kind(origin, project)
        if kind == "device":
            devices.append(origin)
        elif kind == "string":
            strings.append(origin)
    return devices, strings


def _says_text(origin: Origin, project: Project) -> bool:
    """kind_of(x), a function of the project that says by its type that it gives a text."""
    if not isinstance(origin.node, ast.Call):
        return False
    types = [getattr(function.node, "returns", None) for function in project.callees(origin.node, origin.scope)]
    return bool(types) and all(one is not None and TEXT.fullmatch(text_of(one)) for one in types)


def _held(node: ast.expr, scope: Scope, project: Project) -> list[ast.expr]:
    """What is held in a list, or under a key of a dict that is written out: [device for ...], {"device": device}."""
    if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
        return [node.elt]
    if isinstance(node, (ast.List, ast.Tuple)):
        return node.elts[:8]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        tables = [part for part in project.literals(node.value, scope) if isinstance(part, ast.Dict)]
        return [
            value for table in tables for key, value in zip(table.keys, table.values, strict=True)
            if isinstance(key, ast.Constant) and key.value == node.slice.value
        ]  # fmt: skip
    return []


def text_evidence(node: ast.expr, scope: Scope, project: Project) -> list[Origin]:
    """Where a value is a text, by its type or by what it is made of; empty where it may be anything else."""
    found = []
    for origin in project.origins(node, scope, depth=3):
        typed = origin.is_annotation and TEXT.fullmatch(text_of(origin.node))
        if typed or _device_kind(origin, project) == "string":
            found.append(origin)
        elif not (isinstance(origin.node, ast.Constant) and origin.node.value is None):
            return []
    return found


def is_numbered(node: ast.expr, scope: Scope, project: Project) -> bool:
    """str(x.device), where x lies somewhere: "cuda:0", never "cuda" alone, as a tensor's device has a number."""
    inside: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr", "format"):
        inside = node.args[0] if node.args else None
    elif isinstance(node, ast.JoinedStr) and len(node.values) == 1 and isinstance(node.values[0], ast.FormattedValue):
        inside = node.values[0].value
    elif isinstance(node, ast.Name):  # name = str(x.device)
        made = [b.value for b in scope.bindings.get(node.id, []) if b.how == "="]
        return len(made) == 1 and not isinstance(made[0], ast.Name) and is_numbered(made[0], scope, project)
    return inside is not None and has_number(inside, scope, project)


def has_number(node: ast.expr, scope: Scope, project: Project) -> bool:
    """A device that has a number wherever it is no processor: of a tensor, or made with one."""
    ends = [origin for origin in project.origins(node, scope) if _device_kind(origin, project) == "device"]
    known = [end for end in ends if not _is_processor(end.node)]
    if not known or any(end.is_annotation for end in known):
        return False
    return all(isinstance(end.node, ast.Attribute) or _has_index(end.node) for end in known)


def is_made_with_number(node: ast.expr, scope: Scope, project: Project) -> bool:
    """A device that was made with a number, or that of a tensor that was made on such a device."""
    for origin in project.origins(node, scope):
        made, at = origin.node, origin.scope
        if isinstance(made, ast.Call) and called(made, at) == "torch.device":
            if _has_index(made):
                return True
            continue
        base = made.value if isinstance(made, ast.Attribute) and made.attr == "device" else None
        for tensor in project.origins(base, at, depth=4) if base is not None else ():
            words = tensor.node.keywords if isinstance(tensor.node, ast.Call) else []
            if any(word.arg == "device" and is_made_with_number(word.value, tensor.scope, project) for word in words):
                return True
    return False


def _is_processor(node: ast.expr) -> bool:
    """torch.device("cpu")"""
    first = node.args[0] if isinstance(node, ast.Call) and node.args else None
    return isinstance(first, ast.Constant) and first.value in ("cpu", "meta")


def _has_index(node: ast.expr) -> bool:
    """torch.device("cuda", rank), torch.device(f"cuda:{rank}"), torch.device(rank)"""
    if not isinstance(node, ast.Call):
        return False
    index = node.args[1] if len(node.args) > 1 else next((w.value for w in node.keywords if w.arg == "index"), None)
    if index is not None:
        return not (isinstance(index, ast.Constant) and index.value is None)
    first = node.args[0] if node.args else None
    text = first.values[0] if isinstance(first, ast.JoinedStr) and first.values else first
    if isinstance(text, ast.BinOp):
        text = text.left
    return isinstance(text, ast.Constant) and (":" in str(text.value) or isinstance(text.value, int))


def _device_kind(origin: Origin, project: Project) -> str:
    node, scope = origin.node, origin.scope
    if origin.is_annotation:
        text = text_of(node)
        return "device" if re.search(r"\b(torch\.)?device\b", text) and "str" not in text else "unknown"
    if isinstance(node, ast.Constant):
        return "string" if isinstance(node.value, str) else "unknown"
    if isinstance(node, ast.JoinedStr):
        return "string"
    if isinstance(node, ast.Call) and _says_text(origin, project):
        return "string"
    if isinstance(node, ast.Call):
        name = called(node, scope)
        return (
            "device"
            if name in ("torch.device", "torch.get_default_device", "torch.accelerator.current_accelerator")
            else "string"
            if name.endswith(("environ.get", "str", "getenv"))
            else "unknown"
        )
    if isinstance(node, ast.Attribute):
        if node.attr == "type":
            return "string"
        if node.attr == "root_device":  # of a strategy or a trainer of Lightning
            return "device"
        if node.attr == "device" and _has_device(node.value, scope, project):
            return "device"
    return "unknown"


TENSOR_NAME = re.compile(
    r"^(x|y|q|k|v|t|t0|h|ids|idx|inputs?|input_ids|tokens?|tensor|logits|targets|labels|hidden(_states)?|weights?|mask|prompts?|"
    r"param|p|loss|grad|emb|embeddings|probs|cache|fabric|accelerator)$"
)


def _has_device(base: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether x.device is a torch.device: x is a tensor, a model, or computed; a record's may be text."""
    name = last_name(base)
    if isinstance(base, ast.Subscript):  # batch["ids"].device, self.params[0].device
        held = last_name(base.value) or ""
        made = project.origins(base.value, scope, _listed, depth=3)
        tensors = any(isinstance(at.node, ast.Call) and last_name(at.node.func) in OF_MODULES for at in made)
        return tensors or HELD_TENSORS.search(held) is not None or isinstance(base.value, ast.Call)
    if name is None:
        return isinstance(base, (ast.Call, ast.BinOp))  # next(model.parameters()).device, (a + b).device
    if name == "self" and (owner := owner_of(scope)) is not None:
        bases = [last_name(part) or "" for part in owner.bases]  # these have a property of that name
        return any(
            part.endswith(("LightningModule", "PreTrainedModel", "ModelMixin", "DiffusionPipeline")) for part in bases
        )
    typed = any(
        HAS_DEVICE.search(called(at.node, at.scope)) if isinstance(at.node, ast.Call)
        else at.is_annotation and HAS_DEVICE.search(text_of(at.node))
        for at in project.origins(base, scope, depth=3)
    ) if BAGS.match(name) else False  # fmt: skip
    if typed:
        return True
    if BAGS.match(name) or name in ("self", "cls"):
        return False
    if TENSOR_NAME.match(name) or is_model_name(name):
        return True
    if _is_handed_to_forward(base, scope) or _is_used_as_tensor(base, scope, project):
        return True
    for origin in project.origins(base, scope, depth=3):
        text = text_of(origin.node)
        if origin.is_annotation and re.search(r"\b(Tensor|Module)\b", text):
            return True
        if isinstance(origin.node, ast.Call):
            name = called(origin.node, origin.scope)
            if name.startswith("torch.") or HAS_DEVICE.search(name):
                return True
    return False


def _listed(node: ast.expr) -> list[ast.expr]:
    """list(x), tuple(x), [*x]: what is listed."""
    if isinstance(node, ast.List):
        return [part.value for part in node.elts if isinstance(part, ast.Starred)]
    lists = isinstance(node, ast.Call) and last_name(node.func) in ("list", "tuple")
    return node.args[:1] if lists else []  # type: ignore[attr-defined]


# lists and dicts of tensors, and what gives them
HELD_TENSORS = re.compile(
    r"^(\w*params?|parameters|weights|tensors|batch|buffers|grads|inputs|xs|state_dict|sd|outputs?|tree)$"
)

OF_MODULES = ("parameters", "state_dict", "buffers", "named_parameters")
# objects of libraries that keep a torch.device under that name
HAS_DEVICE = re.compile(
    r"(^|\.)(Accelerator|PartialState|AcceleratorState|Fabric|\w*TrainingArguments|pipeline|\w*[pP]ipeline\.from_pretrained)$"
)


# what only tensors, and models, have: a record of settings that keeps the name of a device has none of them
OF_TENSORS = (
    "half", "bfloat16", "float", "unsqueeze", "squeeze", "permute", "transpose", "contiguous", "detach", "numel",
    "requires_grad_", "pin_memory", "is_contiguous", "data_ptr", "new_zeros", "new_empty", "flatten", "expand",
    "masked_fill",
)  # fmt: skip


def _is_handed_to_forward(base: ast.expr, scope: Scope) -> bool:
    """def forward(self, clip): what a module's pass is handed without a type of its own."""
    if not isinstance(base, ast.Name) or scope.simple_name != "forward" or owner_of(scope) is None:
        return False
    args = getattr(scope.node, "args", None)
    handed = [arg for arg in (*args.posonlyargs, *args.args)[1:] if arg.arg == base.id] if args is not None else []
    return bool(handed) and handed[0].annotation is None and not re.search(r"batch|data|sample|inputs|state", base.id)


def _is_used_as_tensor(base: ast.expr, scope: Scope, project: Project) -> bool:
    """clip.half(), clip.unsqueeze(0) in the same function: no class of the project, so a tensor or a model of torch."""
    name = target_name(base)
    if name is None or not any(
        isinstance(call.func, ast.Attribute) and call.func.attr in OF_TENSORS and target_name(call.func.value) == name
        for call in scope.calls
    ):
        return False
    return not classes_of(base, scope, project)
