"""Changes of code that need no judgement: found on the syntax tree, made in the text, so that its form stays."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from intone.optimise.worktree import files_of

FUSED = ("Adam", "AdamW", "SGD", "Adagrad")  # optimizers of torch that have a fused form, on CPUs too since 2.4


@dataclass(frozen=True)
class Edit:
    """Characters [begin, end) of a text, to be replaced."""

    begin: int
    end: int
    new: str


@dataclass(frozen=True)
class Site:
    """Where a codemod applies: a file below the root, the line for people, and the edits."""

    path: str
    line: int
    edits: tuple[Edit, ...]


Codemod = Callable[[ast.Module, "Text"], Iterator[tuple[int, tuple[Edit, ...]]]]


class Text:
    """A source text whose syntax tree speaks of lines and bytes, where edits need characters."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        """The index of the character at a line (from 1) and a column in bytes, as ast counts."""
        prefix = self.lines[line - 1].encode()[:column].decode(errors="replace")
        return self._starts[line - 1] + len(prefix)

    def end_of(self, node: ast.AST) -> int:
        return self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def indent_of(self, line: int) -> str:
        text = self.lines[line - 1]
        return text[: len(text) - len(text.lstrip())]


def sites(root: Path, codemod: str) -> list[Site]:
    """Every place below root at which a codemod applies; files that do not parse are left out."""
    found = []
    for path in files_of(root):
        if path.suffix != ".py":
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        for line, edits in CODEMODS[codemod](tree, Text(source)):
            found.append(Site(str(path.relative_to(root)), line, edits))
    return found


def apply_codemod(root: Path, codemod: str) -> list[Site]:
    """Makes the change at every place where it applies; returns the places."""
    found = sites(root, codemod)
    for name in sorted({site.path for site in found}):
        path = root / name
        text = path.read_text(encoding="utf-8")
        edits = [edit for site in found if site.path == name for edit in site.edits]
        for edit in sorted(edits, key=lambda edit: -edit.begin):  # the last first: earlier places stay where they are
            text = text[: edit.begin] + edit.new + text[edit.end :]
        ast.parse(text)  # a mistake of ours must not reach a commit
        path.write_text(text, encoding="utf-8")
    return found


# --- the codemods --------------------------------------------------------------------------------------------------


def fused_optimizer(tree: ast.Module, text: Text) -> Iterator[tuple[int, tuple[Edit, ...]]]:
    """torch.optim.AdamW(...) without fused or foreach becomes fused=True."""
    for call in calls(tree):
        name = last_name(call.func)
        if name in FUSED and "optim" in ast.unparse(call.func) + imported_from(tree, name):
            given = {keyword.arg for keyword in call.keywords}
            if not given & {"fused", "foreach", None}:
                end = text.end_of(call) - 1
                yield call.lineno, (Edit(end, end, with_comma(call, text, "fused=True")),)


def compile_model(tree: ast.Module, text: Text) -> Iterator[tuple[int, tuple[Edit, ...]]]:
    """The model whose parameters an optimizer gets is compiled in the line after the optimizer is made."""
    if "torch.compile" in text.source or not imports(tree, "torch"):
        return
    for statement in ast.walk(tree):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not isinstance(statement.value, ast.Call):
            continue
        name = parameters_of(statement.value)
        if name is None or not is_optimizer(statement.value):
            continue
        end = text.end_of(statement)
        newline = text.source.find("\n", end)
        place = len(text.source) if newline < 0 else newline
        line = f"\n{text.indent_of(statement.lineno)}{name} = torch.compile({name})"
        yield statement.lineno, (Edit(place, place, line),)
        return


def loader_workers(tree: ast.Module, text: Text) -> Iterator[tuple[int, tuple[Edit, ...]]]:
    """A DataLoader that loads in the training process gets two workers that live as long as it does."""
    for call in calls(tree):
        if last_name(call.func) != "DataLoader":
            continue
        workers = [keyword for keyword in call.keywords if keyword.arg == "num_workers"]
        if not workers and not any(keyword.arg is None for keyword in call.keywords):
            end = text.end_of(call) - 1
            yield call.lineno, (Edit(end, end, with_comma(call, text, "num_workers=2, persistent_workers=True")),)
        elif workers and isinstance(workers[0].value, ast.Constant) and workers[0].value.value == 0:
            value = workers[0].value
            begin = text.at(value.lineno, value.col_offset)
            yield call.lineno, (Edit(begin, text.end_of(value), "2, persistent_workers=True"),)


CODEMODS: dict[str, Codemod] = {
    "fused_optimizer": fused_optimizer,
    "compile_model": compile_model,
    "loader_workers": loader_workers,
}


# --- the syntax tree -----------------------------------------------------------------------------------------------


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def imports(tree: ast.Module, module: str) -> bool:
    """Whether `import module` stands somewhere, under its own name."""
    return any(
        isinstance(node, ast.Import) and any(alias.name == module and alias.asname is None for alias in node.names)
        for node in ast.walk(tree)
    )


def imported_from(tree: ast.Module, name: str) -> str:
    """The module that a bare name was imported from, or nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return node.module or ""
    return ""


def is_optimizer(call: ast.Call) -> bool:
    """By its words: torch.optim.X(...), configure_optimizers(...), Muon(...)."""
    name = ast.unparse(call.func).lower()
    return "optim" in name or last_name(call.func) in FUSED or last_name(call.func).lower() in ("muon", "lion")


def parameters_of(call: ast.Call) -> str | None:
    """The name in NAME.parameters() among the arguments, or in NAME.configure_optimizers(); only a plain name."""
    inner = [node for argument in [*call.args, *(k.value for k in call.keywords)] for node in calls(argument)]
    for node in [call, *inner]:
        is_wanted = last_name(node.func) in ("parameters", "configure_optimizers", "setup_optimizer")
        if is_wanted and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            return node.func.value.id if node.func.value.id != "self" else None
    return None


def with_comma(call: ast.Call, text: Text, words: str) -> str:
    """Words to put before a call's closing bracket, with a comma where one is needed."""
    before = text.source[: text.end_of(call) - 1].rstrip()
    if not call.args and not call.keywords:
        return words
    return f" {words}" if before.endswith(",") else f", {words}"
