"""Rules on files: checkpoints that a crash can halve, files that run code when loaded, and text that is run as code."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import is_never
from intone.optimise.scan.expressions import called, code_of, is_false, is_true, keyword
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope

MOVES = re.compile(
    r"os\.replace|os\.rename|\.rename\(|\.replace\(\s*\w*(path|file|final|dst|target|out|ckpt)|shutil\.move|atomic|tempfile|NamedTemporary"
)
STATE = re.compile(r"state_dict|checkpoint|ckpt|optim|model|weights|snapshot|(^|_)state($|_)|params", re.I)


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
    """torch.save of a model's or optimizer's state to its final name."""
    for scope in module.scopes:
        for call in scope.calls:
            name = called(call, scope)
            if (
                name
                not in (
                    "torch.save",
                    "pickle.dump",
                    "safetensors.torch.save_file",
                    "safetensors.torch.save_model",
                    "dill.dump",
                )
                or not call.args
            ):
                continue
            if not _is_state(call.args[0], scope, project) or _goes_elsewhere(call, scope):
                continue
            if MOVES.search(ast.unparse(scope.node)) and scope.name != "<module>" or _moved_near(call, scope):
                continue
            same = _same_name(call) and _in_training(call, scope, project)
            yield Place(
                call,
                f"`{code_of(call.args[0], 30)}` is written straight to its final name",
                (
                    "no temporary name and rename in this function",
                    *(["the name is the same at every save"] if same else []),
                ),
                severity="high" if same else None if _keeps_training(module, scope) else "low",
            )


def _is_state(node: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether what is saved is a state: by its name, or by what it is made of."""
    if STATE.search(ast.unparse(node)):
        return True
    return any("state_dict" in ast.unparse(origin.node) for origin in project.origins(node, scope, depth=3))


def _goes_elsewhere(call: ast.Call, scope: Scope) -> bool:
    """Into a buffer in memory, or to a name that says temporary."""
    target = call.args[1] if len(call.args) > 1 else keyword(call, "f")
    return target is not None and bool(re.search(r"tmp|temp|buffer|buf|BytesIO|partial", ast.unparse(target), re.I))


def _moved_near(call: ast.Call, scope: Scope) -> bool:
    """At module level: a rename within the next ten lines."""
    if scope.name != "<module>":
        return False
    near = "\n".join(scope.module.lines[call.lineno - 1 : (call.end_lineno or call.lineno) + 10])
    return bool(MOVES.search(near))


def _same_name(call: ast.Call) -> bool:
    """Whether the file's name holds nothing that changes."""
    target = call.args[1] if len(call.args) > 1 else keyword(call, "f")
    if target is None:
        return False
    text = ast.unparse(target)
    return bool(re.search(r"['\"][\w./-]+\.(pt|pth|ckpt|bin|pkl|safetensors)['\"]", text)) and not re.search(
        r"\{|step|iter|epoch|format|%", text
    )


def _keeps_training(module: Module, scope: Scope) -> bool:
    """Whether it is a training's state, which cannot be made again as a converted file can."""
    return bool(
        re.search(r"optim|checkpoint|ckpt|epoch|train", scope.name + module.path + ast.unparse(scope.node)[:4000], re.I)
    )


def _in_training(call: ast.Call, scope: Scope, project: Project) -> bool:
    module = scope.module
    loops = [loop.around for loop in train_loops(module, project)]
    return any(around in loops for around in module.loops_around(call)) or any(
        scope.simple_name in ast.unparse(loop) for loop in loops if loop
    )


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
        for call in scope.calls:
            name = called(call, scope)
            if name in (
                "pickle.load",
                "pickle.loads",
                "cPickle.load",
                "dill.load",
                "dill.loads",
                "cloudpickle.load",
                "cloudpickle.loads",
                "joblib.load",
                "pickle.Unpickler",
                "pandas.read_pickle",
                "pd.read_pickle",
                "_pickle.load",
            ):
                if not _from_memory(call, scope, project):
                    yield Place(call, f"`{name}` runs whatever the file says", (code_of(call, 60),))
            elif name in ("np.load", "numpy.load") and is_true(keyword(call, "allow_pickle")):
                yield Place(call, "numpy may unpickle this file", ("allow_pickle=True",))
            elif name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "Safe" not in ast.unparse(call):
                yield Place(call, "this YAML can make any object", (code_of(call, 60),))
            elif name == "torch.load" and not any(word.arg is None for word in call.keywords):
                yield from _torch_load(call, scope, project)


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
        "dumps" in ast.unparse(origin.node) for arg in call.args[:1] for origin in project.origins(arg, scope, depth=2)
    )
