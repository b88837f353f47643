"""How much may wait for the engine: so many requests and so many tokens of prompts; more is told to come back."""

import time
from collections.abc import Callable

from intone.serve.problems import Problem, full

MOST_RETRY_S = 60.0


class Admission:
    """Counts what was handed to an engine and has not begun. For one event loop."""

    def __init__(self, max_requests: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_tokens = 0
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._clock = clock
        self._waiting: dict[object, tuple[int, float]] = {}
        self._last_wait_s = 0.0

    @property
    def num_requests(self) -> int:
        return len(self._waiting)

    def check(self, num_requests: int, num_tokens: int, *, param: str) -> None:
        """Raises Problem: 429 where there is no room now, 400 where there never will be."""
        if num_requests > self._max_requests or num_tokens > self._max_tokens:
            raise Problem(
                400, f"{param}: {num_requests:,} prompts of {num_tokens:,} tokens together; this server lets "
                f"{self._max_requests:,} prompts of {self._max_tokens:,} tokens wait; send fewer at once", param=param,
            )  # fmt: skip
        if self.num_requests + num_requests > self._max_requests or self.num_tokens + num_tokens > self._max_tokens:
            retry_s = min(MOST_RETRY_S, self._longest_wait_s())
            raise full(
                f"{self.num_requests:,} requests with {self.num_tokens:,} tokens wait already", retry_s=retry_s
            )

    def enter(self, key: object, num_tokens: int) -> None:
        """A prompt begins to wait."""
        self._waiting[key] = (num_tokens, self._clock())
        self.num_tokens += num_tokens

    def leave(self, key: object) -> None:
        """It waits no longer; harmless when called twice."""
        if key in self._waiting:
            num_tokens, since_s = self._waiting.pop(key)
            self.num_tokens -= num_tokens
            self._last_wait_s = self._clock() - since_s

    def _longest_wait_s(self) -> float:
        """How long the oldest has waited, or the last one did: what a newcomer can expect at least."""
        oldest = next(iter(self._waiting.values()), None)
        return max(self._last_wait_s, self._clock() - oldest[1] if oldest is not None else 0.0)
