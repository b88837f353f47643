"""Rules on the order of the data: a resumed training goes on where it stopped, and two machines read the same."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, names_in
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import LOOPS, Module, Scope, own_nodes, target_name
from intone.optimise.scan.values import is_optimizer

TEXT = re.compile(r"doc|text|str|id|name|path|key|row|example|line|url|prompt|file", re.I)
ELSEWHERE = re.compile(r"(^|[/_])(eval\w*|infer\w*|generat\w*|sampl\w*|serv\w*|bench\w*|tests?|chat)([/_.]|$)")
RESTORES_ORDER = re.compile(
    r"set_rng_state|set_state\(|setstate|bit_generator\.state|loader\w*\.load_state_dict|sampler\w*\.load_state_dict|"
    r"dataset\w*\.load_state_dict|StatefulDataLoader|skip_first_batches|islice\(|fast_forward|resume_state|dataloader_state|data_state|"
    r"loader_state|sampler_state|start_index|skip_batches|\.skip\(|data_iter_step"
)


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
    draws = [
        (scope, call, how)
        for scope in module.scopes
        for call in scope.calls
        if (how := _random_order(call, scope, project)) and not _held_out(call, scope)
    ]
    if not draws:
        return
    files = [module] if _restores(module, project) else [
        other for other in neighbours(module, project) if not ELSEWHERE.search(other.path)
    ]  # fmt: skip
    restores = [pair for other in files for pair in _restores(other, project)]
    if not restores or any(RESTORES_ORDER.search(other.text) or _skips(other) for other in files):
        return
    scope, call, how = draws[0]
    at, restore = restores[0]
    where = f"line {restore.lineno}" if at.module is module else f"{at.module.path}:{restore.lineno}"
    yield Place(
        call,
        f"the order of rows comes from {how}, and nothing of it is restored on resume",
        (
            f"the optimizer is restored at {where}",
            "no random state, position or skipping in this program",
        ),
    )


def _restores(module: Module, project: Project) -> list[tuple[Scope, ast.Call]]:
    """Where a file restores an optimizer: opt.load_state_dict(...), or in a loop over several objects' names."""
    return [
        (scope, call)
        for scope in module.scopes
        for call in scope.calls
        if last_name(call.func) == "load_state_dict"
        and isinstance(call.func, ast.Attribute)
        and (re.search(r"opt", ast.unparse(call)) or is_optimizer(call.func.value, scope, project))
    ]


def _held_out(call: ast.Call, scope: Scope) -> bool:
    """A loader of rows for evaluation: its order does not matter."""
    names = " ".join(target_name(target) or "" for target in _targets(call, scope)) + " " + scope.simple_name
    return bool(re.search(r"(^|[_. ])(val|valid|validation|eval|test|dev)($|[_. ])", names))


def _random_order(call: ast.Call, scope: Scope, project: Project) -> str | None:
    name = called(call, scope)
    shuffle = keyword(call, "shuffle")
    if name.endswith("DataLoader") and (is_true(shuffle) or only_value(shuffle, scope, project) is True):
        return "DataLoader(shuffle=True)"
    if name.rpartition(".")[2] in ("permutation", "integers", "shuffle") and re.search(r"rng|random|generator", name):
        return name
    if name == "torch.randint" and "len(" in ast.unparse(call):
        return "torch.randint"
    if name in (
        "random.shuffle",
        "np.random.shuffle",
        "numpy.random.shuffle",
        "np.random.permutation",
        "numpy.random.permutation",
        "torch.randperm",
        "np.random.randint",
        "numpy.random.randint",
        "random.sample",
        "np.random.choice",
        "random.choices",
    ):
        return name
    return "RandomSampler" if name.endswith("RandomSampler") else None


def _skips(module: Module) -> bool:
    """for _ in range(start_step): next(loader), or a seed that depends on the step or epoch."""
    for node in ast.walk(module.tree):
        if (
            isinstance(node, (ast.For, ast.While))
            and len(node.body) <= 3
            and any(isinstance(part, ast.Call) and last_name(part.func) == "next" for part in own_nodes(node))
            and re.search(r"range\(.*(start|step|iter|resume|skip)", ast.unparse(node))
        ):
            return True
        if isinstance(node, ast.Continue):
            above = module.parents.get(node)
            words = [name.rpartition(".")[2] for name in names_in(above.test)] if isinstance(above, ast.If) else []
            if any(re.fullmatch(r"(\w+_)?(start|resume|skip)(_\w+)?", word) for word in words):
                return True
        if (
            isinstance(node, ast.Call)
            and last_name(node.func) in ("manual_seed", "default_rng", "Random", "seed")
            and node.args
        ) and re.search(r"step|iter|epoch", ast.unparse(node.args[0])):
            return True
    return False


