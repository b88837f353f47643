"""A rule on weights that are cast to another number format at every pass or step."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import step_events, train_loops
from intone.optimise.scan.neighbours import imported_by
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import Reached, loops_around, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seldom import counter_guard, is_periodic
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_model_name, is_module_class

CASTS = ("to", "type", "type_as", "half", "bfloat16", "float")
WEIGHT_NAME = re.compile(r"self\.(\w+\.)?(\w*weight\w*|W|w_\w+|kernel|w\d?|master\w*|\w*_master|fp32_\w+)")
# names under which a loop holds weights
HELD = re.compile(r"(^|\.)(p|param|params|w\d?|\w*weights?|kernel|master\w*|fp32\w*|\w*_fp32|\w*_master)(\.data)?$")
PRODUCTS = (
    "linear", "matmul", "mm", "bmm", "addmm", "einsum", "embedding", "conv1d", "baddbmm", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "embedding_bag", "bilinear",
)  # fmt: skip


@rule(
    "S41",
    "weights cast again at every pass",
    kind="recast",
    severity="medium",
    why="The whole weight is read in one format and written in another before it is used: 8 bytes per "
    "parameter and token "
    "instead of 2 when generating, where reading weights is all that counts.",
    fix="For generation keep a copy in the format that is computed in; for training use autocast's cached "
    "casts or let the "
    "compiler fuse the cast.",
    source="nanochat-facts.md 4.1.1",
)
def weight_recast(module: Module, project: Project) -> Iterator[Place]:
    """F.linear(x, self.weight.to(x.dtype)) in a module's forward or what it calls; model.half() in a hot loop."""
    for scope in module.scopes:
        owner = owner_of(scope)
        inside = owner is not None and is_module_class(owner) and scope.simple_name != "__init__"
        if not inside and not _runs_for_forward(scope, project):
            continue
        if scope.simple_name in LOADING or not _has_casts(module, project):
            continue
        if owner is not None and _is_quantised(owner):
            continue
        for call in scope.calls:
            if last_name(call.func) not in PRODUCTS:
                continue
            cast = next((cast for arg in call.args if (cast := _cast_weight(arg, scope, project))), None)
            if cast is not None:
                yield _copied_weight(cast, call, scope)
                break
        else:
            yield from _product_by_operator(scope, project)
    yield from _model_cast_in_loop(module, project)
    yield from _handed_as_copies(module, project)
    yield from _casts_not_kept(module)


def _handed_as_copies(module: Module, project: Project) -> Iterator[Place]:
    """halves = {k: w.half() for k, w in weights.items()}; functional_call(model, halves, x), again at every pass."""
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) not in ("functional_call", "stateless_functional_call") or len(call.args) < 2:
                continue
            for origin in project.origins(call.args[1], scope, depth=5):
                cast = origin.node.value if isinstance(origin.node, ast.DictComp) else None
                if not isinstance(cast, ast.Call) or not isinstance(cast.func, ast.Attribute):
                    continue
                if cast.func.attr not in CASTS or not _is_cast(cast) or not _runs_again(origin, project):
                    continue
                words = f"`{code_of(origin.node, 50)}` casts all weights again for every pass"
                told = (f"line {call.lineno}: {code_of(call, 50)}",)
                yield Place(origin.node, words, told, scope=origin.scope)


def _runs_again(origin: Origin, project: Project) -> bool:
    """Whether copies of weights are made again while the weights stay as they are: in a loop that does not step."""
    for nest in loops_around(origin.node, origin.scope, project):
        for frame in nest:
            if not step_events(frame.loop, frame.scope, project):
                return True
    for loop in train_loops(origin.scope.module, project):  # at every micro-batch of a step
        if loop.accumulates and any(item.node is origin.node for item in loop.turn(project)):
            return True
    return False


