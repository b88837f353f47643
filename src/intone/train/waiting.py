"""Lets threads that wait for each other sleep soon where other programs need the processors, and spin where none does

A step is hundreds of short loops that all threads share. By default a thread of libgomp that waits spins for
milliseconds before it sleeps. On a quiet machine that is right: to be woken takes longer than most waits. Beside a busy
program it holds a processor that the thread it waits for could use. How long a process spins is settled when it starts
(GOMP_SPINCOUNT), but libgomp's manual says that waits are 100 spins long while there are more of its threads than
processors: so one more team of threads, asleep, is a switch that can be thrown while steps run. It changes no result.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from intone import system
from intone.hardware import BUSY_CORES
from intone.log import say

LOOK_S = 2.0  # the kernel counts in ticks of 10 ms: 0.5 % of it
CALM_CORES = BUSY_CORES / 2  # others' use below which threads spin again; guess
SHARED_VALUES = 2**20  # of a loop that torch is sure to share among threads: it does from 32,768 on

Used = tuple[float, float]  # seconds that processors were busy since they started, and this process's part of them


def used() -> Used | None:
    """Of the processors that this process may use; None where the system does not say."""
    ticks = system.busy_ticks(system.allowed_cpus(), system.ROOT)
    return None if ticks is None else (ticks / os.sysconf("SC_CLK_TCK"), time.process_time())


class Waiting:
    """look() after every step keeps the switch where it belongs; as a context manager it leaves nothing behind.

    threads: those that compute a step. Where they are few beside the processors there is nothing to switch.
    """

    def __init__(
        self, threads: int, *, num_cpus: int | None = None, used: Callable[[], Used | None] = used,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._used, self._clock = used, clock
        num_cpus = len(system.allowed_cpus()) if num_cpus is None else num_cpus
        self._before = used() if 2 * threads - 1 > num_cpus and threads > 1 else None  # a second team is as large
        self._before_s = clock()
        self._team: threading.Thread | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spin()

    @property
    def sleeps_soon(self) -> bool:
        """Whether threads that wait sleep soon now."""
        return self._team is not None

    def look(self) -> None:
        """Throws the switch where what others used of the processors since the latest look says so."""
        now_s = self._clock()
        if self._before is None or now_s - self._before_s < LOOK_S:
            return
        now = self._used()
        if now is None:
            return
        busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        others = (busy - own) / (now_s - self._before_s)
        self._before, self._before_s = now, now_s
        if not self.sleeps_soon and others > BUSY_CORES:
            say(f"others keep {others:.1f} cores busy: threads that wait sleep soon instead of spinning")
            self._sleep_soon()
        elif self.sleeps_soon and others < CALM_CORES:
            say("others need the cores no more: threads that wait spin again")
            self._spin()

    def _sleep_soon(self) -> None:
        ready = threading.Event()

        def rest() -> None:
            torch.zeros(SHARED_VALUES).add_(1.0)  # this thread has a team of its own from here to its end
            ready.set()
            self._over.wait()

        self._over.clear()
        self._team = threading.Thread(target=rest, name="resting-team", daemon=True)
        self._team.start()
        ready.wait()

    def _spin(self) -> None:
        if self._team is not None:
            self._over.set()
            self._team.join()
            self._team = None
