"""One round of repairs: each finding's codemod as a commit in a worktree, judged by gates, kept or taken back.

Everything that happens is a line of ledger.jsonl in the round's folder; the person's files are written only at the end,
and only where that was asked for. What has no codemod is told.
"""

import ast
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.log import say
from intone.optimise.items import Item
from intone.optimise.planner.check import TestRun, run_command, run_pytest
from intone.optimise.scan.finding import SEVERITIES, Finding
from intone.optimise.scan.fixes import patch_for
from intone.optimise.scan.run import TESTS, Scan, scan_path
from intone.optimise.worktree import Worktree, open_worktree, reopened, run_git
from intone.paths import append_line, home, read_json, read_lines, write_atomic, write_json
from intone.prove.gates import sealed
from intone.prove.gates.result import GateReport, GateResult, Threshold, not_judged

RULE = "rule of this round"


@dataclass(frozen=True)
class Repair:
    """One item that was tried. verdict: kept, rejected by a gate, crashed, or told (to be done by hand)."""

    item: Item
    verdict: str
    reason: str
    commit: str | None
    gates: Mapping[str, Any] | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """A row of the ledger."""
        return {
            "item": self.item.as_json(), "verdict": self.verdict, "reason": self.reason, "commit": self.commit,
            "gates": self.gates, "seconds": self.seconds,
        }  # fmt: skip


class Round:
    """Repairs of a code base in a worktree. path: the scanned folder or file; tests: a command that must pass."""

    def __init__(self, folder: Path, path: Path, tests: str | None = None) -> None:
        self.folder, self.path = folder, path.resolve()
        self.tests = shlex.split(tests) if tests else None
        self.target = read_json(folder / "target.json")
        origin = Path(self.target["origin"]) if self.target["origin"] else None
        self.tree = reopened(folder / "code", self.target["branch"], self.target["base"], origin)

    @staticmethod
    def begin(path: Path, tests: str | None = None) -> "Round":
        """A new round in a folder of its own under INTONE_HOME. Raises UserError where the code cannot be copied."""
        folder = new_folder(path)
        tree = open_worktree(path.resolve(), folder / "code", f"intone/{folder.name}")
        place = "."
        if tree.origin is not None:
            place = run_git(tree.origin, "rev-parse", "--show-prefix").strip() or "."
        write_json(folder / "target.json", {
            "format": 1, "path": str(path.resolve()), "place": place, "branch": tree.branch, "base": tree.base,
            "origin": str(tree.origin) if tree.origin else None,
        })  # fmt: skip
        for note in tree.notes:
            say(note)
        return Round(folder, path, tests)

    @property
    def code(self) -> Path:
        """The scanned folder or file in the worktree."""
        root = self.folder / "code" / self.target["place"]
        return root / self.path.name if self.path.is_file() else root

    def note(self, kind: str, **values: Any) -> None:
        """A line of the ledger."""
        now = time.strftime("%FT%TZ", time.gmtime())
        append_line(self.folder / "ledger.jsonl", {"kind": kind, "at": now, **values})

    def run(self, items: Sequence[Item]) -> list[Repair]:
        """Tries the items one after the other, each on top of what was kept."""
        self.note("plan", items=[item.as_json() for item in items])
        was = self._tests("before") if any(item.how == "code" for item in items) else None
        done = []
        for item in items:
            repair = self._attempt(item, was)
            self.note("try", **{"try": repair.as_json()})
            say(f"{item.title}: {repair.verdict}: {repair.reason}")
            done.append(repair)
        return done

    def _attempt(self, item: Item, was: TestRun | None) -> Repair:
        begin_s = time.monotonic()
        if item.how != "code":
            return Repair(item, "told", str(item.change["words"]), None, None, 0.0)
        head = self.tree.head()
        try:
            before = scan_path(self.code)
            finding = next((one for one in before.findings if one.id == item.finding), None)
            if finding is None:
                return Repair(item, "kept", "an earlier change removed it too", None, None, time.monotonic() - begin_s)
            patch = patch_for([finding], before)
            if not patch.after:
                return Repair(item, "told", patch.left[finding.id], None, None, time.monotonic() - begin_s)
            patch.apply(before)
            gates = self._judge(finding, before, was)
        except UserError as problem:
            self.tree.reset(head)
            return Repair(item, "crashed", problem.message, None, None, time.monotonic() - begin_s)
        except BaseException:
            self.tree.reset(head)
            raise
        if any(result.passed is False for result in gates.results):
            self.tree.reset(head)
            return Repair(item, "rejected", gates.reason, None, gates.as_json(), time.monotonic() - begin_s)
        change = self.tree.commit(item.title, f"{item.hypothesis}\n\nRisk: {item.risk}.")
        assert change is not None, f"{item.name} changed nothing, and its patch is not empty"
        told = "; ".join(result.reason for result in gates.results)
        return Repair(item, "kept", told, change.sha, gates.as_json(), time.monotonic() - begin_s)

    # --- gates --------------------------------------------------------------------------------------------------------

    def _judge(self, finding: Finding, before: Scan, was: TestRun | None) -> GateReport:
        seal = sealed.seal(sealed.harness())
        results = [_judge_syntax(self.code), _judge_scan(finding, before, scan_path(self.code))]
        if all(result.passed for result in results):
            results.append(self._judge_tests(was))
        results.append(sealed.judge(seal, sealed.seal(seal.paths)))
        return GateReport(tuple(results))

    def _tests(self, word: str) -> TestRun | None:
        """The tests of the code base; None where there are none and no command was named."""
        root = self.folder / "code" / self.target["place"]
        if self.tests is not None:
            return run_command(self.tests, root)
        names = [str(name.relative_to(self.tree.path)) for name in self.tree.tracked()]
        if not any(name.endswith(".py") and TESTS.search(name) for name in names):
            return None
        return run_pytest(self.tree.path, (), self.folder / f"tests-{word}.xml")

    def _judge_tests(self, was: TestRun | None) -> GateResult:
        threshold = Threshold("the tests pass, as many as before", RULE)
        if was is None:
            return not_judged("tests", "the code base has no tests", 'name a command that checks it: --tests "..."')
        now = self._tests("after")
        assert now is not None
        fewer = was.passed is not None and (now.passed or 0) < was.passed
        if was.is_good and not now.is_good or fewer:
            return GateResult("tests", False, f"the tests: {now.text}, before: {was.text}", threshold, fix="by hand")
        if not was.is_good and not now.is_good:
            return not_judged(
                "tests", f"they fail with and without the change: {now.text}", "make the tests pass first"
            )
        return GateResult("tests", True, f"tests: {now.text}", threshold)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def apply(self) -> list[str]:
        """Writes what was kept into the person's files -> their names. Raises UserError where these have changed."""
        names = sorted({name for change in self.tree.changes() for name in change.files})
        if self.target["origin"] is not None:
            self.tree.apply()
        else:
            _copy_back(self.tree, self._root(), names, self.target["base"])
        self.note("applied", files=names)
        return names

    def undo(self) -> list[str]:
        """Takes what was written out of the person's files again -> their names. Raises UserError."""
        names = sorted({name for change in self.tree.changes() for name in change.files})
        if self.target["origin"] is not None:
            top = Path(run_git(Path(self.target["origin"]), "rev-parse", "--show-toplevel").strip())
            diff = self.tree.diff(self.tree.base, "HEAD")
            try:
                run_git(top, "apply", "-R", "--whitespace=nowarn", "-", given=diff)
            except UserError as problem:
                raise UserError(
                    f"the changes of {self.folder.name} are not in {top}, or were changed since",
                    value=self.folder.name, fix=f"look at them with: git diff {self.tree.base[:12]} {self.tree.branch}",
                ) from problem  # fmt: skip
        else:
            _copy_back(self.tree, self._root(), names, "HEAD", to=self.target["base"])
        self.note("undone", files=names)
        return names

    def _root(self) -> Path:
        path = Path(self.target["path"])
        return path.parent if path.is_file() else path

    def finish(self) -> None:
        """Removes the worktree; its branch with what was kept stays."""
        self.note("end")
        if self.target["origin"] is not None and not self.tree.changes():
            self.tree.close(keep_branch=False)