def _casts_not_kept(module: Module) -> Iterator[Place]:
    """autocast(..., cache_enabled=False): each use of a weight casts it again; only recorded graphs need that."""
    if re.search(r"CUDAGraph|make_graphed_callables", module.text):
        return
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) == "autocast" and is_false(keyword(call, "cache_enabled")):
                told = "cache_enabled=False: a weight that is used twice is cast twice"
                yield Place(call, "autocast keeps no casts of the weights", (told,))


LOADING = (
    "__init__",
    "from_pretrained",
    "load",
    "reset_parameters",
    "convert",
    "_init_weights",
    "init_weights",
    "load_weights",
)


def _product_by_operator(scope: Scope, project: Project) -> Iterator[Place]:
    """x @ self.weight.to(x.dtype).T"""
    for node in scope.of(ast.BinOp):
        if isinstance(node.op, ast.MatMult):
            cast = _cast_weight(node.right, scope, project) or _cast_weight(node.left, scope, project)
            if cast is not None:
                yield _copied_weight(cast, node, scope)
                return


def _has_casts(module: Module, project: Project) -> bool:
    """Whether anything is cast in a file or in what it imports."""
    key = ("casts", module.path)
    if key not in project.remembered:
        files = [module, *imported_by(module, project)]
        project.remembered[key] = any(
            last_name(call.func) in CASTS for file in files for scope in file.scopes for call in scope.calls
        )
    found: bool = project.remembered[key]
    return found


def _copied_weight(found: Origin, user: ast.expr, scope: Scope) -> Place:
    cast = found.node
    assert isinstance(cast, ast.Call)
    up = last_name(cast.func) == "float" or "float32" in text_of(cast)
    told = f"used by {code_of(user, 60)}"
    more = ("to fp32, where a copy kept in that format would do",) if up else ()
    words = f"`{code_of(cast, 40)}` copies the weight in every forward pass"
    also = ((user, scope),) if found.scope is not scope else ()
    return Place(cast, words, (told, *more), severity="low" if up else None, scope=found.scope, also=also)


def _runs_for_forward(scope: Scope, project: Project) -> bool:
    """A plain function that a module's forward calls with its weight: matmul_cast(x, self.weight)."""
    if scope.owner is not None or scope.node is scope.module.tree:
        return False
    for site in project.callers(scope)[:6]:
        owner = owner_of(site.scope)
        if (
            owner is not None
            and is_module_class(owner)
            and site.scope.simple_name != "__init__"
            and not _is_quantised(owner)
        ):
            return True
    return False


