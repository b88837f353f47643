"""A rule on where an order of the data is drawn from: a seed that can be given again, not entropy or the clock."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.classes import fields_of
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_run_once
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.data_order import held_out, order_not_restored
from intone.optimise.scan.seeds import SEEDED, SEEDERS, SEEDING
from intone.optimise.scan.source import Module, Scope, target_name, walk

ENTROPY = re.compile(
    r"\burandom\b|\btime\.|\btime\(|time_ns|perf_counter|monotonic|\bnow\(|uuid[14]|\bsecrets\.|getpid|token_bytes|randbits|"
    r"SystemRandom"
)
ORDERS = ("shuffle", "permutation", "permuted", "randperm", "sample", "RandomSampler", "DataLoader")
DATA = re.compile(
    r"file|path|shard|doc|row|example|record|order|idx|index|indices|perm|data|corpus|corpora|url|batch|pack|token|todo",
    re.I,
)
DATA_CLASS = re.compile(r"Dataset|Sampler|Stream|Loader|Reader|Shard|Corpus|Feed", re.I)
# a state or seed that is written down can be given back
KEEPS_STATE = re.compile(r"getstate|get_state\b|bit_generator\.state|get_rng_state|initial_seed")
OF_STREAM = re.compile(r"rng|seed|order|perm|generator|shuffl|indices|\.state", re.I)


@rule(
    "S80",
    "the order of the data comes from entropy",
    kind="data-order",
    severity="medium",
    why="A stream seeded by the clock or the system's entropy gives another order at every start, and nobody knows "
    "which: a run cannot be repeated, and a resumed one sees some rows twice and others never.",
    fix="Seed it from the run's seed and the epoch (and the worker, where each has its own share).",
    source="optimiser.md G6; Python reference of random.seed",
)
def order_from_entropy(module: Module, project: Project) -> Iterator[Place]:
    """random.Random(os.urandom(8)), random.seed(time.time()) whose stream puts rows in order; a stream never seeded."""
    if is_elsewhere(module) or _keeps_stream(module):
        return
    yield from _never_seeded(module, project)
    for scope in module.scopes:
        for call in scope.calls:
            how = _entropy(call, scope, project)
            draw = orders_data(call, scope, project) if how is not None else None
            if how is None or draw is None:
                continue
            yield Place(
                call,
                f"`{code_of(draw, 40)}` puts the data in an order that {how} decides",
                (f"the stream is made by {code_of(call, 50)}", f"drawn from at line {draw.lineno}"),
            )


def _keeps_stream(module: Module) -> bool:
    """Whether a file keeps the state of a stream, or a data set's state with its order, not only with a position."""
    return module.mentions(KEEPS_STATE) or any(
        scope.simple_name == "state_dict" and any(OF_STREAM.search(text_of(value)) for value in scope.returns)
        for scope in module.scopes
    )


# streams of whole packages, what seeds each, and what puts rows in order from it
SHARED = {
    "random": (("random.seed",), ("random.shuffle", "random.sample")),
    "numpy.random": (
        ("np.random.seed", "numpy.random.seed"),
        ("np.random.shuffle", "numpy.random.shuffle", "np.random.permutation", "numpy.random.permutation"),
    ),
    "torch": (("torch.manual_seed", "torch.random.manual_seed"), ("torch.randperm",)),
}
SAVES = re.compile(r"torch\.save\(|save_checkpoint\(|save_file\(|save_pretrained\(|save_model\(|checkpointer\.save")
# a trainer that keeps checkpoints by itself, or rows that are written down: it matters in which order they come
USES_ORDER = re.compile(
    r"TrainingArguments|Trainer\(|tofile\(|np\.save|numpy\.save|memmap\(|\.write\(|save_to_disk|"
    r"to_parquet|to_json"
)
RESUMES = re.compile(r"load_state_dict\(|torch\.load\(|load_checkpoint\(|load_file\(|load_state\(")


