"""Can the gates fail? Plants every fault on this machine and says which were rejected (python -m ...gates.selftest)."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intone.child import ask_child
from intone.errors import EXIT_CHECK_FAILED
from intone.log import human_duration
from intone.prove.gates.result import GateResult, Threshold, wrapped_table

TIMEOUT_S = 600.0  # ten times what it may take on a quiet machine
COMMAND = "python -m intone.prove.gates.selftest"


@dataclass(frozen=True)
class Case:
    """One judgement whose answer is known. planted None: nothing is wrong, the gate has to pass."""

    planted: str | None
    result: GateResult

    @property
    def is_right(self) -> bool:
        return self.result.passed is (self.planted is None)


@dataclass(frozen=True)
class SelfTest:
    """All cases, and how long they took."""

    cases: tuple[Case, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.is_right for case in self.cases)

    @property
    def summary(self) -> str:
        """One line for the head of a report."""
        faults = [case.is_right for case in self.cases if case.planted is not None]
        clean = [case.is_right for case in self.cases if case.planted is None]
        right = f"right cases passed: {sum(clean)} of {len(clean)}"
        return f"planted faults rejected: {sum(faults)} of {len(faults)}; {right} ({human_duration(self.seconds)})"

    def table(self) -> str:
        """One case a line: gate, result, whether that is right, what was planted and why it was judged so."""
        rows = []
        for case in self.cases:
            what = f"{case.planted or 'nothing planted'}: {case.result.reason}"
            rows.append((case.result.name, case.result.word, "right" if case.is_right else "WRONG", [what]))
        return f"{wrapped_table(rows)}\n{self.summary}"

    def as_json(self) -> dict[str, Any]:
        """{format, passed, summary, seconds, cases: [{planted, right, result}]}."""
        cases = [{"planted": c.planted, "right": c.is_right, "result": c.result.as_json()} for c in self.cases]
        return {"format": 1, "passed": self.passed, "summary": self.summary, "seconds": self.seconds, "cases": cases}


def self_test(*, timeout_s: float = TIMEOUT_S) -> SelfTest:
    """Runs every planted fault and every right case on this machine, in a child process that breaks its own code.

    It takes no measuring lock, so it may run inside one. Raises ChildFailed where the child gave no answer.
    """
    begin_s = time.monotonic()
    answer = ask_child("intone.prove.gates.cases", {}, timeout_s=timeout_s, environment={"OMP_NUM_THREADS": "1"})
    cases = [Case(entry["planted"], read_result(entry["result"])) for entry in answer["cases"]]
    return SelfTest(tuple(cases), time.monotonic() - begin_s)


def read_result(value: dict[str, Any]) -> GateResult:
    """A result out of its JSON."""
    return GateResult(**{**value, "threshold": Threshold(**value["threshold"])})


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit 1 where a fault got through or a right case did not."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    asked = parser.parse_args(argv)
    found = self_test()
    print(found.table())
    if asked.json:
        print(json.dumps(found.as_json()))
    return 0 if found.passed else EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
