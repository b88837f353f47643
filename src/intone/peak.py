"""The largest memory of a process tree: proportional set sizes, summed five times a second."""

import contextlib
import os
import threading
from pathlib import Path

import psutil

INTERVAL_S = 0.2
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH = 1.005  # of the resident sum since it was last looked at closely: the peak is at most this much higher


class PeakWatch:
    """Watches this process and its children in a thread; peak_bytes holds the largest sum so far.

    Pages shared by several processes count once (PSS). Where the platform has no PSS, resident sizes are summed.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> "PeakWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        known: list[int] = []
        measured_at_bytes = 0  # resident sum when the proportional one was last read
        while not self._ended.wait(INTERVAL_S):
            tree = process_tree(os.getpid())
            resident_bytes = sum(map(resident, tree))
            # the kernel walks every page for a proportional size, 14 ms per GiB: only read where it may be a new peak
            if tree == known and resident_bytes <= measured_at_bytes * GROWTH:
                continue
            known, measured_at_bytes = tree, resident_bytes
            self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, tree)))


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
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
