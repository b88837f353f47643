"""A rule on whatever has no order of its own and becomes the order of data: sets, folders, results as they come."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_run_once
from intone.optimise.scan.rulebook import Place, rule, told_lines
from intone.optimise.scan.source import Module, Scope, target_name, walk

NEAR = 3  # lines around what a narrower rule tells of, in which this one is silent; guess
# files that are about rows of data
ABOUT_DATA = re.compile(
    r"Dataset|DataLoader|datasets|webdataset|token|corpus|jsonl|parquet|memmap|\.bin\b|shard|transcript|caption|manifest|"
    r"vocab|csv\b|DataFrame|\bdoc\b|['\"]text['\"]|samples?\b|examples?\b|speaker|train_|val_|crops?\b|documents?|\bdocs\b|prompts?\b",
    re.I,
)
# what is no row of data, by the names in the code that walks over it
NO_ROWS = re.compile(
    r"device|module|param|layer|hook|process|thread|client|conn|socket|lock|metric|stop|special|missing|unexpected|"
    r"import|package|ckpt|checkpoint|weights?\b|state_dict|safetensors|config|yaml|log(s|_|ger|dir)|step_|\.pt\b|\.pth\b|tmp|temp|"
    r"cache|unlink|remove|rmtree|delete|close|kill|cancel|join\(\)|print\(|argparse|option|flag|allowed|banned|node|edge|"
    r"request|session|pending|running|active|waiting|free|slot|block|page|plugin|module|\bkeys?\b|columns?|fields?|"
    r"kwargs|pytorch_model|adapter_model|finding|report|rule|ast\.|dtype|rank|gpu|port|host|url|version|stale|prune",
    re.I,
)
# files and functions that deal with no rows of data, by their names
NO_DATA = re.compile(r"checkpoint|ckpt|peft|lora|tokenizer|linear|layer|module|param|weights", re.I)
NUMBERS = re.compile(
    r"range\(|len\(|\bint\(|indices|\bidx|_idx|\bindex|numbers?\b|lengths?|sizes?\b|steps?\b|epochs?\b|(^|\W)(token_|input_)?ids\b",
    re.I,
)
WITHOUT_ORDER = (
    "sorted", "natsorted", "len", "sum", "any", "all", "min", "max", "set", "frozenset", "Counter", "update", "union",
    "intersection", "difference", "issubset", "issuperset", "isdisjoint", "bool", "print", "isin", "mean", "median",
)  # fmt: skip
KEEPS_ORDER = (
    "list", "tuple", "enumerate", "iter", "map", "filter", "zip", "array", "from_dict", "from_list", "DataFrame",
    "Series", "chain", "deque", "tensor", "islice", "cycle", "batched", "imap", "extend", "writelines", "tqdm",
    "asarray", "join",
)  # fmt: skip
LISTS = ("os.listdir", "os.scandir", "os.walk", "glob.glob", "glob.iglob", "os.fwalk")
AS_READY = ("as_completed", "imap_unordered")
KEPT = (
    "append",
    "extend",
    "write",
    "writelines",
    "writerow",
    "put",
    "tofile",
    "add_text",
    "add_item",
    "dump",
    "writestr",
)


@rule(
    "S95",
    "data in the order of what has none",
    kind="data-order",
    severity="medium",
    why="Sets of texts, folders and results of workers come in another order at the next start or on another machine: "
    "rows, splits and the numbers of labels then differ, a resumed position means another place, and nothing says so.",
    fix="Sort before anything is numbered, split, shuffled or written; dict.fromkeys() keeps the order of what comes.",
    source="Python reference of set, PYTHONHASHSEED, os.listdir and concurrent.futures",
)
def data_without_order(module: Module, project: Project) -> Iterator[Place]:
    """list({canonical(t) for t in rows}), enumerate(set(labels)), folders and as_completed, kept as they come."""
    if not module.mentions(ABOUT_DATA) or not _reads_data(module) or re.search(r"(^|/)(test|bench|setup)", module.path):
        return
    told = told_lines("data-order", module, project, "S95")
    for scope in module.scopes:
        named = _sets_of(scope, project)
        seen: set[int] = set()
        for node in scope.body:
            what = _unordered(node, scope, named, project) if isinstance(node, ast.expr) else None
            if what is None or node.lineno in seen or any(abs(node.lineno - line) <= NEAR for line in told):  # type: ignore[attr-defined]
                continue
            used = _kept_as_it_comes(node, scope, what)  # type: ignore[arg-type]
            if used is None or _is_no_data(node, used, scope, what):  # type: ignore[arg-type]
                continue
            seen.add(node.lineno)  # type: ignore[attr-defined]
            yield Place(
                node,
                f"`{code_of(node, 50)}` decides an order of the data, and has none itself",
                (f"{what}, kept as it comes by `{code_of(used, 60)}`", "nothing sorts it"),
                confidence="low" if is_run_once(scope, project) else "medium",
            )


def _reads_data(module: Module) -> bool:
    """Whether a file can hold rows at all: it imports what reads or makes them, or opens files."""
    return any(PACKAGES.match(full) for full in module.imports.values()) or module.mentions(OPENS)


PACKAGES = re.compile(
    r"(torch|numpy|pandas|polars|datasets|transformers|tokenizers|sentencepiece|tiktoken|webdataset|pyarrow|jsonlines|orjson|"
    r"json|csv|PIL|cv2|soundfile|librosa|h5py|lmdb|zarr|sklearn|ray|dask|tensorflow|jax|lightning|trl)\b"
)
OPENS = re.compile(r"\bopen\(|read_text|read_bytes|memmap|loadtxt")


def _sets_of(scope: Scope, project: Project) -> set[str]:
    """The names in a function that hold sets, whatever they are called; of an object's fields also by other methods."""
    owner = project.owner_of(scope)
    places = [scope, *(project.class_scopes(owner[1]) if owner is not None else [])]
    found: set[str] = set()
    for place in places:
        for name, bindings in place.bindings.items():
            values = [b.value for b in bindings if b.how in ("=", "op")]
            own = place is scope or name.startswith("self.")
            others = [b for b in bindings if b.how not in ("=", "op", "add", "update")]
            if own and values and not others and all(is_set(value, place, project) for value in values):
                found.add(name)
    found |= {
        name for name, one in scope.parameters.items()
        if one.annotation is not None and re.match(r"^(typing\.)?(frozen)?set\b|^Set\b", text_of(one.annotation), re.I)
    }  # fmt: skip
    return found


