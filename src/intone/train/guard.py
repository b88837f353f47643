"""Watches the memory of a job that trains, and says when it is about to run out; it decides nothing."""

import time
from collections.abc import Callable

import torch

from intone.log import human_bytes
from intone.train.memory import free_bytes, peak_bytes, resident_bytes

LOOK_EVERY_S = 1.0  # a look costs 0.2 ms on a CPU; a neighbour that takes a gibibyte needs longer than this


class MemoryGuard:
    """Tells of two signs that the next size down is due: an allocator that had to give back what it kept, and others.

    margin_bytes: what the plan leaves free at the worst moment of a step; None: only the allocator is watched. A margin
    beyond what this job itself grew by is not defended: a smaller micro-batch could not give it back.
    """

    def __init__(
        self, device: torch.device, margin_bytes: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        """Make it before the first step: what grows afterwards is what a smaller micro-batch could spare."""
        self._device, self._margin_bytes, self._clock = device, margin_bytes, clock
        self._start_bytes = resident_bytes(device)
        self._retries = alloc_retries(device)
        self._looked_s = clock()

    def alarm(self) -> str | None:
        """Why memory is about to run out; None where it is not, or where the last look was less than a second ago."""
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = now_s
        return self._retried() or self._crowded()

    def _retried(self) -> str | None:
        """A retry frees everything that is cached, waits for the device, and asks again: steps become slow first."""
        retries = alloc_retries(self._device) - self._retries
        if retries <= 0:
            return None
        return f"memory is about to run out: the allocator had to give back its cache {retries:,} times"

    def _crowded(self) -> str | None:
        held, peak, free = (ask(self._device) for ask in (resident_bytes, peak_bytes, free_bytes))
        start = self._start_bytes
        if self._margin_bytes is None or held is None or peak is None or free is None or start is None:
            return None
        margin = min(self._margin_bytes, max(0, peak - start))
        left = free - max(0, peak - held)  # at the worst moment of the next step
        if left >= margin:
            return None
        return (
            f"memory is about to run out: others leave {human_bytes(max(0, left))} at the worst moment of a step, "
            f"{human_bytes(margin)} were to stay free"
        )


def alloc_retries(device: torch.device) -> int:
    """How often CUDA's caching allocator had to free its cache to serve a request; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
