"""What a gate says, and how several of them are run in turn: cheap ones first, up to the first rejection."""

import dataclasses
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from intone.errors import UserError
from intone.log import human_duration, say

WIDTH = 100  # columns of the table

E = TypeVar("E")


@dataclass(frozen=True)
class Threshold:
    """What had to hold, in words with its numbers, and where these come from (measured, a paper, or a guess)."""

    rule: str
    origin: str


@dataclass(frozen=True)
class GateResult:
    """One judgement. passed None: it could not be made, and reason says why; that is no pass."""

    name: str
    passed: bool | None
    reason: str
    threshold: Threshold
    evidence: Mapping[str, Any] = field(default_factory=dict)  # numbers with units in their names, as JSON holds them
    fix: str | None = None  # what to do where it did not pass
    seconds: float = 0.0  # for gathering the evidence and judging

    def __post_init__(self) -> None:
        assert self.passed or self.fix, f"gate {self.name} did not pass and offers no way out"

    @property
    def word(self) -> str:
        return {True: "passed", False: "rejected", None: "not judged"}[self.passed]

    def as_json(self) -> dict[str, Any]:
        return as_json(dataclasses.asdict(self))


class NotJudged(Exception):
    """The evidence for a gate could not be had, for a reason that says nothing about the change."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True)
class Gate(Generic[E]):
    """A judgement and how its evidence is gathered.

    cost_s orders the gates: about how long gathering takes; math.inf: after all others. gather may raise NotJudged,
    or UserError where a job cannot run at all.
    """

    name: str
    cost_s: float
    gather: Callable[[], E]
    judge: Callable[[E], GateResult]

    def run(self) -> GateResult:
        """Gathers and judges. Errors other than NotJudged and UserError are mistakes of ours and pass through."""
        begin_s = time.monotonic()
        try:
            result = self.judge(self.gather())
        except NotJudged as problem:
            result = not_judged(self.name, problem.reason, problem.fix)
        except UserError as problem:
            result = not_judged(self.name, problem.message, problem.fix or "correct it and run the gates again")
        return dataclasses.replace(result, seconds=time.monotonic() - begin_s)


def not_judged(name: str, reason: str, fix: str) -> GateResult:
    """The result of a gate whose evidence is missing."""
    return GateResult(name, None, reason, Threshold("evidence must exist", "rule"), fix=fix)


@dataclass(frozen=True)
class GateReport:
    """The results in the order in which the gates ran, and the names of those that a rejection left out."""

    results: tuple[GateResult, ...]
    not_run: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """False after a rejection, None where a gate could not judge or none was run, else True."""
        verdicts = [result.passed for result in self.results]
        if False in verdicts:
            return False
        return True if verdicts and all(verdicts) else None

    @property
    def reason(self) -> str:
        """One line for the verdict on the change."""
        for word, passed in (("rejected by", False), ("not judged by", None)):
            found = [result for result in self.results if result.passed is passed]
            if found:
                return f"{word} the gate {found[0].name}: {found[0].reason}"
        count = len(self.results)
        return f"passed {count} gate{'s' * (count != 1)}" if count else "no gate was run"

    def as_json(self) -> dict[str, Any]:
        """{format, passed, reason, gates: [...], not_run: [...]}."""
        gates = [result.as_json() for result in self.results]
        return {
            "format": 1, "passed": self.passed, "reason": self.reason, "gates": gates, "not_run": list(self.not_run),
        }  # fmt: skip

    def table(self) -> str:
        """One gate a line: name, result, seconds, reason; below a rejection what was asked and the way out."""
        rows = []
        for result in self.results:
            lines = [result.reason]
            if not result.passed:
                lines += [f"asked: {result.threshold.rule}", f"fix: {result.fix}"]
            rows.append((result.name, result.word, human_duration(result.seconds), lines))
        rows += [(name, "not run", "", ["an earlier gate rejected"]) for name in self.not_run]
        return wrapped_table(rows)


def run_gates(gates: Iterable[Gate[Any]], *, stop_at_first: bool = True) -> GateReport:
    """Runs the gates by their cost and stops at the first rejection.

    A gate that could not judge stops nothing: a later one may still reject.
    """
    waiting = sorted(gates, key=lambda gate: gate.cost_s)
    results: list[GateResult] = []
    while waiting:
        gate = waiting.pop(0)
        result = gate.run()
        results.append(result)
        say(f"gate {gate.name}: {result.word}, {result.reason}")
        if result.passed is False and stop_at_first:
            break
    return GateReport(tuple(results), tuple(gate.name for gate in waiting))


def wrapped_table(rows: list[tuple[str, str, str, list[str]]]) -> str:
    """Rows of three short words and a text of several lines, the text wrapped into a column of its own."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    room = max(30, WIDTH - sum(widths) - 6)
    lines = []
    for name, word, seconds, texts in rows:
        head = f"{name.ljust(widths[0])}  {word.ljust(widths[1])}  {seconds.rjust(widths[2])}  "
        for text in texts:
            for piece in textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False):
                lines.append((head + piece).rstrip())
                head = " " * len(head)
    return "\n".join(lines)


def as_json(value: Any) -> Any:
    """A value as strict JSON holds it: NaN and infinities become None, tuples lists, keys text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    return value
