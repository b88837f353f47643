"""Rules on the order of the data: a resumed training goes on where it stopped, and two machines read the same."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_evaluation
from intone.optimise.scan.reach import Reached, is_inside
from intone.optimise.scan.restoring import restores, restores_order, takes_up_progress
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seeds import seed_of
from intone.optimise.scan.source import Module, Scope, target_name, walk

TEXT = re.compile(r"doc|text|str|id|name|path|key|row|example|line|url|prompt|file", re.I)


@rule(
    "S75",
    "resuming does not restore the order of the data",
    kind="data-order",
    severity="medium",
    why="Weights, optimizer and step come back, but rows are drawn afresh: a resumed training sees some "
    "rows twice and others "
    "never, and two runs cannot be compared.",
    fix="Save the loader's position and the state of its random stream with the checkpoint, or make the "
    "order a function of "
    "(seed, step).",
    source="optimiser.md G6; nanochat-facts.md 4.4.37",
)
def order_not_restored(module: Module, project: Project) -> Iterator[Place]:
    """A program that restores the optimizer and draws rows at random, but restores no position and no random state."""
    draws: list[tuple[ast.expr, str]] = [
        (call, f"comes from {how}")
        for scope in module.scopes
        for call in scope.calls
        if (how := _random_order(call, scope, project)) and not held_out(call, scope)
    ] or list(_from_the_beginning(module, project))
    if not draws:
        return
    files = [module] if restores(module, project) else [
        other for other in neighbours(module, project) if not is_elsewhere(other)
    ]  # fmt: skip
    taken_up = [pair for other in files for pair in restores(other, project)]
    node, how = draws[0]
    by_loader = how.endswith(("DataLoader(shuffle=True)", "RandomSampler"))
    if not taken_up or any(restores_order(other) or _skips(other, by_loader) for other in files):
        return
    home: Scope | None = None
    if "DataLoader" in how and (walked := _walked_elsewhere(node, files, project)) is not None:
        node, home = walked
    fixed = isinstance(node, ast.Call) and isinstance(keyword(node, "seed"), ast.Constant)  # the same at every start
    fixed = fixed and not any(True for _ in train_loops(module, project)) and taken_up[0][0].module is not module
    warm = how.startswith("goes on with") or fixed
    if warm and not any(takes_up_progress(scope) for scope, _ in taken_up):
        return  # a warm start from another training's optimizer: this one begins anew, rows included
    at, restore = taken_up[0]
    where = f"line {restore.lineno}" if at.module is module else f"{at.module.path}:{restore.lineno}"
    yield Place(
        node,
        f"the order of rows {how}, and nothing of it is restored on resume",
        (
            f"a training is taken up again at {where}",
            "no random state, position or skipping in this program",
        ),
        scope=home,
    )


def _walked_elsewhere(made: ast.AST, files: list[Module], project: Project) -> tuple[ast.expr, Scope] | None:
    """Where the training walks over its loader: for a loader that another function makes, which knows of no resume."""
    for loop in [loop for file in files for loop in train_loops(file, project)]:
        for node in [loop.inner, *loop.scope.module.loops_around(loop.inner)]:
            if isinstance(node, ast.For) and not re.search(r"range\(|count\(|epoch", text_of(node.iter)):
                same = loop.scope.module.scope_of.get(made) is loop.scope
                return None if same else (node.iter, loop.scope)
    return None


def _from_the_beginning(module: Module, project: Project) -> Iterator[tuple[ast.expr, str]]:
    """What a training loop walks over where that starts anew at every start: a generator of the project's, a loader."""
    for loop in train_loops(module, project):
        for node in [loop.inner, *module.loops_around(loop.inner)]:
            if (
                not isinstance(node, ast.For)
                or re.search(r"start|step|skip|resume|epoch|offset|range\(", text_of(node.iter))
                or any(
                    "epoch" in text_of(above.target)
                    for above in module.loops_around(node)
                    if isinstance(above, ast.For)
                )
            ):
                continue  # of an epoch's rows another rule asks whether a training stops within it
            for part in walk(node.iter):
                if isinstance(part, ast.Call) and any(f.is_generator for f in project.callees(part, loop.scope)[:2]):
                    yield node.iter, f"begins anew with `{code_of(part, 40)}`"
        for item in loop.step_turn(project):
            made = _made_iterator(item, loop, project) or _made_reader(item, loop, project)
            if made is not None:
                yield made, f"goes on with `{code_of(made, 40)}` from its beginning"


