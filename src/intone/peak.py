"""What a run costs: its seconds, and the largest memory of its processes (PSS, looked at five times a second)."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.paths import read_json, write_json

INTERVAL_S = 0.2
KEEP_EVERY_S = 5.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH = 1.005  # of the resident sum since it was last looked at closely: the peak is at most this much higher


class CostWatch:
    """Seconds, their phases and peak memory of a run over all processes that worked on it, kept in a file as it goes.

    Watches this process and its children in a thread. What an earlier process wrote is added to (seconds) or
    kept (peak), so that a run that was killed does not look cheaper than it was. Pages shared by several
    processes count once (PSS).
    """

    def __init__(self, path: Path) -> None:
        before: dict[str, Any] = read_json(path) if path.exists() else {"seconds": 0.0, "peak_bytes": 0}
        self.peak_bytes = int(before["peak_bytes"])
        self._path = path
        self._seconds_before = float(before["seconds"])
        self._phases: dict[str, float] = dict(before.get("phases", {}))
        self._at_work: tuple[str, float] | None = None  # the phase that runs now, and since when
        self._started_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cost", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run up to now."""
        return self._seconds_before + time.monotonic() - self._started_s

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of every phase of the whole run up to now."""
        phases = dict(self._phases)
        at_work = self._at_work
        if at_work is not None:
            name, began_s = at_work
            phases[name] = phases.get(name, 0.0) + time.monotonic() - began_s
        return phases

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside to a phase of the run. Phases do not nest: time has one owner."""
        assert self._at_work is None, f"phase {name} inside {self._at_work}"
        self._at_work = (name, time.monotonic())
        try:
            yield
        finally:
            self._phases, self._at_work = self.phases, None

    def __enter__(self) -> "CostWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.keep()

    def _watch(self) -> None:
        known: list[int] = []
        measured_at_bytes = 0  # resident sum when the proportional one was last read
        kept_s = time.monotonic()
        while not self._ended.wait(INTERVAL_S):
            if time.monotonic() - kept_s > KEEP_EVERY_S:
                kept_s = time.monotonic()
                self.keep()
            tree = process_tree(os.getpid())
            resident_bytes = sum(map(resident, tree))
            # the kernel walks every page for a proportional size, 14 ms per GiB: only read where it may be a new peak
            if tree == known and resident_bytes <= measured_at_bytes * GROWTH:
                continue
            known, measured_at_bytes = tree, resident_bytes
            self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, tree)))

    def keep(self) -> None:
        """Writes the file. A full disk or a deleted folder must not end a run for the sake of its cost."""
        if self._path.parent.exists():
            kept = {"format": 1, "seconds": self.seconds, "peak_bytes": self.peak_bytes, "phases": self.phases}
            with contextlib.suppress(UserError, OSError):
                write_json(self._path, kept)


def process_tree(pid: int) -> list[int]:
    """The process and all below it.

    On Linux from the kernel's own lists of children: looking through all of /proc five times a second took 9 %
    of a core away from training.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        words = [word for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return [pid, *_children_elsewhere(pid)]
    return [pid, *(below for word in words for below in process_tree(int(word)))]


def _children_elsewhere(pid: int) -> list[int]:
    try:
        import psutil
    except ImportError:  # a bare GPU image: Linux answered above, unless the process has ended
        return []
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def resident(pid: int) -> int:
    """Resident bytes of one process, shared pages counted in full; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return _resident_elsewhere(pid)


def proportional_bytes(pid: int) -> int:
    """PSS of one process in bytes, else its resident size; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return _resident_elsewhere(pid)


def _resident_elsewhere(pid: int) -> int:
    try:
        import psutil
    except ImportError:
        return 0
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
