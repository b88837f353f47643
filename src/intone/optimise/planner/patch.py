"""A feature by a language model: it proposes a patch in a worktree, and code that it cannot reach judges it."""

import dataclasses
import fnmatch
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.log import say
from intone.optimise.agent.client import ChatClient
from intone.optimise.agent.loop import Budget, Proposal, Session
from intone.optimise.agent.tools import Tools
from intone.optimise.planner.check import TestRun, run_command, run_pytest, surrounded
from intone.optimise.program import Program, block_calls, check_program, look_at, program_side
from intone.optimise.program_gates import judge_times, judge_tokens, judge_training, texts_of
from intone.optimise.scan.run import TESTS
from intone.optimise.worktree import Worktree, open_worktree, reopened
from intone.paths import read_json, write_atomic, write_json
from intone.prove.gates import sealed
from intone.prove.gates.result import GateReport
from intone.prove.measure import SideFailed, measure_rounds

# files that decide how tests run or what Python imports at its start: nobody who is judged may add or change one
SETTINGS_OF_TESTS = (
    "conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "sitecustomize.py",
    "usercustomize.py", "*.pth", "pytest.py",
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """What measuring said: one of the five words, in a sentence, and the gates that belong to it."""

    verdict: str
    reason: str
    gates: GateReport
    comparison: dict[str, Any] | None = None


# a measured program is code that a model wrote: it gets no key of ours
NO_KEYS = {"INTONE_API_KEY": "", "OPENAI_API_KEY": ""}

Measure = Callable[[Path, Path], Timed]  # (the code as it was, the code as changed)


@dataclass(frozen=True)
class Judged:
    """How it ended. outcome: proven (measured faster, gates passed), tested (nothing was to be measured), rejected, or
    unfinished (the model did not say that it was done)."""

    outcome: str
    reason: str
    proposal: Proposal
    branch: str | None  # where a kept change is
    commit: str | None
    files: tuple[str, ...]
    tests: TestRun | None = None
    timed: Timed | None = None

    @property
    def is_kept(self) -> bool:
        return self.outcome in ("proven", "tested")

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome, "reason": self.reason, "branch": self.branch, "commit": self.commit,
            "files": list(self.files), "proposal": dataclasses.asdict(self.proposal),
            "tests": self.tests.as_json() if self.tests else None,
            "timed": None if self.timed is None else {
                "verdict": self.timed.verdict, "reason": self.timed.reason, "gates": self.timed.gates.as_json(),
                "comparison": self.timed.comparison,
            },
        }  # fmt: skip


class Rejected(Exception):
    """The change is not kept; the text says why."""


@dataclass
class Attempt:
    """One task for one model in one folder of its own. measure: what times the code, None: speed is not asked for.

    In a folder whose attempt was stopped, run() goes on: with the worktree as the model left it, and its words so far.
    """

    root: Path
    folder: Path
    client: ChatClient
    budget: Budget
    test_words: Sequence[str] | None = None
    measure: Measure | None = None

    def run(self, task: str) -> Judged:
        """Lets the model work, then judges: seals, tests, measuring, in this order.

        Raises UserError, and KeyboardInterrupt where Ctrl-C stopped it: everything stays for a later run().
        """
        tree = self.opened()
        self.close_checkouts(tree)  # of a run that was killed
        base = tree.at(tree.base, self.folder / "base")
        names = [str(path.relative_to(base.path)) for path in base.tracked()]
        # the harness and the code as it was: whoever changes them changes what the patch is compared with
        before = sealed.seal([*sealed.harness(), *base.tracked()])
        was = self.tests_of(base, names, "base")
        tools = Tools(
            tree.path, sealed=patterns(names, self.test_words), test_command=self.command(tree.path, names),
            measure=None if self.measure is None else lambda: self.told(base.path, tree.path),
        )  # fmt: skip
        say(f"{self.client.model} works on: {task}")
        proposal = Session(self.client, tools, task, self.folder / "talk.jsonl", self.budget).run()
        files: tuple[str, ...] = ()
        tests, timed, commit = None, None, None
        try:
            if proposal.end == "stopped":
                raise KeyboardInterrupt
            if proposal.end != "done":
                raise Rejected(f"the model did not finish: {proposal.end}")
            tree.commit(proposal.summary[:70] or task[:70], proposal.why)
            changes = tree.changes()  # one, and another where it was stopped while it was judged, and went on then
            if not changes:
                raise Rejected("the model changed nothing")
            commit = changes[-1].sha
            files = tuple(sorted({name for change in changes for name in change.files}))
            self.check_files(files, proposal, names)
            check_seal(before)
            # only what is committed counts: a fresh checkout knows nothing of what running code left behind
            fresh = tree.at(commit, self.folder / "changed")
            tests = self.tests_of(fresh, names, "changed")
            check_tests(was, tests)
            check_seal(before)
            if self.measure is not None:
                timed = self.measure(base.path, fresh.path)
                check_seal(before)
                check_timed(timed)
        except Rejected as reason:
            write_atomic(self.folder / "rejected.diff", tree.diff())
            tree.reset(tree.base)
            outcome = "unfinished" if proposal.end != "done" else "rejected"
            return Judged(outcome, str(reason), proposal, None, None, files, tests, timed)
        finally:
            self.close_checkouts(tree)
        write_atomic(self.folder / "change.diff", tree.diff(tree.base, "HEAD"))
        if timed is None:
            return Judged(
                "tested", "the tests pass; speed was not measured", proposal, tree.branch, commit, files, tests
            )
        return Judged("proven", timed.reason, proposal, tree.branch, commit, files, tests, timed)

    # --- worktrees ----------------------------------------------------------------------------------------------------

    def opened(self) -> Worktree:
        """The worktree of this attempt, a new one or that of a run that was stopped."""
        path = self.folder / "tree.json"
        if path.exists():
            known = read_json(path)
            origin = Path(known["origin"]) if known["origin"] else None
            return reopened(self.folder / "code", known["branch"], known["base"], origin)
        tree = open_worktree(self.root, self.folder / "code", f"intone/{self.folder.name}")
        for note in tree.notes:
            say(note)
        origin_text = str(tree.origin) if tree.origin else None
        write_json(path, {"branch": tree.branch, "base": tree.base, "origin": origin_text})
        return tree

    def close_checkouts(self, tree: Worktree) -> None:
        for place in ("base", "changed"):
            Worktree(self.folder / place, "", "", tree.origin or tree.path).close()

    def told(self, base: Path, changed: Path) -> str:
        """What the model hears of the speed of its state so far; what counts is measured again when it is done."""
        assert self.measure is not None, "only offered where something measures"
        timed = self.measure(base, changed)
        return f"{timed.verdict}: {timed.reason}; gates: {timed.gates.reason}"

    # --- tests --------------------------------------------------------------------------------------------------------

    def command(self, root: Path, names: Sequence[str]) -> list[str] | None:
        """What the model may run as its tests."""
        if self.test_words is not None:
            return surrounded(self.test_words, root)
        has_tests = any(is_test(name) for name in names)
        return surrounded([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], root) if has_tests else None

    def tests_of(self, tree: Worktree, names: Sequence[str], word: str) -> TestRun | None:
        """The tests of a checkout, those of the code as it was and new ones; None where there are none."""
        if self.test_words is not None:
            return run_command(self.test_words, tree.path)
        if not any(is_test(name) for name in names) and word == "base":
            return None
        return run_pytest(tree.path, (), self.folder / f"tests-{word}.xml")

    # --- files --------------------------------------------------------------------------------------------------------

    def check_files(self, files: Sequence[str], proposal: Proposal, names: Sequence[str]) -> None:
        """Raises Rejected where a sealed file differs, or one that the model changed behind its tools."""
        for name in files:
            if any(is_match(name, pattern) for pattern in patterns(names, self.test_words)):
                raise Rejected(f"{name} is sealed and was changed: it belongs to what judges the patch")
        hidden = sorted(set(files) - set(proposal.edited))
        if hidden:
            raise Rejected(f"{hidden[0]} was written by running code, not by an edit that anybody saw")