POSITION = re.compile(
    r"start|step|skip|resume|epoch|offset|position|cursor|state|seek|range\(|\bval|valid|eval|test|dev\b", re.I
)
GIVES_ROWS = re.compile(r"load|batch|stream|iter|data|feed|reader|shard|source|cycle", re.I)


def _made_iterator(item: Reached, loop: TrainLoop, project: Project) -> ast.expr | None:
    """batches = iter(make_loader(seed=0)) of a loop with next(batches): the call, where it is told no position."""
    call, scope = item.node, item.scope
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "next" and call.args):
        return None
    value, follow = call.args[0], 3
    while not isinstance(value, ast.Call) or last_name(value.func) in ("iter", "cycle", "enumerate", "tqdm"):
        if isinstance(value, ast.Call) and value.args:
            value = value.args[0]
            continue
        name = target_name(value)
        owner = project.owner_of(scope) if name is not None and name.startswith("self.") else None
        places = project.class_scopes(owner[1]) if owner is not None else [scope]
        if scope.outer is not None and owner is None and name not in scope.bindings:
            places = [scope.outer]
        before = [
            b.value for place in places for b in place.bindings.get(name or "", [])
            if b.how == "=" and not is_inside(b.node, loop.around, place.module)
        ]  # fmt: skip
        if len(before) != 1 or follow == 0 or POSITION.search(name or ""):
            return None
        value, follow = before[0], follow - 1
    known = any(f.is_generator for f in project.callees(value, scope)[:2]) or any(
        method.simple_name in ("__iter__", "__next__")
        for _, node in project.classes.get(last_name(value.func) or "", [])
        for method in project.class_scopes(node)
    )
    if POSITION.search(text_of(value)) or not (known or GIVES_ROWS.search(last_name(value.func) or "")):
        return None
    return value


# fields in which a reader keeps how far it is
CURSOR = re.compile(
    r"^self\._?(\w*pos|\w*position|cursor|offset|\w*idx|\w*index|ptr|pointer|current\w*|at|i|head|start|next_\w+)$"
)


def _made_reader(item: Reached, loop: TrainLoop, project: Project) -> ast.expr | None:
    """reader = Reader(tokens) of a loop with reader.next_batch(), which counts its own place on from the beginning."""
    call, scope = item.node, item.scope
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    name = target_name(call.func.value)
    methods = [method for method in project.callees(call, scope)[:2] if method.owner is not None]
    moves = any(CURSOR.match(bound) for method in methods for bound in method.bindings)
    if name is None or not moves or POSITION.search(name):
        return None
    places = [scope, scope.outer] if scope.outer is not None else [scope]
    made = [b.value for place in places for b in place.bindings.get(name, []) if b.how == "="]
    if len(made) != 1 or not isinstance(made[0], ast.Call) or last_name(made[0].func) not in project.classes:
        return None
    last = name.rpartition(".")[2]
    set_later = any(bound.startswith(f"{last}.") for other in scope.module.scopes for bound in other.bindings)
    return None if POSITION.search(text_of(made[0])) or set_later else made[0]


def held_out(call: ast.Call, scope: Scope) -> bool:
    """A loader of rows for evaluation: its order does not matter."""
    names = " ".join(target_name(target) or "" for target in targets_of(call, scope)) + " " + scope.simple_name
    return bool(re.search(r"(^|[_. ])(val|valid|validation|eval|test|dev)($|[_. ])", names))


