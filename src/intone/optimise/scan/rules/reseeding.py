"""Rules on seeding: when a stream is set back, and who begins with the same numbers."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.drawing import draws_per_call
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.purpose import is_evaluation
from intone.optimise.scan.reach import COMPREHENSIONS, Frame, Reached, is_inside, loops_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seeds import SEEDED, calls_something, cut_by, seed_of
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_call

PER_CALL = re.compile(
    r"^_?(forward|__getitem__|__call__|collate\w*|sample|sample_\w+|\w*next_token|pick\w*|draw\w*|get_batch|next_batch|"
    r"\w*_batch|training_step|train_step|step|augment\w*|dropout\w*|mask_tokens|noise\w*|shuffle\w*|"
    r"on_(train_)?(epoch|batch|step)_(start|begin|end)|on_train_(epoch|batch|step)_\w+)$"
)
# loops over whole runs: to seed at the start of each is right
EXPERIMENTS = re.compile(r"seed|trial|\brun|config|cfg|experiment|fold|repeat|models?\b|variant|sweep|lrs?\b", re.I)
ROWS_OF_ONE = re.compile(r"\brow|sample|completion|rollout|step|token", re.I)
HOT = re.compile(
    r"step|row|batch|sample|token|prompt|request|epoch|micro|max_new|range\(|loader|completion|rollout", re.I
)


@rule(
    "S03",
    "seeded again for every step or call",
    kind="rng",
    severity="high",
    why="The same random numbers come back at every turn: the same dropout masks, the same rows, the same "
    "sampled tokens.",
    fix="Seed once, before the loop; or derive the seed from the step, so that every turn has a stream of its own.",
    source="optimiser.md D22",
)
def reseeded(module: Module, project: Project) -> Iterator[Place]:
    """A call that seeds with a value that stays the same, in a loop, or in a function called for every row or step."""
    for scope in module.scopes:
        for call in scope.calls:
            seed = seed_of(call, scope)
            if seed is None:
                continue
            if _is_restored(scope, call) and not _makes_stream(call, scope):
                if (forked := _forked_turn(call, seed, scope, project)) is not None:
                    yield Place(
                        call, f"`{code_of(call, 50)}` gives the same numbers at every turn of {forked[0]}", forked[1]
                    )
                continue
            where = _turn_of(call, seed, scope, project)
            if where is not None:
                words = f"`{code_of(call, 50)}` runs at every turn of {where[0]}"
                maker = _made_in_turn(call, scope, project)
                if maker is None:
                    yield Place(call, words, where[1])
                else:  # an object that seeds its own stream is right, to make it anew is not
                    yield Place(maker.call, words, where[1], scope=maker.scope, also=((call, scope),))
            elif (
                not module.loops_around(call)
                and (often := _called_often(scope, project, seed) or draws_per_call(call, scope, project)) is not None
                and is_constant(seed, scope, project)
                and not _only_main(scope)
                and not is_evaluation(scope, project)  # which wants the same draw each time
            ):
                yield Place(
                    call,
                    f"`{often}` seeds with the same number whenever it is called",
                    (f"the seed is `{code_of(seed, 30)}`",),
                )
    yield from _same_in_every_process(module, project)


def _made_in_turn(call: ast.Call, scope: Scope, project: Project) -> Site | None:
    """The call in a loop that makes an object which seeds a stream of its own: for _ in range(n): draw = Sampler()."""
    if scope.simple_name != "__init__" or not is_own_stream(call, scope):
        return None
    return next((site for site in project.callers(scope)[:4] if site.scope.module.loops_around(site.call)), None)


def _called_often(scope: Scope, project: Project, seed: ast.expr, depth: int = 2) -> str | None:
    """The name of a function that runs for every step, row or token: this one, or one that calls it.

    Not one that is handed the object whose seed it is: request.attach() seeds anew for every request.
    """
    name = scope.simple_name
    if name == "__iter__":  # once an epoch, or once at all where it never ends
        return None if any(isinstance(node, ast.While) for node in scope.body) else name
    if PER_CALL.match(name):
        return name
    if depth == 0 or name in ("__init__", "<module>", "main") or any("seed" in one for one in scope.parameters):
        return None  # whoever calls it says with which seed
    sites = [site for site in project.callers(scope)[:4] if not site.scope.module.loops_around(site.call)]
    if any(name.startswith("self.") for name in names_in(seed)):
        sites = [site for site in sites if not _is_of_argument(site)]
    found = (_called_often(site.scope, project, seed, depth - 1) for site in sites)
    return next((one for one in found if one and not one.endswith("_batch")), None)


def _is_of_argument(site: Site) -> bool:
    """request.attach(device), where the function around is handed the request, or walks over several."""
    base = site.call.func.value if isinstance(site.call.func, ast.Attribute) else None
    root = (target_name(base) or "self").partition(".")[0] if base is not None else "self"
    walked = any(b.how == "iter" for b in site.scope.bindings.get(root, []))
    return root not in ("self", "cls") and (root in site.scope.parameters or walked)


STARTS = (
    "map", "imap", "imap_unordered", "starmap", "map_async", "apply_async", "apply", "submit", "spawn", "Process",
    "Thread",
)  # fmt: skip


def _same_in_every_process(module: Module, project: Project) -> Iterator[Place]:
    """pool.map(make, ...), Process(target=make): a function that seeds with one number in every process it runs in."""
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) not in STARTS or isinstance(call.func, ast.Name) and call.func.id == "map":
                continue
            handed = keyword(call, "target") or (call.args[0] if call.args else None)
            for function in functions_of(handed, scope, project)[:2] if handed is not None else ():
                for inner in function.calls:
                    seed = seed_of(inner, function)
                    if seed is None or calls_something(seed) or names_in(seed) & set(function.parameters):
                        continue
                    if is_constant(seed, function, project):
                        yield Place(
                            inner,
                            f"every process that runs `{function.simple_name}` begins with the same seed",
                            (f"started by {code_of(call, 50)} at {scope.module.path}:{call.lineno}",),
                            scope=function,
                        )
                        break


PUTS_BACK = ("fork_rng", "set_rng_state", "setstate", "set_state")


def _is_restored(scope: Scope, seeding: ast.Call) -> bool:
    """Whether a function keeps the state of the stream and puts it back behind its own seeding."""
    return any(last_name(call.func) in PUTS_BACK and call is not seeding for call in scope.calls)


# what draws, by the last part of its name
DRAWS = re.compile(
    r"^(rand|randn|randint|randperm|rand(n|int)?_like|normal_?|uniform_?|bernoulli_?|exponential_?|multinomial|dropout\w*|"
    r"random|choice|choices|shuffle|permutation|integers|standard_normal|sample)$"
)
# on whose way the same numbers are wanted: one picture of the progress is compared with the next
COMPARED = re.compile(
    r"(^|_)(eval\w*|valid\w*|val|tests?|probe|preview|plot|log|visuali\w+|demo|init\w*|fixed|replay\w*|recompute\w*|"
    r"generate|checkpoint\w*|metrics?)($|_)"
)
OF_A_STEP = re.compile(r"^_?(training_step|train_step|corrupt\w*|add_noise|noise\w*|q_sample|mask_tokens|diffuse)$")


def _forked_turn(call: ast.Call, seed: ast.expr, scope: Scope, project: Project) -> tuple[str, tuple[str, ...]] | None:
    """with fork_rng(): manual_seed(0); noise = randn_like(x): the same noise in every step, whatever is put back.

    Only where a training draws so at each of its steps; an evaluation that begins alike each time is right.
    """
    if last_name(call.func) in PUTS_BACK or calls_something(seed) or COMPARED.search(scope.simple_name):
        return None
    if not scope.is_generator and not any(
        DRAWS.match(last_name(other.func) or "") or is_model_call(other, scope, project)
        for other in scope.calls if other.lineno >= call.lineno and other is not call
    ):  # fmt: skip
        return None
    told = f"the seed is `{code_of(seed, 30)}`, and what is put back behind it is the stream of the others"
    permutes = any(last_name(other.func) in ("randperm", "permutation", "shuffle") for other in scope.calls)
    for nest in loops_around(call, scope, project):
        for frame in nest:
            if not any(loop.inner is frame.loop for loop in train_loops(frame.module, project)):
                continue
            item = Reached(call, scope, frame.chain)
            if any(COMPARED.search(site.scope.simple_name) for site in frame.chain[1:]):
                break
            if is_periodic(item, frame.loop, project) or _seed_changes(seed, scope, frame, project):
                break
            counted = cut_by(scope, lambda name: name.startswith("self.") and _is_counted(name, scope, project))
            if permutes and (counted or _takes_other_part(scope, frame, project)):
                break  # one permutation, of which each step takes another part
            way = item.path()
            return f"the training loop at {frame.module.path}:{frame.loop.lineno}", (told, *([way] if way else []))
    if OF_A_STEP.match(scope.simple_name) and not project.callers(scope) and is_constant(seed, scope, project):
        return f"what calls `{scope.simple_name}` for each batch", (told,)
    return None


def _only_main(scope: Scope) -> bool:
    return scope.simple_name in ("main", "__main__")


def _turn_of(call: ast.Call, seed: ast.expr, scope: Scope, project: Project) -> tuple[str, tuple[str, ...]] | None:
    """(the loop in words, evidence) where a seeding call runs at every turn with the same seed."""
    comprehension = _comprehension(call, scope)
    if comprehension is not None and not names_in(seed) & comprehension[1] and not calls_something(seed):
        return comprehension[0], (f"the seed `{code_of(seed, 30)}` is the same for all of them",)
    for nest in loops_around(call, scope, project):
        for frame in nest:
            if EXPERIMENTS.search(_header(frame.loop)):
                break
            if _seed_changes(seed, scope, frame, project):
                break
            own = is_own_stream(call, scope)
            if own and frame.chain and _repeats_itself(frame):
                way = Reached(call, scope, frame.chain).path()
                turns = f"the loop at {frame.module.path}:{frame.loop.lineno}"
                return turns, (f"the seed `{code_of(seed, 30)}` is the same at each turn, so is the result", way)
            if (frame.chain or _makes_stream(call, scope)) and not _is_hot(frame, project, own):
                break
            compared = any(COMPARED.search(site.scope.simple_name) for site in frame.chain[1:])
            if compared and (own or _makes_stream(call, scope)):
                break  # an evaluation on rows of its own, the same ones each time
            if _draws_other_sizes(call, scope, frame, project) or _takes_other_part(scope, frame, project):
                break
            way = Reached(call, scope, frame.chain).path()
            line = (
                f"the loop at {frame.module.path}:{frame.loop.lineno}"
                if frame.chain
                else f"the loop at line {frame.loop.lineno}"
            )
            same = f"the seed `{code_of(seed, 30)}` does not change in the loop"
            return line, (same, *([way] if way else []))
    return None


def _draws_other_sizes(call: ast.Call, scope: Scope, frame: Frame, project: Project) -> bool:
    """default_rng(0).integers(0, high, (rows, length)) with other rows at every turn: one experiment for each size."""
    if not _makes_stream(call, scope):
        return False
    above = scope.module.parents.get(call)
    draw = scope.module.parents.get(above) if isinstance(above, ast.Attribute) else None
    target = target_name(above.targets[0]) if isinstance(above, ast.Assign) else None
    draws = [draw] if isinstance(draw, ast.Call) else [
        other for other in scope.calls
        if target is not None and isinstance(other.func, ast.Attribute) and target_name(other.func.value) == target
    ]  # fmt: skip
    shapes = [keyword(one, "size") or (one.args[-1] if one.args else None) for one in draws]
    return any(
        isinstance(shape, ast.Tuple) and not calls_something(shape) and _seed_changes(shape, scope, frame, project)
        for shape in shapes
    )


def _takes_other_part(scope: Scope, frame: Frame, project: Project) -> bool:
    """order[lo : lo + n] with lo made of a parameter that changes in the loop: each turn takes a part of one draw."""
    changing = _changed_in(frame.loop)
    handed = {name: project.argument(frame.chain[-1], scope, name) for name in scope.parameters if frame.chain}
    turned = {name for name, value in handed.items() if value is not None and names_in(value) & changing}
    return cut_by(scope, lambda name: name in turned)


def _repeats_itself(frame: Frame) -> bool:
    """[sample(model, ids, seed) for _ in range(k)]: a call that a loop makes with the same arguments at every turn."""
    call = frame.chain[0].call
    words = [*call.args, *(word.value for word in call.keywords)]
    used = {name for word in words for name in names_in(word)}
    changing = _changed_in(frame.loop)
    target = _header(frame.loop)
    counted = target.startswith("_ ") or "range(" in target
    return counted and not used & changing and not any(calls_something(word) for word in words)


def _comprehension(call: ast.Call, scope: Scope) -> tuple[str, set[str]] | None:
    """(in words, its variables) of a comprehension that a call stands in."""
    for above in scope.module.up(call):
        if isinstance(above, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            names = {name for part in above.generators for name in names_in(part.target)}
            return f"the comprehension over `{code_of(above.generators[0].iter, 30)}`", names
        if isinstance(above, ast.stmt):
            return None
    return None


def _header(loop: ast.AST) -> str:
    if isinstance(loop, COMPREHENSIONS):
        parts = [f"{text_of(part.target)} {text_of(part.iter)}" for part in loop.generators]
        return re.sub(r"\w+\.", "", " ".join(parts))
    if isinstance(loop, (ast.For, ast.AsyncFor)):
        return re.sub(r"\w+\.", "", f"{text_of(loop.target)} {text_of(loop.iter)}")
    return ""


def _seed_changes(seed: ast.expr, scope: Scope, frame: Frame, project: Project) -> bool:
    """Whether a seed differs from turn to turn of a loop: by names that change there, also where it is handed over."""
    if calls_something(seed):
        return True
    changing = _changed_in(frame.loop)
    if frame.chain and any(name.startswith("self.") for name in names_in(seed)):
        base = frame.chain[0].call.func  # [row.generator() for row in rows], each with its own seed
        if names_in(base) & changing:
            return True
    todo = [(seed, scope, frame.chain)]
    for _ in range(8):
        if not todo:
            break
        node, at, chain = todo.pop()
        names = names_in(node)
        if names & changing and at is frame.scope:
            return True
        for name in names:
            for binding in at.bindings.get(name, []):
                if at is frame.scope and not is_inside(binding.node, frame.loop, at.module):
                    continue  # bound before the loop: the same at every turn
                if isinstance(binding.node, ast.AugAssign) or calls_something(binding.value):
                    return True
                todo.append((binding.value, at, chain))
            if name in at.parameters and chain:
                value = project.argument(chain[-1], at, name)
                if value is not None:
                    if calls_something(value):
                        return True  # drawn or computed anew for each call
                    todo.append((value, chain[-1].scope, chain[:-1]))
            if name.startswith("self.") and _is_counted(name, at, project):
                return True
    return False


def _is_counted(name: str, scope: Scope, project: Project) -> bool:
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner else []
    return any(
        isinstance(b.node, ast.AugAssign) or (b.how == "=" and method.simple_name != "__init__")
        for method in methods for b in method.bindings.get(name, [])
    )  # fmt: skip


def is_own_stream(call: ast.Call, scope: Scope) -> bool:
    """A generator that the function makes for itself: each call begins a stream of its own, as a request may."""
    name = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
    made = scope.bindings.get(name or "", [])
    return any(isinstance(b.value, ast.Call) and "Generator" in text_of(b.value.func) for b in made)


def _is_hot(frame: Frame, project: Project, own: bool = False) -> bool:
    """Whether a loop that calls something is one over steps, tokens, rows or batches, not over experiments.

    own: of a stream that the function made for itself, only rows of one text and steps matter.
    """
    module = frame.module
    if any(loop.inner is frame.loop or loop.around is frame.loop for loop in train_loops(module, project)):
        return True
    if any(decode.loop is frame.loop for decode in decode_loops(module, project)):
        return True
    return bool((ROWS_OF_ONE if own else HOT).search(_header(frame.loop)))


def _makes_stream(call: ast.Call, scope: Scope) -> bool:
    return called(call, scope) in SEEDED


def _changed_in(loop: ast.AST) -> set[str]:
    """Names that are given a value inside a loop, its own variable included."""
    changed: set[str] = set()
    if isinstance(loop, COMPREHENSIONS):
        changed |= {name for part in loop.generators for name in names_in(part.target)}
    for part in walk(loop):
        if isinstance(part, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor, ast.NamedExpr)):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            changed |= {name for target in targets for name in names_in(target)}
    return changed


# what holds the values of one request, row or state, and not those of the run
PER_REQUEST = re.compile(
    r"req|body|row|batch|item|sample|state|msg|message|payload|data|query|example|job|ckpt|checkpoint|meta|record", re.I
)


RUN_SETTING = re.compile(r"^(cfg|config|conf|args|hp|hparams|settings|opts|params)(\.\w+)*\.(\w+_)?seed$", re.I)


def is_constant(seed: ast.expr, scope: Scope, project: Project) -> bool:
    """A number, or what stands for one number wherever it comes from; an object's seed too, unless it is counted up."""
    if isinstance(seed, ast.Constant):
        return seed.value is not None
    name = target_name(seed)
    if isinstance(seed, ast.Subscript) and isinstance(seed.slice, ast.Constant):  # cfg["seed"]
        return not PER_REQUEST.search(target_name(seed.value) or "row")
    if name is not None and name.startswith("self."):
        return not _is_counted(name, scope, project)
    if name is not None and RUN_SETTING.search(name):
        return True
    if isinstance(seed, ast.BinOp) and not names_in(seed):
        return True
    if name is None:
        return False
    if name in scope.parameters:
        default = scope.parameters[name].default
        return isinstance(default, ast.Constant) and default.value is not None
    values = known_values(seed, scope, project)
    return bool(values) and all(known.value is not None for known in values)
