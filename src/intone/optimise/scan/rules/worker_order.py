"""Rules on who gives which row when: workers that all read everything, batches as they are ready, odd sorts."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import classes_of, functions_of
from intone.optimise.scan.expressions import called, code_of, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.options import is_told
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.entropy import DATA, orders_data
from intone.optimise.scan.rules.reseeding import reseeded
from intone.optimise.scan.rules.worker_streams import has_workers
from intone.optimise.scan.seeds import SEEDERS, SEEDING, seed_of
from intone.optimise.scan.source import LOOPS, Module, Scope, target_name

ROWS = re.compile(r"token|doc|text|shard|row|example|encode|ids|sample|record|batch|line|corpus|file", re.I)


@rule(
    "S83",
    "every worker gives all rows",
    kind="data-order",
    severity="high",
    why="Each worker of a DataLoader walks over its own copy of an iterable data set: without a share for each worker "
    "every row comes as many times as there are workers, in an order that nobody chose.",
    fix="Take every n-th row by torch.utils.data.get_worker_info(), or use one worker.",
    source="PyTorch reference of IterableDataset",
)
def same_rows_from_workers(module: Module, project: Project) -> Iterator[Place]:
    """class Lines(IterableDataset) whose __iter__ knows of no worker, behind DataLoader(num_workers=4)."""
    for scope in module.scopes:
        if scope.simple_name != "__iter__" or scope.owner is None:
            continue
        bases = " ".join(text_of(base) for base in scope.owner.bases)
        if "IterableDataset" not in bases or SHARES.search(text_of(scope.owner)):
            continue
        site = next((one for one in project.sites.get("DataLoader", []) if _loads(one, scope, project)), None)
        if site is not None:
            yield Place(
                scope.node,
                f"`{scope.owner.name}` gives all its rows in every worker",
                (f"{code_of(site.call, 50)} at {site.scope.module.path}:{site.call.lineno} has several workers",),
                scope=scope.outer or module.top,
            )


SHARES = re.compile(r"worker|\brank|_rank|world|shard_id|islice|rand|rng|choice|shuffle|\.split\(\d|num_shards")


def _loads(site: Site, scope: Scope, project: Project) -> bool:
    """Whether a DataLoader with workers reads a data set of the class of a method."""
    if not has_workers(site, project) or keyword(site.call, "worker_init_fn") is not None:
        return False
    handed = site.call.args[0] if site.call.args else keyword(site.call, "dataset")
    return handed is not None and any(node is scope.owner for _, node in classes_of(handed, site.scope, project))


@rule(
    "S84",
    "rows in the order in which they are ready",
    kind="data-order",
    severity="medium",
    why="Which batch comes first depends on how busy the machine was: the order cannot be made again, and a resumed "
    "position means another place.",
    fix="Ask for results in the order of the tasks, or number them and put them in order.",
    source="PyTorch reference of DataLoader; Python reference of multiprocessing",
)
def as_they_are_ready(module: Module, project: Project) -> Iterator[Place]:
    """DataLoader(in_order=False), resampled shards, deterministic=False; a queue that several processes fill."""
    for scope in module.scopes:
        for call in scope.calls:
            last = last_name(call.func) or ""
            if last.endswith("DataLoader") and is_false(keyword(call, "in_order")):
                yield Place(call, "batches come in the order in which workers are done", ("in_order=False",))
            elif is_false(keyword(call, "deterministic")) and re.search(r"map|interleave|flat_map|batch", last):
                yield Place(call, "rows come in the order in which they are ready", ("deterministic=False",))
            elif last in ("WebDataset", "ResampledShards") and (
                last == "ResampledShards" or is_told(call, "resampled", scope, project)
            ):
                if not re.search(r"seed=|rng=|deterministic=True", text_of(call)):
                    yield Place(call, "shards are drawn anew at every start", (code_of(call, 60),))
            elif is_told(call, "ignore_data_skip", scope, project):
                told = ("ignore_data_skip=True",)
                said = keyword(call, "ignore_data_skip") or call  # a call of settings has many lines
                yield Place(said, "a resumed training begins with the first rows again", told)
        taken = _taken_from_queue(scope, project)
        if taken is not None:
            yield taken


def _taken_from_queue(scope: Scope, project: Project) -> Place | None:
    """for path in paths: Process(target=read, args=(path, q)).start(), then yield q.get()."""
    starts = [
        call for call in scope.calls
        if last_name(call.func) in ("Process", "Thread") and _in_loop(call, scope)
    ]  # fmt: skip
    for start in starts:
        target = keyword(start, "target")
        readers = functions_of(target, scope, project)[:1] if target is not None else []
        puts = [call for one in readers for call in one.calls if last_name(call.func) in ("put", "put_nowait", "send")]
        about = " ".join([scope.name, *(text_of(one.node)[:400] for one in readers)])
        if not puts or not ROWS.search(about):
            continue
        if any(_is_numbered(arg) for call in puts for arg in call.args[:1]):
            continue  # to be put in order
        shared = names_in(start)
        for call in scope.calls:
            held = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
            if last_name(call.func) in ("get", "recv") and held in shared and call.lineno > start.lineno:
                return Place(
                    call,
                    f"`{code_of(call, 40)}` gives rows in the order in which processes are done",
                    (f"several of them put into it: {code_of(start, 50)} at line {start.lineno}",),
                )
    return None


def _is_numbered(put: ast.expr) -> bool:
    """(index, row)"""
    first = put.elts[0] if isinstance(put, ast.Tuple) and put.elts else None
    return isinstance(first, ast.Name) and bool(re.search(r"idx|index|^[in]$|number|order|seq|key", first.id))


def _in_loop(node: ast.AST, scope: Scope) -> bool:
    return any(isinstance(above, (*LOOPS, ast.ListComp)) for above in scope.module.up(node))


@rule(
    "S85",
    "files in the order of the clock or of salted numbers",
    kind="data-order",
    severity="medium",
    why="A copy, a checkout or another process gives other times and hashes: the same files come in another order, "
    "and a resumed position means another place.",
    fix="Sort by the name or by something in the data.",
    source="Python reference of os.stat and object.__hash__",
)
def sorted_by_the_clock(module: Module, project: Project) -> Iterator[Place]:
    """sorted(files, key=os.path.getmtime), docs.sort(key=lambda d: hash(d)), sorted(rows, key=id)."""
    for scope in module.scopes:
        for call in scope.calls:
            key = keyword(call, "key")
            if key is None or last_name(call.func) not in ("sorted", "sort"):
                continue
            spelled = " ".join([text_of(key), *(text_of(f.node) for f in functions_of(key, scope, project)[:1])])
            found = re.search(r"getmtime|getctime|getatime|st_[mca]time|(^|[^.\w])hash\(|^hash$|^id$|random\(", spelled)
            what = text_of(call.args[0]) if call.args else text_of(call.func)
            if found is None or NO_DATA.search(what + scope.name):
                continue
            if DATA.search(f"{what} {scope.name}"):
                told = (f"sorted by `{code_of(key, 40)}`",)
                yield Place(call, f"`{code_of(call, 50)}` is in another order elsewhere", told)


NO_DATA = re.compile(r"ckpt|checkpoint|log|\.pt\b|runs?\b|model|snapshot", re.I)


@rule(
    "S86",
    "a split or order that nobody seeds",
    kind="data-order",
    severity="medium",
    why="Another start draws other rows for validation and another order: a resumed training has seen rows that "
    "now count as unseen, and two runs cannot be compared.",
    fix="Give the split or shuffle a seed of its own, that is kept with the run.",
    source="PyTorch reference of random_split; pandas, scikit-learn and datasets references",
)
def never_seeded_split(module: Module, project: Project) -> Iterator[Place]:
    """random_split(rows, sizes), frame.sample(frac=1), train_test_split(rows), rows.shuffle() without a seed."""
    if re.search(r"(^|/)(test|bench)", module.path):
        return
    seeded: set[str] | None = None
    for scope in module.scopes:
        for call in scope.calls:
            package = _draws_split(call, scope)
            if package is None:
                continue
            if seeded is None:
                seeded = {one for file in neighbours(module, project) for one in _seeded_packages(file)}
            if package not in seeded:
                yield Place(
                    call,
                    f"`{code_of(call, 50)}` is another one at every start",
                    (f"no seed here, and nothing in this program seeds {package}",),
                    confidence="medium",
                )


def _draws_split(call: ast.Call, scope: Scope) -> str | None:
    """The package from whose stream a split or order of data is drawn, where the call itself names no seed."""
    words = {word.arg for word in call.keywords}
    if words & {"seed", "generator", "random_state", "rng", None}:
        return None
    last, name = last_name(call.func) or "", called(call, scope)
    method = isinstance(call.func, ast.Attribute)
    if last == "random_split" and len(call.args) + len(words) < 3:
        return "torch"
    if last == "sample" and method and _is_whole(keyword(call, "frac")):
        return "numpy"
    if last == "train_test_split":
        return "numpy" if not is_false(keyword(call, "shuffle")) else None
    if name in ("sklearn.utils.shuffle", "utils.shuffle"):
        return "numpy"
    from_hub = "load_dataset" in scope.module.text or "datasets." in scope.module.text
    if last == "shuffle" and method and from_hub and not name.startswith(("random.", "numpy.", "np.")):
        base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
        held = base is None or not re.search(r"(^|[._])(random|rng|np|numpy|gen|deck|cards)$", base)
        return "numpy" if held and not call.args else None
    return None


def _is_whole(frac: ast.expr | None) -> bool:
    return isinstance(frac, ast.Constant) and frac.value in (1, 1.0)


def _seeded_packages(module: Module) -> set[str]:
    found: set[str] = set()
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            if SEEDING.search("." + name.rpartition(".")[2]):
                found |= {"torch"} if "manual_seed" in name else {"torch", "numpy"}
            elif name in SEEDERS:
                found |= {"numpy"} if "random.seed" in name and name.startswith(("np.", "numpy.")) else {"python"}
    return found


@rule(
    "S87",
    "an epoch's order comes back",
    kind="data-order",
    severity="medium",
    why="Every epoch shuffles from the same number, so all of them have one order: what was meant to be shuffled is a "
    "fixed list, and neighbours in it stay neighbours.",
    fix="Seed from (seed, epoch), and keep the epoch with the checkpoint.",
    source="PyTorch reference of DistributedSampler.set_epoch",
)
def same_order_again(module: Module, project: Project) -> Iterator[Place]:
    """def __iter__(self): random.Random(self.seed).shuffle(rows); a shuffle seeded alike in each turn over epochs."""
    for place in reseeded(module, project):
        call = place.node
        scope = place.scope or module.scope_of.get(call, module.top)
        if not isinstance(call, ast.Call) or seed_of(call, scope) is None:
            continue
        draw = orders_data(call, scope, project)
        if draw is not None:
            yield Place(
                call,
                f"`{code_of(draw, 40)}` gives the same order at every epoch",
                (f"seeded by {code_of(call, 50)}", *place.evidence),
                scope=place.scope,
            )