def _never_seeded(module: Module, project: Project) -> Iterator[Place]:
    """random.shuffle(docs) of a program that keeps checkpoints and seeds this package's stream nowhere."""
    draws = [
        (package, scope, call) for scope in module.scopes for call in scope.calls
        if (package := _package_of(call, scope)) is not None and not held_out(call, scope)
    ]  # fmt: skip
    if not draws:
        return
    files = neighbours(module, project)
    own = [file for file in files if not is_elsewhere(file)]
    saves = any(file.mentions(SAVES) for file in own)
    if any(_keeps_stream(file) for file in own):
        return
    if not saves and not any(file.mentions(USES_ORDER) for file in own):
        return
    if any(True for file in files for _ in order_not_restored(file, project)):
        return  # told as what a resume leaves out
    seeded = {package for file in files for package in _seeds_in(file, project)}
    for package, _, call in draws:
        if package in seeded:
            continue
        resumes = any(file.mentions(RESUMES) for file in own)
        yield Place(
            call,
            f"`{code_of(call, 40)}` puts the data in an order that nobody can give again",
            (
                f"the stream of {package} is seeded nowhere in this program, so the system's entropy begins it",
                (
                    "the program keeps checkpoints"
                    if saves
                    else "a trainer keeps checkpoints, or the rows are written down"
                )
                + (" and goes on from them" if resumes else ""),
            ),
            confidence="low" if is_run_once(module.scope_of.get(call, module.top), project)
            else "high" if resumes else "medium",
            severity=None if resumes else "low",
        )
        return


@rule(
    "S89",
    "a sampler's order cannot be given again",
    kind="data-order",
    severity="medium",
    why="The order is drawn from a stream that all of the process shares: what else draws from it changes the order, "
    "several processes each have another one, and a resumed training cannot come back to its place.",
    fix="Draw the order from a generator seeded by (seed, epoch), with set_epoch() and a count of the rows given.",
    source="optimiser.md G6; PyTorch reference of DistributedSampler",
)
def sampler_without_seed(module: Module, project: Project) -> Iterator[Place]:
    """class Buckets(Sampler): def __iter__(self): random.shuffle(order), in a file that others build a training on."""
    if is_elsewhere(module):
        return
    for scope in module.scopes[1:]:
        if scope.owner is None or not GIVES_ORDER.match(scope.simple_name) or not _is_walked(scope.owner):
            continue
        lost = _place_in_lost_order(scope, project)
        if lost is not None:
            yield lost
            continue
        if KEEPS_PLACE.search(text_of(scope.owner)):
            continue
        draws = [call for call in scope.calls if _package_of(call, scope) is not None]
        if not draws or any(_keeps_stream(file) for file in neighbours(module, project)):
            continue
        if _is_whole_program(module, project):
            return  # whether it keeps checkpoints and seeds its streams is asked of the program
        yield Place(
            draws[0],
            f"`{code_of(draws[0], 40)}` draws the order of `{scope.owner.name}` from the stream of the process",
            ("no seed, epoch or state in the class",),
            confidence="medium",
        )


def _place_in_lost_order(scope: Scope, project: Project) -> Place | None:
    """A class that saves how many rows it gave, and draws the order of them anew from a stream that nobody saves."""
    owner = scope.owner
    methods = {method.simple_name: method for method in project.class_scopes(owner)} if owner is not None else {}
    saves = next((methods[name] for name in ("state_dict", "get_state") if name in methods), None)
    counted = [value for value in saves.returns if COUNTS.search(text_of(value))] if saves is not None else []
    comes_back = any(name in methods for name in ("load_state_dict", "set_state", "load_state"))
    if owner is None or saves is None or not comes_back or not counted or KEEPS_ORDER.search(text_of(owner)):
        return None
    kept = {name for value in saves.returns for name in names_in(value)}
    for call in scope.calls:
        stream = "the process" if _package_of(call, scope) is not None else _unseeded(call, scope, project)
        handed = {name for arg in call.args for name in names_in(arg)}
        handed |= {name for target in _given_to(call, scope) for name in names_in(target)}
        if stream is None or handed & (kept - {"self"}) or keyword(call, "generator") is not None:
            continue
        if any(_keeps_stream(file) for file in neighbours(scope.module, project)):
            return None
        return Place(
            call,
            f"`{owner.name}` saves a place in an order that `{code_of(call, 40)}` draws anew after a restore",
            (
                f"`{code_of(counted[0], 50)}` is saved at line {counted[0].lineno}",
                f"the order comes from the stream of {stream}, whose seed or state is not saved with it",
            ),
        )
    return None


COUNTS = re.compile(
    r"consumed|cursor|offset|position|(^|\W|_)(pos|idx|index|step|steps|batch|batches|row|rows|count|done|seen|given|taken|"
    r"next|start|at)(\W|_|$)"
)
KEEPS_ORDER = re.compile(
    r"manual_seed|\.seed\(|default_rng\(\w|Random\([\w(]|RandomState\(\w|get_?state\(\)|get_rng_state|bit_generator|generator\s*="
)


