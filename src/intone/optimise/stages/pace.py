"""How long the rest of a round takes, by what its own looks, gates and comparisons took so far"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from intone.optimise.stages.target import Part


@dataclass
class Pace:
    """Seconds that were measured in this process, by kind of work and part of the target.

    Of a comparison the seconds are those of one side.
    """

    seconds: dict[tuple[str, Part], list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, kind: str, part: Part, *, shares: int = 1) -> Iterator[None]:
        """What is inside counts, where it ends well; shares: so many sides were compared in it."""
        begin_s = time.monotonic()
        yield
        self.seconds.setdefault((kind, part), []).append((time.monotonic() - begin_s) / shares)

    def typical_s(self, kind: str, part: Part) -> float | None:
        """The median of a kind of work in this part, else in the other one; None: nothing was measured."""
        found = self.seconds.get((kind, part))
        if not found:
            found = [value for (other, _), values in self.seconds.items() if other == kind for value in values]
        return statistics.median(found) if found else None

    def left_s(self, part: Part, *, tries: int, kept: int) -> float | None:
        """Seconds until a part is done: so many tries, a look after each, and the sum; None: not known yet.

        kept: changes that were kept so far. All that is left may be kept too, and is then in the sum.
        """
        look_s, gates_s, side_s = (self.typical_s(kind, part) for kind in ("look", "gates", "side"))
        if not tries and not kept:
            return 0.0
        if look_s is None or gates_s is None or side_s is None:
            return None
        num_sides = 2 + (kept + tries if kept + tries > 1 else 0)
        return tries * (look_s + gates_s + 2 * side_s) + gates_s + num_sides * side_s
