"""Rules on streams of random numbers that an object keeps: who sets them back, and who begins with the same numbers."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.beside import beside_others, threads_run
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.joining import RESETS, from_caller, joins_and_seeds, leads_to
from intone.optimise.scan.rules.randomness import stream_of
from intone.optimise.scan.rules.rank_batches import same_batches_on_ranks
from intone.optimise.scan.rules.reseeding import is_constant, is_own_stream
from intone.optimise.scan.seeds import MAKERS, SEEDERS, SEEDING, calls_something, chain_of, cut_by, method_of, seed_of
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import chooses_token


@rule(
    "S07",
    "one request sets back the stream of the others",
    kind="rng",
    severity="high",
    why="The rows that are generated together draw from one stream; a request that joins seeds it anew, so the texts "
    "that run already change, and the same request gives another text in other company.",
    fix="Keep a generator per request, made from its seed when it joins, and draw each row's token from its own.",
    source="optimiser.md D22; nanochat-facts.md 2.4",
)
def set_back_by_one(module: Module, project: Project) -> Iterator[Place]:
    """A generator of an object that one method seeds for a request, and from which another draws for all rows."""
    seen: set[ast.AST] = set()
    for scope in module.scopes[1:]:
        owner = project.owner_of(scope)
        if owner is None or scope.simple_name == "__init__" or RESETS.search(scope.simple_name):
            continue
        for call in scope.calls:
            name = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            if name is None or not name.startswith("self.") or not SEEDING.search("." + method_of(call)):
                continue
            if not call.args or not names_in(call.args[0]) & from_caller(scope):
                continue
            draws = [
                (method, other) for method in project.class_scopes(owner[1]) for other in method.calls
                if chooses_token(other, method) and target_name(stream_of(other, method) or call) == name
            ]  # fmt: skip
            if not draws:
                continue
            at, draw = draws[0]
            drawn = f"drawn by {code_of(draw, 50)} in `{at.simple_name}` at {at.module.path}:{draw.lineno}"
            own = any(method is scope or leads_to(scope, method, project) for method, _ in draws)
            served = beside_others(call, scope, project) if own and _is_one_for_all(owner, project) else None
            if own and served is None:
                continue
            who = "others that are under way draw" if own else "others draw"
            told = f"`{scope.simple_name}` seeds `{name}` for one request, and {who} from it"
            yield Place(call, told, (drawn, *(served or ())[1:]))
            seen.add(call)
    others = (*_global_by_one(module, project), *_kept_by_one(module, project), *joins_and_seeds(module, project))
    for place in others:
        if place.node not in seen:
            seen.add(place.node)
            yield place


def _global_by_one(module: Module, project: Project) -> Iterator[Place]:
    """torch.manual_seed(request.seed) on the way of a handler that runs beside others: all draw from this stream."""
    for scope in module.scopes[1:]:
        for call in scope.calls:
            name = called(call, scope)
            root = (target_name(call.func) or "").partition(".")[0]
            if not (SEEDING.search("." + name.rpartition(".")[2]) or name in SEEDERS) or root not in module.imports:
                continue
            if not call.args or not names_in(call.args[0]) & from_caller(scope) or project.callees(call, scope):
                continue
            served = beside_others(call, scope, project)
            if served is not None:
                handler, how = served
                yield Place(
                    call,
                    f"`{scope.simple_name}` seeds the stream of the whole process for one request",
                    (f"{how}, so others that run at the same time draw from the same stream",),
                    "high" if handler is scope else "medium",
                )
                break


def _kept_by_one(module: Module, project: Project) -> Iterator[Place]:
    """stream = random_stream(device); stream.manual_seed(request.seed), of a function that gives all the same one."""
    for scope in module.scopes[1:]:
        for call in scope.calls:
            name = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            if name is None or name.startswith("self.") or not SEEDING.search("." + method_of(call)) or not call.args:
                continue
            made = [b.value for b in scope.bindings.get(name, []) if b.how == "="]
            maker = made[0] if len(made) == 1 and isinstance(made[0], ast.Call) else None
            if maker is None or not names_in(call.args[0]) & from_caller(scope):
                continue
            kept = next((one for one in project.callees(maker, scope)[:2] if _gives_one(one)), None)
            served = beside_others(call, scope, project) if kept is not None else None
            served = served or (_threaded(scope, project) if kept is not None else None)
            if kept is not None and served is not None:
                yield Place(
                    call,
                    f"`{scope.simple_name}` seeds for one request the stream that `{kept.simple_name}` gives to all",
                    (f"{served[1]}, so others that run at the same time draw from the same stream",),
                )


def _threaded(scope: Scope, project: Project, depth: int = 2) -> tuple[Scope, str] | None:
    """Whether threads run what calls a function: asyncio.to_thread(writer.generate, request)."""
    if (how := threads_run(scope, project)) is not None:
        return scope, how
    found = (_threaded(site.scope, project, depth - 1) for site in project.callers(scope)[:4] if depth)
    return next((one for one in found if one is not None), None)


def _gives_one(function: Scope) -> bool:
    """Whether a function gives the same object at each call: one that a decorator keeps, or one of the file."""
    marks = [text_of(item) for item in getattr(function.node, "decorator_list", [])]
    top = function.module.top.bindings
    return any("cache" in mark for mark in marks) or any(target_name(value) in top for value in function.returns)


def _is_one_for_all(owner: tuple[Module, ast.ClassDef], project: Project) -> bool:
    """Whether requests share an object of a class: it is made at the top of a file, and for no request."""
    sites = project.sites.get(owner[1].name, [])
    return any(site.scope is site.scope.module.top for site in sites) and not any(
        isinstance(site.scope.node, ast.AsyncFunctionDef) for site in sites
    )


@rule(
    "S08",
    "every rank draws the same masks",
    kind="rng",
    severity="medium",
    why="What is made for one rank begins with the same seed on all of them: the same masks, crops or noise on every "
    "device, so more devices see no more variety.",
    fix="Make the seed a function of (seed, rank).",
    source="optimiser.md D22",
)
def same_draws_on_ranks(module: Module, project: Project) -> Iterator[Place]:
    """A function or object that knows its rank and draws from a stream seeded without it."""
    for scope in module.scopes:
        ranks = [name for name in scope.parameters if RANK.search(name)]
        found_out = [] if ranks else _ranks_found_out(scope)
        if not ranks and not found_out or isinstance(scope.node, ast.Lambda):
            continue
        for call in scope.calls:
            seed = seed_of(call, scope)
            if seed is None or calls_something(seed) or any("rank" in name.lower() for name in names_in(seed)):
                continue
            held = _held_as(call, scope)
            spelled = {n for name in names_in(seed) for b in scope.bindings.get(name, []) for n in names_in(b.value)}
            if held is None or any("rank" in name.lower() for name in spelled):
                continue
            draw = _draws_from(held, scope, project, turns=bool(found_out))
            shared = ranks and cut_by(scope, lambda name: bool(RANK.search(name)))  # all take parts of one draw
            if draw is not None and not shared:
                at, drawn = draw
                yield Place(
                    call,
                    f"`{held}` begins alike on every rank: `{[*ranks, *found_out][0]}` is known here and is no part of "
                    "the seed",
                    (f"drawn from by {code_of(drawn, 50)} at {at.module.path}:{drawn.lineno}",),
                )
                break
    yield from _same_noise_on_ranks(module, project)


@rule(
    "S09",
    "each rank cuts its share out of another order",
    kind="rng",
    severity="high",
    why="The order from which every rank takes its part is drawn with the rank in the seed, so the parts overlap: some "
    "rows are seen on several devices, others on none.",
    fix="Draw one order from (seed, epoch) on all ranks, then let each rank take its part.",
    source="optimiser.md D22; PyTorch reference of DistributedSampler",
)
def other_order_on_ranks(module: Module, project: Project) -> Iterator[Place]:
    """DistributedSampler(seed=seed + rank); a shuffle seeded with the rank, then files[rank::world]."""
    for scope in module.scopes:
        for call in scope.calls:
            seed = keyword(call, "seed")
            if last_name(call.func) == "DistributedSampler" and seed is not None and _has_rank(seed, scope):
                yield Place(call, "the sampler's seed differs from rank to rank", (f"seed={code_of(seed, 40)}",))
                continue
            seed = seed_of(call, scope)
            if seed is None or not _has_rank(seed, scope):
                continue
            held = _held_as(call, scope)
            shuffles = [
                other for other in scope.calls
                if last_name(other.func) in ("shuffle", "permutation", "randperm") and other.lineno >= call.lineno
                and (held is None or held in names_in(other) or any(part is call for part in walk(other)))
            ]  # fmt: skip
            cut = next((node for node in scope.body if isinstance(node, ast.Subscript) and _is_share(node)), None)
            if shuffles and cut is not None:
                yield Place(
                    call,
                    "the order that ranks share is seeded with the rank",
                    (f"shuffled at line {shuffles[0].lineno}, cut by `{code_of(cut, 40)}` at line {cut.lineno}",),
                )


def _has_rank(seed: ast.expr, scope: Scope) -> bool:
    names = names_in(seed) | {
        n for name in names_in(seed) for b in scope.bindings.get(name, []) for n in names_in(b.value)
    }
    return any(re.search(r"(^|[._])(local_)?rank$", name) for name in names)


def _is_share(node: ast.Subscript) -> bool:
    """rows[rank::world]"""
    part = node.slice
    return isinstance(part, ast.Slice) and part.lower is not None and part.step is not None and "rank" in text_of(part)


RANK = re.compile(r"(^|_)(rank|local_rank|worker_id|worker|shard_id|process_index|replica)$")


def _held_as(call: ast.Call, scope: Scope) -> str | None:
    """The name under which a stream of its own is kept: g = torch.Generator().manual_seed(1), or g.manual_seed(1)."""
    if isinstance(call.func, ast.Attribute) and SEEDING.search("." + call.func.attr):
        name = target_name(call.func.value)
        if name is not None:
            made = scope.bindings.get(name, [])
            return name if any("Generator" in text_of(b.value) for b in made) else None
    for above in scope.module.up(call):
        if isinstance(above, ast.Assign):
            return (
                target_name(above.targets[0])
                if any(maker in chain_of(above.value, scope) for maker in MAKERS)
                else None
            )
        if isinstance(above, ast.stmt):
            return None
    return None


NOISE = ("rand", "randn", "randn_like", "rand_like", "randint", "randint_like", "bernoulli", "normal", "poisson")
TOGETHER = re.compile(r"init_process_group|DistributedDataParallel|Accelerator\(|Fabric\(|fully_shard")


def _same_noise_on_ranks(module: Module, project: Project) -> Iterator[Place]:
    """torch.manual_seed(1) on all ranks, then noise = torch.randn_like(x) at every step: alike on every device."""
    files = neighbours(module, project)
    if not any(file.mentions(TOGETHER) for file in files) or any(True for _ in same_batches_on_ranks(module, project)):
        return
    seeds = [
        (scope, call) for file in files for scope in file.scopes for call in scope.calls
        if SEEDING.search("." + method_of(call)) and call.args and not project.callees(call, scope)
        and (called(call, scope).startswith("torch.") or "manual_seed" not in method_of(call))
        and not called(call, scope).endswith("Generator.manual_seed")
    ]  # fmt: skip
    mine = [pair for pair in seeds if pair[0].module is module and isinstance(module.parents.get(pair[1]), ast.Expr)]
    if not mine or any(_knows_rank(call, scope) for scope, call in seeds):
        return
    scope, call = mine[0]
    if is_own_stream(call, scope) or not is_constant(call.args[0], scope, project):
        return
    for loop in [loop for file in files for loop in train_loops(file, project)]:
        for item in loop.step_turn(project):
            draw = item.node
            if not isinstance(draw, ast.Call) or item.is_in_forward or keyword(draw, "generator") is not None:
                continue
            if not called(draw, item.scope).startswith("torch.") or method_of(draw) not in NOISE:
                continue
            if is_periodic(item, loop.around, project):
                continue
            yield Place(
                call,
                "every rank has the same seed and draws the same noise",
                (f"drawn at every step by {code_of(draw, 50)} at {item.scope.module.path}:{draw.lineno}",),
                confidence="medium",
            )
            return


def _knows_rank(call: ast.Call, scope: Scope) -> bool:
    """Whether a rank has a part in a seed, itself or by what a library is told."""
    words = [text_of(arg) for arg in [*call.args, *(word.value for word in call.keywords)]]
    words += [text_of(b.value) for name in names_in(call) for b in scope.bindings.get(name, []) if b.how == "="]
    options = {word.arg for word in call.keywords}
    return "device_specific" in options or any(re.search(r"rank|process_index|device_id", word) for word in words)


def _ranks_found_out(scope: Scope) -> list[str]:
    """The names under which a function keeps the rank that it asked for: rank = dist.get_rank()."""
    return [
        name for name, bindings in scope.bindings.items()
        if RANK.search(name.rpartition(".")[2]) and any(
            b.how in ("=", "part") and not isinstance(b.value, ast.Constant) for b in bindings
        )
    ]  # fmt: skip


# what makes an order or a split of the data, which all ranks must have alike, or draws nothing
SPLITS = re.compile(r"perm|shuffle|split|DataLoader|Sampler|state|initial_seed")


def _in_turns(call: ast.Call, scope: Scope) -> bool:
    """Whether a draw runs again and again on every rank, and no part of it is cut out by the rank."""
    if not scope.module.loops_around(call):
        return False
    for above in scope.module.up(call):
        asked: list[ast.expr] = []
        if isinstance(above, ast.If):
            asked = [above.test]
        elif isinstance(above, ast.Subscript):
            asked = [above.slice]
        elif isinstance(above, ast.Assign) and (target := target_name(above.targets[0])) is not None:
            asked = [node.slice for node in scope.of(ast.Subscript) if target_name(node.value) == target]
        if any(RANK.search(name.rpartition(".")[2]) for part in asked for name in names_in(part)):
            return False
        if above is scope.node:
            break
    return True


def _draws_from(held: str, scope: Scope, project: Project, *, turns: bool) -> tuple[Scope, ast.Call] | None:
    """A draw from a stream that no rank has a part in, here or in the object's methods; a permutation is no draw.

    turns: in this function only what is drawn again and again.
    """
    owner = project.owner_of(scope) if held.startswith("self.") else None
    for method in project.class_scopes(owner[1]) if owner is not None else [scope]:
        for call in method.calls:
            stream = keyword(call, "generator")
            own = isinstance(call.func, ast.Attribute) and target_name(call.func.value) == held
            if not (
                own and not SEEDING.search("." + method_of(call)) or stream is not None and target_name(stream) == held
            ):
                continue
            if (
                SPLITS.search(method_of(call))
                or turns
                and method is scope
                and not _in_turns(call, scope)
                or "rank" in text_of(method.node).lower()
                and method is not scope
            ):
                continue
            return method, call
    return None
