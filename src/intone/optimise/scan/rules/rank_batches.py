"""A rule on processes that train together and all choose the same rows."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, is_true, keyword, names_in, text_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.reseeding import is_constant, is_own_stream
from intone.optimise.scan.seeds import seed_of
from intone.optimise.scan.source import Module, Scope, walk

PICKERS = (
    "random.sample", "random.choices", "random.shuffle", "random.randrange", "random.randint", "np.random.choice",
    "numpy.random.choice", "np.random.randint", "numpy.random.randint", "np.random.permutation",
    "numpy.random.permutation", "np.random.shuffle", "numpy.random.shuffle", "torch.randperm",
)  # fmt: skip
ELSEWHERE = re.compile(r"(^|[/_])(eval\w*|infer\w*|generat\w*|sampl\w*|serv\w*|bench\w*|tests?|chat)([/_.]|$)")


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
    if ELSEWHERE.search(module.path):
        return
    seeds = [(scope, call) for scope in module.scopes for call in scope.calls if seed_of(call, scope) is not None]
    seeds = [
        pair for pair in seeds if isinstance(module.parents.get(pair[1]), ast.Expr) and not is_own_stream(*pair[::-1])
    ]
    if not seeds:
        return
    files = neighbours(module, project)
    text = "\n".join(other.text for other in files)
    if not re.search(r"init_process_group|DistributedDataParallel|LOCAL_RANK|fully_shard", text):
        return
    places = [(scope, call) for other in files for scope in other.scopes for call in scope.calls]
    picks = [(scope, call) for scope, call in places if _picks_rows(call, scope)]
    if not picks or re.search(r"DistributedSampler|split_dataset_by_node|\.shard\(|shard_indices|rank::|\[rank", text):
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
    if name in PICKERS or name.rpartition(".")[2] in ("integers", "permutation", "randperm") and "." in name:
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
