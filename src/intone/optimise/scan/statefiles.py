"""What writes a file, what it writes and where to, and whether the file gets its final name only when it is whole."""

import ast
import re
from dataclasses import dataclass

from intone.optimise.scan.expressions import called, dotted, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name, walk

# what writes a file: its name -> (place and keyword of what is written, place and keyword of where)
WRITERS = {
    "torch.save": (0, "obj", 1, "f"), "pickle.dump": (0, "obj", 1, "file"), "dill.dump": (0, "obj", 1, "file"),
    "cloudpickle.dump": (0, "obj", 1, "file"), "joblib.dump": (0, "value", 1, "filename"),
    "safetensors.torch.save_file": (0, "tensors", 1, "filename"),
    "safetensors.torch.save_model": (0, "model", 1, "filename"),
    "safetensors.numpy.save_file": (0, "tensors", 1, "filename"),
    "torch.distributed.checkpoint.save": (0, "state_dict", 1, "checkpoint_id"),
    "torch.jit.save": (0, "m", 1, "f"), "numpy.save": (1, "arr", 0, "file"),
    "numpy.savez": (1, "arrays", 0, "file"), "numpy.savez_compressed": (1, "arrays", 0, "file"),
    "json.dump": (0, "obj", 1, "fp"),
}  # fmt: skip
# methods that write the object itself: name -> whether a file at the end of a run is usually written so
METHODS = {"save_pretrained": True, "save_state": True, "tofile": False}
# objects that save for others: accelerator.save(state, path). Lightning's fabric and trainer put a file in its place
SAVERS = {"accelerator": (0, "obj", 1, "f")}
MOVERS = ("os.replace", "os.rename", "shutil.move", "os.renames")
TEMPORARY = re.compile(
    r"(^|[^a-z])(te?mp|scratch|staging)|buffer|\bbuf\b|BytesIO|partial|\.part\b|\.new\b|incomplete", re.I
)
ATOMIC = re.compile(r"atomic|os\.replace|os\.rename|\.rename\(|\.replace\(\s*\w*(path|file|final|dst|target|out|ckpt)")


@dataclass(frozen=True, eq=False)
class Written:
    """A call that writes a file. where: None where the code does not show it.

    is_text, is_array: JSON or an array, which may hold anything.
    rarely: such a call writes a finished model as often as a checkpoint.
    """

    call: ast.Call
    what: ast.expr
    where: ast.expr | None
    rarely: bool = False
    is_text: bool = False
    is_array: bool = False


def written_by(call: ast.Call, scope: Scope, project: Project) -> Written | None:
    """What a call writes to a file, or None where it writes none."""
    name = _name_of(call, scope)
    form = WRITERS.get(name)
    args = call.args
    if form is None and name.endswith((".Thread", ".submit", ".run_in_executor")):  # in the background
        inside = [keyword(call, "target"), *args]
        form = next((WRITERS[n] for one in inside if one is not None and (n := _dotted(one, scope)) in WRITERS), None)
        handed = keyword(call, "args")
        args = list(handed.elts) if isinstance(handed, ast.Tuple) else args[1:]
    if form is None and isinstance(call.func, ast.Attribute) and call.func.attr == "save":
        form = SAVERS.get((target_name(call.func.value) or "").rpartition(".")[2].lstrip("_"))
    if form is None:
        return _by_method(call, scope, project) or _as_archive(call, scope) or _bytes_written(call, scope)
    what_at, what_word, where_at, where_word = form
    words = [word.value for word in call.keywords if word.arg is None]  # np.savez(path, **arrays)
    what = args[what_at] if what_at < len(args) else keyword(call, what_word) or (words[0] if words else None)
    where = args[where_at] if where_at < len(args) else keyword(call, where_word)
    if what is None:
        return None
    return Written(call, what, _opened(where, scope), is_text=name == "json.dump", is_array=name.startswith("numpy."))


def _name_of(call: ast.Call, scope: Scope) -> str:
    """The dotted name of what a call calls, also behind a name: save = partial(torch.save), keep = torch.save."""
    name = _dotted(call.func, scope)
    if isinstance(call.func, ast.Name) and name not in WRITERS:
        bindings = scope.bindings.get(call.func.id) or scope.module.top.bindings.get(call.func.id, [])
        for binding in bindings:
            value = binding.value
            if isinstance(value, ast.Call) and last_name(value.func) == "partial" and value.args:
                value = value.args[0]
            if _dotted(value, scope) in WRITERS:
                return _dotted(value, scope)
    return name


def _dotted(node: ast.AST, scope: Scope) -> str:
    name = dotted(node, scope)
    return f"numpy.{name[3:]}" if name.startswith("np.") else name


def _by_method(call: ast.Call, scope: Scope, project: Project) -> Written | None:
    """model.save_pretrained(folder), weights.numpy().tofile(path)"""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr not in METHODS or not call.args and not call.keywords:
        return None
    if project.callees(call, scope) or re.search(r"tok|process|config|extractor", text_of(func.value), re.I):
        return None
    return Written(call, func.value, call.args[0] if call.args else call.keywords[0].value, METHODS[func.attr])


