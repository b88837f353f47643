"""Rules on files that run code when they are loaded."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, dotted, keyword, last_name, text_of
from intone.optimise.scan.options import hides_options, is_told, options
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.statefiles import written_by


@rule(
    "S61",
    "loading this file can run code",
    kind="pickle",
    severity="medium",
    why="A pickle can run anything when it is loaded; checkpoints and tokenizers are passed around and downloaded.",
    fix="Keep weights as safetensors and settings as JSON; for old files torch.load(..., weights_only=True).",
    source="nanochat-facts.md 4.5.41; Python reference of pickle",
)
def unsafe_load(module: Module, project: Project) -> Iterator[Place]:
    """pickle.load and the like, torch.load with weights_only=False, or without it where an old torch is allowed."""
    yield from _switched_off(module)
    for node in module.nodes:  # not by functions: defaults of parameters stand in none
        if isinstance(node, (ast.Name, ast.Attribute)):
            name_ = _handed_on(node, module.scope_of.get(node, module.top))
            if name_ is not None:
                yield Place(node, f"`{name_}` runs whatever the file says", ("it is kept under another name",))
    for scope in module.scopes:
        for call in scope.calls:
            name = _meant(call, scope)
            if name in UNPICKLERS:
                if not _from_memory(call, scope, project):
                    own = _written_beside(call, scope, project)
                    yield Place(
                        call,
                        f"`{name}` runs whatever the file says",
                        (code_of(call, 60), *([own] if own is not None else [])),
                        confidence="low" if own is not None else "high",
                    )
            elif (how := _runs_code(call, name, scope, project)) is not None:
                yield Place(call, *how)
            elif name in ("torch.load", *FROM_ADDRESS):
                yield from _torch_load(call, scope, project)
            elif last_name(call.func) == "partial" and call.args and (
                dotted(call.args[0], scope) in ("np.load", "numpy.load")
                and is_told(call, "allow_pickle", scope, project, place=None)
            ):  # fmt: skip
                yield Place(call, "numpy may unpickle what is read by this", ("allow_pickle=True",))
            elif _is_partial_load(call, scope):
                for place in _torch_load(call, scope, project):
                    yield from _where_used(place, call, scope, project)


UNPICKLERS = (
    "pickle.load", "pickle.loads", "cPickle.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "joblib.load", "pickle.Unpickler", "pandas.read_pickle", "pd.read_pickle", "_pickle.load", "_pickle.loads",
    "shelve.open", "marshal.load", "marshal.loads", "jsonpickle.decode", "cPickle.loads", "pickle5.load",
    "pickle5.loads", "dill.load_session", "dill.load_module", "dill.Unpickler", "_pickle.Unpickler", "jsonpickle.loads",
    "compress_pickle.load", "compress_pickle.loads", "sklearn.externals.joblib.load", "shelve.DbfilenameShelf",
    "torch.serialization._legacy_load", "bloscpack.unpack_bytes_to_ndarray",
)  # fmt: skip
FROM_ADDRESS = ("torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url")
YAML = (
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all",
)  # fmt: skip
NO_SAFETY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def _runs_code(call: ast.Call, name: str, scope: Scope, project: Project) -> tuple[str, tuple[str, ...]] | None:
    """(what is wrong, evidence) of a call that runs code with what it loads by what it is told, or None."""
    last = last_name(call.func)
    if is_told(call, "trust_remote_code", scope, project):
        return "code that comes with what is loaded is run", ("trust_remote_code=True",)
    if name in ("np.load", "numpy.load") and is_told(call, "allow_pickle", scope, project, place=2):
        return "numpy may unpickle this file", ("allow_pickle=True",)
    if name in YAML and "Safe" not in text_of(call) and not _is_safe_loader(call, scope, project):
        return "this YAML can make any object", (code_of(call, 60),)
    if last == "YAML" and isinstance(kind := keyword(call, "typ"), ast.Constant) and kind.value == "unsafe":
        return "this YAML can make any object", (code_of(call, 60),)
    if name == "torch.hub.load" and is_told(call, "trust_repo", scope, project):
        return "code that comes with what is loaded is run", ("trust_repo=True",)
    if last == "load_model" and (off := keyword(call, "safe_mode")) is not None and is_never(off, scope, project):
        return "the functions that this file holds are run", ("safe_mode=False",)
    if last == "recv_pyobj" or last == "recv" and _is_connection(call, scope):
        return "whoever sends to this socket can run code: what comes is unpickled", (code_of(call, 60),)
    for file, node in project.classes.get(last or "", []):
        if (why := _remaps_only(node, file)) is not None:
            return f"`{last}` unpickles whatever the file says", (why,)
    return None


def _is_safe_loader(call: ast.Call, scope: Scope, project: Project) -> bool:
    """yaml.load(file, Loader=LOADER) where LOADER is a safe one."""
    loader = keyword(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
    if loader is None:
        return False
    return any("Safe" in text_of(origin.node) for origin in project.origins(loader, scope, depth=3))


def _is_connection(call: ast.Call, scope: Scope) -> bool:
    """conn.recv() in a file that opens connections of multiprocessing to others: Listener, Client."""
    names = scope.module.imports.values()
    return not call.args and any(re.search(r"multiprocessing\.connection(\.(Listener|Client))?$", one) for one in names)


def _remaps_only(node: ast.ClassDef, module: Module) -> str | None:
    """Why an Unpickler of the project's own refuses nothing, in words; None for other classes and for those that do."""
    unpicklers = ("pickle.Unpickler", "dill.Unpickler", "_pickle.Unpickler")
    if not any(dotted(base, module.top) in unpicklers for base in node.bases):
        return None
    finder = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "find_class"), None)
    if finder is None:
        return "it has no find_class that refuses anything"
    if any(isinstance(part, ast.Raise) for part in walk(finder)):
        return None
    handed_on = any(
        isinstance(part, ast.Return) and isinstance(part.value, ast.Call) and last_name(part.value.func) == "find_class"
        for part in finder.body
    )
    return f"its find_class at line {finder.lineno} hands on every name" if handed_on else None


