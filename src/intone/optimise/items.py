"""One item of a plan, the same for scan and optimise: a change with its reason, bounds and risk, and its undoing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

How = Literal["environment", "settings", "code", "instruction"]
# what a try costs beside the measuring, for the order of trying; guesses
COSTS: Mapping[How, float] = {"environment": 1.0, "settings": 1.0, "code": 2.0, "instruction": 10.0}
NOTHING_KNOWN = 1.05  # bound that is assumed where a finding has none: such items are tried last


@dataclass(frozen=True)
class Item:
    """One entry of a plan. change: what `how` needs: variables, settings, or the name of a codemod with its target.

    expected: factors of speed between which the result should lie; the upper one is the finding's bound.
    effect: what to expect where it is no factor of speed; a bound or a fact, never a promise.
    """

    name: str  # short and unique within a plan
    title: str
    finding: str | None  # the detector, or the id of the scan's finding, that asked for it
    hypothesis: str
    evidence: tuple[str, ...]
    expected: tuple[float, float | None]
    how: How
    change: Mapping[str, Any]
    risk: str
    gate: str
    undo: str
    place: str | None = None
    signal: str | None = None  # the signal that must move
    effect: str = ""

    @property
    def rank(self) -> float:
        """Bounded gain (as a logarithm) per cost; the higher, the earlier."""
        return math.log(max(self.expected[1] or NOTHING_KNOWN, 1.001)) / COSTS[self.how]

    def as_json(self) -> dict[str, Any]:
        value = asdict(self)
        return value | {"evidence": list(self.evidence), "expected": list(self.expected), "change": dict(self.change)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Item":
        low, high = value["expected"]
        return Item(**{**value, "evidence": tuple(value["evidence"]), "expected": (low, high)})


@dataclass(frozen=True)
class Plan:
    """Items in the order in which they are tried."""

    items: tuple[Item, ...] = field(default=())

    @staticmethod
    def of(items: Iterable[Item]) -> "Plan":
        """Ranked by bounded gain per cost; what can only be told, not done, comes last."""
        return Plan(tuple(sorted(items, key=lambda item: (item.how == "instruction", -item.rank, item.name))))
