"""What a search for the micro-batch is told by its probes and what it answers: samples, lines through them, sizes"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol


class ProbeFailed(Exception):
    """A probe gave no answer; out_of_memory says whether memory ran out."""

    def __init__(self, message: str, *, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


@dataclass(frozen=True)
class Sample:
    """What a probe saw: seconds of a pass and of an update; growth_bytes: memory above that before the first step."""

    pass_s: float
    update_s: float
    growth_bytes: int | None


class Measure(Protocol):
    """Optimizer steps of `passes` micro-batches of `rows` rows each, done `steps` times. Raises ProbeFailed.

    Calls with fewer rows than an earlier one may report the earlier memory: allocators keep it.
    """

    def __call__(self, rows: int, passes: int, steps: int) -> Sample: ...


@dataclass(frozen=True)
class Size:
    """One micro-batch: seconds of a whole step and the memory it grows by. how: measured, line, or out of memory."""

    rows: int
    passes: int
    step_s: float | None
    growth_bytes: int | None
    how: str


@dataclass(frozen=True)
class Line:
    """y = at_zero + slope * rows, and the largest distance of a point from it; None: two points always lie on one."""

    at_zero: float
    slope: float
    off: float | None

    def at(self, rows: int) -> float:
        return self.at_zero + self.slope * rows


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """The line through the first and the last point; how far the others are from it."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0)
    line = Line(y0 - slope * x0, slope, None)
    between = [abs(line.at(x) - y) for x, y in points[1:-1]]
    return replace(line, off=max(between)) if between else line


@dataclass(frozen=True)
class Found:
    """What the search says: the choice, the curve it comes from, and what it cost."""

    rows: int
    method: str  # line, bisect, or "line, then bisect"
    reason: str
    curve: tuple[Size, ...]  # ascending
    update_s: float  # of an optimizer step, whatever the size
    step_s: float  # of the choice
    free_bytes: int | None  # that training may grow by
    margin_bytes: int | None
    predicted_bytes: int | None  # growth of the choice: as the search measured it, or by the sizes around it
    num_probes: int
    num_out_of_memory: int
    seconds: float
    left: str  # what was left on the table
    start_bytes: int | None = None  # of the process that was probed, before its first step
    line_bytes: int | None = None  # what the line said of the choice before it was measured; None: nothing then

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "curve": [asdict(size) for size in self.curve]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Found":
        return cls(**{**value, "curve": tuple(Size(**size) for size in value["curve"])})
