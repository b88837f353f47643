"""What a detector reports: evidence against a threshold, and how much mending it could be worth at most."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bottleneck:
    """One finding about speed or correctness of a program at work.

    bound: the largest factor that mending it can make the program faster by, from the evidence (Amdahl: a share s of
    the time can at most go away, 1 / (1 - s)); None: it is about correctness, or memory, or cannot be bounded.
    """

    detector: str  # D1 .. D28
    title: str
    evidence: tuple[str, ...]  # numbers with units, the threshold beside them
    threshold: str
    source: str  # of the threshold
    bound: float | None
    signal: str  # the field of Signals that must move when it is mended
    place: str | None = None  # path:line
    is_fault: bool = False  # wrong results, not only slow ones

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"evidence": list(self.evidence)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Bottleneck":
        return Bottleneck(**{**value, "evidence": tuple(value["evidence"])})


def bound_of(share: float) -> float:
    """How much faster a program can get at most where this share of its time goes away: 1 / (1 - share)."""
    return 1.0 / (1.0 - min(share, 0.999))