@rule(
    "S76",
    "order of files depends on the machine",
    kind="data-order",
    severity="medium",
    why="listdir and glob give files in the order of the file system: another disk or copy trains in "
    "another order, and a resumed "
    "position means another place.",
    fix="Sort the list.",
    source="Python reference of os.listdir and glob",
)
def unsorted_files(module: Module, project: Project) -> Iterator[Place]:
    """os.listdir or glob of data files, walked over or indexed without sorted()."""
    for scope in module.scopes:
        for call in scope.calls:
            if not _lists_files(call, scope) or not _is_data(call, scope):
                continue
            if _is_sorted(call, scope) or not _order_matters(call, scope):
                continue
            yield Place(
                call,
                f"`{code_of(call, 50)}` is used in the order of the file system",
                ("no sorted() and no .sort() on it",),
            )


def _lists_files(call: ast.Call, scope: Scope) -> bool:
    name = called(call, scope)
    if name in ("os.listdir", "glob.glob", "glob.iglob", "os.scandir"):
        return True
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("glob", "rglob", "iterdir")
        and not name.startswith("glob.")
    )


def _is_data(call: ast.Call, scope: Scope) -> bool:
    """Files of data: by the pattern, the name of the folder, or the function."""
    text = ast.unparse(call) + scope.name + " ".join(target_name(t) or "" for t in _targets(call, scope))
    return bool(
        re.search(r"data|shard|parquet|jsonl|\.bin|train|corpus|token|\.arrow|\.npy|\.txt|documents|texts", text, re.I)
    ) and not re.search(r"checkpoint|ckpt|model_|step_|\.pt['\"]|safetensors|\.lock|clean|delete|cache", text, re.I)


def _targets(call: ast.Call, scope: Scope) -> list[ast.expr]:
    for above in scope.module.up(call):
        if isinstance(above, ast.Assign):
            return above.targets
        if isinstance(above, (ast.stmt,)):
            return []
    return []


def _is_sorted(call: ast.Call, scope: Scope) -> bool:
    for above in scope.module.up(call):
        if isinstance(above, ast.Call) and last_name(above.func) in (
            "sorted",
            "len",
            "any",
            "all",
            "max",
            "min",
            "sum",
            "set",
            "natsorted",
        ):
            return True
        if isinstance(above, ast.stmt):
            break
    names = [target_name(target) for target in _targets(call, scope)]
    for other in ast.walk(scope.node):
        if (
            isinstance(other, ast.Call)
            and isinstance(other.func, ast.Attribute)
            and other.func.attr in ("sort", "shuffle")
        ) and (target_name(other.func.value) in names or (other.args and target_name(other.args[0]) in names)):
            return True
        sorts = isinstance(other, ast.Call) and last_name(other.func) in ("sorted", "natsorted") and bool(other.args)
        if sorts and names_in(other.args[0]) & set(names):  # type: ignore[attr-defined]
            return True
    return False


def _order_matters(call: ast.Call, scope: Scope) -> bool:
    """Whether rows of the files are read one after the other: opened, read, yielded, appended or indexed."""
    loop = next((above for above in scope.module.up(call) if isinstance(above, LOOPS)), None)
    names = {target_name(target) for target in _targets(call, scope)}
    if loop is not None:
        return bool(re.search(r"open|read|load|yield|append|extend|memmap|encode", ast.unparse(loop)))
    above = scope.module.parents.get(call)
    while isinstance(above, ast.Call) and last_name(above.func) in ("list", "tuple", "iter", "map"):
        above = scope.module.parents.get(above)
    if isinstance(above, (ast.Return, ast.Yield)):
        return True
    for node in scope.body:
        if isinstance(node, (ast.For, ast.AsyncFor)) and target_name(node.iter) in names:
            return bool(re.search(r"open|read|load|yield|append|extend|memmap|encode", ast.unparse(node)))
        if isinstance(node, ast.Subscript) and target_name(node.value) in names:
            return True
        if isinstance(node, ast.Return) and node.value is not None and target_name(node.value) in names:
            return True
    return any((name or "").startswith("self.") for name in names)


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
        for node in scope.body:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Call):
                inside = node.left
                if (
                    isinstance(inside.func, ast.Name)
                    and inside.func.id == "abs"
                    and inside.args
                    and isinstance(inside.args[0], ast.Call)
                ):
                    inside = inside.args[0]
                hashed = isinstance(inside.func, ast.Name) and inside.func.id == "hash" and bool(inside.args)
                if hashed and TEXT.search(ast.unparse(inside.args[0])):
                    salted = ("hash() of a text is salted",)
                    yield Place(node, f"`{code_of(node, 40)}` differs in every process", salted)


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
    if any("set_epoch" in other.text for other in neighbours(module, project)):
        return
    for scope in module.scopes:
        for call in scope.calls:
            shuffle = keyword(call, "shuffle")
            if (
                last_name(call.func) == "DistributedSampler"
                and not (isinstance(shuffle, ast.Constant) and shuffle.value is False)
                and any(re.search(r"for\s+\w*epoch|epochs?\b", other.text) for other in neighbours(module, project))
            ):
                yield Place(call, "set_epoch is called nowhere in this file", (code_of(call, 60),))