def _cast_weight(arg: ast.expr, scope: Scope, project: Project) -> Origin | None:
    """self.weight.to(...), also behind a name, a property or a helper, or a parameter that callers hand a weight."""

    def is_cast(origin: Origin) -> bool:
        call = origin.node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return False
        cast = call.func.attr in CASTS and _is_other_format(call)
        return cast and _is_weight(call.func.value, origin.scope, project)

    if not isinstance(arg, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
        return None
    ends = project.origins(arg, scope, _turned, depth=2, stops=is_cast)
    return next((end for end in ends if is_cast(end)), None)


def _turned(node: ast.expr) -> list[ast.expr]:
    """The matrix that another one is a view of: w.t(), w.T, w[i]."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        turns = ("t", "transpose", "detach", "contiguous", "permute", "view", "reshape", "unsqueeze", "mT")
        return [node.func.value] if node.func.attr in turns else []
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "data") or isinstance(node, ast.Subscript):
        return [node.value]
    return []


def _is_weight(node: ast.expr, scope: Scope, project: Project) -> bool:
    name = target_name(node) or ""
    if WEIGHT_NAME.fullmatch(name):
        return True
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("t", "transpose", "detach", *CASTS)
    ):
        return _is_weight(node.func.value, scope, project)
    if isinstance(node, ast.Attribute) and node.attr in ("T", "data", "mT") or isinstance(node, ast.Subscript):
        return _is_weight(node.value, scope, project)
    if isinstance(node, ast.BinOp):  # (self.weight + self.up @ self.down).to(x.dtype)
        others = any(name.partition(".")[0] not in ("self", "cls") for name in names_in(node))
        if others and not isinstance(node.op, (ast.Add, ast.Sub)):
            return False  # (x * self.weight.float()).to(x.dtype): what a norm gives
        return _is_weight(node.left, scope, project) or _is_weight(node.right, scope, project)
    if isinstance(node, ast.Attribute) and node.attr == "weight":
        return True
    if isinstance(node, ast.Name):
        if node.id in scope.parameters:
            for site in project.callers(scope)[:6]:
                value = project.argument(site, scope, node.id)
                if value is not None and (target_name(value) or "").endswith("weight"):
                    return True
        return any(
            b.how == "="
            and not isinstance(b.value, ast.Name)
            and ((target_name(b.value) or "").endswith("weight") or _is_sum_with_weight(b.value, scope, project))
            for b in scope.bindings.get(node.id, [])
        )
    return _is_parameter(name, scope, project)


def _is_sum_with_weight(value: ast.expr, scope: Scope, project: Project) -> bool:
    """w = self.base.weight + self.up @ self.down"""
    if not isinstance(value, ast.BinOp) or not isinstance(value.op, (ast.Add, ast.Sub)):
        return False
    sides = [side for side in (value.left, value.right) if isinstance(side, (ast.Attribute, ast.Call))]
    return any(_is_weight(side, scope, project) for side in sides)


def _is_parameter(name: str, scope: Scope, project: Project) -> bool:
    """self.table, made by nn.Parameter."""
    owner = project.owner_of(scope)
    if not name.startswith("self.") or owner is None:
        return False
    return any(
        isinstance(b.value, ast.Call) and last_name(b.value.func) == "Parameter"
        for method in project.class_scopes(owner[1]) for b in method.bindings.get(name, [])
    )  # fmt: skip


def _is_other_format(call: ast.Call) -> bool:
    """A cast to another format, not a copy to a device."""
    text = text_of(call).rpartition("(")[2]
    return "device" not in text and "cuda" not in text


def _is_quantised(owner: ast.ClassDef) -> bool:
    """Weights kept in 8 bits or less are cast on purpose."""
    return bool(re.search(r"int8|int4|uint8|float8|e4m3|quant|scales", text_of(owner), re.I))


def _model_cast_in_loop(module: Module, project: Project) -> Iterator[Place]:
    hot: list[tuple[ast.AST, Scope]] = []
    for loop in train_loops(module, project):
        hot.append((loop.inner, loop.scope))
    hot += [(decode.loop, decode.scope) for decode in decode_loops(module, project)]
    hot += [(scope.node, scope) for scope in module.scopes[1:] if _steps_for_others(scope, project)]
    seen: set[ast.AST] = set()
    for start, scope in hot:
        for item in reached(start, scope, project):
            call = item.node
            if not isinstance(call, ast.Call) or call in seen or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in CASTS or not _is_cast(call) or is_periodic(item, start, project):
                continue
            if item.is_in_forward:
                continue
            if _casts_weights(call, item):
                seen.add(call)
                line = module.line_of(start)[:60]
                begins = f"what runs again at {module.path}:{start.lineno} begins with `{line}`"  # type: ignore[attr-defined]
                yield Place(
                    call,
                    f"`{code_of(call, 40)}` casts the weights at every turn of the loop",
                    (begins, *([item.path()] if item.chain else [])),
                    scope=item.scope,
                )
    yield from _published_too_often(module, project)


OPTIMISES = re.compile(r"Adam|SGD|Optim|Lion|Muon|Master|Mixed|Shampoo|Adafactor|RMSprop")


def _steps_for_others(scope: Scope, project: Project) -> bool:
    """The step of an optimizer of the project's own that nothing we see calls: it runs at every step of a training."""
    if scope.owner is None or scope.simple_name != "step" or project.callers(scope):
        return False
    return OPTIMISES.search(" ".join([scope.owner.name, *(text_of(base) for base in scope.owner.bases)])) is not None


def _published_too_often(module: Module, project: Project) -> Iterator[Place]:
    """for w, m in zip(weights, masters): w.copy_(m) at every micro-batch, where the masters change once a step."""
    for loop in train_loops(module, project):
        for item in loop.turn(project) if loop.accumulates else ():
            call = item.node
            if not isinstance(call, ast.Call) or last_name(call.func) not in ("copy_", "_foreach_copy_"):
                continue
            around = item.scope.module.loops_around(call)[:1]
            walked = text_of(around[0].iter) if around and isinstance(around[0], ast.For) else text_of(call)
            named = re.search(r"master|full|fp32|main_param|float_|params|weights", walked)
            if not (named or _is_of_optimizer(call, item.scope, project)) or "grad" in text_of(call):
                continue
            if counter_guard(item, loop.inner, project) is None and not is_periodic(item, loop.inner, project):
                told = "the step, which changes the masters, comes only after several micro-batches"
                words = f"`{code_of(call, 40)}` casts all masters again at every micro-batch"
                site = item.chain[-1] if item.chain else None  # to call a helper that copies so often is the fault
                yield Place(
                    site.call if site is not None else call,
                    words,
                    (told, *([item.path()] if site is not None else [])),
                    scope=site.scope if site is not None else item.scope,
                    also=((call, item.scope),) if site is not None else (),
                )
                return


def _is_of_optimizer(call: ast.Call, scope: Scope, project: Project) -> bool:
    """_foreach_copy_([p.data for p in halves], [m.data for m in fulls]) with fulls that an optimizer was made for."""
    source = call.args[-1] if call.args else None
    names = {name.partition(".")[0] for name in names_in(source)} if source is not None else set()
    names |= {
        one for name in names for b in scope.bindings.get(name, []) if b.how == "iter" for one in names_in(b.value)
    }  # for p, m in zip(halves, fulls): p.copy_(m)
    stepped = {
        one for maker in scope.calls if OPTIMISES.search(last_name(maker.func) or "") and maker.args
        for one in names_in(maker.args[0])
    }  # fmt: skip
    return bool(names & stepped)


def _casts_weights(call: ast.Call, item: Reached) -> bool:
    """The model, a parameter or master weight, or the values of a state dict."""
    assert isinstance(call.func, ast.Attribute)
    value = call.func.value
    while (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ("detach", "clone")
    ):
        value = value.func.value
    name = target_name(value) or ""
    if name.endswith(".grad") or called(call, item.scope).endswith("grad"):
        return False
    if is_model_name(name) and not _is_output(name, item):
        return True
    if HELD.search(name):
        return True
    for binding in item.scope.bindings.get(name, []):  # for name, x in model.state_dict().items()
        if re.search(r"state_dict\(\)|parameters\(\)|master", text_of(binding.value)) and binding.how == "iter":
            return True
    for above in item.scope.module.up(call):
        if isinstance(above, (ast.DictComp, ast.ListComp, ast.GeneratorExp)):
            walked = text_of(above.generators[0].iter)
            made = [b.value for name in names_in(above.generators[0].iter) for b in item.scope.bindings.get(name, [])]
            return bool(re.search(r"state_dict\(\)|parameters\(\)|master|params$", walked)) or any(
                re.search(r"state_dict\(\)|parameters\(\)", text_of(value)) for value in made
            )
    return False


def _is_cast(call: ast.Call) -> bool:
    """.half(), .to(dtype): a cast to another format, not a copy to a device."""
    if last_name(call.func) not in ("to", "type"):
        return not call.args
    return bool(re.search(r"float|half|dtype", text_of(call).partition("(")[2]))


def _is_output(name: str, item: Reached) -> bool:
    """A name like a model's that holds what a model made."""
    return any(b.how == "part" for b in item.scope.bindings.get(name, []))