def _random_order(call: ast.Call, scope: Scope, project: Project) -> str | None:
    name = called(call, scope)
    shuffle = keyword(call, "shuffle")
    if name.endswith("DataLoader") and (is_true(shuffle) or only_value(shuffle, scope, project) is True):
        return "DataLoader(shuffle=True)"
    last = name.rpartition(".")[2]
    if last in ("permutation", "integers", "shuffle", "permuted") and re.search(r"rng|random|generator", name):
        return name
    if last == "shuffle" and (
        keyword(call, "buffer_size") is not None or keyword(call, "seed") is not None
        or bool(call.args) and isinstance(call.args[0], ast.Constant) and type(call.args[0].value) is int
    ):  # fmt: skip
        return name  # of a data set: datasets, webdataset
    if last in ("randint", "randrange", "integers", "choice", "uniform", "random_") and _picks_place(call):
        return name
    if name in (
        "random.shuffle",
        "np.random.shuffle",
        "numpy.random.shuffle",
        "np.random.permutation",
        "numpy.random.permutation",
        "torch.randperm",
        "random.sample",
        "np.random.choice",
        "random.choices",
    ):
        return name
    return "RandomSampler" if name.endswith("RandomSampler") else None


OF_ROWS = re.compile(r"data|sources?\b|loaders|iterators|streams|mixture|corpora|shards")


def _picks_place(call: ast.Call) -> bool:
    """A number drawn below the length of the data: randint(0, len(tokens) - width), randrange(self.num_rows)."""
    text = " ".join(text_of(arg) for arg in call.args)
    return bool(re.search(r"len\(|num_|\bn_|\.size|\.shape|total|count|\bhigh\b|last|limit|end\b", text)) or (
        last_name(call.func) == "choice" and bool(call.args) and bool(TEXT.search(text) or OF_ROWS.search(text))
    )


def _only_reads_on(statement: ast.stmt) -> bool:
    """next(loader), or loader.next() whose result goes nowhere: a batch is passed over."""
    value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
    if isinstance(statement, ast.Assign) and target_name(statement.targets[0]) != "_":
        return False
    return isinstance(value, ast.Call) and bool(re.search(r"next|skip|advance", last_name(value.func) or ""))


def _skips(module: Module, by_loader: bool) -> bool:
    """Batches that are passed over, or a seed that depends on the step or epoch.

    by_loader: a loader draws the order, so a stream of its own, seeded by the step for a length or noise, is no help.
    """
    return passes_over(module) or any(
        isinstance(node, ast.Call)
        and (last_name(node.func) in ("default_rng", "Random") or SEEDS.search(last_name(node.func) or ""))
        and bool(node.args)
        and bool(re.search(r"step|iter|epoch", text_of(node.args[0])))
        and not (by_loader and _is_apart(node, module))
        for node in module.nodes
    )


SEEDS = re.compile(r"(^|_)seed(_(all|everything|rng|worker))*$|^manual_seed")  # also a helper: set_seed(base + epoch)
ORDERED = re.compile("Loader|Sampler|randperm|random_split")


def _is_apart(call: ast.Call, module: Module) -> bool:
    """Random(seed + step), gen.manual_seed(step) of a stream that no loader, sampler or shuffle draws from."""
    scope = module.scope_of.get(call, module.top)
    base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
    if last_name(call.func) not in ("default_rng", "Random") and (base or "").partition(".")[0] in module.imports:
        return False  # the stream of the process, from which the loader draws too
    held = {name for target in targets_of(call, scope) for name in names_in(target)} | ({base} if base else set())
    for node in module.nodes:
        handed = keyword(node, "generator") if isinstance(node, ast.Call) else None
        if not isinstance(node, ast.Call) or handed is None or not ORDERED.search(text_of(node.func)):
            continue
        if names_in(handed) & held or call in walk(handed):
            return False
    about = f"{scope.owner.name if scope.owner is not None else ''} {scope.simple_name}"
    orders = any(last_name(one.func) in ("shuffle", "permutation", "randperm", "permuted") for one in scope.calls)
    return not orders and not re.search(r"Sampler|Dataset|Loader|__iter__|batch|shuffle|order", about)


def passes_over(module: Module) -> bool:
    """for _ in range(start_step): next(loader), if step < start: continue."""
    for node in module.nodes:
        if (
            isinstance(node, (ast.For, ast.While))
            and len(node.body) <= 2
            and all(_only_reads_on(statement) for statement in node.body)
            and re.search(
                r"start|step|iter|resume|skip|done|seen",
                text_of(node.iter if isinstance(node, ast.For) else node.test),
            )
        ):
            return True
        if isinstance(node, ast.Continue):
            above = module.parents.get(node)
            words = [name.rpartition(".")[2] for name in names_in(above.test)] if isinstance(above, ast.If) else []
            if any(re.fullmatch(r"(\w+_)?(start|resume|skip)(_\w+)?", word) for word in words):
                return True
    return False


