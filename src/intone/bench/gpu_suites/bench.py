"""What a suite is given: its device, inputs and time, and how it hands over a row at once, so that a cut loses none."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone.hardware import quiet
from intone.log import human_duration, say
from intone.paths import FolderLock
from intone.records import ResultRow, append_result, read_results, utc_now

ROWS = "rows.jsonl"
# seconds of a group of calls: long against the clock and the wait at its ends, 20 us each
GROUP_S = 0.02
NUM_GROUPS = 9
# of nine sorted values the second and the eighth: an interval of 96 % for the median, whatever the distribution
LOW, HIGH = 1, 7


class MissingInput(Exception):
    """A suite cannot begin without an input that was not given; the text names the flag."""


@dataclass
class Bench:
    """One suite at work. prefix begins the ids of its rows: the device's short name, or tiny for small shapes."""

    out: Path
    prefix: str
    device: str  # cuda or cpu
    command: str  # makes the rows again
    machine: Mapping[str, Any]
    machine_folder: Path  # INTONE_HOME/machine/<fingerprint>
    code: str
    end_s: float  # of time.monotonic(): what has not begun by then is left out
    scratch: Path  # a folder that is deleted after the suite
    environment: Mapping[str, str] = field(default_factory=dict)  # of workers
    data: Path | None = None
    nanochat: Path | None = None
    nanochat_python: str | None = None
    left_out: list[str] = field(default_factory=list)  # what did not fit into the time, or lacked its input

    @property
    def is_tiny(self) -> bool:
        """Whether shapes are to be small: every line runs in seconds, and no number means anything."""
        return self.prefix == "tiny"

    def __post_init__(self) -> None:
        path = self.out / ROWS
        self._known = {row.id: row for row in read_results(path)} if path.exists() else {}

    def has(self, *names: str) -> bool:
        """Whether DIR holds the rows of all these names already."""
        return all(f"{self.prefix}.{name}" in self._known for name in names)

    def known(self, name: str) -> ResultRow | None:
        """The row of this name that DIR holds, None where it has none."""
        return self._known.get(f"{self.prefix}.{name}")

    def may(self, what: str, *names: str, seconds: float) -> bool:
        """Whether to measure what gives the rows of these names: not where they are known, nor without time for it.

        seconds: about how long it takes. What does not fit is said and counted as left out.
        """
        if self.has(*names):
            say(f"{what}: known already")
            return False
        left_s = self.end_s - time.monotonic()
        if left_s < seconds and not self.is_tiny:
            self.left_out.append(f"{what} (about {human_duration(seconds)}, {human_duration(max(0.0, left_s))} left)")
            say(f"{what}: left out, it takes about {human_duration(seconds)}")
            return False
        say(f"{what} ...")
        return True

    def quiet(self) -> FolderLock:
        """The machine's measuring lock, for what a suite times itself: use it in a with statement. Not re-entrant."""
        return quiet(self.machine_folder)

    def lacks(self, what: str) -> None:
        """Says that a part is left out for want of an input."""
        self.left_out.append(what)
        say(f"left out: {what}")

    def row(
        self, name: str, value: float, unit: str, *, n: int, low: float | None = None, high: float | None = None,
        baseline: str | None = None,
    ) -> None:  # fmt: skip
        """Writes one row, now. Raises UserError for a value that is no measurement."""
        full = f"{self.prefix}.{name}"
        row = ResultRow(
            id=full, value=value, unit=unit, low=low, high=high, n=n, baseline=baseline, machine=self.machine,
            command=self.command, code=self.code, date=utc_now(),
        )  # fmt: skip
        append_result(self.out / ROWS, row)
        self._known[full] = row
        span = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        say(f"{full}  {value:.4g}{span} {unit}  n={n}")

    def median_row(
        self, name: str, values: Sequence[float], unit: str, *, of: Callable[[float], float] = float
    ) -> None:
        """Writes the row of the median of NUM_GROUPS values with its 96 % interval; of turns times into rates."""
        assert len(values) == NUM_GROUPS, f"{len(values)} values, the interval is made for {NUM_GROUPS}"
        numbers = sorted(map(of, values))
        self.row(name, statistics.median(numbers), unit, low=numbers[LOW], high=numbers[HIGH], n=len(numbers))


def time_groups(work: Callable[[], object], wait: Callable[[], None]) -> list[float]:
    """Seconds of one call, NUM_GROUPS times, each over as many calls as last GROUP_S; warmed up before.

    wait blocks until the device has finished. The first call is not timed, the second tells how many make a group.
    """
    work()
    wait()
    begin_s = time.perf_counter()
    work()
    wait()
    count = max(1, round(GROUP_S / max(time.perf_counter() - begin_s, 1e-7)))
    times = []
    for _ in range(NUM_GROUPS):
        begin_s = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        times.append((time.perf_counter() - begin_s) / count)
    return times
