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
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args):
        return False
    ends = [origin for origin in project.origins(node.args[0], scope) if _device_kind(origin, project) == "device"]
    return bool(ends) and all(isinstance(end.node, ast.Attribute) for end in ends)


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
    if name is None:
        return isinstance(base, (ast.Call, ast.BinOp))  # next(model.parameters()).device, (a + b).device
    if name == "self" and (owner := owner_of(scope)) is not None:
        bases = [last_name(part) or "" for part in owner.bases]  # these have a property of that name
        return any(
            part.endswith(("LightningModule", "PreTrainedModel", "ModelMixin", "DiffusionPipeline")) for part in bases
        )
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
        if isinstance(origin.node, ast.Call) and called(origin.node, origin.scope).startswith("torch."):
            return True
    return False


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
