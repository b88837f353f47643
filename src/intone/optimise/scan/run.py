"""Scans a folder or file: reads its Python, applies every rule, leaves out what a comment in the code dismisses."""

import ast
import gc
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from intone.errors import UserError, unknown_name
from intone.optimise.scan import rules as _rules  # noqa: F401  enters the rules
from intone.optimise.scan.finding import Finding, number_findings
from intone.optimise.scan.loops import is_test
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import RULES, finding_of
from intone.optimise.scan.shares import is_sure
from intone.optimise.scan.source import Module, parse_module

SKIPPED_FOLDERS = {
    "__pycache__",
    "node_modules",
    "site-packages",
    "build",
    "dist",
    "third_party",
    "third-party",
    "thirdparty",
    "submodules",
    "dependencies",
    "vendor",
    "venv",
    "env",
    ".venv",
}
TESTS = re.compile(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")
SUPPRESS = re.compile(r"\bscan:\s*(?:ok|ignore)\s*\[([A-Z0-9, ]+)\]\s*[:\-]?\s*(.*)$")
LARGEST_BYTES = 2_000_000  # of one file; larger Python files are generated tables


@dataclass(frozen=True)
class Suppressed:
    """A finding that a comment in the code dismisses, and the reason that it gives."""

    finding: Finding
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a scan found. unread: files that are no Python, with why. complaints: comments that dismiss nothing."""

    root: Path
    num_files: int
    num_lines: int
    findings: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    complaints: tuple[str, ...] = ()
    project: Project = field(default_factory=lambda: Project([]), repr=False)
    nodes: Mapping[str, ast.AST] = field(default_factory=dict, repr=False)  # id -> the code of a finding


def sure_findings(scan: Scan) -> list[Finding]:
    """The findings that are shown where nothing else is asked for: proven, by rules that often hold for strangers."""
    return [finding for finding in scan.findings if is_sure(finding)]


def scan_path(path: Path, *, only: Iterable[str] = (), with_tests: bool = False) -> Scan:
    """Scans a folder or one file. only: rules to apply, all where empty. Raises UserError."""
    root, files = python_files(path, with_tests=with_tests)
    texts, unread = {}, []
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            texts[name] = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            unread.append((name, f"cannot be read: {error}"))
    scan = scan_texts(texts, only=only, notes=requirements_notes(root), root=root, unread=unread)
    if not scan.num_files:  # to find nothing wrong in it would sound like praise
        name, why = scan.unread[0]
        raise UserError(
            f"nothing of {path} could be read: {name} {why}", value=str(path), fix="name a folder or a Python file"
        )
    return scan


def python_files(path: Path, *, with_tests: bool = False) -> tuple[Path, list[Path]]:
    """(the folder that names are relative to, the files in a fixed order). Raises UserError where there is none."""
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist", value=str(path), fix="name a folder or a Python file")
    found = []
    for folder, inside, names in os.walk(path):
        inside[:] = sorted(name for name in inside if name not in SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            if (
                name.endswith(".py")
                and (with_tests or not TESTS.search(relative))
                and file.stat().st_size < LARGEST_BYTES
            ):
                found.append(file)
    if not found:
        raise UserError(f"{path} holds no Python files to scan", value=str(path), fix="name a folder with .py files")
    return path, found


def scan_texts(
    texts: dict[str, str],
    *,
    only: Iterable[str] = (),
    notes: dict[str, str] | None = None,
    root: Path = Path("."),
    unread: Sequence[tuple[str, str]] = (),
) -> Scan:
    """Scans sources given as {name: text}. Raises UserError for an unknown rule."""
    wanted = list(only) or list(RULES)
    for number in wanted:
        if number not in RULES:
            raise unknown_name("rule", number, RULES)
    modules, broken = [], list(unread)
    with _no_collection():
        for name, text in texts.items():
            try:
                modules.append(parse_module(name, text))
            except (SyntaxError, ValueError, RecursionError) as error:
                broken.append((name, f"is not Python of this version: {error}"))
        project = Project(modules, notes or {})
        seen: set[tuple[str, str, int]] = set()
        found = [pair for module in modules for pair in _findings_in(module, project, wanted, seen)]
    found.sort(key=lambda entry: (entry[0].path, entry[0].line, entry[0].rule))
    numbered = number_findings([finding for finding, _, _ in found], [code for _, code, _ in found])
    nodes = {finding.id: node for finding, (_, _, node) in zip(numbered, found, strict=True)}
    kept, suppressed, complaints = _suppress(numbered, {module.path: module for module in modules})
    lines = sum(len(module.lines) for module in modules)
    return Scan(
        root, len(modules), lines, tuple(kept), tuple(suppressed), tuple(broken), tuple(complaints), project, nodes
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector of cycles rests: trees live to the end of a scan, and it would walk over them many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if gc.get_freeze_count() == 0:  # all that was made counts as old: else it would be walked over at once
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _findings_in(
    module: Module, project: Project, wanted: Sequence[str], seen: set[tuple[str, str, int]]
) -> list[tuple[Finding, str, ast.AST]]:
    found: list[tuple[Finding, str, ast.AST]] = []
    for number in wanted:
        rule, check = RULES[number]
        for place in check(module, project):
            if is_test(place.scope or module.scope_of.get(place.node, module.top)) and not TESTS.search(module.path):
                continue  # left out as files of tests are
            finding, code = finding_of(rule, module, place)
            if (number, finding.path, finding.line) not in seen:
                seen.add((number, finding.path, finding.line))
                found.append((finding, code, place.node))
    return found


def _suppress(findings: list[Finding], modules: dict[str, Module]) -> tuple[list[Finding], list[Suppressed], list[str]]:
    """Comments `# scan: ok[S30] reason`, at the end of the line or alone on the line above."""
    kept: list[Finding] = []
    suppressed: list[Suppressed] = []
    complaints: list[str] = []
    told: set[tuple[str, int]] = set()
    for finding in findings:
        module = modules[finding.path]
        reason = None
        for line in [*range(finding.line, finding.end_line + 1), finding.line - 1]:
            comment = module.comments.get(line, "")
            match = SUPPRESS.search(comment)
            alone = line != finding.line - 1 or module.lines[line - 1].lstrip().startswith("#")
            if not match or not alone or finding.rule not in [word.strip() for word in match[1].split(",")]:
                continue
            reason = match[2].strip()
            if not reason and (finding.path, line) not in told:
                told.add((finding.path, line))
                complaints.append(f"{finding.path}:{line}: a dismissal needs a reason: # scan: ok[{finding.rule}] why")
        if reason:
            suppressed.append(Suppressed(finding, reason))
        else:
            kept.append(finding)
    return kept, suppressed, complaints


def requirements_notes(root: Path) -> dict[str, str]:
    """What requirements say about torch: {"safe_torch_load": line} where every allowed torch is 2.6 or newer."""
    for folder in [root, *list(root.parents)[:3]]:
        for name in ("pyproject.toml", "requirements.txt", "setup.py", "setup.cfg", "environment.yml"):
            file = folder / name
            if not file.is_file():
                continue
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                match = re.search(r"['\"\s-]torch\s*(==|>=|~=)\s*(\d+)\.(\d+)", f" {line}")
                if match:
                    note = f"{name} asks for {match[0].strip(chr(34) + chr(39) + ' -')}"
                    newer = (int(match[2]), int(match[3])) >= (2, 6)
                    return {"safe_torch_load": note} if newer else {"torch": note}
        if (folder / ".git").exists():
            break
    return {}