def _judge_syntax(code: Path) -> GateResult:
    threshold = Threshold("every file is Python", RULE)
    files = [code] if code.is_file() else sorted(code.rglob("*.py"))
    for file in files:
        try:
            ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError as problem:
            if "site-packages" not in file.parts:
                return GateResult("syntax", False, f"{file.name}: {problem}", threshold, fix="by hand")
    return GateResult("syntax", True, f"{len(files)} files parse", threshold)


def _judge_scan(finding: Finding, before: Scan, after: Scan) -> GateResult:
    """The finding is gone, and nothing of its gravity came in its place."""
    threshold = Threshold("the finding is gone and no finding of at least its severity is new", RULE)
    known = {one.id for one in before.findings}
    if finding.id in {one.id for one in after.findings}:
        return GateResult("scan", False, f"{finding.id} is still found", threshold, fix=finding.fix)
    least = SEVERITIES.index(finding.severity)
    fresh = [one for one in after.findings if one.id not in known and SEVERITIES.index(one.severity) >= least]
    if fresh:
        reason = f"{fresh[0].id} at {fresh[0].path}:{fresh[0].line} is new: {fresh[0].message}"
        return GateResult("scan", False, reason, threshold, fix=finding.fix)
    return GateResult("scan", True, f"{finding.id} is not found any more", threshold)


def _copy_back(tree: Worktree, root: Path, names: Sequence[str], expected: str, to: str = "HEAD") -> None:
    """Writes files of a commit into a folder outside git. Raises UserError where one differs from `expected`."""
    for name in names:
        was = run_git(tree.path, "show", f"{expected}:{name}")
        if (root / name).read_text(encoding="utf-8") != was:
            raise UserError(f"{name} was changed meanwhile", value=name, fix="run the same command again")
    for name in names:
        write_atomic(root / name, run_git(tree.path, "show", f"{to}:{name}"))


def rounds() -> Path:
    """Where the rounds lie."""
    return home() / "repairs"


def new_folder(path: Path) -> Path:
    """An empty folder for a round, named after what is repaired and a number."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in path.resolve().name.lower()).strip("-") or "code"
    number = 1
    while (rounds() / f"{stem}-{number}").exists():
        number += 1
    folder = rounds() / f"{stem}-{number}"
    folder.mkdir(parents=True)
    return folder


def last_applied(path: Path) -> Round:
    """The newest round on a path whose changes are in its files. Raises UserError where there is none."""
    found = sorted(rounds().glob("*/target.json"), key=lambda file: -file.stat().st_mtime_ns)
    for file in found:
        if read_json(file)["path"] != str(path.resolve()):
            continue
        ends = [
            line["kind"] for line in read_lines(file.parent / "ledger.jsonl") if line["kind"] in ("applied", "undone")
        ]
        if ends and ends[-1] == "applied":
            return Round(file.parent, path)
    raise UserError(
        f"no repair of {path} is in its files",
        value=str(path),
        fix="write one with: intone scan PATH --fix RULE --apply",
    )