@rule(
    "S77",
    "hash() of a text decides about the data",
    kind="data-order",
    severity="high",
    why="Python salts hash() of texts anew in every process: which rows are for validation, or on which "
    "rank, changes at every "
    "start, so training has seen the validation rows of the last run.",
    fix="Use hashlib (or zlib.crc32) of the bytes.",
    source="Python reference of object.__hash__ and PYTHONHASHSEED",
)
def salted_hash(module: Module, project: Project) -> Iterator[Place]:
    """hash(text) % n."""
    for scope in module.scopes:
        for call in scope.calls:  # random.Random(hash(name))
            seed = seed_of(call, scope)
            hashed = [part for part in walk(seed) if _hashes_text(part, scope)] if seed is not None else []
            if hashed:
                salted = ("hash() of a text is salted",)
                yield Place(call, f"the seed `{code_of(hashed[0], 40)}` differs in every process", salted)
        for node in scope.of(ast.BinOp):
            if isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Call):
                inside = node.left
                if (
                    isinstance(inside.func, ast.Name)
                    and inside.func.id == "abs"
                    and inside.args
                    and isinstance(inside.args[0], ast.Call)
                ):
                    inside = inside.args[0]
                if _hashes_text(inside, scope):
                    salted = ("hash() of a text is salted",)
                    yield Place(node, f"`{code_of(node, 40)}` differs in every process", salted)


def _hashes_text(node: ast.AST, scope: Scope) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "hash":
        return False
    return bool(node.args) and is_text(node.args[0], scope)


def is_text(node: ast.expr, scope: Scope) -> bool:
    """Whether a value reads like a text: by its name, its key, or that of what it is an element of."""
    names = names_in(node)
    walked = [b.value for name in names for b in scope.bindings.get(name, []) if b.how == "iter"]
    return any(TEXT.search(text_of(part)) for part in [node, *walked])


@rule(
    "S78",
    "every epoch has the same order",
    kind="data-order",
    severity="medium",
    why="A DistributedSampler shuffles by (seed, epoch); without set_epoch the epoch stays 0, and all "
    "epochs repeat one order.",
    fix="Call sampler.set_epoch(epoch) at the start of each epoch.",
    source="PyTorch reference of DistributedSampler",
)
def same_order_every_epoch(module: Module, project: Project) -> Iterator[Place]:
    """DistributedSampler in a file without set_epoch."""
    if any("set_epoch" in other.text or other.mentions(SETS_EPOCH) for other in neighbours(module, project)):
        return
    for scope in module.scopes:
        for call in scope.calls:
            shuffle = keyword(call, "shuffle")
            if (
                last_name(call.func) == "DistributedSampler"
                and not is_evaluation(scope, project)
                and not (isinstance(shuffle, ast.Constant) and shuffle.value is False)
                and any(_has_epochs(other, project) for other in neighbours(module, project))
            ):
                yield Place(call, "set_epoch is called nowhere in this file", (code_of(call, 60),))


# trainers that call set_epoch of the sampler themselves
SETS_EPOCH = re.compile(r"\b(L|pl|lightning|pytorch_lightning)\.Trainer\(|LightningModule|LightningDataModule|Fabric\(")


def _has_epochs(module: Module, project: Project) -> bool:
    """Whether a file speaks of epochs, or walks over its batches in a loop inside another one."""
    if re.search(r"for\s+\w*epoch|epochs?\b", module.text):
        return True
    return any(
        isinstance(loop.inner, ast.For) and "range(" not in text_of(loop.inner.iter) and module.loops_around(loop.inner)
        for loop in train_loops(module, project)
    )


def targets_of(call: ast.Call, scope: Scope) -> list[ast.expr]:
    """The names that the statement around a call gives its value to."""
    for above in scope.module.up(call):
        if isinstance(above, ast.Assign):
            return above.targets
        if isinstance(above, (ast.stmt,)):
            return []
    return []
