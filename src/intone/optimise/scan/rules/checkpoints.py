"""A rule on checkpoints: a crash in the middle of a write must not leave half a file under the final name."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, keyword, last_name, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name

MOVES = re.compile(
    r"os\.replace|os\.rename|\.rename\(|\.replace\(\s*\w*(path|file|final|dst|target|out|ckpt)|shutil\.move|atomic|tempfile|NamedTemporary"
)
STATE = re.compile(
    r"state_dict|checkpoint|ckpt|optim|model|weights|snapshot|(^|[._])state($|[_(.])|params|(^|[^\w])(net|opt)($|[^\w])",
    re.I,
)
# what writes a file: its name -> (place and keyword of what is written, place and keyword of where)
WRITERS = {
    "torch.save": (0, "obj", 1, "f"), "pickle.dump": (0, "obj", 1, "file"), "dill.dump": (0, "obj", 1, "file"),
    "cloudpickle.dump": (0, "obj", 1, "file"), "joblib.dump": (0, "value", 1, "filename"),
    "safetensors.torch.save_file": (0, "tensors", 1, "filename"),
    "safetensors.torch.save_model": (0, "model", 1, "filename"),
    "torch.distributed.checkpoint.save": (0, "state_dict", 1, "checkpoint_id"),
    "np.savez": (1, "arrays", 0, "file"), "numpy.savez": (1, "arrays", 0, "file"),
    "np.savez_compressed": (1, "arrays", 0, "file"), "numpy.savez_compressed": (1, "arrays", 0, "file"),
}  # fmt: skip
# objects that save for others: accelerator.save(state, path). Lightning's fabric and trainer put a file in its place
SAVERS = {"accelerator": (0, "obj", 1, "f")}


@rule(
    "S60",
    "checkpoint written in place",
    kind="checkpoint",
    severity="medium",
    why="A crash, a full disk or a time limit in the middle of the write leaves half a file under the name "
    "that the next start "
    "loads; where the name is always the same, the last good state is gone too.",
    fix="Write to a temporary name in the same folder, flush to disk, then os.replace; keep the one before.",
    source="nanochat-facts.md 4.4.36",
)
def written_in_place(module: Module, project: Project) -> Iterator[Place]:
    """A model's or optimizer's state written to its final name, by whatever writes it."""
    for scope in module.scopes:
        for call in scope.calls:
            written = _written(call, scope)
            if written is None:
                continue
            what, where = written
            if not _is_state(what, scope, project) or _goes_elsewhere(where, scope):
                continue
            if MOVES.search(text_of(scope.node)) and scope.name != "<module>" or _moved_near(call, scope):
                continue
            same = _same_name(where) and _in_training(call, scope, project)
            yield Place(
                call,
                f"`{code_of(what, 30)}` is written straight to its final name",
                (
                    "no temporary name and rename in this function",
                    *(["the name is the same at every save"] if same else []),
                ),
                severity="high" if same else None if _keeps_training(module, scope) else "low",
            )


def _written(call: ast.Call, scope: Scope) -> tuple[ast.expr, ast.expr | None] | None:
    """(what, where to) of a call that writes a file, or None."""
    name = called(call, scope)
    form = WRITERS.get(name)
    if form is None and isinstance(call.func, ast.Attribute) and call.func.attr == "save":
        form = SAVERS.get((target_name(call.func.value) or "").rpartition(".")[2].lstrip("_"))
    if form is None:
        return _bytes_written(call, scope)
    what_at, what_word, where_at, where_word = form
    words = [word.value for word in call.keywords if word.arg is None]  # np.savez(path, **arrays)
    what = call.args[what_at] if what_at < len(call.args) else keyword(call, what_word) or (words[0] if words else None)
    where = call.args[where_at] if where_at < len(call.args) else keyword(call, where_word)
    return (what, where) if what is not None else None


def _bytes_written(call: ast.Call, scope: Scope) -> tuple[ast.expr, ast.expr | None] | None:
    """path.write_bytes(buffer.getvalue()), file.write(pickle.dumps(state)): bytes of a state that were made before."""
    if (
        not isinstance(call.func, ast.Attribute)
        or call.func.attr not in ("write_bytes", "write")
        or len(call.args) != 1
    ):
        return None
    where = call.func.value if call.func.attr == "write_bytes" else _opened(call.func.value, scope)
    value = call.args[0]
    if isinstance(value, ast.Name):
        made = [b.value for b in scope.bindings.get(value.id, []) if b.how == "="]
        value = made[0] if made else value
    if not isinstance(value, ast.Call):
        return None
    if called(value, scope) in ("pickle.dumps", "dill.dumps", "cloudpickle.dumps") and value.args:
        return value.args[0], where
    if last_name(value.func) in ("getvalue", "getbuffer") and isinstance(value.func, ast.Attribute):
        buffer = target_name(value.func.value)
        for other in scope.calls:
            form = WRITERS.get(called(other, scope))
            if form and len(other.args) > 1 and target_name(other.args[form[2]]) == buffer:
                return other.args[form[0]], where
    return None


def _opened(node: ast.expr, scope: Scope) -> ast.expr | None:
    """The name of an opened file: with open(path, "wb") as f -> path."""
    for binding in scope.bindings.get(target_name(node) or "", []):
        if isinstance(binding.value, ast.Call) and last_name(binding.value.func) == "open" and binding.value.args:
            return binding.value.args[0]
    return node


def _is_state(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether what is saved is a state: by its name, by what it is made of, or by the name of what saves it."""
    if STATE.search(text_of(node)):
        return True
    if any("state_dict" in text_of(origin.node) for origin in project.origins(node, scope, depth=3)):
        return True
    handed = (target_name(node) or "") in scope.parameters and not project.callers(scope)
    return handed and bool(re.search(r"checkpoint|ckpt|snapshot", scope.simple_name, re.I))


def _goes_elsewhere(target: ast.expr | None, scope: Scope) -> bool:
    """Into a buffer in memory, or to a name that says temporary."""
    if target is None:
        return False
    text = text_of(target)
    made = [text_of(b.value) for b in scope.bindings.get(target_name(target) or "", []) if b.how in ("=", "with")]
    return bool(
        re.search(r"(^|[^a-z])(tmp|temp)|buffer|\bbuf\b|BytesIO|partial|\.part\b", " ".join([text, *made]), re.I)
    )


def _moved_near(call: ast.Call, scope: Scope) -> bool:
    """At module level: a rename within the next ten lines."""
    if scope.name != "<module>":
        return False
    near = "\n".join(scope.module.lines[call.lineno - 1 : (call.end_lineno or call.lineno) + 10])
    return bool(MOVES.search(near))


def _same_name(target: ast.expr | None) -> bool:
    """Whether the file's name holds nothing that changes."""
    if target is None:
        return False
    text = text_of(target)
    return bool(re.search(r"['\"][\w./-]+\.(pt|pth|ckpt|bin|pkl|safetensors)['\"]", text)) and not re.search(
        r"\{|step|iter|epoch|format|%", text
    )


def _keeps_training(module: Module, scope: Scope) -> bool:
    """Whether it is a training's state, which cannot be made again as a converted file can."""
    return bool(
        re.search(r"optim|checkpoint|ckpt|epoch|train", scope.name + module.path + text_of(scope.node)[:4000], re.I)
    )


def _in_training(call: ast.Call, scope: Scope, project: Project) -> bool:
    module = scope.module
    loops = [loop.around for loop in train_loops(module, project)]
    return any(around in loops for around in module.loops_around(call)) or any(
        scope.simple_name in text_of(loop) for loop in loops if loop
    )