def _is_partial_load(call: ast.Call, scope: Scope) -> bool:
    """functools.partial(torch.load, weights_only=False)"""
    return last_name(call.func) == "partial" and bool(call.args) and dotted(call.args[0], scope) == "torch.load"


FAR = 5  # lines; a loader that is made further away from all its uses is told where it is made too


def _where_used(place: Place, call: ast.Call, scope: Scope, project: Project) -> Iterator[Place]:
    """read = partial(torch.load, weights_only=False): where files are read by this name, or where it is made."""
    above: ast.AST | None = scope.module.parents.get(call)
    if isinstance(above, ast.Call) and last_name(above.func) == "staticmethod":
        above = scope.module.parents.get(above)
    name = target_name(above.targets[0]) if isinstance(above, ast.Assign) else None
    uses = list(_uses(name, scope, project)) if name is not None and not name.startswith("torch.") else []
    if uses and all(at.module is not scope.module or abs(used.lineno - call.lineno) > FAR for used, at in uses):
        read = f"`{name}` reads files at {uses[0][1].module.path}:{uses[0][0].lineno}"
        yield Place(call, place.message, (*place.evidence[:1], read), place.confidence, place.severity)
    for used, at in uses:
        told = (f"`{name}` is `{code_of(call, 50)}`, made at {scope.module.path}:{call.lineno}", *place.evidence[1:])
        also = ((call, scope),)
        yield Place(used, place.message, told, place.confidence, place.severity, scope=at, also=also)
    if not uses:
        yield place


def _uses(name: str, scope: Scope, project: Project) -> Iterator[tuple[ast.Call, Scope]]:
    """The calls of what a name of a file, function, class or object holds, also in files that import it."""
    last, stem = name.rpartition(".")[2], scope.module.path.rpartition("/")[2].removesuffix(".py")
    kept = "." in name or isinstance(scope.node, ast.ClassDef)
    for module in project.modules:
        for at in module.scopes:
            for call in at.calls:
                said = target_name(call.func) or ""
                if said.rpartition(".")[2] != last and not (module is not scope.module and call.args):
                    continue
                if module is not scope.module:
                    found = called(call, at).endswith(f"{stem}.{last}")
                elif kept or "." in said:
                    found = said.partition(".")[0] in ("self", "cls") or said[:1].isupper()
                else:
                    local = scope is module.top or at is scope or at.outer is scope
                    found = local and said == name and name not in at.parameters
                if found:
                    yield call, at


def _switched_off(module: Module) -> Iterator[Place]:
    """os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1": every torch.load of the process may run code."""
    if NO_SAFETY not in module.text:
        return
    for node in module.nodes:
        if not isinstance(node, ast.Constant) or node.value != NO_SAFETY:
            continue
        for above in module.up(node):
            if isinstance(above, ast.stmt):
                code = text_of(above)
                sets = re.search(r"environ|putenv|\benv\b", code) and not re.search(r"\.(pop|get)\(|getenv", code)
                if isinstance(above, (ast.Assign, ast.Expr)) and sets:
                    told = (code_of(above, 60),)
                    yield Place(above, "every torch.load of this process may run what the file says", told)
                break


