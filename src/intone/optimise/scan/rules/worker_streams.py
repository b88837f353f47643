"""A rule on the random streams of a loader's workers: copies of one, or seeded alike."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.classes import class_field
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.options import is_told
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seeds import MAKERS, calls_something, chain_of, seed_of
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.streamuse import draws_from


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
    workers = [site for site in project.sites.get("DataLoader", []) if has_workers(site, project)]
    yield from _same_in_every_worker(workers, module, project)
    if not workers or any(keyword(site.call, "worker_init_fn") is not None for site in workers):
        return
    for scope in module.scopes:
        if not _runs_in_workers(scope) or "get_worker_info" in text_of(scope.node):
            continue
        made = {
            name: binding
            for method in [module.top, *project.class_scopes(scope.owner)]  # type: ignore[arg-type]
            if method is module.top or method.simple_name == "__init__"
            for name, bindings in method.bindings.items()
            for binding in bindings
            if isinstance(binding.value, ast.Call) and any(maker in chain_of(binding.value, method) for maker in MAKERS)
        }
        fields = {f"self.{name}" for name, one in made.items() if class_field(scope.owner, name) is one.value}  # type: ignore[arg-type]
        for call in scope.calls:
            base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            base = (base or "").removeprefix("self.") if base in fields else base
            used = base if base in made else next((name for name in made if name in _arguments(call)), None)
            if used:
                line = made[used].node.lineno  # type: ignore[attr-defined]
                yield Place(
                    call,
                    f"`{used}` is made once and copied into every worker of the DataLoader",
                    (
                        f"made in {'__init__' if used.startswith('self.') else 'the file'} at line {line}",
                        f"a DataLoader with workers stands at {workers[0].scope.module.path}:{workers[0].call.lineno}",
                    ),
                )
                break
    yield from _handed_on(workers, module, project)
    yield from _kept_by_parts(workers, module, project)
    yield from _begun_alike(workers, module, project)


def _kept_by_parts(workers: Sequence[Site], module: Module, project: Project) -> Iterator[Place]:
    """class Crop: def __init__(self): self.rng = RandomState(0), an object that __getitem__ of a data set calls."""
    told: set[ast.AST] = set()
    for scope in module.scopes:
        if scope.owner is None or scope.simple_name != "__getitem__" or "get_worker_info" in text_of(scope.owner):
            continue
        for item in reached(scope.node, scope, project):
            call, owner = item.node, item.scope.owner
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            held = target_name(call.func.value)
            if owner is None or owner is scope.owner or held is None or not held.startswith("self."):
                continue
            for method in project.class_scopes(owner):
                for b in method.bindings.get(held, []) if method.simple_name == "__init__" else ():
                    maker = isinstance(b.value, ast.Call) and any(m in chain_of(b.value, method) for m in MAKERS)
                    if not maker or b.value in told or seed_of(call, item.scope) is not None:
                        continue
                    told.add(b.value)
                    yield Place(
                        b.value,
                        f"`{held}` of `{owner.name}` is made once and copied into every worker of the DataLoader",
                        (
                            f"drawn from by {code_of(call, 50)} at {item.scope.module.path}:{item.line} for each row",
                            _stands_at(workers[0]),
                        ),
                        scope=method,
                    )


def _begun_alike(workers: Sequence[Site], module: Module, project: Project) -> Iterator[Place]:
    """class Synthetic(IterableDataset): def __iter__(self): g = Generator().manual_seed(5), in each of the workers."""
    for scope in module.scopes:
        bases = " ".join(text_of(base) for base in scope.owner.bases) if scope.owner is not None else ""
        whole = scope.owner or scope.node
        if scope.simple_name != "__iter__" or "IterableDataset" not in bases or WORKER.search(text_of(whole)):
            continue
        for call in scope.calls:
            seed = seed_of(call, scope)
            if seed is None or calls_something(seed) or WORKER.search(text_of(seed)):
                continue
            draws = [one for one in scope.calls if DRAWS.match(last_name(one.func) or "") and one is not call]
            noise = draws[0] if draws else None
            if noise is not None:
                yield Place(
                    call,
                    f"`{scope.name}` begins with the same numbers in every worker of the DataLoader",
                    (
                        f"drawn from by {code_of(noise, 50)} at line {noise.lineno}",
                        _stands_at(workers[0]),
                    ),
                )
                break


def _stands_at(loader: Site) -> str:
    return f"a DataLoader with workers stands at {loader.scope.module.path}:{loader.call.lineno}"


WORKER = re.compile(r"worker|rank|shard", re.I)
# draws of what a row is made of; an order of rows of which each worker takes its share is another thing
DRAWS = re.compile(
    r"^(rand\w*|normal\w*|uniform|integers|bernoulli|multinomial|choice|choices|random|gauss|standard_normal)$"
)


def _handed_on(workers: Sequence[Site], module: Module, project: Project) -> Iterator[Place]:
    """self.augment = Augment(np.random.default_rng(seed)) in a data set, whose __getitem__ calls self.augment(row)."""
    for scope in module.scopes:
        if scope.owner is None or scope.simple_name != "__init__":
            continue
        gives = [one for one in project.class_scopes(scope.owner) if one.simple_name in ("__getitem__", "__iter__")]
        if not gives or "get_worker_info" in text_of(scope.owner):
            continue
        run = {item.scope for one in gives for item in reached(one.node, one, project)} - set(gives)
        for call in scope.calls:
            if not any(maker in chain_of(call, scope) for maker in MAKERS) or isinstance(
                module.parents.get(call), ast.Attribute
            ):
                continue
            draw = next((pair for pair in draws_from(call, scope, project) if pair[1] in run), None)
            if draw is not None:
                drawn, at = draw
                yield Place(
                    call,
                    "this stream is made once and copied into every worker of the DataLoader",
                    (
                        f"drawn from by {code_of(drawn, 50)} at {at.module.path}:{drawn.lineno} for each row",
                        f"a DataLoader with workers stands at {workers[0].scope.module.path}:{workers[0].call.lineno}",
                    ),
                    also=((drawn, at),),
                )
                break


def _runs_in_workers(scope: Scope) -> bool:
    """__getitem__ or __iter__ of a data set; __call__ of what joins or changes rows."""
    if scope.owner is None:
        return False
    return scope.simple_name in ("__getitem__", "__iter__") or scope.simple_name == "__call__" and bool(
        re.search(r"Collat|Mask|Augment|Transform|Crop|Noise", scope.owner.name)
    )  # fmt: skip


def _same_in_every_worker(workers: Sequence[Site], module: Module, project: Project) -> Iterator[Place]:
    """worker_init_fn that seeds every worker with one number."""
    for site in workers:
        handed = keyword(site.call, "worker_init_fn")
        for function in functions_of(handed, site.scope, project) if handed is not None else []:
            own = {name for name, one in function.parameters.items() if one.default is None}  # what a worker is told
            own -= _bound_before(handed, function)
            for call in function.calls if function.module is module else []:
                seed = seed_of(call, function)
                if seed is None or calls_something(seed):
                    continue
                names = names_in(seed)
                names |= {n for name in names for b in function.bindings.get(name, []) for n in names_in(b.value)}
                alone = isinstance(seed, ast.Name) and seed.id in own and _begins_epochs(site, project)
                if alone:
                    yield Place(
                        call,
                        "every worker begins each epoch with its own number again, whatever the run's seed",
                        (f"used at {site.scope.module.path}:{site.call.lineno}", f"the seed is `{code_of(seed, 30)}`"),
                        confidence="medium",
                    )
                elif not names & own and not re.search(r"worker|rank|initial_seed|\bid\b", " ".join(names)):
                    yield Place(
                        call,
                        "every worker of the DataLoader is seeded alike",
                        (f"used at {site.scope.module.path}:{site.call.lineno}", f"the seed is `{code_of(seed, 30)}`"),
                    )


def _begins_epochs(site: Site, project: Project) -> bool:
    """Whether a loader's workers are started again for every epoch of a training."""
    if is_told(site.call, "persistent_workers", site.scope, project):
        return False
    return any("epoch" in file.text for file in neighbours(site.scope.module, project))


def _bound_before(handed: ast.expr | None, function: Scope) -> set[str]:
    """The parameters that are alike in every worker: those that partial(init, seed, rank=rank) gives their values."""
    if not isinstance(handed, ast.Call) or last_name(handed.func) != "partial":
        return set()
    places = function.places
    given = {places[number] for number in range(len(handed.args) - 1) if number in places}
    return given | {word.arg for word in handed.keywords if word.arg is not None}


def _arguments(call: ast.Call) -> set[str]:
    return {target_name(arg) or "" for arg in [*call.args, *(word.value for word in call.keywords)]}


def has_workers(site: Site, project: Project) -> bool:
    """Whether a DataLoader has worker processes by all that the code shows."""
    workers = keyword(site.call, "num_workers")
    if workers is None:
        return False
    values = {known.value for known in known_values(workers, site.scope, project)}
    return not values or values != {0}