def is_set(value: ast.expr, scope: Scope, project: Project, depth: int = 2) -> bool:
    """Whether an expression is a set: written out, made by set(), joined of sets, or handed back by a function."""
    if isinstance(value, (ast.SetComp, ast.Set)):
        return True
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)):
        views = any(
            isinstance(s, ast.Call) and last_name(s.func) in ("keys", "items") for s in (value.left, value.right)
        )
        return views or is_set(value.left, scope, project, depth) or is_set(value.right, scope, project, depth)
    if isinstance(value, ast.IfExp):
        return is_set(value.body, scope, project, depth) and is_set(value.orelse, scope, project, depth)
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Name) and value.func.id in ("set", "frozenset"):
        return True
    if isinstance(value.func, ast.Attribute):
        joined = value.func.attr in ("union", "intersection", "difference", "symmetric_difference", "copy")
        if joined and is_set(value.func.value, scope, project, depth):
            return True
    functions = project.callees(value, scope)[:1] if depth else []
    returned = [(one, f) for f in functions for one in f.returns if not f.is_generator]
    return bool(returned) and all(_is_set_in(one, f, project, depth - 1) for one, f in returned)


def _is_set_in(value: ast.expr, scope: Scope, project: Project, depth: int) -> bool:
    name = target_name(value)
    made = [b.value for b in scope.bindings.get(name or "", []) if b.how in ("=", "op")]
    return is_set(value, scope, project, depth) or bool(made) and all(is_set(m, scope, project, depth) for m in made)


