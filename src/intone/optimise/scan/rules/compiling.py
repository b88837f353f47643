"""Rules on torch.compile: whether training uses it, and whether the shapes it meets stay the same."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from intone.optimise.scan.compiled import (
    OTHER_COMPILERS,
    Compile,
    compile_calls,
    files_of,
    is_compiled,
    missed_by,
    model_calls,
    on_the_way,
)
from intone.optimise.scan.constants import is_never
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import called, code_of, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.growth import grown_argument
from intone.optimise.scan.lengths import fixes_shapes, longer_keys, prompt_handed
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.modes import model_name
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Frame, Reached, inner_loops, is_inside, loops_around, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.useless_compiles import why_useless
from intone.optimise.scan.rules.widths import varying_width
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import FunctionNode, Module, Scope, target_name, walk
from intone.optimise.scan.values import is_backward, is_bound_to_model, is_model_call, is_model_name, is_model_value


@rule(
    "S21",
    "training is not compiled",
    kind="compile",
    severity="medium",
    why="Every operation is started from Python by itself: small kernels, each with its launch and its way "
    "through memory.",
    fix="Give the step fixed shapes (packed or padded to a few lengths) and wrap the model in "
    "torch.compile; check that nothing "
    "compiles again after the first steps and that the losses stay within the tolerance of fp32.",
    source="optimiser.md D2; nanochat-facts.md 2.2",
)
def not_compiled(module: Module, project: Project) -> Iterator[Place]:
    """A training loop over batches whose model is compiled nowhere on its way, or by a call without effect."""
    for loop in train_loops(module, project):
        if isinstance(loop.inner, FunctionNode):
            continue  # one step, and whoever calls it may have compiled
        runs = model_calls(loop, project) if loop.steps else []
        runs = [run for run in runs if not is_periodic(run, loop.inner, project)] or runs
        if not runs:
            continue
        files = files_of(loop, project)
        if any(file.mentions(OTHER_COMPILERS) for file in files):
            break
        calls = [item.node for item in loop.turn(project) if isinstance(item.node, ast.Call)]
        if any("compiled" in (last_name(call.func) or "") for call in calls):
            break  # whoever handed it over says so
        compiles = [
            replace(one, idle=one.idle or missed_by(one, loop, runs, project))
            for file in files for one in compile_calls(file, project)
        ]  # fmt: skip
        if any(one.idle is None for one in [*compiles, *on_the_way(runs[0], project)]):
            break
        if any(is_compiled(run.node.func, run.scope, project) is not None for run in runs):  # type: ignore[attr-defined]
            break
        place = _uncompiled(loop, module, compiles, runs[0], project)
        doubt = why_useless(module, is_tried=bool(compiles))
        yield place if doubt is None else replace(place, confidence="low", evidence=(*place.evidence, doubt))
        return  # one finding a file: its loops are the same model's
    else:
        yield from _library_uncompiled(module, project)
    for one in compile_calls(module, project):
        if one.idle is not None and one.idle.startswith("its result") and _is_model(one, project):
            yield Place(one.call, f"nothing runs what is compiled: {one.idle}", (code_of(one.call, 60),))


# classes of settings from which a library's trainer reads whether to compile
TRAINER_SETTINGS = re.compile(r"^(Seq2Seq)?TrainingArguments$|^(SFT|DPO|ORPO|KTO|GRPO|RLOO|Reward|CPO)Config$")


def _library_uncompiled(module: Module, project: Project) -> Iterator[Place]:
    """TrainingArguments without torch_compile=True; the fit() of a module of Lightning that nothing compiles."""
    trainers = [
        (scope, call) for scope in module.scopes for call in scope.calls
        if (name := last_name(call.func) or "") == "fit" or TRAINER_SETTINGS.match(name)
    ]  # fmt: skip
    files = neighbours(module, project) if trainers else []
    if any(file.mentions(OTHER_COMPILERS) or compile_calls(file, project) for file in files):
        return
    for scope, call in trainers:
        if last_name(call.func) == "fit":
            if _is_lightning(call, scope, files, project):
                told = "a module of Lightning, and torch.compile nowhere in its program"
                yield Place(call, "the trainer runs the model uncompiled", (told,), "medium", "low")
        elif not any(word.arg is None for word in call.keywords):
            flag = keyword(call, "torch_compile")
            if flag is None or is_never(flag, scope, project):
                told = "torch_compile is not set" if flag is None else f"torch_compile={code_of(flag, 30)}"
                yield Place(call, "the trainer runs the model uncompiled", (told,), "medium", "low")


def _is_lightning(call: ast.Call, scope: Scope, files: list[Module], project: Project) -> bool:
    """trainer.fit(module) of a program with a LightningModule."""
    base = call.func.value if isinstance(call.func, ast.Attribute) else None
    trainer = base is not None and (
        "trainer" in text_of(base).lower()
        or any("Trainer(" in text_of(origin.node) for origin in project.origins(base, scope, depth=2))
    )
    return trainer and any(re.search(r"\(\s*(\w+\.)?LightningModule\s*\)", file.text) for file in files)


def _made(run: Reached, project: Project) -> tuple[ast.AST, Scope] | None:
    """Where a model is made that a loop runs: in its function, at the top of its file, or in a method of its object."""
    assert isinstance(run.node, ast.Call)
    known = model_name(run, project)
    name = known or target_name(run.node.func)
    at = run.chain[0].scope if known is not None and run.chain else run.scope
    if name is not None and name.startswith("self.") and (owner := project.owner_of(at)) is not None:
        for method in project.class_scopes(owner[1]):
            for binding in method.bindings.get(name, []):
                if binding.how == "=" and isinstance(binding.value, ast.Call):
                    return binding.node, method
    while name is not None and name not in at.parameters:
        for binding in at.bindings.get(name, []):
            if binding.how == "=" and isinstance(binding.value, ast.Call):
                return binding.node, at
        if at.outer is None:
            return None
        at = at.outer
    return None


def _uncompiled(loop: TrainLoop, module: Module, compiles: list[Compile], run: Reached, project: Project) -> Place:
    partly = [one for one in compiles if (one.idle or "").startswith("only ")]
    if len(compiles) > len(partly):
        one = next(one for one in compiles if one not in partly)
        return Place(
            one.call,
            f"the model is not compiled: {one.idle}",
            (f"the training loop is at {module.path}:{loop.inner.lineno}",),
            scope=one.scope,
        )
    off = [line for line, text in module.comments.items() if re.search(r"\btorch\.compile\(|\.compile\(", text)]
    told = [f"compiled at {one.scope.module.path}:{one.call.lineno}: {one.idle}" for one in partly[:1]]
    told += [f"commented out at line {line}: {module.lines[line - 1].strip()[:70]}" for line in off[:1]]
    made = _made(run, project)
    if made is not None and made[1].owner is not None and not off:  # kept by an object: there it is to be compiled
        place = f"{loop.outer_scope.module.path}:{getattr(loop.around, 'lineno', 0)}"
        return Place(
            made[0],
            "the model is made here and trained uncompiled",
            (
                f"the training loop is at {place}",
                *([] if partly else ["no torch.compile in this file or on the way"]),
                *told,
            ),
            confidence="medium",
            scope=made[1],
            also=((loop.around, loop.outer_scope),),
        )
    if made is not None:
        told.append(f"the model is made at {made[1].module.path}:{getattr(made[0], 'lineno', 0)}")
    return Place(
        loop.around,
        "the training loop runs the model uncompiled",
        (*([] if partly else ["no torch.compile in this file or on the way to it"]), *told),
        confidence="high" if off else "medium",
        scope=loop.outer_scope,
        also=(made,) if made is not None else (),
    )


@rule(
    "S22",
    "compiled code meets shapes that change",
    kind="compile",
    severity="high",
    why="Every new shape compiles again: seconds to minutes of standstill each time, until the limit is "
    "reached and the rest runs "
    "uncompiled.",
    fix="Keep shapes fixed (pack, or pad to a few lengths), mark the one dimension that varies as dynamic, "
    "and compile once, "
    "outside loops and functions that are called again.",
    source="optimiser.md D3",
)
def changing_shapes(module: Module, project: Project) -> Iterator[Place]:
    """A model compiled for fixed shapes and fed rows padded to the longest; torch.compile in a hot loop."""
    yield from _forgotten(module, project)
    for one in compile_calls(module, project):
        if not (one.is_of_torch or _in_place(one)) or one.idle == "disable=True":
            continue
        again = compiled_again(one, project)
        if again:
            yield Place(one.call, "the model is compiled again at every turn", (again,))
            continue
        dynamic = one.option("dynamic")
        fixed = dynamic is None or (isinstance(dynamic, ast.Constant) and dynamic.value is False)
        told_fixed = fixes_shapes(one) is not None
        varies = varying_width(module, project, any_rows=told_fixed) if fixed and _is_model(one, project) else None
        if varies:
            words, where = varies
            yield Place(
                one.call,
                f"the model is compiled for fixed shapes, but {words}",
                (where, code_of(one.call, 60)),
                confidence="high" if dynamic is not None else "medium",
            )
        elif (told := fixes_shapes(one)) and _is_model(one, project) and (
            prompt := prompt_handed(one, project)
        ) is not None:  # fmt: skip
            words = "the model is compiled for each shape, but prompts are of any length"
            yield Place(one.call, words, (prompt, f"{told}: {code_of(one.call, 60)}"), confidence="medium")
    yield from _growing(module, project)


def _in_place(one: Compile) -> bool:
    """self.trunk.compile(dynamic=False) of a module: as torch.compile, and not a graph of another library."""
    words = {word.arg for word in one.call.keywords} if isinstance(one.call, ast.Call) else {None}
    return isinstance(one.call, ast.Call) and not one.call.args and words <= {"dynamic", "mode", "fullgraph", "backend"}


def _forgotten(module: Module, project: Project) -> Iterator[Place]:
    """torch._dynamo.reset() in a loop over epochs or steps: all that was compiled is thrown away each time."""
    if any(compiled_again(one, project) for one in compile_calls(module, project)):
        return  # told where it is compiled again
    for scope in module.scopes:
        for call in scope.calls:
            if called(call, scope) not in ("torch._dynamo.reset", "torch.compiler.reset"):
                continue
            loops = module.loops_around(call)
            trains = {id(loop.inner) for loop in train_loops(module, project)}
            if any(id(part) in trains for loop in loops for part in walk(loop)):
                told = (f"it stands in the loop at line {loops[0].lineno}, around or in the training",)
                yield Place(call, "what was compiled is thrown away at every turn", told)


def compiled_again(one: Compile, project: Project) -> str | None:
    """Why a compile call runs at every step: it stands in a training loop or in what one calls, or in forward."""
    scope = one.scope
    if one.function is not None:
        scope = one.function.outer or one.function  # a function that is made anew at every call of the one around
    if scope.simple_name in ("forward", "training_step", "train_step", "__call__"):
        return f"torch.compile stands in `{scope.simple_name}`"
    hot = {id(loop.inner) for module in project.modules for loop in train_loops(module, project)}
    hot |= {id(loop.outer) for m in project.modules for loop in train_loops(m, project) if loop.shape == "nested"}
    hot |= {id(decode.loop) for module in project.modules for decode in decode_loops(module, project)}
    for nest in loops_around(one.call, scope, project):
        for frame in nest:
            item = Reached(one.call, scope, frame.chain)
            hot_or_around = id(frame.loop) in hot or _is_around(frame, one, project)
            if hot_or_around and not is_periodic(item, frame.loop, project) and not _is_once(item, frame.loop):
                way = f", {item.path()}" if frame.chain else ""
                return f"it stands in the loop at {frame.module.path}:{frame.loop.lineno}{way}"
    return None


def _is_around(frame: Frame, one: Compile, project: Project) -> bool:
    """Whether a loop around a training loop, in this function or in one that calls it, compiles the same model anew."""
    loop, module = frame.loop, one.scope.module
    names = _compiled_names(one)
    local = [(b.node, name) for name in names for b in one.scope.bindings.get(name, []) if b.how in MAKES]
    made = [node for node, _ in local if one.call not in walk(node)]
    if not names or any(frame.chain or is_inside(node, loop, module) for node in made):
        return False  # another model at every turn
    if not frame.chain:
        return any(is_inside(train.inner, loop, module) for train in train_loops(module, project))
    for site in frame.chain[-1:]:  # update(model) for model in models
        handed = [project.argument(site, one.scope, name) for name in names if name in one.scope.parameters]
        turned = [name for value in handed if value is not None for name in names_in(value)]
        if any(is_inside(b.node, loop, frame.module) for name in turned for b in frame.scope.bindings.get(name, [])):
            return False
        fresh = any(isinstance(value, ast.Call) for value in handed)  # update(make_model())
        if fresh or one.scope.simple_name in ("__init__", "setup", "build", "main") or _is_made_in(frame, site):
            return False
    return any(
        isinstance(item.node, ast.Call) and is_backward(item.node) for item in reached(loop, frame.scope, project)
    )


MAKES = ("=", "part", "iter")


def _compiled_names(one: Compile) -> list[str]:
    """The names of what is compiled: of a lambda or an inner function those that it reads and does not bind."""
    handed: ast.AST | None = one.call.args[0] if isinstance(one.call, ast.Call) and one.call.args else None
    inner = one.function
    if inner is None and isinstance(handed, ast.Name):  # def step(x): ...; fast = torch.compile(step)
        inner = next((f for f in one.scope.module.scopes if f.outer is one.scope and f.simple_name == handed.id), None)
    if inner is None and isinstance(handed, ast.Lambda):
        inner = next((f for f in one.scope.module.scopes if f.node is handed), None)
    if inner is None:
        name = target_name(handed) if handed is not None else None
        return [name] if name is not None else []
    own = {*inner.parameters, *inner.bindings}
    names = {name for part in inner.body if isinstance(part, ast.expr) for name in names_in(part)}
    return [name for name in sorted(names) if name.partition(".")[0] not in own]


def _is_made_in(frame: Frame, site: Site) -> bool:
    """Whether the object whose method is called is made in the loop: Trainer(config).fit() for config in configs."""
    func = site.call.func
    if not isinstance(func, ast.Attribute) or site.scope is not frame.scope:
        return False
    root = (target_name(func.value) or "").partition(".")[0]
    made = [b.node for b in frame.scope.bindings.get(root, []) if b.how in MAKES]
    return isinstance(func.value, ast.Call) or any(is_inside(node, frame.loop, frame.module) for node in made)


def _is_once(item: Reached, loop: ast.AST) -> bool:
    """Behind `if self.compiled is None`: it runs once."""
    for below, above, _ in item.up():
        if above is loop:
            return False
        if (
            isinstance(above, ast.If)
            and below is not above.test
            and re.search(r"is None|not |in ", text_of(above.test))
        ):
            return True
    return False


def _is_model(one: Compile, project: Project) -> bool:
    if one.function is not None:
        return one.idle is None
    if not isinstance(one.call, ast.Call) or not one.call.args:
        return not one.is_of_torch and _in_place(one)
    value = one.call.args[0]
    if isinstance(value, ast.Lambda):
        inside = next((scope for scope in one.scope.module.scopes if scope.node is value), None)
        return inside is not None and any(is_model_call(call, inside, project) for call in inside.calls)
    if isinstance(value, ast.Call):
        return is_model_value(value, one.scope, project)
    name = target_name(value)
    name = (name or "").removesuffix(".forward")
    if "model" in name.lower() or is_model_name(name) or bool(project.functions.get(name)):
        return True
    above = one.scope.module.parents.get(one.call)  # model = torch.compile(base)
    given = target_name(above.targets[0]) if isinstance(above, ast.Assign) else None
    return is_model_name(given or "") or is_bound_to_model(name, one.scope, project)


def _growing(module: Module, project: Project) -> Iterator[Place]:
    """A compiled model that gets a text one token longer at every turn."""
    for decode in decode_loops(module, project):
        for item in decode.model_calls:
            if not isinstance(item.node, ast.Call) or inner_loops(item, decode.loop):
                continue
            made = is_compiled(item.node.func, item.scope, project) or _decorated(item)
            dynamic = keyword(made, "dynamic") if isinstance(made, ast.Call) else None
            if made is None or dynamic is not None and not is_false(dynamic):
                continue
            shown = Compile(made, item.scope, None)
            if isinstance(made, ast.Call) and fixes_shapes(shown) and (longer := longer_keys(item, project)):
                home = next(other.scope_of[made] for other in project.modules if made in other.scope_of)
                words = "the compiled step meets longer keys at every token"
                yield Place(made, words, (longer, code_of(made, 60)), confidence="medium", scope=home)
                continue
            grown = grown_argument(item, decode.loop, project)
            if grown is not None and not grown.is_filled:
                yield Place(
                    item.anchor,
                    "the compiled model gets another shape for every token",
                    (f"`{grown.name}` grows by {grown.how}", f"compiled by {code_of(made, 60)}"),
                    scope=decode.scope,
                )


def _decorated(item: Reached) -> ast.expr | None:
    """The @torch.compile of a function on the way to where the model runs."""
    for scope in (item.scope, *(site.scope for site in item.chain[1:])):
        for decorator in getattr(scope.node, "decorator_list", []):
            if item.chain and "torch.compile" in text_of(decorator):
                found: ast.expr = decorator
                return found
    return None
