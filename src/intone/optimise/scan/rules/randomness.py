"""Rules on random numbers: who draws from which stream, and when a stream is set back."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.project import Project, called, code_of, is_true, keyword, last_name, names_in
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import LOOPS, Module, Scope, target_name
from intone.optimise.scan.values import chooses_token

ROWS = re.compile(
    r"^(num_samples|n_samples|num_return_sequences|num_rows|n_rows|batch_size|n|num_completions|n_completions|num_rollouts|"
    r"group_size|num_generations|samples|n_seq|best_of|prompts|requests)$"
)
SEEDING = re.compile(r"(^|\.)(manual_seed|manual_seed_all|seed_everything|set_seed|seed_all)$")
SEEDERS = ("random.seed", "np.random.seed", "numpy.random.seed")
MAKERS = (
    "np.random.default_rng",
    "numpy.random.default_rng",
    "random.Random",
    "np.random.RandomState",
    "numpy.random.RandomState",
    "torch.Generator",
)
PER_CALL = re.compile(
    r"^(forward|__getitem__|collate\w*|sample|sample_\w+|next_token|get_batch|training_step|train_step|step)$"
)


@rule(
    "S02",
    "one random stream for all rows",
    kind="rng",
    severity="medium",
    why="The text of a row depends on how many other rows are generated with it, so a seed does not "
    "reproduce an answer "
    "once the batch changes.",
    fix="Derive one stream per row from (seed, row, position), and draw each row's token from its own.",
    source="optimiser.md D22; nanochat-facts.md 2.4",
)
def shared_generator(module: Module, project: Project) -> Iterator[Place]:
    """A generator made from a seed in a function that makes several rows, and handed to every draw."""
    for scope in module.scopes[1:]:
        rows = next((name for name in scope.parameters if ROWS.match(name)), None)
        if rows is None:
            continue
        for name, bindings in scope.bindings.items():
            makers = [
                b for b in bindings if isinstance(b.value, ast.Call) and "torch.Generator" in _chain(b.value, scope)
            ]
            if (
                not makers
                or module.loops_around(makers[0].node)
                or isinstance(module.parents.get(makers[0].value), LOOPS)
            ):
                continue
            used = [call for call in scope.calls if chooses_token(call, scope) and name in _arguments(call)]
            chained = set(map(id, ast.walk(makers[0].value)))
            seeded = [
                call
                for call in scope.calls
                if SEEDING.search(_method(call)) and (name in names_in(call) or id(call) in chained)
            ]
            if used and seeded:
                yield Place(
                    makers[0].node,
                    f"`{name}` is one stream for all of `{rows}` rows",
                    (
                        f"seeded by {code_of(seeded[0], 40)} at line {seeded[0].lineno}",
                        f"all rows draw from it in {code_of(used[0], 50)} at line {used[0].lineno}",
                    ),
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
            seed = _seed_of(call, scope)
            if seed is None:
                continue
            loops = module.loops_around(call)
            changing = {name for loop in loops for name in _changed_in(loop)}
            if loops and not names_in(seed) & changing and not _calls_something(seed):
                yield Place(
                    call,
                    f"`{code_of(call, 50)}` runs at every turn of the loop at line {loops[0].lineno}",
                    (f"the seed `{code_of(seed, 30)}` does not change in the loop",),
                )
            elif not loops and PER_CALL.match(scope.simple_name) and _is_constant(seed, scope):
                yield Place(
                    call,
                    f"`{scope.simple_name}` seeds with the same number whenever it is called",
                    (f"the seed is `{code_of(seed, 30)}`",),
                )


@rule(
    "S04",
    "every rank draws the same batches",
    kind="rng",
    severity="high",
    why="All ranks seed alike and choose their rows at random, so all of them train on the same rows: more "
    "devices, no more data.",
    fix="Add the rank to the seed of what chooses the data, or let each rank take its own share of the rows.",
    source="optimiser.md D22",
)
def same_batches_on_ranks(module: Module, project: Project) -> Iterator[Place]:
    """A distributed program with a constant seed that picks rows at random and never by rank."""
    text = module.text
    if not re.search(r"init_process_group|DistributedDataParallel|LOCAL_RANK|fully_shard", text):
        return
    seeds = [(scope, call) for scope in module.scopes for call in scope.calls if _seed_of(call, scope) is not None]
    seeds = [(scope, call) for scope, call in seeds if isinstance(module.parents.get(call), ast.Expr)]
    picks = [(scope, call) for scope in module.scopes for call in scope.calls if _picks_rows(call, scope)]
    if not seeds or not picks or re.search(r"DistributedSampler|split_dataset_by_node|\.shard\(", text):
        return
    for scope, call in seeds:
        seed = _seed_of(call, scope)
        assert seed is not None
        spelled = _spelled_out(seed, scope, project)
        if "rank" in spelled.lower() or "ddp" in spelled.lower() or "RANK" in spelled:
            return
    if any("rank" in name.lower() for scope, call in picks for name in names_in(_statement(module, call))):
        return
    scope, call = seeds[0]
    pick = picks[0][1]
    yield Place(
        call,
        "every rank has the same seed and picks its rows at random",
        (f"rows are picked by {code_of(pick, 50)} at line {pick.lineno}, in which no rank appears",),
    )


@rule(
    "S05",
    "loader workers share a random stream",
    kind="rng",
    severity="high",
    why="A generator made in the dataset is copied into every worker process, so all workers draw the same numbers.",
    fix="Make the generator in the worker (worker_init_fn, or at first use from torch.initial_seed()).",
    source="PyTorch notes on randomness in multi-process data loading",
)
def worker_generator(module: Module, project: Project) -> Iterator[Place]:
    """A dataset whose __getitem__ draws from a generator made in __init__, loaded with several workers."""
    workers = [site for site in project.sites.get("DataLoader", []) if _has_workers(site.call)]
    if not workers or any(keyword(site.call, "worker_init_fn") is not None for site in workers):
        return
    for scope in module.scopes:
        if scope.simple_name not in ("__getitem__", "__iter__") or scope.owner is None:
            continue
        made = {
            name: binding
            for method in project.class_scopes(scope.owner)
            if method.simple_name == "__init__"
            for name, bindings in method.bindings.items()
            for binding in bindings
            if isinstance(binding.value, ast.Call) and any(maker in _chain(binding.value, method) for maker in MAKERS)
        }
        if "get_worker_info" in ast.unparse(scope.node):
            continue
        for call in scope.calls:
            base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            used = base if base in made else next((name for name in made if name in _arguments(call)), None)
            if used:
                yield Place(
                    call,
                    f"`{used}` is made once and copied into every worker of the DataLoader",
                    (
                        f"made in __init__ at line {made[used].node.lineno}",  # type: ignore[attr-defined]
                        f"a DataLoader with workers stands at {workers[0].scope.module.path}:{workers[0].call.lineno}",
                    ),
                )
                break


def _chain(call: ast.expr, scope: Scope) -> str:
    """The names called along a chain: torch.Generator().manual_seed(0) -> "torch.Generator .manual_seed"."""
    names = [called(part, scope) for part in ast.walk(call) if isinstance(part, ast.Call)]
    return " ".join(names)


def _method(call: ast.Call) -> str:
    return last_name(call.func) or ""


def _arguments(call: ast.Call) -> set[str]:
    return {target_name(arg) or "" for arg in [*call.args, *(word.value for word in call.keywords)]}


def _seed_of(call: ast.Call, scope: Scope) -> ast.expr | None:
    """The seed of a call that seeds a stream; also of one that makes a stream with a fixed seed."""
    name = called(call, scope)
    if (SEEDING.search("." + name.rpartition(".")[2]) or name in SEEDERS) and call.args:
        return call.args[0]
    return None


def _changed_in(loop: ast.AST) -> set[str]:
    """Names that are given a value inside a loop, its own variable included."""
    changed: set[str] = set()
    for part in ast.walk(loop):
        if isinstance(part, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor, ast.NamedExpr)):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            changed |= {name for target in targets for name in names_in(target)}
    return changed


def _calls_something(seed: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) not in ("int", "hash") for part in ast.walk(seed))


def _is_constant(seed: ast.expr, scope: Scope) -> bool:
    """A number, or a parameter that has a number as its default, or a name that is bound to a number."""
    if isinstance(seed, ast.Constant):
        return True
    name = target_name(seed)
    if name is None:
        return False
    if name.startswith("self."):
        return True
    at: Scope | None = scope
    while at is not None:
        if name in at.parameters:
            default = at.parameters[name].default
            return isinstance(default, ast.Constant) and default.value is not None
        if name in at.bindings:
            return any(isinstance(binding.value, ast.Constant) for binding in at.bindings[name])
        at = at.outer
    return False


def _picks_rows(call: ast.Call, scope: Scope) -> bool:
    name = called(call, scope)
    if name == "torch.randint" and len(call.args) >= 2:
        return (
            "len(" in ast.unparse(call.args[0])
            or "len(" in ast.unparse(call.args[1])
            or "size" in ast.unparse(call.args[0])
        )
    if name in (
        "random.sample",
        "random.choices",
        "np.random.choice",
        "numpy.random.choice",
        "np.random.randint",
        "numpy.random.randint",
    ):
        return True
    return name.endswith("DataLoader") and is_true(keyword(call, "shuffle"))


def _spelled_out(seed: ast.expr, scope: Scope, project: Project) -> str:
    """A seed with the names in it followed back one step."""
    parts = [ast.unparse(seed)]
    for node in ast.walk(seed):
        if isinstance(node, ast.Name):
            parts += [ast.unparse(origin.node) for origin in project.origins(node, scope, depth=2)]
    return " ".join(parts)


def _statement(module: Module, node: ast.AST) -> ast.AST:
    for above in module.up(node):
        if isinstance(above, ast.stmt):
            return above
    return node


def _has_workers(call: ast.Call) -> bool:
    workers = keyword(call, "num_workers")
    return workers is not None and not (isinstance(workers, ast.Constant) and workers.value == 0)
