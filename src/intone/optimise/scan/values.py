"""What kind of thing a value is, as far as the code shows: a device, a sampled token, a loss, a model, its text."""

import ast
import re
from collections.abc import Sequence

from intone.optimise.scan.calls import KEEPS_OBJECT, classes_of
from intone.optimise.scan.classes import class_methods, names_class
from intone.optimise.scan.expressions import called, dotted, last_name, names_in, text_of
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.source import Scope, target_name

MODEL_NAME = re.compile(
    r"(^|_)(model|models|net|network|gpt\d*|transformer|llm|lm|student|teacher|policy|actor|backbone|decoder|engine_model)"
    r"($|_|\d)",
    re.I,
)
NOT_A_MODEL = re.compile(
    r"(cfg|config|name|path|dir|args|type|size|dim|id|card|kwargs|params|state|data|info|class|key)s?$"
)
WRAPPERS = (
    "compile", "DistributedDataParallel", "DDP", "FullyShardedDataParallel", "FSDP", "DataParallel", "setup_module",
    "from_pretrained", "prepare", "unwrap_model", "load_model",
)  # fmt: skip
LIBRARY_MODEL = re.compile(
    r"(torch\.nn\.(Sequential|Transformer|TransformerEncoder|TransformerDecoder|LSTM|GRU|RNN)|torch\.jit\.load|torch\.hub\.load|"
    r"timm\.create_model|torchvision\.models\.\w+)$"
)
OPTIMIZER_NAME = re.compile(
    r"(^|[_.])(opt|optim|optims|optimizer|optimizers|opts|adam|adamw|sgd|muon|lion)(_\w+)?\d*$", re.I
)
LOADER_NAME = re.compile(r"loader|dataset|batches|data_iter|train_iter|train_data|train_ds|iterator", re.I)
LOSS_NAME = re.compile(r"(^|_)(loss|nll|ce|cost|objective|criterion)(es|\d)?($|_)", re.I)
# methods and functions that hand a tensor's contents on
KEEPS = {
    "item", "tolist", "view", "reshape", "squeeze", "unsqueeze", "flatten", "to", "long", "int", "clone", "detach",
    "cpu", "cuda", "contiguous", "numpy", "transpose", "gather", "select", "t", "clamp", "pin_memory", "type",
    "permute", "masked_fill", "masked_fill_", "expand",
}  # fmt: skip
SAMPLERS = re.compile(
    r"^_*(multinomial\w*|categorical_sample|sample|sample_(token|next|logits|top|from|one|id|with)\w*|\w*next_token\w*"
    r"|\w*_sample_(token|one|next)\w*|draw(_\w+)?|\w*sample_(one|token|next_token)\w*|gumbel_\w+|pick_token|choose_token|sample_\w*ids?)$"
)
NOT_SAMPLERS = ("random.sample", "dataset", "ds.", "df.")


def is_model_name(name: str) -> bool:
    """Whether a name reads like that of a model."""
    last = name.rpartition(".")[2]
    return bool(MODEL_NAME.search(last)) and not NOT_A_MODEL.search(last.lower())


