"""Rules on the order in which files and workers give rows: the same on every machine and at every start."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_run_once
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.data_order import targets_of
from intone.optimise.scan.source import LOOPS, Module, Scope, target_name, walk


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
        yield from _named_sets(scope, project)
        yield from _listed_sets(scope)
        for call in scope.calls:
            if (walked := _walks_set(call, scope)) is not None:
                yield Place(call, f"`{code_of(walked, 50)}` is used in the order of a set", (SALTED,))
                continue
            if not _lists_files(call, scope) or not _is_data(call, scope):
                continue
            if _is_sorted(call, scope) or not _order_matters(call, scope):
                continue
            yield Place(
                call,
                f"`{code_of(call, 50)}` is used in the order of the file system",
                ("no sorted() and no .sort() on it",),
                confidence="low" if is_run_once(scope, project) else "high",  # what is written is read in its own order
            )


SALTED = "texts in a set are ordered by their hash, which is salted anew in every process"
# sets of what is no row of data, by the name of the file or of the set
NO_DATA = re.compile(r"checkpoint|ckpt|upload|download", re.I)
DATA_NAMES = re.compile(r"(^|[._])(docs?|documents|files|paths|shards|urls|texts|rows|examples|names|prompts|lines)$")


def _walks_set(call: ast.Call, scope: Scope) -> ast.expr | None:
    """for path in set(paths), list(set(paths)): the call, where what is walked over reads like data."""
    if not (isinstance(call.func, ast.Name) and call.func.id in ("set", "frozenset") and len(call.args) == 1):
        return None
    if not DATA_NAMES.search(target_name(call.args[0]) or ""):
        return None
    above = scope.module.parents.get(call)
    if isinstance(above, ast.Call) and last_name(above.func) in ("list", "tuple", "enumerate", "iter"):
        if _is_sorted(above, scope):
            return None
        return (
            above
            if last_name(above.func) in ("list", "tuple") or isinstance(scope.module.parents.get(above), ast.For)
            else None
        )
    return call if isinstance(above, (ast.For, ast.comprehension)) and above.iter is call else None


# files that read or order rows
GIVES_ROWS = re.compile(r"DataLoader|Dataset\b|Sampler|shard|corpus|epoch|batches|jsonl|rows", re.I)


def _listed_sets(scope: Scope) -> Iterator[Place]:
    """list({row["domain"] for row in rows}), tuple(set(a) - set(b)): an order made of a set of texts in one breath."""
    for loop in scope.of(ast.For):  # for key in table.keys() - banned: rows.append(table[key])
        rows = READS_ROWS.search(" ".join(text_of(statement) for statement in loop.body))
        if not rows or not isinstance(loop.iter, (ast.SetComp, ast.BinOp)) or not _is_set(loop.iter):
            continue
        if OF_TEXTS.search(text_of(loop.iter)) and OF_DATA.search(f"{text_of(loop)} {scope.name}"):
            yield Place(loop.iter, f"`{code_of(loop.iter, 50)}` is walked over in the order of a set", (SALTED,))
    for call in scope.calls:
        if not isinstance(call.func, ast.Name) or call.func.id not in ("list", "tuple") or len(call.args) != 1:
            continue
        made = call.args[0]
        if not isinstance(made, (ast.SetComp, ast.BinOp)) or not _is_set(made) or _is_sorted(call, scope):
            continue
        if not scope.module.mentions(GIVES_ROWS):
            continue
        code = f"{text_of(made)} {scope.name}"
        if OF_TEXTS.search(code) or re.search(r"\[['\"]\w+['\"]\]", code):
            yield Place(call, f"`{code_of(call, 50)}` is in the order of a set", (SALTED,))


SET_MAKERS = ("set", "frozenset")
OF_TEXTS = re.compile(
    r"str\(|\bname\b|\.stem|path|file|line|text|doc|url|key|prompt|shard|glob|listdir|strip\(|splitlines|json|['\"]id['\"]",
    re.I,
)
OF_DATA = re.compile(
    r"data|shard|parquet|jsonl|\.bin|train|corpus|token|\.arrow|\.npy|\.txt|doc|text|prompt|example|rows|files|paths|"
    r"\bids\b|row_|pack|messages|chat_template|statement|problem|question",
    re.I,
)
READS_ROWS = re.compile(r"open|read|load|yield|append|extend|memmap|encode|write|put\(|tok\w*[(.]|\.add\(|template")


def _named_sets(scope: Scope, project: Project) -> Iterator[Place]:
    """names = {path.name for path in files}, then list(names) or `for name in names`: the order of a set of texts."""
    for name, bindings in scope.bindings.items():
        values = [b.value for b in bindings if b.how in ("=", "op")]
        num_others = sum(b.how not in ("add", "update") for b in bindings)
        if len(values) != num_others or not values or not all(_is_set(value) for value in values):
            continue
        code = " ".join([*(text_of(value) for value in values), *_filled_with(name, scope)])
        if not OF_TEXTS.search(f"{code} {name}"):
            continue
        for node in scope.body:
            used = _in_order_of(node, name, scope)
            if used is not None and NO_DATA.search(f"{scope.module.path} {name}"):
                continue
            if used is not None and _fills_table(used, scope, project):
                continue
            if used is not None and OF_DATA.search(f"{code} {name} {scope.name} {text_of(node)}"):
                made = f"`{name}` is a set, made at line {getattr(bindings[0].node, 'lineno', 0)}"
                yield Place(used, f"`{code_of(used, 50)}` is used in the order of a set", (made, SALTED))
                break


def _fills_table(node: ast.expr, scope: Scope, project: Project) -> bool:
    """return list(names), of which all callers only make a table: for name in found: table[name] = number(name)"""
    sites = project.callers(scope)[:6] if isinstance(scope.module.parents.get(node), ast.Return) else []
    for site in sites:
        above, file = site.scope.module.parents.get(site.call), site.scope.module
        held = target_name(above.targets[0]) if isinstance(above, ast.Assign) else None
        loops = [one for one in file.nodes if isinstance(one, ast.For) and target_name(one.iter) == held]
        if held is None or not loops or not all(_sets_entries(one) for one in loops):
            return False
    return bool(sites)


def _sets_entries(loop: ast.For) -> bool:
    """Whether a loop does nothing but give each of what it walks over an entry of its own."""
    targets = [target for part in loop.body if isinstance(part, ast.Assign) for target in part.targets]
    keyed = all(isinstance(one, ast.Subscript) and names_in(one.slice) & names_in(loop.target) for one in targets)
    return keyed and len(targets) == len(loop.body)


def _filled_with(name: str, scope: Scope) -> Iterator[str]:
    """What is put into a set later, found.add(str(path)) or found.update(paths), with what is walked over to get it."""
    for call in scope.calls:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("add", "update"):
            continue
        if target_name(call.func.value) == name:
            yield text_of(call)
            yield from (text_of(above.iter) for above in scope.module.up(call) if isinstance(above, ast.For))


def _is_set(value: ast.expr) -> bool:
    """A set written out, made by set() or a comprehension, or joined of those."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)):
        views = [side for side in (value.left, value.right) if isinstance(side, ast.Call) and not side.args]
        of_views = any(last_name(side.func) in ("keys", "items") for side in views)
        return of_views or _is_set(value.left) or _is_set(value.right)
    if isinstance(value, ast.Call):
        made = isinstance(value.func, ast.Name) and value.func.id in SET_MAKERS
        joined = isinstance(value.func, ast.Attribute) and value.func.attr in ("union", "intersection", "difference")
        return made or joined and _is_set(value.func.value)  # type: ignore[attr-defined]
    return isinstance(value, (ast.SetComp, ast.Set))