def _unseeded(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """self.rng.shuffle(order) of an object whose own methods make self.rng with no seed: the name of the stream."""
    base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
    if base is None or not base.startswith("self.") or last_name(call.func) not in ORDERS or scope.owner is None:
        return None
    made = [b.value for method in project.class_scopes(scope.owner) for b in method.bindings.get(base, [])]
    entropy = [isinstance(one, ast.Call) and called(one, scope) in SEEDED and not one.args for one in made]
    return f"`{base}`" if made and all(entropy) and not any(one.keywords for one in made) else None  # type: ignore[attr-defined]


def _given_to(call: ast.Call, scope: Scope) -> list[ast.expr]:
    """What the value of a call is kept as: self.order = torch.randperm(n).tolist()."""
    for above in scope.module.up(call):
        if isinstance(above, ast.stmt):
            return above.targets if isinstance(above, ast.Assign) else []
    return []


GIVES_ORDER = re.compile(r"^(__iter__|_?(build|make|shuffle|reset|order|new)\w*|on_epoch_\w+)$")
KEEPS_PLACE = re.compile(r"seed|epoch|state_dict|set_state|generator|\brng\b|RandomState", re.I)


def _is_walked(owner: ast.ClassDef) -> bool:
    """A sampler, a data set that gives row after row, or a loader of the project's own."""
    about = " ".join([owner.name, *(text_of(base) for base in owner.bases)])
    methods = {part.name for part in owner.body if isinstance(part, ast.FunctionDef)}
    return "__iter__" in methods and DATA_CLASS.search(about) is not None


def _is_whole_program(module: Module, project: Project) -> bool:
    """Whether a file belongs to a training that the scan sees: a loop with a backward pass, or a library's trainer."""
    files = neighbours(module, project)
    return any(file.mentions(USES_ORDER) or any(True for _ in train_loops(file, project)) for file in files)


def _package_of(call: ast.Call, scope: Scope) -> str | None:
    """The package from whose own stream a call puts data in order; random.sample does where it takes all of it."""
    name = called(call, scope)
    for package, (_, orders) in SHARED.items():
        if name in orders and keyword(call, "generator") is None and _is_of_data(call, scope):
            partly = name == "random.sample" and not (len(call.args) == 2 and "len(" in text_of(call.args[1]))
            return None if partly else package
    return None


def _seeds_in(module: Module, project: Project) -> set[str]:
    """The packages whose streams a file seeds; set_seed() of a library seeds all of them."""
    found: set[str] = set()
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            found |= {package for package, (seeders, _) in SHARED.items() if name in seeders}
            if SEEDING.search("." + name.rpartition(".")[2]) and "manual_seed" not in name:
                found |= set(SHARED) if not project.callees(call, scope) else set()
    return found


def _entropy(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """What seeds a stream where it is nothing that can be given again, in words."""
    name = called(call, scope)
    last = name.rpartition(".")[2]
    if last == "SystemRandom":
        return "the system's entropy"
    if name in SEEDED or name in SEEDERS or name == "torch.seed":
        values = [*call.args, *(word.value for word in call.keywords)]
        if not values or isinstance(values[0], ast.Constant) and values[0].value is None:
            return "the system's entropy"
        return _of_seed(values[0], scope, project)
    if SEEDING.search("." + last) and call.args:
        return _of_seed(call.args[0], scope, project)
    if last == "seed" and not call.args and isinstance(call.func, ast.Attribute):
        return "the system's entropy" if _is_generator(call.func.value, scope, project) else None
    return None


def _is_generator(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a name or field holds torch's generator: gen = Generator(), gen: Generator = field(...)."""
    name = target_name(node) or ""
    made: list[ast.AST] = [b.value for b in scope.bindings.get(name, [])]
    if name.startswith("self.") and scope.owner is not None:
        made += [b.value for method in project.class_scopes(scope.owner) for b in method.bindings.get(name, [])]
        made += [
            part
            for part in scope.owner.body
            if isinstance(part, (ast.Assign, ast.AnnAssign)) and name.removeprefix("self.") in fields_of(part)
        ]
    return any("Generator" in text_of(one) for one in made)


def _of_seed(seed: ast.expr, scope: Scope, project: Project, depth: int = 3) -> str | None:
    """The clock or entropy that a seed is made of, also behind names and functions; None where it is written down."""
    if ENTROPY.search(text_of(seed)):
        return f"`{code_of(seed, 30)}`"
    for part in walk(seed) if depth else ():
        if isinstance(part, ast.Call):
            made = [(value, function) for function in project.callees(part, scope)[:2] for value in function.returns]
        elif isinstance(part, (ast.Name, ast.Attribute)) and (name := target_name(part)) is not None:
            bound, places = _bound(name, scope, project)
            made = [] if len(bound) != 1 or any(_keeps(name, place) for place in places) else bound
        else:
            continue
        if len(made) == 1 and not isinstance(made[0][0], (ast.IfExp, ast.BoolOp)):  # those may be given
            found = _of_seed(made[0][0], made[0][1], project, depth - 1)
            if found is not None:
                return found
    return None


def _bound(name: str, scope: Scope, project: Project) -> tuple[list[tuple[ast.expr, Scope]], list[Scope]]:
    """(what is bound to a name, each with its function; the functions that may read it)."""
    owner = project.owner_of(scope) if name.startswith("self.") else None
    places = project.class_scopes(owner[1]) if owner is not None else [scope]
    if owner is None and name not in scope.bindings and name not in scope.parameters:
        places = [scope.module.top, scope]
    return [(b.value, place) for place in places for b in place.bindings.get(name, []) if b.how == "="], places


def _keeps(name: str, scope: Scope) -> bool:
    """Whether a seed is printed, saved or handed back, so that it can be given again."""
    for node in scope.body:
        if not isinstance(node, (ast.Name, ast.Attribute)) or not isinstance(node.ctx, ast.Load):
            continue
        for above in scope.module.up(node) if target_name(node) == name else ():
            if isinstance(above, (ast.Return, ast.Dict, ast.JoinedStr)):
                return True
            if isinstance(above, ast.Call) and KEEPS.search(last_name(above.func) or ""):
                return True
            if isinstance(above, ast.Assign) and isinstance(above.targets[0], (ast.Attribute, ast.Subscript)):
                return not isinstance(above.value, ast.Call)
            if isinstance(above, ast.stmt):
                break
    return False


KEEPS = re.compile(r"print|log|info|debug|warn|write|dump|save|say|record|config|track|setdefault|update")


def orders_data(call: ast.Call, scope: Scope, project: Project) -> ast.Call | None:
    """The call that puts data in order from the stream that a call makes or seeds."""
    module = scope.module
    held = _held(call, scope)
    if held is None:
        above = module.parents.get(call)
        outer = module.parents.get(above) if isinstance(above, ast.Attribute) else None
        chained = isinstance(outer, ast.Call) and last_name(outer.func) in ORDERS and _is_of_data(outer, scope)
        return outer if chained and isinstance(outer, ast.Call) else None
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner is not None and held.startswith("self.") else [scope]
    for method in methods:
        for draw in method.calls:
            if last_name(draw.func) not in ORDERS or draw is call or not _is_of_data(draw, method):
                continue
            base = target_name(draw.func.value) if isinstance(draw.func, ast.Attribute) else None
            stream = keyword(draw, "generator")
            if held == base or stream is not None and target_name(stream) == held:
                return draw
    return None


def _held(call: ast.Call, scope: Scope) -> str | None:
    """The name of the stream that a call makes or seeds; that of the package for its own stream: random, np.random."""
    if isinstance(call.func, ast.Attribute) and (
        called(call, scope) in SEEDERS or call.func.attr in ("seed", "manual_seed")
    ):
        base = call.func.value
        if not isinstance(base, ast.Call):
            return target_name(base)
    for above in scope.module.up(call):
        if isinstance(above, (ast.Assign, ast.AnnAssign)):
            target = above.targets[0] if isinstance(above, ast.Assign) else above.target
            whole = above.value is call or isinstance(call.func, ast.Attribute) and call.func.attr == "manual_seed"
            return target_name(target) if whole else None
        if isinstance(above, ast.stmt):
            return None
    return None


def _is_of_data(draw: ast.Call, scope: Scope) -> bool:
    """Whether rows, files or their places are put in order: by what is shuffled, the class, or the name it gets."""
    owner = scope.owner
    if owner is not None and DATA_CLASS.search(" ".join([owner.name, *(text_of(base) for base in owner.bases)])):
        return True
    above = scope.module.parents.get(draw)
    targets = above.targets if isinstance(above, ast.Assign) else []
    words = {name for part in [*draw.args, *targets] for name in names_in(part)} | {scope.simple_name}
    words |= {text_of(b.value) for name in words for b in scope.bindings.get(name, []) if b.how == "="}
    return last_name(draw.func) in ("DataLoader", "RandomSampler") or any(DATA.search(word) for word in words)
