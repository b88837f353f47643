"""A rule on text that a model wrote and that is run as code."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import called, code_of, dotted, is_true, keyword, last_name, names_in, text_of
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.texts import MODEL_TEXT, MODEL_WORD, text_passes


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
            text = _run_text(call, scope, project)
            if text is not None and not isinstance(text, ast.Constant):
                where = _model_text(text, scope, project, called(call, scope))
                if where:
                    yield Place(call, f"`{code_of(call, 40)}` runs text that a model wrote", (where,))
                    continue
            if (written := _runs_file(call, scope, project)) is not None:
                yield Place(call, f"`{code_of(call, 40)}` runs a file that a model wrote", written)


RUNNERS = (
    "eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen", "pandas.eval", "sympy.sympify",
    "numexpr.evaluate", "subprocess.getoutput", "subprocess.getstatusoutput", "sympy.parse_expr", "pexpect.run",
    "asyncio.create_subprocess_shell", "runpy.run_path", "execfile",
)  # fmt: skip


def _run_text(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """The text that a call runs, or None."""
    name = called(call, scope)
    if isinstance(call.func, ast.Name) and name in project.functions:
        return None
    first = call.args[0] if call.args else None
    if name in RUNNERS or _are_handed_on(project) and _means_runner(call.func, scope, project):
        return first
    if name.endswith((".runcode", ".runsource", ".run_cell", ".run_code", ".runscript")):
        return first
    if name.endswith((".execute", ".executescript", ".exec_driver_sql")):  # SQL that a model wrote
        base = target_name(call.func.value) if isinstance(call.func, ast.Attribute) else None
        return (
            first if re.search(r"(^|[._])(cur|cursor|conn\w*|con|db|session|engine|sqlite\w*)$", base or "") else None
        )
    if any(
        dotted(arg, scope) in RUNNERS[:4] for arg in call.args
    ):  # submit(exec, code), Process(target=exec, args=...)
        return next((arg for arg in call.args if dotted(arg, scope) not in RUNNERS), None)
    target = keyword(call, "target")
    if target is not None and dotted(target, scope) in RUNNERS[:4]:
        return keyword(call, "args")
    if name == "asyncio.create_subprocess_exec":
        return _program_word(call.args)
    if not name.startswith("subprocess."):
        return None
    shell = keyword(call, "shell")
    if is_true(shell) or (shell is not None and only_value(shell, scope, project) is True):
        return first if first is not None else keyword(call, "args")
    for word in _lists(first, scope, project):
        if (text := _program_word(word.elts)) is not None:
            return text
    return None


def _lists(first: ast.expr | None, scope: Scope, project: Project) -> list[ast.List | ast.Tuple]:
    """The words of a command, written out here or where a name gets them."""
    if isinstance(first, (ast.List, ast.Tuple)):
        return [first]
    found = project.literals(first, scope) if first is not None else []
    return [word for word in found if isinstance(word, (ast.List, ast.Tuple))]


def _program_word(words: Sequence[ast.expr]) -> ast.expr | None:
    """["python", "-c", text]: what stands behind -c."""
    for before, after in zip(words, words[1:], strict=False):
        if isinstance(before, ast.Constant) and before.value in ("-c", "-lc", "-e", "-Command"):
            return after
    return None


INTERPRETER = re.compile(r"python|sys\.executable|bash|['\"]sh['\"]|node|ruby|perl|run_path", re.I)


def _runs_file(call: ast.Call, scope: Scope, project: Project) -> tuple[str, ...] | None:
    """subprocess.run([sys.executable, path]) where a model's text was written to a file: evidence, or None."""
    name = called(call, scope)
    first = call.args[0] if call.args else None
    if not (name.startswith(("subprocess.", "os.spawn", "os.exec", "runpy.")) or name in ("os.system", "os.popen")):
        return None
    words = [text_of(word) for word in _lists(first, scope, project)]
    if not INTERPRETER.search(" ".join([*words, text_of(call), name])):
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


def _are_handed_on(project: Project) -> bool:
    """Whether what runs code is anywhere named without being called at once: without that no other name means it."""
    key = ("runners handed on", None)
    if key not in project.remembered:
        lasts = {name.rpartition(".")[2] for name in RUNNERS}
        words = [word for last in lasts for word in (last, f".{last}")]
        named = [(node, m) for m in project.modules for word in words for node in m.reads.get(word, [])]
        project.remembered[key] = any(
            not (isinstance(above := module.parents.get(node), ast.Call) and above.func is node)
            and dotted(node, module.top) in RUNNERS
            for node, module in named
        ) or any(_gets_runner(site.call) for site in project.sites.get("getattr", []))
    found: bool = project.remembered[key]
    return found


def _gets_runner(call: ast.Call) -> bool:
    """getattr(builtins, "eval")"""
    name = call.args[1] if len(call.args) > 1 else None
    return isinstance(name, ast.Constant) and name.value in ("eval", "exec", "system", "popen")