def _in_order_of(node: ast.AST, name: str, scope: Scope) -> ast.expr | None:
    """What makes an order of a set: list(names) that is walked over or handed back, a loop that reads or keeps rows."""
    if isinstance(node, ast.Call) and last_name(node.func) in ("list", "tuple") and len(node.args) == 1:
        if target_name(node.args[0]) != name or _is_sorted(node, scope):
            return None
        return node if _order_matters(node, scope) else None
    if isinstance(node, (ast.For, ast.AsyncFor)):
        walked = node.iter
        if isinstance(walked, ast.Call) and last_name(walked.func) in ("enumerate", "tqdm") and walked.args:
            walked = walked.args[0]
        rows = READS_ROWS.search(" ".join(text_of(statement) for statement in node.body))
        return node.iter if target_name(walked) == name and rows else None
    if isinstance(node, ast.ListComp) and target_name(node.generators[0].iter) == name:
        turned = names_in(node.generators[0].target)
        looked_up = any(isinstance(part, ast.Subscript) and names_in(part.slice) & turned for part in walk(node.elt))
        above = scope.module.parents.get(node)
        handed = isinstance(node.elt, ast.Name) and isinstance(above, (ast.Return, ast.Assign))
        kept = looked_up or handed or re.search(r"open|read|load|encode|tokeni", text_of(node.elt))
        return node.generators[0].iter if kept and not _is_sorted_around(node, scope) else None
    return None


def _is_sorted_around(node: ast.expr, scope: Scope) -> bool:
    above = scope.module.parents.get(node)
    return isinstance(above, ast.Call) and last_name(above.func) in ("sorted", "set", "sum", "len", "any", "all", "max")


