"""The largest memory of a process tree: proportional set sizes, summed five times a second."""

import contextlib
import threading
from pathlib import Path

import psutil

INTERVAL_S = 0.2


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
        me = psutil.Process()
        while not self._ended.wait(INTERVAL_S):
            with contextlib.suppress(psutil.Error):
                pids = [me.pid, *(child.pid for child in me.children(recursive=True))]
                self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, pids)))


def proportional_bytes(pid: int) -> int:
    """PSS of one process in bytes, else its resident size; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
