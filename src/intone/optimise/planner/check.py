"""Runs the tests of a changed code base and says what came of it; an exit code alone is not believed."""

import os
import sys
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intone.optimise.agent.tools import run_limited

TIMEOUT_S = 900.0  # guess: tests that take longer are named with --tests
TAIL = 2000  # characters of output that are kept


@dataclass(frozen=True)
class TestRun:
    """code: exit code, None: ended for its time. passed, failed: how many, None where the command does not tell."""

    code: int | None
    passed: int | None
    failed: int | None
    output: str

    __test__ = False  # for pytest: it is not a class of tests

    @property
    def is_good(self) -> bool:
        """Whether everything passed; a pytest that ended before its report did not."""
        return self.code == 0 and self.failed in (0, None)

    @property
    def text(self) -> str:
        """For people: 12 passed."""
        if self.code is None:
            return f"did not end within {TIMEOUT_S:g} s"
        if self.passed is None:
            return "passed" if self.is_good else f"failed with exit code {self.code}"
        return f"{self.passed} passed" + (f", {self.failed} failed" if self.failed else "")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def surrounded(words: Sequence[str], root: Path) -> list[str]:
    """A command that imports the code in root, leaves no bytecode beside it, and knows no key of ours."""
    source = [str(place) for place in (root / "src", root) if place.is_dir()]
    path = os.pathsep.join([*source, *filter(None, [os.environ.get("PYTHONPATH")])])
    # bytecode would be a file that no edit wrote, and could outlive the source it was made from
    named = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1"]
    return ["env", "-u", "INTONE_API_KEY", "-u", "OPENAI_API_KEY", *named, *words]


def run_pytest(root: Path, names: Sequence[str], report: Path) -> TestRun:
    """pytest on some files, or on all where none is named. report: a path outside root for what it counted.

    pytest writes its report last, so a test that ends the process early with success has not passed.
    """
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *names]
    code, output = run_limited(surrounded(words, root), root, TIMEOUT_S)
    try:
        suites = list(xml.parse(report).getroot().iter("testsuite"))
    except (OSError, xml.ParseError):
        return TestRun(code if code != 0 else 1, 0, 1, output[-TAIL:] + "\npytest ended without a report")
    count = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return TestRun(code, count["tests"] - failed - count["skipped"], failed, output[-TAIL:])


def run_command(words: Sequence[str], root: Path) -> TestRun:
    """Somebody's own command in root; only its exit code says how it went."""
    code, output = run_limited(surrounded(words, root), root, TIMEOUT_S)
    return TestRun(code, None, None, output[-TAIL:])
