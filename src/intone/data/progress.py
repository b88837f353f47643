"""How far a long reading or fetching is: a line every few seconds, with rate and time left."""

import threading
import time

from intone.log import human_bytes, human_duration, say

EVERY_S = 5.0


class Progress:
    """Counts bytes and says how far they are; safe to use from several threads. Short work says nothing."""

    def __init__(self, what: str, total_bytes: int, *, done_bytes: int = 0) -> None:
        """done_bytes: what was there before, which says nothing about the rate."""
        self._what, self._total_bytes, self._begun_bytes = what, total_bytes, done_bytes
        self.done_bytes = done_bytes
        self._begun_s = self._said_s = time.monotonic()
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """So many more; less than 0 where something must be done again."""
        with self._lock:
            self._note(self.done_bytes + num_bytes)

    def reach(self, done_bytes: int) -> None:
        """So many in all."""
        with self._lock:
            self._note(done_bytes)

    def _note(self, done_bytes: int) -> None:
        self.done_bytes = done_bytes
        now_s = time.monotonic()
        if now_s - self._said_s < EVERY_S:
            return
        self._said_s = now_s
        rate = (done_bytes - self._begun_bytes) / (now_s - self._begun_s)
        left = human_duration((self._total_bytes - done_bytes) / rate) if rate > 0 else "unknown"
        say(
            f"{self._what}: {human_bytes(done_bytes)} of {human_bytes(self._total_bytes)}, "
            f"{human_bytes(max(rate, 0))}/s, left {left}"
        )