def _means_runner(func: ast.expr, scope: Scope, project: Project, depth: int = 3) -> bool:
    """run = eval; TOOLS = {"python": exec}; getattr(builtins, "eval"): other names for what runs code."""
    if depth == 0:
        return False
    if isinstance(func, ast.Call) and last_name(func.func) == "getattr" and len(func.args) > 1:
        return _gets_runner(func)
    if isinstance(func, ast.Call) and isinstance(func.func, ast.Attribute) and func.func.attr == "get":
        return _means_runner(ast.Subscript(func.func.value, ast.Constant(""), ast.Load()), scope, project, depth - 1)
    if isinstance(func, ast.Subscript):
        for table in project.literals(func.value, scope):
            values = table.values if isinstance(table, ast.Dict) else []
            if any(dotted(value, scope) in RUNNERS for value in values):
                return True
        return False
    name = target_name(func)
    if name is None or isinstance(func, ast.Name) and func.id in project.functions:
        return False
    for origin in project.origins(func, scope, depth=depth):
        if isinstance(origin.node, ast.Call) and _means_runner(origin.node, origin.scope, project, depth - 1):
            return True
        if (
            origin.node is not func
            and isinstance(origin.node, (ast.Name, ast.Attribute))
            and dotted(origin.node, origin.scope) in RUNNERS
        ):
            return True
    return False


def _model_text(text: ast.expr, scope: Scope, project: Project, where_run: str = "") -> str | None:
    """How a text comes from a model: decoded, completed, or named so; None where the code does not show it."""
    for origin in project.origins(text, scope, text_passes, depth=9, stops=lambda at: _is_model_text(at) is not None):
        where = _is_model_text(origin)
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
    tool = re.search(
        r"calculat|tool|python_block|run_code|execute_code|exec_generated|check_correctness|interpreter|sandbox|run_python",
        scope.name, re.I,
    )  # fmt: skip
    if tool and names & set(scope.parameters):
        return f"`{scope.simple_name}` is handed the text by its caller"
    handed = (
        []
        if "subprocess" in where_run
        else sorted(name for name in names & set(scope.parameters) if PROGRAM.search(name))
    )
    if handed and GENERATES.search(scope.module.text):
        return f"`{handed[0]}` is handed over by a caller, in a file that deals with what a model writes"
    return None


# parameters that hold a program, in files that say that a model wrote it
PROGRAM = re.compile(r"^(code|program|snippet|solution|expr|expression|formula|equation)$")
GENERATES = re.compile(
    r"completion|generated|model_output|assistant|rollout|tool_call|llm|sampled_text|\.generate\(", re.I
)
# objects that answer, and how they are asked
ANSWERERS = re.compile(
    r"(^|[._])(llm|lm|model|agent|chat|chatbot|bot|client|pipe|pipeline|chain|assistant|gpt\d*|policy)$", re.I
)
ASKS = (
    "invoke",
    "ask",
    "predict",
    "respond",
    "reply",
    "query",
    "prompt",
    "run",
    "answer",
    "sample",
    "create",
    "__call__",
)


def _is_model_text(origin: Origin) -> str | None:
    node = origin.node
    where = f"{origin.scope.module.path}:{node.lineno}"
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value in ("generated_text", "completion", "response")
    ):
        return f"the text is {code_of(node, 40)} at {where}"
    if isinstance(node, ast.Call):
        last = last_name(node.func) or ""
        base = text_of(node.func)
        if MODEL_TEXT.search(last) and not re.search(
            r"base64|bytes|utf|codecs|json|b\.decode|stdout|data\.decode|response\.read", base
        ):
            if last == "decode" and node.args and isinstance(node.args[0], ast.Constant):
                return None  # bytes.decode("utf-8")
            if last == "decode" and not node.args:
                return None
            return f"the text comes from {code_of(node, 40)} at {where}"
        if (
            isinstance(node.func, ast.Attribute)
            and last in ASKS
            and ANSWERERS.search(target_name(node.func.value) or "")
        ):
            return f"the text comes from {code_of(node, 40)} at {where}"
        if isinstance(node.func, ast.Name) and re.fullmatch(r"(ask_)?(llm|lm|gpt\w*|chat_model|pipe)(_\w+)?", last):
            return f"the text comes from {code_of(node, 40)} at {where}"
    name = last_name(node) or (node.id if isinstance(node, ast.Name) else "")
    if name and MODEL_WORD.search(name):
        return f"`{name}` at {where} is named as a model's text"
    if (
        isinstance(node, ast.Attribute)
        and node.attr in ("content", "text")
        and re.search(r"choice|message|response|completion|output|\b(msg|reply|answer|llm|chat)\b", text_of(node))
    ):
        return f"the text is {code_of(node, 40)} at {where}"
    return None
