"""Rules on gradient accumulation: when to step, when to clear, and how to scale the loss."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.clearing import behind_if, cleared_before_step, cleared_outside, clears, steps_by_library
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import Loop, TrainLoop, is_cut, train_loops, walk_of, walked_over
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.scaling import (
    Scaling,
    count_of,
    divided_by_count,
    divided_by_turns,
    is_count,
    same_number,
    scalings,
    weighs,
    within_micro_batch,
)
from intone.optimise.scan.seldom import ACCUM, counter_guard
from intone.optimise.scan.source import Module, Scope, target_name, walk

SOURCE = "optimiser.md D19 and G3"


@rule(
    "S50",
    "optimizer steps at every micro-batch",
    kind="accumulation",
    severity="high",
    why="The loss is scaled for several micro-batches, but the weights move after each one: many steps of a "
    "fraction of the size, "
    "with another batch than the recipe says.",
    fix="Step and clear gradients once, after the last micro-batch.",
    source=SOURCE,
)
def steps_too_often(module: Module, project: Project) -> Iterator[Place]:
    """A loop over micro-batches, or a loss divided by their number, with optimizer.step() at every turn."""
    for loop in train_loops(module, project):
        if loop.shape == "guarded" and (rest := _steps_on_rest(loop, project)) is not None:
            step = loop.steps[0]
            told = f"`{code_of(rest.test, 40)}` is true where a remainder is left"
            words = f"`{code_of(step.node, 40)}` runs after every micro-batch but the last of a step"
            yield Place(rest.test, words, (told,), scope=step.scope)
        if loop.shape != "plain" or not loop.steps or loop.outer is not loop.inner or steps_by_library(loop):
            continue
        over = over_micro_batches(loop.inner, loop.scope, project)
        divided = None if over else divided_by_count(loop, project) or divided_by_turns(loop, project)
        cleared = None if over or divided else cleared_outside(loop, project)
        if over or divided or cleared:
            words = f"the loop runs over `{over}`" if over else f"the loss is divided by `{divided}`"
            if cleared is not None:
                words = f"gradients are cleared before the loop, at line {cleared.lineno}, and not in it"
            step = loop.steps[0]
            # a helper that does a whole step is right by itself: the loop over micro-batches is not
            whole = over is not None and step.chain and any(
                item.chain and item.chain[0].call is step.chain[0].call for item in loop.backwards
            )  # fmt: skip
            at = Reached(step.anchor, step.chain[0].scope) if whole else step
            yield Place(
                at.node,
                f"`{code_of(step.node, 40)}` runs after every micro-batch",
                (f"{words} ({module.path}:{loop.inner.lineno})", *_way(step)),
                scope=at.scope,
                also=((step.node, step.scope),) if whole else (),
            )


def _steps_on_rest(loop: TrainLoop, project: Project) -> ast.If | None:
    """if (i + 1) % n: step(): the == 0 is missing."""
    guard = counter_guard(loop.steps[0], loop.inner, project)
    if guard is None or not any(above is guard and below in guard.body for below, above, _ in loop.steps[0].up()):
        return None
    test = guard.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.NotEq, ast.Gt)):
        zero = isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value == 0
        test = test.left if zero else test
    if not (isinstance(test, ast.BinOp) and isinstance(test.op, ast.Mod)):
        return None
    count = text_of(test.right)
    counted = is_count(test.right, loop.steps[0].scope, project) or any(
        text_of(scaling.factor) == count for item in loop.backwards for scaling in scalings(item, loop, project)
    )
    return guard if counted else None


def _way(item: Reached) -> list[str]:
    return [item.path()] if item.chain else []


def over_micro_batches(loop: Loop, scope: Scope, project: Project) -> str | None:
    """for micro in range(accumulation_steps), for chunk in batch.chunk(n), for part in zip(x.split(n), y.split(n))."""
    walked, target = walk_of(loop)
    if walked is None or target is None:
        return None
    made = walked_over(loop, scope)[1:]
    walked = next((value for value in made if is_cut(value)), walked)
    if isinstance(walked, ast.Name):
        walked = next((value for value in made if isinstance(value, ast.Call)), walked)
    text = code_of(walked, 50)
    names = {name.rpartition(".")[2] for name in names_in(walked)} | names_in(target)
    if re.search(r"loader|dataset", text):
        return None
    if any(ACCUM.search(name) for name in names):
        return text
    for part in walk(walked):
        if is_cut(part):
            return text
        if isinstance(part, ast.Call) and ACCUM.search(last_name(part.func) or ""):
            return text
    if (
        isinstance(walked, ast.Call)
        and last_name(walked.func) == "range"
        and walked.args
        and is_count(walked.args[-1], scope, project)
    ):
        return text
    return None


@rule(
    "S51",
    "gradients are cleared inside the accumulation",
    kind="accumulation",
    severity="critical",
    why="Only the last micro-batch reaches the weights; the work on all others is thrown away.",
    fix="Clear gradients once per step, before the first micro-batch or after the step.",
    source=SOURCE,
)
def cleared_too_often(module: Module, project: Project) -> Iterator[Place]:
    """zero_grad() at every turn of the loop over micro-batches, while the step comes later."""
    yield from _cleared_by_hook(module, project)
    for loop in train_loops(module, project):
        if (cleared := cleared_before_step(loop)) is not None:
            told = f"line {cleared.line}: {code_of(cleared.node, 50)}, and then {code_of(loop.steps[0].node, 40)}"
            yield Place(cleared.node, "gradients are cleared right before the step that needs them", (told,),
                        scope=cleared.scope)  # fmt: skip
        if not loop.accumulates or not counts_micro_batches(loop, project):
            continue
        for item in loop.turn(project):
            if clears(item) and not behind_if(item, loop.inner) and not counter_guard(item, loop.inner, project):
                step = loop.steps[0]
                yield Place(
                    item.node,
                    "gradients are cleared at every micro-batch, the step comes only after several",
                    (f"the step is {code_of(step.node, 40)} at {step.scope.module.path}:{step.line}", *_way(item)),
                    scope=item.scope,
                )
                break


BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward")


def _cleared_by_hook(module: Module, project: Project) -> Iterator[Place]:
    """on_train_batch_start() of Lightning that clears, where training_step() steps only every few batches."""
    for scope in module.scopes[1:]:
        if scope.simple_name not in BATCH_HOOKS or scope.owner is None:
            continue
        for step in (one for one in project.class_scopes(scope.owner) if one.simple_name == "training_step"):
            items = reached(step.node, step, project)
            steps = [item for item in items if isinstance(item.node, ast.Call) and last_name(item.node.func) == "step"]
            guards = [counter_guard(item, step.node, project) for item in steps]
            cleared = next((item for item in reached(scope.node, scope, project) if clears(item)), None)
            if cleared is None or not any(guards) or behind_if(cleared, scope.node):
                continue
            told = next(f"line {guard.lineno}: if {code_of(guard.test, 50)}" for guard in guards if guard is not None)
            words = f"`{scope.simple_name}` clears the gradients at every batch, the step comes only after several"
            yield Place(cleared.node, words, (told,), scope=cleared.scope)


@rule(
    "S52",
    "accumulated loss is not scaled",
    kind="accumulation",
    severity="high",
    why="Gradients of n micro-batches are added up without dividing by n: the step is n times as large as "
    "with one batch, so the "
    "result depends on the micro-batch.",
    fix="Divide each loss by the number of micro-batches before backward, or better the sum of token losses "
    "by all supervised "
    "tokens of the step.",
    source=SOURCE,
)
def unscaled_loss(module: Module, project: Project) -> Iterator[Place]:
    """A loss that goes into backward undivided in a loop that accumulates; or is divided only after backward."""
    for loop in train_loops(module, project):
        if not loop.accumulates or not loop.steps or not counts_micro_batches(loop, project):
            continue
        if _scales_elsewhere(loop, project):
            continue
        for item in loop.backwards:
            if "gradient" in text_of(item.node):
                continue
            every = (part for part in scalings(item, loop, project) if not weighs(part, project))
            found = [part for part in every if not within_micro_batch(part, project)]
            before = [part for part in found if part.scope is not item.scope or part.line <= item.line]
            if not before:
                how = (
                    f"it is divided only after backward, at line {found[0].line}"
                    if found
                    else "nothing divides it on its way to backward"
                )
                step = loop.steps[0]
                yield Place(
                    item.node,
                    f"`{code_of(item.node, 40)}` counts every micro-batch in full",
                    (how, f"the step comes after several: {step.scope.module.path}:{step.line}", *_way(item)),
                    scope=item.scope,
                )
                break


def counts_micro_batches(loop: TrainLoop, project: Project) -> bool:
    """Nested loops are accumulation only where the inner one is over micro-batches, not over batches of an epoch."""
    if loop.shape == "guarded":
        return True
    inner = loop.inner
    if isinstance(inner, ast.While):
        return bool(ACCUM.search(" ".join(names_in(inner.test)))) or loop.shape == "nested" and _counts_up(inner)
    if over_micro_batches(inner, loop.scope, project):
        return True
    walked, target = walk_of(inner)
    if walked is None or target is None:
        return False
    text = text_of(walked)
    if re.search(r"loader|dataset", text) and "range(" not in text or "epoch" in f"{text} {text_of(target)}":
        return False
    if re.search(r"range\(|chunk|split|micro|batched\(|grouper\(", text):
        return True
    helpers = [last_name(site.call.func) or "" for item in loop.backwards for site in item.chain]
    if loop.shape == "nested" and any(ACCUM.search(name) for name in helpers):
        return True
    parts = {f"len({target_name(walked)})"}  # the loss is divided by their number
    if loop.shape == "nested" and f"/ {next(iter(parts))}" in text_of(loop.outer_scope.node):
        return True
    if isinstance(walked, ast.Subscript) and isinstance(walked.slice, ast.Slice) and walked.slice.upper is not None:
        parts.add(text_of(walked.slice.upper))  # for batch in batches[:n]
    return any(
        scaling.divides and text_of(scaling.factor) in parts
        for item in loop.backwards for scaling in scalings(item, loop, project)
    )  # fmt: skip


def adds_nothing(loop: TrainLoop, project: Project) -> bool:
    """Whether a step is of one micro-batch by all that the code says; a flag counts by its default."""
    count = count_of(loop, project)
    values = {known.value for known in known_values(*count, project)} if count is not None else set()
    return bool(values) and values <= {1, None, False}


def _counts_up(loop: ast.While) -> bool:
    """while done < wanted: ...; done += len(x): as many micro-batches as a step needs."""
    counted = {
        name for node in walk(loop) if isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Add, ast.Sub))
        for name in names_in(node.target)
    }  # fmt: skip
    return isinstance(loop.test, ast.Compare) and bool(counted & names_in(loop.test))


def _scales_elsewhere(loop: TrainLoop, project: Project) -> bool:
    """Gradients divided after the loop, a loss made as a sum, or a library that scales by itself."""
    texts = [text_of(loop.around), *(text_of(item.scope.node) for item in _functions(loop, project))]
    text = "\n".join(texts)
    if re.search(
        r"\.grad\.(div_|mul_)|\.grad\s*(/=|\*=)|_foreach_(div|mul)|\.accumulate\(|accelerator\.backward|model_engine|scale_grad",
        text,
    ):
        return True
    return bool(re.search(r"['\"]sum['\"]", text) and re.search(r"\.grad\b", text))


def _functions(loop: TrainLoop, project: Project) -> list[Reached]:
    seen: dict[Scope, Reached] = {}
    for item in loop.step_turn(project):
        if item.chain:
            seen.setdefault(item.scope, item)
    return list(seen.values())


@rule(
    "S57",
    "accumulated loss is scaled by the wrong number",
    kind="accumulation",
    severity="high",
    why="The step is larger or smaller than the recipe says by the quotient of the two numbers, and nothing shows it "
    "but the curve of the loss.",
    fix="Divide by the number of micro-batches of the step, once, and take that number from where the loop has it.",
    source=SOURCE,
)
def scaled_wrongly(module: Module, project: Project) -> Iterator[Place]:
    """A loss divided twice, multiplied, or divided by another number than that of the micro-batches."""
    for loop in train_loops(module, project):
        if not loop.accumulates or not loop.steps or not counts_micro_batches(loop, project):
            continue
        if adds_nothing(loop, project):
            continue
        count = count_of(loop, project)
        for item in loop.backwards:
            counted = [s for s in scalings(item, loop, project) if _is_this_count(s, count, project)]
            wrong = _wrong_scaling(counted, list(scalings(item, loop, project)), count, project)
            if wrong:
                message, evidence = wrong
                yield Place(item.node, message, (*evidence, *_way(item)), scope=item.scope)
                break


Count = tuple[ast.expr, Scope] | None


def _is_this_count(scaling: Scaling, count: Count, project: Project) -> bool:
    if isinstance(scaling.factor, ast.BinOp) and isinstance(scaling.factor.op, ast.Sub):
        return False  # 1 - share: the weight of one of two losses
    if is_count(scaling.factor, scaling.scope, project):
        return True
    return count is not None and same_number(scaling.factor, scaling.scope, *count, project) is True


def _wrong_scaling(
    counted: list[Scaling], every: list[Scaling], count: Count, project: Project
) -> tuple[str, tuple[str, ...]] | None:
    times = [scaling for scaling in counted if not scaling.divides]
    if times:
        return "the loss is multiplied by the number of micro-batches", (f"line {times[0].line}: {times[0].text}",)
    if len(counted) > 1 and len({id(scaling.node) for scaling in counted}) > 1:
        return "the loss is divided twice by the number of micro-batches", tuple(
            f"{scaling.scope.module.path}:{scaling.line}: {scaling.text}" for scaling in counted[:2]
        )
    if count is None or len(every) != 1:
        return None
    factor = every[0].factor
    if not counted and re.search(
        r"len\(|size\(0\)|shape\[0\]|batch_size|world_size|epoch|num_batches", text_of(factor)
    ):
        told = f"micro-batches: `{code_of(count[0], 30)}` at {count[1].module.path}:{count[0].lineno}"
        return f"the loss is divided by `{code_of(factor, 30)}`, not by the number of micro-batches", (told,)
    if same_number(every[0].factor, every[0].scope, *count, project) is False:
        return f"the loss is divided by `{code_of(every[0].factor, 30)}`, not by the number of micro-batches", (
            f"micro-batches: `{code_of(count[0], 30)}` at {count[1].module.path}:{count[0].lineno}",
            f"line {every[0].line}: {every[0].text}",
        )
    return None


@rule(
    "S53",
    "micro-batches weigh the same whatever they hold",
    kind="accumulation",
    severity="low",
    why="Each micro-batch's loss is a mean over its own supervised tokens; the mean of means gives a token "
    "in a short answer more "
    "weight than one in a long answer, and the result depends on the micro-batch and the number of devices.",
    fix="Sum the token losses, divide once by all supervised tokens of the step, over all micro-batches and ranks.",
    source="nanochat-facts.md 4.3.23",
)
def mean_of_means(module: Module, project: Project) -> Iterator[Place]:
    """A loss divided by the number of micro-batches in a file that masks targets."""
    masks = [
        node
        for node in module.nodes
        if isinstance(node, ast.Assign)
        and re.search(r"target|label", " ".join(names_in(node.targets[0])))
        and isinstance(node.targets[0], ast.Subscript)
        and text_of(node.value) in ("-1", "-100", "IGNORE_INDEX", "ignore_index")
    ]
    if not masks:
        return
    for loop in train_loops(module, project):
        if loop.accumulates and (name := divided_by_count(loop, project)):
            if re.search(r"num_tokens|num_valid|n_tokens|num_supervised|token_count|num_items", name):
                continue
            yield Place(
                loop.backwards[0].node,
                f"the loss is a mean per micro-batch, divided by `{name}`",
                (f"targets are masked at line {masks[0].lineno}, so micro-batches hold different numbers of tokens",),
                confidence="medium",
                scope=loop.backwards[0].scope,
            )
