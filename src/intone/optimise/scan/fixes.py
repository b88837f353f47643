"""Patches for findings: a codemod's change, written into the text by libcst so that all else stays as it was."""

import ast
import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from intone.errors import UserError
from intone.optimise.scan.codemods import CODEMODS, Fix
from intone.optimise.scan.finding import Finding
from intone.optimise.scan.run import Scan
from intone.paths import write_atomic

MISSING = UserError(
    "patches need libcst, which is not installed",
    value="libcst",
    fix="pip install libcst, or pip install 'intone[scan]'",
)


@dataclass(frozen=True)
class Patch:
    """New texts of files by their names, and the findings that have to be fixed by hand with the reason for each."""

    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    @property
    def diff(self) -> str:
        """The patch as `git apply` and `patch -p1` take it."""
        parts = []
        for name in sorted(self.after):
            old, new = (text.splitlines(keepends=True) for text in (self.before[name], self.after[name]))
            lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
            parts.append(
                "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
            )
        return "".join(parts)

    def apply(self, scan: Scan) -> list[str]:
        """Writes the new texts into the scanned folder -> the files' names. Raises UserError where one has changed."""
        for name in self.after:
            if (scan.root / name).read_text(encoding="utf-8") != self.before[name]:
                raise UserError(
                    f"{name} was changed since it was scanned", value=name, fix="run the same command again"
                )
        for name, text in self.after.items():
            write_atomic(scan.root / name, text)
        return sorted(self.after)


def has_codemod(finding: Finding) -> bool:
    """Whether a rule's findings can be fixed without a person, where the code around allows it."""
    return finding.rule in CODEMODS


def patch_for(findings: Sequence[Finding], scan: Scan) -> Patch:
    """The patch for findings of a scan. Raises UserError where libcst is missing."""
    texts = {module.path: module.text for module in scan.project.modules}
    modules = {module.path: module for module in scan.project.modules}
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    fixed, left = [], {}
    for name in dict.fromkeys(finding.path for finding in findings):
        fixes = []
        for finding in [one for one in findings if one.path == name]:
            codemod = CODEMODS.get(finding.rule)
            node = scan.nodes.get(finding.id)
            if codemod is None or node is None:
                left[finding.id] = finding.fix
                continue
            scope = modules[name].scope_of.get(node, modules[name].top)
            fix = codemod(node, scope, scan.project)
            if isinstance(fix, str):
                left[finding.id] = fix
            else:
                fixes.append(fix)
                fixed.append(finding.id)
        if fixes:
            before[name] = texts[name]
            after[name] = apply_fixes(texts[name], fixes)
    return Patch(before, after, tuple(fixed), left)


def apply_fixes(text: str, fixes: Sequence[Fix]) -> str:
    """A file's text with changes made, its layout and comments kept. Raises UserError where libcst is missing."""
    try:
        import libcst
    except ImportError:
        raise MISSING from None
    from intone.optimise.scan.rewriting import rewrite

    new = rewrite(text, fixes)
    ast.parse(new)  # a patch that is no Python is our mistake, and must not reach a file
    assert libcst.parse_module(new).code == new
    return new


def instruction(finding: Finding) -> str:
    """What to do by hand, as text."""
    return textwrap.fill(
        f"{finding.path}:{finding.line}: {finding.fix}", 96, initial_indent="  ", subsequent_indent="  "
    )


def as_json(patch: Patch) -> dict[str, Any]:
    """The patch for `--json`."""
    return {"diff": patch.diff, "files": sorted(patch.after), "fixed": list(patch.fixed), "left": patch.left}
