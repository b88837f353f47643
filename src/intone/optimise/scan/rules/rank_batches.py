"""A rule on processes that train together and all choose the same rows."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.reseeding import is_constant, is_own_stream
from intone.optimise.scan.seeds import SEEDED, calls_something, cut_by, seed_of
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.streamuse import draws_from

PICKERS = (
    "random.sample", "random.choices", "random.shuffle", "random.randrange", "random.randint", "np.random.choice",
    "numpy.random.choice", "np.random.randint", "numpy.random.randint", "np.random.permutation",
    "numpy.random.permutation", "np.random.shuffle", "numpy.random.shuffle", "torch.randperm",
)  # fmt: skip


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
    if is_elsewhere(module):
        return
    seeds = [(scope, call) for scope in module.scopes for call in scope.calls if seed_of(call, scope) is not None]
    if not seeds:
        return
    files = neighbours(module, project)
    text = "\n".join(other.text for other in files)
    if not re.search(r"init_process_group|DistributedDataParallel|LOCAL_RANK|fully_shard", text):
        return
    yield from _own_streams(seeds, text, files, project)
    seeds = [
        pair for pair in seeds if isinstance(module.parents.get(pair[1]), ast.Expr) and not is_own_stream(*pair[::-1])
    ]
    if not seeds:
        return
    places = [(scope, call) for other in files for scope in other.scopes for call in scope.calls]
    picks = [(scope, call) for scope, call in places if _picks_rows(call, scope)]
    if not picks or SHARES.search(text):
        return
    seeds = [pair for scope, call in seeds for pair in _told_seed(scope, call, project)]
    for scope, call in seeds:
        seed = seed_of(call, scope) or call.args[0]
        spelled = _spelled_out(seed, scope, project)
        if "rank" in spelled.lower() or "ddp" in spelled.lower() or not is_constant(seed, scope, project):
            return
    if any("rank" in name.lower() for scope, call in picks for name in _names_around(scope, call)):
        return
    scope, call = seeds[0]
    at, pick = picks[0]
    yield Place(
        call,
        "every rank has the same seed and picks its rows at random",
        (f"rows are picked by {code_of(pick, 50)} at {at.module.path}:{pick.lineno}, in which no rank appears",),
    )


# words of programs in which each rank takes its own share of the rows
SHARES = re.compile(r"DistributedSampler|split_dataset_by_node|\.shard\(|shard_indices|rank::|\[rank")


ORDERS = re.compile(r"shuffle|perm")


def _own_streams(
    seeds: list[tuple[Scope, ast.Call]], text: str, files: list[Module], project: Project
) -> Iterator[Place]:
    """gen = torch.Generator().manual_seed(1337), from which a helper draws the rows: alike on every rank."""
    for scope, call in seeds:
        if not _makes_own(call, scope) or SHARES.search(text):
            continue
        seed = seed_of(call, scope)
        if seed is None or calls_something(seed) or not is_constant(seed, scope, project):
            continue
        if re.search("rank|ddp|process_index", _spelled_out(seed, scope, project), re.I):
            continue
        for pick, at in draws_from(call, scope, project):
            if ORDERS.search(last_name(pick.func) or "") or not _picks_rows(pick, at):
                continue  # one order, of which each rank may take its share
            if not _feeds_training(pick, at, files, project):
                continue
            if any("rank" in name.lower() for name in _names_around(at, pick)):
                continue
            if cut_by(at, lambda name: "rank" in name.lower()) or _reads_own_rows(pick, at, project):
                continue
            yield Place(
                call,
                "every rank begins this stream alike and picks its rows from it",
                (f"rows are picked by {code_of(pick, 50)} at {at.module.path}:{pick.lineno}, without a rank",),
            )
            break


def _feeds_training(pick: ast.Call, scope: Scope, files: list[Module], project: Project) -> bool:
    """Whether a draw runs in the steps of a training, or in what gives rows one after the other."""
    if scope.owner is not None and any(
        method.simple_name in ("__iter__", "__next__", "__getitem__") for method in project.class_scopes(scope.owner)
    ):
        return True
    loops = [loop for file in files for loop in train_loops(file, project)]
    if last_name(pick.func) == "DataLoader":
        return bool(loops)
    return any(item.node is pick for loop in loops for item in loop.step_turn(project))


def _makes_own(call: ast.Call, scope: Scope) -> bool:
    """torch.Generator().manual_seed(1), gen.manual_seed(1), default_rng(1): a stream of its own, not the process's."""
    base = call.func.value if isinstance(call.func, ast.Attribute) else None
    chained = isinstance(base, ast.Call) and last_name(base.func) == "Generator"
    owner = scope.owner if (target_name(base) or "").startswith("self.") else None  # type: ignore[arg-type]
    kept = owner is not None and f"{target_name(base)} = torch.Generator(" in text_of(owner)  # type: ignore[arg-type]
    return called(call, scope) in SEEDED or chained or kept or is_own_stream(call, scope)


def _reads_own_rows(pick: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether the rows that are picked are those of one rank: of np.memmap(f"shard_{rank}.bin")."""
    parts = [part for arg in pick.args for part in walk(arg) if isinstance(part, (ast.Name, ast.Attribute))]
    return any("rank" in text_of(end.node).lower() for part in parts for end in project.origins(part, scope, depth=4))


def _told_seed(scope: Scope, call: ast.Call, project: Project) -> list[tuple[Scope, ast.Call]]:
    """Who says which seed: the call that seeds, or those of a helper that hand it over: def seed_all(seed): ..."""
    seed = seed_of(call, scope)
    name = seed.id if isinstance(seed, ast.Name) else None
    if name is None or name not in scope.parameters or scope.parameters[name].default is not None:
        return [(scope, call)]
    sites = [site for site in project.callers(scope)[:4] if project.argument(site, scope, name) is not None]
    plain = [site for site in sites if site.call.args[:1] == [project.argument(site, scope, name)]]
    return [(site.scope, site.call) for site in plain] if sites and len(plain) == len(sites) else [(scope, call)]


def _names_around(scope: Scope, call: ast.Call) -> frozenset[str]:
    """The names in a statement, and in what its names are bound to in the same function."""
    names = names_in(_statement(scope.module, call))
    return names | {n for name in names for b in scope.bindings.get(name, []) for n in names_in(b.value)}


def _picks_rows(call: ast.Call, scope: Scope) -> bool:
    name = called(call, scope)
    if name == "torch.randint" and call.args:
        return bool(
            re.search(r"len\(|size|num_|\.shape|n_tokens|total", " ".join(text_of(arg) for arg in call.args[:2]))
        )
    last = name.rpartition(".")[2]
    if name in PICKERS or last in ("integers", "permutation", "randperm") and "." in name:
        return True
    own = re.search(r"(^|[._])(rng|gen|rand\w*)\.", name)
    if last in ("randrange", "choice", "choices", "sample") and own:
        return True
    return name.endswith("DataLoader") and is_true(keyword(call, "shuffle"))


def _spelled_out(seed: ast.expr, scope: Scope, project: Project) -> str:
    """A seed with the names in it followed back one step."""
    parts = [text_of(seed)]
    for node in walk(seed):
        if isinstance(node, ast.Name):
            parts += [text_of(origin.node) for origin in project.origins(node, scope, depth=2)]
    return " ".join(parts)


def _statement(module: Module, node: ast.AST) -> ast.AST:
    for above in module.up(node):
        if isinstance(above, ast.stmt):
            return above
    return node