def _as_archive(call: ast.Call, scope: Scope) -> Written | None:
    """with h5py.File(path, "w") as f, ZipFile(path, "w"): what the block puts in."""
    if called(call, scope) not in ("h5py.File", "zipfile.ZipFile", "tarfile.open") or not call.args:
        return None
    mode = call.args[1] if len(call.args) > 1 else keyword(call, "mode")
    if not (isinstance(mode, ast.Constant) and str(mode.value).startswith("w")):
        return None
    for above in scope.module.up(call):
        if isinstance(above, ast.With):
            for node in walk(above):
                if isinstance(node, ast.Call) and last_name(node.func) in ("state_dict", "named_parameters"):
                    return Written(call, node, call.args[0])
            return None
    return None


def _bytes_written(call: ast.Call, scope: Scope) -> Written | None:
    """path.write_bytes(buffer.getvalue()), file.write(pickle.dumps(state)), path.write_text(json.dumps(state))"""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr not in ("write_bytes", "write_text", "write") or not call.args:
        return None
    where = func.value if func.attr.startswith("write_") else _opened(func.value, scope)
    value = call.args[0]
    if isinstance(value, ast.Name):
        made = [b.value for b in scope.bindings.get(value.id, []) if b.how == "="]
        value = made[0] if made else value
    if not isinstance(value, ast.Call):
        return None
    name = called(value, scope)
    if name in ("pickle.dumps", "dill.dumps", "cloudpickle.dumps", "safetensors.torch.save") and value.args:
        return Written(call, value.args[0], where)
    if name == "json.dumps" and value.args and not _is_log(where, scope):
        return Written(call, value.args[0], where, is_text=True)
    if last_name(value.func) in ("getvalue", "getbuffer", "read") and isinstance(value.func, ast.Attribute):
        buffer = target_name(value.func.value)
        for other in scope.calls:
            form = WRITERS.get(_dotted(other.func, scope))
            if form and len(other.args) > 1 and target_name(other.args[form[2]]) == buffer:
                return Written(call, other.args[form[0]], where)
    return None


def _is_log(where: ast.expr | None, scope: Scope) -> bool:
    """Lines that are added to a file: nothing that was there is lost."""
    return where is None or any(
        isinstance(b.value, ast.Call) and any(text_of(arg) in ("'a'", "'at'", "'a+'") for arg in b.value.args)
        for b in scope.bindings.get(target_name(where) or "", [])
    )


def _opened(node: ast.expr | None, scope: Scope) -> ast.expr | None:
    """The name of an opened file: with open(path, "wb") as f, path.open("wb") -> path."""
    for binding in scope.bindings.get(target_name(node) or "", []) if node is not None else ():
        value = binding.value
        if isinstance(value, ast.Call) and last_name(value.func) == "open":
            if isinstance(value.func, ast.Attribute) and dotted(value.func, scope) not in ("io.open", "gzip.open"):
                return value.func.value
            return value.args[0] if value.args else node
    return node


def goes_elsewhere(target: ast.expr | None, scope: Scope, project: Project) -> bool:
    """Into a buffer in memory, to a name that says temporary, or through a helper that puts the file in its place."""
    if target is None:
        return False
    bindings = scope.bindings.get(target_name(target) or "", [])
    made = [text_of(b.value) for b in bindings if b.how in ("=", "with", "part")]
    inside = {name for b in bindings for name in names_in(b.value)}  # with os.fdopen(fd) as f, of mkstemp()
    made += [text_of(b.value) for name in inside for b in scope.bindings.get(name, []) if b.how == "part"]
    if any(TEMPORARY.search(text) for text in [text_of(target), *made]):
        return True
    helpers = [b.value for b in bindings if b.how == "with" and isinstance(b.value, ast.Call)]
    return any(
        ATOMIC.search(text_of(function.node)) for call in helpers for function in project.callees(call, scope)[:2]
    ) or any(ATOMIC.search(text_of(call.func)) for call in helpers)


def moves_in(scope: Scope) -> list[ast.Call]:
    """The calls of a function that give a file another name."""
    found = []
    for call in scope.calls:
        if called(call, scope) in MOVERS and len(call.args) > 1:
            found.append(call)
        elif isinstance(call.func, ast.Attribute) and call.func.attr in ("rename", "replace") and len(call.args) == 1:
            found.append(call)  # a text's replace() has two arguments
    return found


def is_moved_after(written: Written, scope: Scope) -> bool:
    """Whether what was written gets its final name after it: os.replace(tmp, path), part.rename(path)."""
    if written.where is None:
        return False
    names = names_in(written.where) - {"self", "os", "os.path", "Path"}
    for move in moves_in(scope):
        source = move.func.value if len(move.args) == 1 else move.args[0]  # type: ignore[attr-defined]
        same = text_of(source) == text_of(written.where) or bool(names & names_in(source))
        if same and move.lineno >= written.call.lineno:
            return True
    return "atomic" in text_of(scope.node) if scope.node is not scope.module.tree else False
