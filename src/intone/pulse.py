"""Signs of life of a job: its worker touches a file while it gets on, and who waits for it notices where that stops."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

PULSE = "pulse"
# what changes while a job gets on: its own sign, what it logs, what it saves
SIGNS = (PULSE, "log.jsonl", "samples.jsonl", "completions.jsonl", "checkpoints", "eval.json", "outcome.json")

T = TypeVar("T")


def beat(folder: Path) -> None:
    """Says that the job in folder gets on. Cheap: ten microseconds. A disk that is full is no reason to stop."""
    with contextlib.suppress(OSError):
        (folder / PULSE).touch()


def beating(folder: Path, items: Iterable[T]) -> Iterator[T]:
    """The items, with a sign of life before each."""
    for item in items:
        beat(folder)
        yield item


class Watch:
    """How long a job has shown no sign of life, by our own clock: the time of day may jump."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._signs()
        self._seen_s = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since the last look that found something new; the first look was when the watch began."""
        signs = self._signs()
        if signs != self._seen:
            self._seen, self._seen_s = signs, time.monotonic()
        return time.monotonic() - self._seen_s

    def _signs(self) -> list[tuple[int, int] | None]:
        return [_state(self._folder / name) for name in SIGNS]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
