"""One item of a plan, the same for scan, optimise and plan: what is believed, why, what to change, how to undo it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

How = Literal["codemod", "instruction", "setting"]


@dataclass(frozen=True)
class PlanItem:
    """A change that is proposed. expected is a bound, or says that nothing was measured yet; it is never a promise."""

    id: str
    title: str
    hypothesis: str
    evidence: tuple[str, ...]
    expected: str
    change: str
    how: How
    risk: str
    gates: tuple[str, ...]  # names of optimiser.md section 6: G2, G4b
    undo: str
    files: tuple[str, ...] = ()
    finding: str | None = None  # id of the finding that it answers

    def as_json(self) -> dict[str, Any]:
        """Every field; tuples become lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "PlanItem":
        """The item that as_json wrote."""
        parts: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}
        return PlanItem(**parts)
