"""Where a program adds up gradients over several micro-batches, as far as its settings and loops say."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import code_of, keyword, last_name
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.rules.accumulation import adds_nothing, counts_micro_batches
from intone.optimise.scan.source import Module, Scope, target_name

ACCUMULATES = re.compile(
    r"accum|grad_acc|target_(examples|batch|tokens)|(global|total|effective)_(train_)?batch|num_passes|tokens_per_step|"
    r"tokens_per_update|(^|_)gas$",
    re.I,
)
# what a file says somewhere in which anything is called so
SAYS_ACCUMULATES = re.compile(ACCUMULATES.pattern.replace("(^|_)gas$", r"gas\b").replace("_", "[-_]"), re.I)
ELSEWHERE = re.compile(r"(^|[/_])(eval\w*|infer\w*|generat\w*|sampl\w*|serv\w*|bench\w*|tests?|chat|rl\w*)([/_.]|$)")
Where = tuple[str, int, str]  # path, line, code


def accumulation_of(module: Module, project: Project) -> Where | None:
    """Where the program that a file belongs to accumulates gradients: in the file first."""
    if _says_one(module, project):
        return None
    own = _accumulation_in(module, project)
    if own is not None or ELSEWHERE.search(module.path):
        return own
    for other in neighbours(module, project):
        if other is not module and (found := _accumulation_in(other, project)) is not None:
            return found
    return None


def _says_one(module: Module, project: Project) -> bool:
    """Whether a file sets its accumulation to 1 itself."""
    return any(
        any(ACCUMULATES.search(name) for name in names)
        and (isinstance(node, ast.Call) or not isinstance(value, ast.Constant))  # a flag, or computed
        and {known.value for known in known_values(value, scope, project)} == {1}
        for node, scope, names, value in named_values(module)
    )


def _accumulation_in(module: Module, project: Project) -> Where | None:
    """A name for accumulation with a value other than 1, a quotient of batch sizes, or a loop that accumulates."""
    key = ("accumulation", module.path)
    if key not in project.remembered:
        project.remembered[key] = _find_accumulation(module, project)
    found: Where | None = project.remembered[key]
    return found


def _find_accumulation(module: Module, project: Project) -> Where | None:
    for node, scope, names, value in named_values(module):
        if not any(ACCUMULATES.search(name) for name in names):
            continue
        if isinstance(value, ast.Constant) and (value.value in (1, None) or not isinstance(value.value, int)):
            continue
        values = {known.value for known in known_values(value, scope, project)}
        if values and values <= {1, None, False}:
            continue
        return module.path, value.lineno, code_of(node, 60)
    for text, number, line in written_settings(module, project):
        if ACCUMULATES.search(text) and number > 1:
            return module.path, line, f"{text}: {number}"
    for loop in train_loops(module, project):
        if loop.accumulates and counts_micro_batches(loop, project) and not adds_nothing(loop, project):
            return module.path, loop.inner.lineno, module.line_of(loop.inner)[:60]
    return None


def named_values(module: Module) -> Iterator[tuple[ast.AST, Scope, list[str], ast.expr]]:
    """(node, function, names, value) of what is named in a file in which something may be called an accumulation."""
    for node in module.nodes if module.mentions(SAYS_ACCUMULATES) else ():
        if type(node) not in (ast.Assign, ast.AnnAssign, ast.keyword, ast.Call, ast.Dict):
            continue
        scope = module.scope_of.get(node, module.top)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield node, scope, [target_name(node.targets[0]) or ""], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node, scope, [target_name(node.target) or ""], node.value
        elif isinstance(node, ast.keyword) and node.arg:
            yield node, scope, [node.arg], node.value
        elif isinstance(node, ast.Call) and last_name(node.func) == "add_argument":
            if (default := keyword(node, "default")) is not None:
                yield node, scope, flag_of(node), default
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield value, scope, [key.value], value


SETTING = re.compile(r"""^[\s{,]*["']?([A-Za-z_][\w-]*)["']?\s*[:=]\s*(\d+)\s*(?=$|[,}#])""", re.M)


def written_settings(module: Module, project: Project) -> list[tuple[str, int, int]]:
    """(name, whole number, line) of settings in texts of YAML, TOML or JSON that stand in a file: batch_size: 4."""
    key = ("settings in texts", module.path)
    if key not in project.remembered:
        texts = [
            node for node in module.nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[{\n]", node.value)
            and not isinstance(module.parents.get(node), (ast.Expr, ast.JoinedStr))  # a docstring
        ]  # fmt: skip
        project.remembered[key] = [
            (match[1].replace("-", "_"), int(match[2]), node.lineno + str(node.value).count("\n", 0, match.start(1)))
            for node in texts
            for match in SETTING.finditer(str(node.value).replace(", ", " \n").replace("{", "\n"))
        ]
    found: list[tuple[str, int, int]] = project.remembered[key]
    return found


def flag_of(call: ast.Call) -> list[str]:
    """The names of a flag as attributes of what is parsed: "-b", "--batch-size" -> ["b", "batch_size"]."""
    return [
        arg.value.lstrip("-").replace("-", "_")
        for arg in call.args
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    ]
