"""Rules on files that run code when they are loaded."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, dotted, is_false, is_true, keyword, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope


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
    for scope in module.scopes:
        for node in scope.of(ast.Name, ast.Attribute):
            if (name := _handed_on(node, scope)) is not None:
                yield Place(node, f"`{name}` runs whatever the file says", ("it is kept under another name",))
        for call in scope.calls:
            name = _meant(call, scope)
            if name in UNPICKLERS:
                if not _from_memory(call, scope, project):
                    yield Place(call, f"`{name}` runs whatever the file says", (code_of(call, 60),))
            elif is_true(keyword(call, "trust_remote_code")):
                yield Place(call, "code that comes with what is loaded is run", ("trust_remote_code=True",))
            elif last_name(call.func) == "partial" and call.args and dotted(call.args[0], scope) == "torch.load":
                yield from _torch_load(call, scope, project)
            elif name in ("np.load", "numpy.load") and is_true(keyword(call, "allow_pickle")):
                yield Place(call, "numpy may unpickle this file", ("allow_pickle=True",))
            elif name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "Safe" not in text_of(call):
                yield Place(call, "this YAML can make any object", (code_of(call, 60),))
            elif name == "torch.load" and not any(word.arg is None for word in call.keywords):
                yield from _torch_load(call, scope, project)


UNPICKLERS = (
    "pickle.load", "pickle.loads", "cPickle.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "joblib.load", "pickle.Unpickler", "pandas.read_pickle", "pd.read_pickle", "_pickle.load", "_pickle.loads",
    "shelve.open", "marshal.load", "marshal.loads", "jsonpickle.decode",
)  # fmt: skip


def _meant(call: ast.Call, scope: Scope) -> str:
    """What a call calls, also behind a name that the function or file gives it: load = pickle.loads."""
    name = called(call, scope)
    if isinstance(call.func, ast.Name) and call.func.id not in scope.parameters:
        bindings = scope.bindings.get(call.func.id) or scope.module.top.bindings.get(call.func.id, [])
        meant = [
            dotted(b.value, scope) for b in bindings if b.how == "=" and isinstance(b.value, (ast.Name, ast.Attribute))
        ]
        return next((one for one in meant if one in UNPICKLERS), name)
    return name


def _handed_on(node: ast.expr, scope: Scope) -> str | None:
    """pickle.load in a table or as an argument: the function that reads, not called here."""
    above = scope.module.parents.get(node)
    used = isinstance(above, (ast.Dict, ast.List, ast.Tuple, ast.keyword)) or (
        isinstance(above, ast.Call) and above.func is not node
    )
    name = dotted(node, scope) if used else ""
    return name if name in UNPICKLERS else None


def _torch_load(call: ast.Call, scope: Scope, project: Project) -> Iterator[Place]:
    only = keyword(call, "weights_only")
    if only is not None and (is_false(only) or is_never(only, scope, project)):
        yield Place(call, "weights_only=False lets the file run code", (code_of(call, 60),), severity="high")
    elif only is None and "safe_torch_load" not in project.notes:
        yield Place(
            call,
            "without weights_only=True a torch before 2.6 runs what the file says",
            (project.notes.get("torch", "no requirement of this code base asks for torch 2.6 or newer"),),
            "medium",
            "low",
        )


def _from_memory(call: ast.Call, scope: Scope, project: Project) -> bool:
    """pickle.loads(pickle.dumps(x)): a copy, not a file."""
    return any(
        "dumps" in text_of(origin.node) for arg in call.args[:1] for origin in project.origins(arg, scope, depth=2)
    )