def patterns(names: Sequence[str], test_words: Sequence[str] | None = None) -> list[str]:
    """Paths that the model may read and not change: the tests that are there with their data, whatever steers tests,
    and files that the command for the tests names."""
    named = [name for name in names if name in [str(Path(word)) for word in test_words or ()]]
    steering = [pattern for one in SETTINGS_OF_TESTS for pattern in (one, f"*/{one}")]
    return [*(name for name in names if TESTS.search(name)), *named, *steering]


def is_test(name: str) -> bool:
    return name.endswith(".py") and TESTS.search(name) is not None


def is_match(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatch(name, pattern)


def check_seal(before: sealed.Seal) -> None:
    """Raises Rejected where the harness or the code as it was is not what it was."""
    found = sealed.judge(before, sealed.seal(before.paths))
    if found.passed is not True:
        raise Rejected(f"rejected by the gate {found.name}: {found.reason}")


def check_tests(was: TestRun | None, now: TestRun | None) -> None:
    """Raises Rejected where tests fail, or fewer of them passed than before."""
    if now is None or (was is None and now.code == 5):  # pytest's word for: there are no tests
        return
    if not now.is_good:
        before = "" if was is None or was.is_good else f" (before the change: {was.text})"
        raise Rejected(f"the tests: {now.text}{before}")
    if was is not None and was.passed is not None and (now.passed or 0) < was.passed:
        raise Rejected(f"only {now.passed} tests passed, {was.passed} did before the change")


def check_timed(timed: Timed) -> None:
    """Raises Rejected unless it is faster beyond doubt and every gate passed."""
    if timed.verdict != "faster":
        raise Rejected(f"not proven faster: {timed.reason}")
    if timed.gates.passed is not True:
        raise Rejected(timed.gates.reason)


def program_measure(words: Sequence[str], scratch: Path, root: Path) -> Measure:
    """What times a program in both folders, fresh processes in turns: its training steps, or the tokens that it writes.

    Losses, or tokens, must be those of the code as it was. The first call looks at that code to see what it does.
    Raises UserError for no program.
    """
    checked = check_program(words, root)
    env = {**checked.env, **NO_KEYS}
    kinds: list[dict[str, Any]] = []

    def measure(base: Path, changed: Path) -> Timed:
        try:
            if not kinds:
                signals, _ = look_at(Program(checked.words, base, env), scratch / "look")
                kinds.append({"kind": signals.kind, "size": block_calls(signals)})
            sides = [
                program_side(name, Program(checked.words, place, env), scratch / str(time.monotonic_ns()), **kinds[0])
                for name, place in (("as it was", base), ("changed", changed))
            ]  # fmt: skip
            measured = measure_rounds(sides)
        except (SideFailed, UserError) as failure:
            return Timed("not proven", str(failure), GateReport(()))
        gates = GateReport((
            judge_times(measured, {"as it was": "baseline", "changed": "candidate"}),
            judge_tokens(texts_of(measured, "as it was"), texts_of(measured, "changed"))
            if kinds[0]["kind"] == "generate"
            else judge_training(measured, "as it was", "changed"),
        ))  # fmt: skip
        found = measured.comparisons[0]
        return Timed(found.verdict, found.text(), gates, found.as_json())

    return measure