def _lists_files(call: ast.Call, scope: Scope) -> bool:
    name = called(call, scope)
    if name in ("os.listdir", "glob.glob", "glob.iglob", "os.scandir"):
        return True
    if name == "os.walk":
        loop = next((above for above in scope.module.up(call) if isinstance(above, (*LOOPS, ast.ListComp))), None)
        return loop is not None and "sort" not in text_of(loop)
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("glob", "rglob", "iterdir")
        and not name.startswith("glob.")
    )


DATA_FILES = re.compile(
    r"data|shard|parquet|jsonl|\.bin|train|corpus|corpora|token|\.arrow|\.np[yz]|\.txt|docs?\b|docs?_|_docs?|documents|"
    r"texts?\b|example|sample|book|image|\.csv|\.(wav|flac|mp3|ogg|png|jpe?g|webp|h5|hdf5|tfrecord|lmdb|msgpack)|clips|\.zst|\.tar|stories|articles|rows",
    re.I,
)
OTHER_FILES = re.compile(
    r"config\.json|checkpoint|ckpt|model_|step_|\.pt['\"]|safetensors|\.lock|clean|delete|cache", re.I
)


def _is_data(call: ast.Call, scope: Scope) -> bool:
    """Files of data: by the pattern, the name of the folder, the function, or as a data set lists them."""
    text = text_of(call) + scope.name + " ".join(target_name(t) or "" for t in targets_of(call, scope))
    bases = [text_of(base) for base in scope.owner.bases] if scope.owner is not None else []
    of_set = any(re.search(r"Data[sS]et|Sampler|DataPipe", base) for base in bases)
    return (of_set or bool(DATA_FILES.search(text))) and not OTHER_FILES.search(text)


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
    names = [target_name(target) for target in targets_of(call, scope)]
    for other in walk(scope.node):
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


UNORDERED = ("sum", "len", "any", "all", "max", "min", "set", "sorted", "Counter")


def _order_matters(call: ast.Call, scope: Scope) -> bool:
    """Whether rows of the files are read one after the other: opened, read, yielded, appended or indexed."""
    loop = next((above for above in scope.module.up(call) if isinstance(above, LOOPS)), None)
    names = {target_name(target) for target in targets_of(call, scope)}
    if loop is not None:
        return bool(re.search(r"open|read|load|yield|append|extend|memmap|encode", text_of(loop)))
    above = scope.module.parents.get(call)
    while isinstance(above, (ast.comprehension, ast.ListComp, ast.GeneratorExp)) or (
        isinstance(above, ast.Call) and last_name(above.func) in ("list", "tuple", "iter", "map", "filter", "enumerate")
    ):
        above = scope.module.parents.get(above)
    if isinstance(above, (ast.Return, ast.Yield, ast.YieldFrom)):
        return True
    for node in scope.body:
        if isinstance(node, (ast.For, ast.AsyncFor)) and target_name(node.iter) in names:
            return bool(re.search(r"open|read|load|yield|append|extend|memmap|encode", text_of(node)))
        if isinstance(node, ast.Subscript) and target_name(node.value) in names:
            return True
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and target_name(node.generators[0].iter) in names:
            above = scope.module.parents.get(node)  # arrays = [np.load(file) for file in files]
            reads = re.search(r"open|read|load|memmap|encode|fromfile", text_of(node.elt))
            if reads and not (isinstance(above, ast.Call) and last_name(above.func) in UNORDERED):
                return True
        if isinstance(node, ast.Return) and node.value is not None and target_name(node.value) in names:
            return True
    return any((name or "").startswith("self.") for name in names)


@rule(
    "S79",
    "rows in the order in which workers are done",
    kind="data-order",
    severity="medium",
    why="imap_unordered and as_completed give results as they are ready: the order of rows depends on how busy the "
    "machine was, so it cannot be made again, and a resumed position means another place.",
    fix="Use map or imap, or sort the results by what they were made from.",
    source="Python reference of multiprocessing and concurrent.futures",
)
def unordered_workers(module: Module, project: Project) -> Iterator[Place]:
    """for ids in pool.imap_unordered(encode, files): written or kept in this order."""
    for scope in module.scopes:
        for call in scope.calls:
            if last_name(call.func) not in ("imap_unordered", "as_completed"):
                continue
            loop = next((above for above in module.up(call) if isinstance(above, (*LOOPS, ast.ListComp))), None)
            text = text_of(loop) if loop is not None else ""
            about = f"{text} {scope.name} {module.path}"
            if not re.search(r"token|doc|text|shard|row|example|encode|ids|sample|record", about, re.I):
                continue
            kept = re.search(r"\.(append|extend|write|tofile|add|put)\(|yield ", text) or isinstance(loop, ast.ListComp)
            by_key = re.search(r"\[\w+\]\s*=|sort|enumerate\(\w+\)\]|download|fetch|unlink", text)
            if kept and not by_key:
                yield Place(
                    call, f"`{code_of(call, 50)}` decides the order of the rows", ("results are kept as they come",)
                )
