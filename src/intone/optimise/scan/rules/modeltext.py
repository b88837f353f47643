"""A rule on text that a model wrote and that is run as code."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.execution import is_interpreter, lists, run_text
from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, walk
from intone.optimise.scan.texts import GENERATES, MODEL_WORD, text_passes, written_by_model


@rule(
    "S62",
    "text of a model is run as code",
    kind="eval-output",
    severity="critical",
    why="Whoever can influence the model's text (a prompt, a document, training data) can run code with your rights.",
    fix="Parse the text (ast.literal_eval, an own small grammar), or run it in a sandboxed process without "
    "network and files.",
    source="nanochat-facts.md 4.5.43",
)
def runs_model_text(module: Module, project: Project) -> Iterator[Place]:
    """eval, exec, os.system or a shell on text that comes from decoding or from a function's caller."""
    for scope in module.scopes:
        for call in scope.calls:
            text = run_text(call, scope, project)
            if text is not None and not isinstance(text, ast.Constant):
                where = _model_text(text, scope, project, called(call, scope))
                if where:
                    yield Place(call, f"`{code_of(call, 40)}` runs text that a model wrote", (where,))
                    continue
            if (written := _runs_file(call, scope, project)) is not None:
                yield Place(call, f"`{code_of(call, 40)}` runs a file that a model wrote", written)


def _runs_file(call: ast.Call, scope: Scope, project: Project) -> tuple[str, ...] | None:
    """subprocess.run([sys.executable, path]) where a model's text was written to a file: evidence, or None."""
    name = called(call, scope)
    first = call.args[0] if call.args else None
    imports = last_name(call.func) in ("exec_module", "import_module", "load_source", "run_module")
    if not imports:
        if not (name.startswith(("subprocess.", "os.spawn", "os.exec", "runpy.")) or name in ("os.system", "os.popen")):
            return None
        commands = lists(first, scope, project)
        if commands and all(isinstance(part, ast.Constant) for word in commands for part in word.elts[1:]):
            return None  # a program of its own, whatever was written before
        words = [text_of(word) for word in commands]
        if not is_interpreter(" ".join([*words, text_of(call), name])):
            return None
    for item in reached(scope.node, scope, project, 2):
        node = item.node
        if not isinstance(node, ast.Call) or last_name(node.func) not in ("write", "write_text", "writelines", "print"):
            continue
        if not node.args or isinstance(node.args[0], ast.Constant):
            continue
        if (where := _model_text(node.args[0], item.scope, project, "subprocess")) is not None:
            return f"{item.scope.module.path}:{item.line}: {code_of(node, 50)} puts it there", where
    return None


def _model_text(text: ast.expr, scope: Scope, project: Project, where_run: str = "") -> str | None:
    """How a text comes from a model: decoded, completed, or named so; None where the code does not show it."""
    for origin in project.origins(text, scope, text_passes, depth=9, stops=lambda at: written_by_model(at) is not None):
        where = written_by_model(origin)
        if where:
            return where
    names = {part.id for part in walk(text) if isinstance(part, ast.Name)}
    for name in sorted(names):  # what was decoded into a list, or handed over under a name that says so
        for site in project.callers(scope)[:6] if name in scope.parameters else ():
            value = project.argument(site, scope, name)
            spoken = sorted(one for one in names_in(value) if MODEL_WORD.search(one)) if value is not None else []
            if spoken:
                return f"`{spoken[0]}` is handed over at {site.scope.module.path}:{site.call.lineno}"
    named = next((name for name in sorted(names) if MODEL_WORD.search(name)), None)
    if named:
        return f"`{named}` is named as a model's text"
    handed = sorted(names & set(scope.parameters))
    if TOOL.search(scope.name) and handed:
        return f"`{scope.simple_name}` is handed the text by its caller"
    if "subprocess" in where_run or not scope.module.mentions(GENERATES):
        return None
    builtin = where_run in ("eval", "exec", "builtins.eval", "builtins.exec")
    told = [name for name in handed if PROGRAM.search(name) or builtin and not SETTING.search(name)]
    if told and not (builtin and not PROGRAM.search(told[0]) and project.callers(scope)):
        return f"`{told[0]}` is handed over by a caller, in a file that deals with what a model writes"
    return None


TOOL = re.compile(
    r"calculat|tool|python_block|run_code|execute_code|exec_generated|check_correctness|interpreter|sandbox|run_python|"
    r"run_program|exec_python|code_exec|(^|[._])repl($|_)",
    re.I,
)
# parameters that hold a program, in files that say that a model wrote it
PROGRAM = re.compile(r"^(code|program|snippet|solution|expr|expression|formula|equation|script|source|src)$")
# parameters of a program's own settings, which its user writes
SETTING = re.compile(r"cfg|conf|arg|path|file|name|type|option|setting|override|flag|opt|self|cls|key|env|glob|local")