def is_model_call(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call runs a model forward: model(x), self.model(x), model.forward(x), self(x) in a module."""
    if call not in project.known_runs:
        project.known_runs[call] = _is_model_call(call, scope, project)
    return project.known_runs[call]


def _is_model_call(call: ast.Call, scope: Scope, project: Project) -> bool:
    func = call.func
    if isinstance(func, ast.Attribute) and func.attr == "forward":
        return not (isinstance(func.value, ast.Call) and last_name(func.value.func) == "super")
    if last_name(func) == "functional_call" and call.args:
        return True
    name = target_name(func)
    if name is None:
        # torch.compile(model)(x), model.eval()(x)
        return isinstance(func, ast.Call) and is_model_value(func, scope, project)
    if name == "self":
        return owner_of(scope) is not None
    last = name.rpartition(".")[2]
    short = len(last) < 5 and name.partition(".")[0] in scope.module.imports  # GPT(config)
    made = last[:1].isupper() and (last != last.upper() or short)
    if name == "cls" or made or MAKES_MODEL.match(last) or names_class(name, scope, project):
        return False  # makes a model, or does something with one
    if isinstance(func, ast.Attribute) and is_model_name(_base_name(func)):
        if BODY.match(func.attr):
            return True  # lm.trunk(ids), self.model.forward_cached(ids, cache)
        if func.attr in ("decode", "step") and len(call.args) > 1 and not isinstance(call.args[-1], ast.Constant):
            return not project.callees(call, scope)  # model.decode(ids, memory): it reads one text and writes another
    if isinstance(func, ast.Attribute) and not name.startswith("self."):
        if is_model_name(name) and func.attr not in dir(str) and name.count(".") == 1 and func.attr == "model":
            return True
        return _is_module_object(func, scope, project) or _is_used_as_model(name, scope, project)
    if name in project.functions and not is_bound_to_model(name, scope, project):
        return False
    if name.rpartition(".")[2] in project.classes:
        return False
    if is_model_name(name):
        return not _runs_project_function(call, scope, project)
    if is_bound_to_model(name, scope, project) or _is_module_object(func, scope, project):
        return True
    return _is_used_as_model(name, scope, project)


# the part of a model that its layers stand in, and methods that run them
BODY = re.compile(
    r"^(trunk|body|transformer|backbone|decoder|language_model|core|stack|forward_\w+|(predict_|next_)?logits)$"
)


MAKES_MODEL = re.compile(
    r"_*(load|build|make|create|get|init|setup|prepare|wrap|save|export|fetch|download|convert|read|restore|compile|new|"
    r"is|has|check|unwrap|freeze|count|move|copy|parse|validate|list|find|resolve|register|log|print)_"
)


def _base_name(func: ast.Attribute) -> str:
    """The name of an attribute's object; of the object itself nothing, as a module may call its own parts."""
    name = target_name(func.value) or ""
    return "" if name in ("self", "cls") else name


def _is_used_as_model(name: str, scope: Scope, project: Project) -> bool:
    from intone.optimise.scan.usage import models_by_use  # builds on this file

    return f"{scope.module.path}:{name}" in models_by_use(project)


def _runs_project_function(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a name that reads like a model is a function of the project: `model_step = make_step()`, self.model()
    where the class has a method `model`."""
    found = project.callees(call, scope)
    if isinstance(call.func, ast.Attribute):
        return bool(found) and all(
            function.simple_name == call.func.attr and function.owner is not None and not is_property(function)
            for function in found
        )
    return bool(found) and all(function.owner is None for function in found)


def is_property(function: Scope) -> bool:
    """Whether a method is read like a field: what is called then is what it returns."""
    return any("property" in text_of(item) for item in getattr(function.node, "decorator_list", []))


def _is_module_object(func: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a callee is an object of a module class that is a model: by its name, its table of tokens, or its user.

    What a class that is no module itself runs is a whole model, unless it computes a loss or a number.
    """
    owner = owner_of(scope)
    outside = owner is None or not is_module_class(owner)
    return any(
        is_module_class(node) and (_is_whole_model(node) or outside and not NO_MODEL.search(node.name))
        for _, node in classes_of(func, scope, project)
    )


NO_MODEL = re.compile(r"Loss|Criterion|Norm|Metric|Optim|Sched|Dropout|Activation|Embed(ding)?$|Rotary|Mask")


def _is_whole_model(node: ast.ClassDef) -> bool:
    text = text_of(node)
    return is_model_name(node.name) or "Embedding(" in text or bool(re.search(r"LM|GPT|Llama|Model|Net$", node.name))


def is_bound_to_model(name: str, scope: Scope, project: Project) -> bool:
    """Whether a name is given a model, here, in the functions around, or in a method of the object."""
    at: Scope | None = scope
    while at is not None:
        for binding in at.bindings.get(name, []):
            value = binding.value
            if binding.how == "=" and isinstance(value, ast.Call) and is_model_value(value, at, project):
                return True
        at = at.outer
    if name.startswith("self.") and (owner := project.owner_of(scope)) is not None:
        for method in class_methods(owner, project):
            for binding in method.bindings.get(name, []):
                value = binding.value
                if isinstance(value, ast.Call) and is_model_value(value, method, project):
                    return True
                if isinstance(value, (ast.Name, ast.Attribute)) and is_model_name(_without_forward(value) or ""):
                    return True
    return False


def _without_forward(node: ast.expr) -> str | None:
    """model.forward -> "model", anything else its name."""
    if isinstance(node, ast.Attribute) and node.attr in ("forward", "__call__", "module"):
        return target_name(node.value)
    return target_name(node)


def is_model_value(value: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call makes or wraps a model: GPT(config), torch.compile(model), DDP(model), model.eval()."""
    name = last_name(value.func)
    if name is None:
        return False
    if name in project.classes:
        return any(is_module_class(node) for _, node in project.classes[name])
    if name == "eval" and isinstance(value.func, ast.Attribute) and not value.args:
        return True
    if name in KEEPS_OBJECT and isinstance(value.func, ast.Attribute):
        inside = value.func.value
        if isinstance(inside, ast.Call):
            return is_model_value(inside, scope, project)
        return is_model_name(target_name(inside) or "") and "data" not in (target_name(inside) or "")
    if LIBRARY_MODEL.match(called(value, scope)):
        return True
    if name in WRAPPERS:
        if name in ("from_pretrained", "load_model"):
            return "tokenizer" not in text_of(value.func).lower()
        return any(
            is_model_name(_without_forward(arg) or "")
            or isinstance(arg, ast.Call)
            and is_model_value(arg, scope, project)
            for arg in value.args[:1]
        )
    return any(is_module_class(node) for _, node in classes_of(value, scope, project))


def is_module_class(node: ast.ClassDef) -> bool:
    """Whether a class is an nn.Module, by its bases or its super().__init__ and forward."""
    bases = [last_name(base) or "" for base in node.bases]
    if any(base.endswith(("Module", "Linear", "Embedding", "Norm", "PreTrainedModel", "ModelMixin")) for base in bases):
        return True
    if any((target_name(base) or "").startswith(("nn.", "torch.nn.")) for base in node.bases):
        return True
    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    return bool(bases) and {"forward", "__init__"} <= methods and not any(base.endswith("Function") for base in bases)


def is_optimizer(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a name holds an optimizer, by its name or by what it is bound to."""
    name = target_name(node)
    if name is None:
        return False
    if OPTIMIZER_NAME.search(name):
        return True
    for origin in project.origins(node, scope, depth=4):
        if isinstance(origin.node, ast.Call) and dotted(origin.node.func, origin.scope).startswith("torch.optim."):
            return "lr_scheduler" not in dotted(origin.node.func, origin.scope)
        if origin.is_annotation and re.search(r"\bOptimizer\b", text_of(origin.node)):
            return True
    return name.rpartition(".")[2] in _cleared(project)


def _cleared(project: Project) -> set[str]:
    """Names of what gets zero_grad() and step() somewhere: an optimizer, whatever it is called."""
    if "cleared" not in project.known_names:
        cleared, stepped = (
            {last_name(site.call.func.value) or "" for site in project.sites.get(method, [])
             if isinstance(site.call.func, ast.Attribute)}
            for method in ("zero_grad", "step")
        )  # fmt: skip
        found = {name for name in cleared & stepped if name and name != "self" and not is_model_name(name)}
        project.known_names["cleared"] = found
    return project.known_names["cleared"]


def steps_optimizer(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call is optimizer.step() or scaler.step(optimizer)."""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr != "step":
        return False
    if any(is_optimizer(arg, scope, project) for arg in call.args[:1]):
        return True
    return is_optimizer(func.value, scope, project)


def is_backward(call: ast.Call) -> bool:
    """Whether a call runs back-propagation: loss.backward(), fabric.backward(loss), torch.autograd.backward(loss)."""
    func = call.func
    return (
        isinstance(func, ast.Attribute)
        and func.attr in ("backward", "manual_backward")
        and last_name(func.value) not in ("ctx", "Function")
    )


def backward_loss(call: ast.Call) -> ast.expr | None:
    """The loss that a backward call is about; scaler.scale(loss).backward() -> loss."""
    func = call.func
    assert isinstance(func, ast.Attribute)
    value: ast.expr = func.value
    if isinstance(value, ast.Call) and last_name(value.func) == "scale" and value.args:
        return value.args[0]
    if call.args and isinstance(value, (ast.Name, ast.Attribute)) and not LOSS_NAME.search(last_name(value) or ""):
        return call.args[0]  # accelerator.backward(loss)
    return value


def chooses_token(call: ast.Call, scope: Scope, *, greedy: bool = False) -> bool:
    """Whether a call draws tokens from probabilities; greedy: or takes the likeliest ones."""
    name = called(call, scope)
    last = name.rpartition(".")[2]
    if any(part in name for part in NOT_SAMPLERS):
        return False
    if "sampler" in name and not re.search(r"logit|prob|score", text_of(call)) and not _takes_scores(call, scope):
        return False  # of rows of a data set
    if last == "argmax":
        return greedy or is_noisy(call, scope)
    if last in ("choices", "choice"):
        return any(word.arg in ("p", "weights") for word in call.keywords)
    if last in ("max", "topk") and greedy and isinstance(call.func, ast.Attribute):
        return _is_likeliest(call, last, scope)
    if last in ("searchsorted", "bisect", "bisect_left", "bisect_right"):  # the inverse of a cumulated distribution
        return bool(re.search("cum|accumulate", (code := spelled(call, scope)))) and "rand" in code
    return bool(SAMPLERS.match(last)) or bool(PICKERS.match(last)) and _takes_scores(call, scope)


def spelled(node: ast.expr, scope: Scope, steps: int = 2) -> str:
    """The code of an expression, and of what the names in it are bound to in the same function."""
    texts, names = [text_of(node)], set(names_in(node))
    for _ in range(steps):
        bound = [b for name in sorted(names) for b in scope.bindings.get(name, [])]
        values = [b.value for b in bound if b.how in ("=", "op", "part")]
        texts += [text_of(value) for value in values]
        names = {name for value in values for name in names_in(value)} - names
    return " ".join(texts)


# what may take scores and give tokens: only with scores among its arguments
PICKERS = re.compile(r"^_*(\w*sampler|pick\w*|choose\w*|select\w*|sample_\w+|draw_\w+|to_tokens?|next_ids?)$")


def _takes_scores(call: ast.Call, scope: Scope) -> bool:
    """sampler(logits), pick(model(ids)[:, -1]): whether a call is handed what a token can be drawn from."""
    for arg in [*call.args, *(word.value for word in call.keywords)]:
        code = text_of(arg)
        if re.search(r"logit|prob|scores?\b|logp|\blp\b", code):
            return True
        if isinstance(arg, ast.Subscript) and re.search(r"-1(\]|, )|-1:\]", code):
            return True
    return False


def _keeps_places(call: ast.Call, scope: Scope) -> bool:
    """best, tokens = logp.topk(width): the places are used, not only the values as a limit."""
    above = scope.module.parents.get(call)
    target: ast.expr | None = above.targets[0] if isinstance(above, ast.Assign) else None
    if isinstance(above, ast.Starred):  # for p, token in zip(*logp.topk(width))
        target = next((o.target for o in scope.module.up(above) if isinstance(o, (ast.For, ast.comprehension))), None)
    return isinstance(target, ast.Tuple) and len(target.elts) == 2 and not (
        target_name(target.elts[1]) or "_"
    ).startswith("_")  # fmt: skip


def _is_likeliest(call: ast.Call, last: str, scope: Scope) -> bool:
    """logits.max(dim=-1), torch.topk(logits, 1): the likeliest token of each row."""
    text = spelled(call, scope) if last == "topk" else text_of(call)
    if not re.search(r"logit|prob|score|log_?p|log_softmax", text):
        return False
    if last == "max":
        return "-1" in text or "dim" in text
    if re.search(r"log_?p|score|log_softmax", text) and _keeps_places(call, scope):
        return True  # the best next tokens of every beam
    return bool(re.search(r"[,(] ?(k=)?1\b", text_of(call)))


def is_noisy(call: ast.Call, scope: Scope) -> bool:
    """argmax(probs / exponential noise) or argmax(logits + gumbel) draws, also where the noise has a name."""
    text = spelled(call, scope).lower()
    if "exponential" in text or "gumbel" in text:
        return True
    return bool(re.search(r"log_?\(", text) and re.search(r"\brand\w*\(|uniform", text))


def token_passes(node: ast.expr) -> Sequence[ast.expr]:
    """The parts of an expression that a chosen token comes from: x[0], x.item(), int(x), (x, y), [x]."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, (ast.Call, ast.Name)):
        return [node.value, node.slice]  # ids[choice]
    if isinstance(node, (ast.Subscript, ast.Starred)):
        return [node.value]
    if isinstance(node, ast.Attribute) and node.attr in ("indices", "data"):
        return [node.value]
    if isinstance(node, (ast.Tuple, ast.List)):
        return node.elts
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return [node.elt]
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Sub)):  # index % vocabulary
        return [node.left]
    if isinstance(node, ast.Call):
        if last_name(node.func) in ("remainder", "fmod") and node.args:
            return [node.func.value if len(node.args) == 1 and isinstance(node.func, ast.Attribute) else node.args[0]]
        if isinstance(node.func, ast.Attribute) and node.func.attr in KEEPS:
            inside = node.func.value
            return [node.args[1]] if node.func.attr == "gather" and len(node.args) > 1 else [inside]
        if isinstance(node.func, ast.Name) and node.func.id in ("int", "list", "tuple", "float") and node.args:
            return [node.args[0]]
        if last_name(node.func) in ("gather", "take_along_dim") and len(node.args) > 2:
            return [node.args[2]]
        if last_name(node.func) in ("tensor", "cat", "stack", "concat", "as_tensor", "asarray") and node.args:
            return [node.args[0]]
        if last_name(node.func) in ("full", "full_like", "new_full") and len(node.args) > 1:
            return [node.args[1]]
    return []


def is_chosen(node: ast.expr, scope: Scope, project: Project, *, greedy: bool = False) -> bool:
    """Whether a value is a token that was drawn (greedy: or the likeliest) from a model's output."""
    key = (node, greedy)
    if key not in project.known_chosen:
        project.known_chosen[key] = any(
            isinstance(origin.node, ast.Call) and chooses_token(origin.node, origin.scope, greedy=greedy)
            for origin in project.origins(node, scope, token_passes)
        )
    return project.known_chosen[key]