def _meant(call: ast.Call, scope: Scope) -> str:
    """What a call calls, also behind a name that the function or file gives it: load = pickle.loads, mod = pickle."""
    name = called(call, scope)
    if isinstance(call.func, ast.Call) and last_name(call.func.func) == "getattr" and len(call.func.args) > 1:
        attr = call.func.args[1]  # getattr(pickle, "load")(file)
        return f"{dotted(call.func.args[0], scope)}.{attr.value!s}" if isinstance(attr, ast.Constant) else name
    if isinstance(call.func, ast.Name):
        meant = _bound(call.func.id, scope)
        return next((one for one in meant if one in UNPICKLERS or one == "torch.load"), name)
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        meant = [f"{one}.{call.func.attr}" for one in _bound(call.func.value.id, scope)]
        return next((one for one in meant if one in UNPICKLERS), name)
    return name


def _bound(name: str, scope: Scope) -> list[str]:
    """The dotted names of what a name is bound to in a function or its file, all of them where there is a choice."""
    if name in scope.parameters:
        return []
    bindings = scope.bindings.get(name) or scope.module.top.bindings.get(name, [])
    values = [b.value for b in bindings if b.how == "="]
    for value in values:  # grows while it is walked over
        if isinstance(value, ast.IfExp):
            values += [value.body, value.orelse]
        elif isinstance(value, ast.BoolOp):
            values += value.values
    found = [dotted(value, scope) for value in values]
    found += [  # import_module("pickle")
        str(value.args[0].value) for value in values
        if isinstance(value, ast.Call) and last_name(value.func) in ("__import__", "import_module")
        and value.args and isinstance(value.args[0], ast.Constant)
    ]  # fmt: skip
    return [one for one in found if one]


def _handed_on(node: ast.expr, scope: Scope) -> str | None:
    """pickle.load in a table, as an argument or default, or kept by an object: not called here."""
    parents = scope.module.parents
    above = parents.get(node)
    used = isinstance(above, (ast.Dict, ast.List, ast.Tuple, ast.keyword, ast.arguments)) or (
        isinstance(above, ast.Call) and above.func is not node
    )
    if isinstance(above, (ast.Assign, ast.AnnAssign)) and above.value is node:
        target = above.targets[0] if isinstance(above, ast.Assign) else above.target
        used = isinstance(target, ast.Attribute) or isinstance(parents.get(above), ast.ClassDef)
    name = dotted(node, scope) if used else ""
    return name if name in UNPICKLERS else None


def _torch_load(call: ast.Call, scope: Scope, project: Project) -> Iterator[Place]:
    said = options(call, "weights_only", scope, project)
    off = [one for one in said if is_never(one.value, one.scope, project)]
    from_address = called(call, scope) in FROM_ADDRESS
    if off:
        node = off[0].node
        where = (f"said at {off[0].scope.module.path}:{getattr(node, 'lineno', 0)}",) if node is not call else ()
        told = "weights_only=False lets the file run code"
        yield Place(call, told, (code_of(call, 60), *where), severity="high")
    elif not said and not hides_options(call, scope, project) and "safe_torch_load" not in project.notes:
        what = "what was downloaded" if from_address else "the file"
        own = _written_beside(call, scope, project)
        yield Place(
            call,
            f"without weights_only=True a torch before 2.6 runs what {what} says",
            (
                project.notes.get("torch", "no requirement of this code base asks for torch 2.6 or newer"),
                *([own] if own is not None else []),
            ),
            "medium" if own is None else "low",
            "low",
        )


def _written_beside(call: ast.Call, scope: Scope, project: Project) -> str | None:
    """Where the same function writes the file that it loads, in words; None where it does not."""
    names = _path_names(call, scope)
    for other in scope.calls if names else ():
        written = written_by(other, scope, project)
        if written is not None and written.where is not None and names & _names_behind(written.where, scope):
            return f"the program writes this file itself at line {other.lineno}: {code_of(other, 50)}"
    return None


def _path_names(call: ast.Call, scope: Scope) -> set[str]:
    """The names that say which file is loaded, also behind open()."""
    return _names_behind(call.args[0], scope) if call.args else set()


def _names_behind(where: ast.expr, scope: Scope) -> set[str]:
    """The name of a path; of what is opened the name of its path."""
    if isinstance(where, ast.Call) and last_name(where.func) == "open" and where.args:
        where = where.args[0]
    name = target_name(where)
    opened = [b.value for b in scope.bindings.get(name or "", []) if b.how == "with" and isinstance(b.value, ast.Call)]
    names = {target_name(one.args[0]) for one in opened if last_name(one.func) == "open" and one.args}
    return {one for one in (names or {name}) if one is not None}


def _from_memory(call: ast.Call, scope: Scope, project: Project) -> bool:
    """pickle.loads(pickle.dumps(x)): a copy, not a file."""
    return any(
        "dumps" in text_of(origin.node) for arg in call.args[:1] for origin in project.origins(arg, scope, depth=2)
    )
