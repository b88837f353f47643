"""Calls that run a text as code, and which text it is: eval, a shell, an interpreter's standard input, a query."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.constants import only_value
from intone.optimise.scan.expressions import called, dotted, is_true, keyword, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Scope, target_name

RUNNERS = (
    "eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen", "pandas.eval", "sympy.sympify",
    "numexpr.evaluate", "subprocess.getoutput", "subprocess.getstatusoutput", "sympy.parse_expr", "pexpect.run",
    "asyncio.create_subprocess_shell", "runpy.run_path", "execfile", "pexpect.spawn", "sympy.S", "jinja2.Template",
    "sympy.parsing.sympy_parser.parse_expr", "timeit.timeit", "pty.spawn", "torch.jit.CompilationUnit",
    "pandas.read_sql", "pandas.read_sql_query", "duckdb.sql", "duckdb.query", "duckdb.execute", "js2py.eval_js",
)  # fmt: skip
# methods that run code whatever the object is
METHODS = (
    "runcode", "runsource", "run_cell", "run_code", "runscript", "exec_command", "execute_interactive",
    "exec_driver_sql", "executescript",
)  # fmt: skip
DATABASE = re.compile(r"(^|[._])(cur|cursor|conn\w*|con|db|database|session|engine|sqlite\w*|duck\w*|spark)$")
FRAME = re.compile(r"(^|[._])(p?df|\w+_df|frame|data_?frame|table)\d*$")
REPL = re.compile(
    r"(^|[._])(\w*repl|\w*interpreter|kernel\w*|kc|kernel_client|shell|console|terminal|bash|ipython|jupyter\w*)$", re.I
)
INTERPRETER = re.compile(r"python|sys\.executable|bash|['\"]sh['\"]|node|ruby|perl|run_path", re.I)
# programs in which a command cannot reach the machine, as long as they are told so
SANDBOX = re.compile(
    r"docker|podman|firejail|bwrap|nsjail|gvisor|runsc|unshare|sandbox|firecracker|isolate|kubectl", re.I
)


def run_text(call: ast.Call, scope: Scope, project: Project) -> ast.expr | None:
    """The text that a call runs, or None."""
    name = called(call, scope)
    if isinstance(call.func, ast.Name) and name in project.functions:
        return None
    first = call.args[0] if call.args else next((word.value for word in call.keywords), None)
    last = name.rpartition(".")[2]
    if name in RUNNERS or _are_handed_on(project) and _means_runner(call.func, scope, project):
        return first
    if isinstance(call.func, ast.Attribute):
        if last in METHODS or _is_run_by_object(call.func, last):
            return first
        if last in ("communicate", "sendline") and _feeds(call.func.value, scope, project):
            return first
    if any(dotted(arg, scope) in RUNNERS[:4] for arg in call.args):  # submit(exec, code)
        return next((arg for arg in call.args if dotted(arg, scope) not in RUNNERS), None)
    target = keyword(call, "target")
    if target is not None and dotted(target, scope) in RUNNERS[:4]:  # Process(target=exec, args=...)
        return keyword(call, "args")
    if name == "asyncio.create_subprocess_exec":
        return _program_word(call.args)
    return _of_subprocess(call, first, scope, project) if name.startswith("subprocess.") else None


def _is_run_by_object(func: ast.Attribute, method: str) -> bool:
    """cursor.execute(sql), frame.query(text), repl.run(code), Environment().from_string(text): by what is asked."""
    base = target_name(func.value)
    if base is None:  # PythonREPL().run(code)
        made = func.value.func if isinstance(func.value, ast.Call) else func.value
        base = last_name(made) or ""
    if method in ("execute", "sql"):
        return bool(DATABASE.search(base) or REPL.search(base))
    if method in ("query", "eval"):
        return bool(FRAME.search(base))
    if method == "from_string":
        return bool(re.search(r"env|jinja", base, re.I))
    return method in ("run", "push", "invoke") and bool(REPL.search(base))


def _feeds(process: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a process is an interpreter that reads its program: Popen(["python3"], stdin=PIPE)."""
    return any(
        isinstance(origin.node, ast.Call) and last_name(origin.node.func) in ("Popen", "spawn")
        and is_interpreter(text_of(origin.node))
        for origin in project.origins(process, scope, depth=2)
    )  # fmt: skip


def is_interpreter(words: str) -> bool:
    """Whether a command's words name an interpreter, and nothing that shuts it in."""
    return bool(INTERPRETER.search(words)) and not SANDBOX.search(words)


def _of_subprocess(call: ast.Call, first: ast.expr | None, scope: Scope, project: Project) -> ast.expr | None:
    """The text that subprocess.run and the like run: through a shell, behind -c, as input, or as the command itself."""
    shell = keyword(call, "shell")
    if is_true(shell) or (shell is not None and only_value(shell, scope, project) is True):
        return first
    fed = keyword(call, "input")
    for word in lists(first, scope, project):
        if SANDBOX.search(" ".join(text_of(part) for part in word.elts[:2])):
            return None
        if (text := _program_word(word.elts)) is not None:
            return text
        if fed is not None and word.elts and is_interpreter(text_of(word.elts[0])):
            return fed
    return next(_split_up(first, scope, project), None) if first is not None else None


def _split_up(command: ast.expr, scope: Scope, project: Project) -> Iterator[ast.expr]:
    """command.split(), shlex.split(command), also behind a name: the text of which the words come."""
    for origin in project.origins(command, scope, depth=3):
        node = origin.node
        if isinstance(node, ast.Call) and last_name(node.func) == "split" and isinstance(node.func, ast.Attribute):
            yield node.args[0] if called(node, origin.scope) == "shlex.split" and node.args else node.func.value


def lists(first: ast.expr | None, scope: Scope, project: Project) -> list[ast.List | ast.Tuple]:
    """The words of a command, written out here or where a name gets them."""
    if isinstance(first, (ast.List, ast.Tuple)):
        return [first]
    found = project.literals(first, scope) if first is not None else []
    return [word for word in found if isinstance(word, (ast.List, ast.Tuple))]


def _program_word(words: Sequence[ast.expr]) -> ast.expr | None:
    """["python", "-c", text]: what stands behind -c."""
    for before, after in zip(words, words[1:], strict=False):
        if isinstance(before, ast.Constant) and before.value in ("-c", "-lc", "-e", "-Command", "-ic"):
            return after
    return None


# --- other names for what runs code -----------------------------------------------------------------------------------


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