def _unordered(node: ast.expr, scope: Scope, named: set[str], project: Project) -> str | None:
    """What an expression is that has no order: a set of texts, a folder, results as they are ready."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        held = isinstance(node.ctx, ast.Load) and target_name(node) in named
        return "a set" if held and not isinstance(scope.module.parents.get(node), ast.Attribute) else None
    if isinstance(node, (ast.SetComp, ast.Set, ast.BinOp)):
        sides = [target_name(side) for side in (node.left, node.right)] if isinstance(node, ast.BinOp) else []
        joined = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor))
        return "a set" if is_set(node, scope, project) or joined and set(sides) & named else None
    if isinstance(node, ast.Subscript):
        inner = isinstance(node.ctx, ast.Load) and target_name(node.value) in _tables_of_sets(scope)
        return "a set" if inner else None
    if not isinstance(node, ast.Call):
        return None
    name, last = called(node, scope), last_name(node.func)
    if last in AS_READY:
        return "results in the order in which they are ready"
    if name in ("os.walk", "os.fwalk"):
        loop = next((above for above in scope.module.up(node) if isinstance(above, ast.For)), None)
        if loop is not None and "sort" in text_of(loop):
            return None
    if name in LISTS or last in ("rglob", "iterdir") or last == "glob" and isinstance(node.func, ast.Attribute):
        return "the order of the file system"
    return "a set" if is_set(node, scope, project) else None


def _tables_of_sets(scope: Scope) -> set[str]:
    """groups = defaultdict(set), groups.setdefault(key, set()), groups[key] = set(): names of dicts of sets."""
    found = {
        name for name, bindings in scope.bindings.items() for b in bindings
        if isinstance(b.value, ast.Call) and last_name(b.value.func) == "defaultdict" and "set" in names_in(b.value)
    }  # fmt: skip
    for call in scope.calls:
        if last_name(call.func) == "setdefault" and len(call.args) > 1 and text_of(call.args[1]) == "set()":
            found |= {name for name in [target_name(call.func.value)] if name}  # type: ignore[attr-defined]
    return found


def _kept_as_it_comes(node: ast.expr, scope: Scope, what: str) -> ast.AST | None:
    """What makes an order of something that has none: a list, numbers, a loop that keeps rows; None where it is sorted.

    A name for it is followed to where it is used in the same function.
    """
    module = scope.module
    below: ast.AST = node
    ordered: ast.AST | None = None
    for above in module.up(node):
        if isinstance(above, ast.Call) and below is not above.func:
            last = last_name(above.func) or ""
            if last in WITHOUT_ORDER:
                return None
            if last == "fromkeys" or last in KEEPS_ORDER:
                ordered = ordered or above
            elif not isinstance(below, ast.Starred) and ordered is None and what == "a set":
                return None  # handed on as what it is
        elif isinstance(above, ast.Attribute) and what == "a set" and ordered is None:
            return _takes_any(above, module)
        elif isinstance(above, (ast.ListComp, ast.GeneratorExp)):
            if ordered is None and not isinstance(below, ast.comprehension):
                return None  # an element of it, as what it is
            ordered = ordered or above
        elif isinstance(above, ast.DictComp):  # {name: number for number, name in enumerate(names)}
            if not re.search(r"enumerate|zip|count\(|range", text_of(above.generators[0].iter)):
                return None
            ordered = ordered or above
        elif isinstance(above, (ast.SetComp, ast.Compare, ast.BoolOp, ast.UnaryOp)):
            return None
        elif isinstance(above, ast.BinOp) and ordered is None and what == "a set":
            return None  # the set that is joined of it is looked at
        elif isinstance(above, ast.Starred):
            ordered = ordered or above
        elif isinstance(above, ast.comprehension):
            if below is not above.iter:
                return None
        elif isinstance(above, (ast.For, ast.AsyncFor)):
            return _keeps_rows(above, scope) if below is above.iter else None
        elif isinstance(above, ast.YieldFrom):
            return above
        elif isinstance(above, ast.Return):
            return ordered or (above if what == "the order of the file system" else None)
        elif isinstance(above, (ast.Assign, ast.AnnAssign)):
            targets = above.targets if isinstance(above, ast.Assign) else [above.target]
            if ordered is None and what == "a set":
                return None  # its name is looked at where it is used
            names = [name for target in targets if (name := target_name(target)) is not None]
            return _used_in_order(names, scope, ordered or above)
        elif isinstance(above, ast.stmt):
            return ordered if ordered is not None and not isinstance(ordered, ast.GeneratorExp) else None
        below = above
    return None


def _takes_any(func: ast.Attribute, module: Module) -> ast.AST | None:
    """names.pop(): whichever comes first"""
    call = module.parents.get(func)
    return call if func.attr == "pop" and isinstance(call, ast.Call) and not call.args else None


def _used_in_order(names: list[str], scope: Scope, made: ast.AST) -> ast.AST | None:
    """Whether a list of something without order is used as it is: nothing sorts it, and it is not only asked about."""
    uses = 0
    for other in walk(scope.node):
        if isinstance(other, ast.Call):
            last = last_name(other.func)
            base = target_name(other.func.value) if isinstance(other.func, ast.Attribute) else None
            if last == "sort" and base in names:
                return None
            if last in ("sorted", "natsorted") and other.args and names_in(other.args[0]) & set(names):
                return None
        if (
            isinstance(other, (ast.Name, ast.Attribute))
            and isinstance(other.ctx, ast.Load)
            and target_name(other) in names
        ):
            above = scope.module.parents.get(other)
            asked = isinstance(above, ast.Call) and last_name(above.func) in WITHOUT_ORDER
            uses += not asked and not isinstance(above, (ast.Compare, ast.UnaryOp, ast.If))
    return made if uses or any(name.startswith("self.") for name in names) else None


def _keeps_rows(loop: ast.For | ast.AsyncFor, scope: Scope) -> ast.AST | None:
    """What a loop keeps in the order of its turns: yield row, rows.append(row), file.write(row), out[at : end] = row.

    Not what is kept under a key of the turn, table[name] = row, and not what is put in order behind the loop.
    """
    turned = {name for name in names_in(loop.target)}
    for node in walk(loop):
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KEPT:
            held = target_name(node.func.value)
            if isinstance(node.func.value, ast.Subscript) or held is None:
                continue
            behind = _used_in_order([held], scope, node)
            if behind is not None or node.func.attr not in ("append", "extend"):
                return node
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            place = node.targets[0].slice
            parts = place.elts if isinstance(place, ast.Tuple) else [place]
            counted = any(isinstance(part, ast.Slice) for part in parts)
            numbered = isinstance(node.value, ast.Call) and last_name(node.value.func) == "len"
            if numbered or counted and not names_in(place) & turned:
                return node
    return None


def _is_no_data(node: ast.expr, used: ast.AST, scope: Scope, what: str) -> bool:
    """Whether what is put in order is no data by its words, or numbers, whose sets have an order."""
    around = " ".join([text_of(node), text_of(used)[:400], *_target_texts(node, scope)])
    if NO_DATA.search(f"{scope.module.path} {scope.simple_name}"):
        return True
    if NO_ROWS.search(around) or re.search(r"clean|prune|delete|close|shutdown|stop", scope.simple_name):
        return True
    owner = scope.owner.name if scope.owner is not None else ""
    if re.search(r"Module|Model|Engine|Scheduler|Server|Trainer|Config", owner):
        return True
    if what == "a set":
        return _holds_numbers(node, scope)
    if what.startswith("results") and scope.module.mentions(ASKED_FOR):
        return True  # answers of a service: they are others each time anyway
    if what == "the order of the file system":
        if _reads_rows(used, scope):
            return False
        return not re.search(
            r"Data|Corpus|Clips|Images|Set\b|Rows|Samples|Audio|Text|Video", owner
        ) and not ABOUT_DATA.search(f"{around} {scope.name}")
    return False


ASKED_FOR = re.compile(r"requests\.(post|get)|openai|anthropic|api_key", re.I)


def _reads_rows(used: ast.AST, scope: Scope) -> bool:
    """Whether what is kept is read out of the files right there: yield from open(path), rows.append(read(path))."""
    loop = next((above for above in scope.module.up(used) if isinstance(above, (ast.For, ast.AsyncFor))), None)
    keeps = isinstance(used, (ast.Yield, ast.YieldFrom)) or isinstance(used, ast.Call) and last_name(used.func) in KEPT
    return (
        loop is not None
        and keeps
        and re.search(r"\bopen\(|read_text|memmap|\bload\(|encode", text_of(loop)) is not None
    )


def _holds_numbers(node: ast.expr, scope: Scope) -> bool:
    """Whether a set is one of numbers, as far as its makers show: their order is the same in every process."""
    made = [node] + [b.value for b in scope.bindings.get(target_name(node) or "", [])]
    inner = [one.elt if isinstance(one, ast.SetComp) else one for one in made]
    return NUMBERS.search(" ".join(text_of(one) for one in inner)) is not None


def _target_texts(node: ast.AST, scope: Scope) -> list[str]:
    for above in scope.module.up(node):
        if isinstance(above, ast.Assign):
            return [text_of(target) for target in above.targets]
        if isinstance(above, ast.stmt):
            break
    return []
