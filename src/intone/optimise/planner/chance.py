"""One entry of the list of what a code base has and lacks, with its evidence and what it could bring."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["present", "partly", "missing", "not seen"]
ORDER: tuple[State, ...] = ("missing", "partly", "not seen", "present")


@dataclass(frozen=True)
class Chance:
    """A feature of the catalogue in this code base.

    not seen: no code of the kind was recognised, so nothing can be said. factor: an upper bound on speed by
    arithmetic, None where only a measurement could tell. source: what the benefit rests on.
    """

    name: str  # short, for --choose
    title: str
    state: State
    evidence: tuple[str, ...]  # file:line and what stands there
    benefit: str
    source: str
    factor: float | None = None
    weight: int = 1  # order among those without a factor: 3 wrong results or lost work, 2 speed, 1 comfort

    @property
    def rank(self) -> tuple[int, float, int, str]:
        """What is missing first; then by bound, then by weight."""
        return ORDER.index(self.state), -(self.factor or 1.0), -self.weight, self.name

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "evidence": list(self.evidence)}
