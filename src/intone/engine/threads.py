"""Gives the engine's thread the cores: OpenMP threads that others started, and left idle, slow those of a step"""

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

MAPS = Path("/proc/self/maps")
SOFT = 1  # omp_pause_soft of OpenMP 5.0, section 3.2.36

# frees the calling thread's OpenMP threads, which its next parallel region starts again
Release = Callable[[], object]


def openmp_releases() -> list[Release]:
    """One for every GNU OpenMP in this process; none where it is another system's or too old.

    Every Python thread that computes has OpenMP threads of its own. Where all of them together are more than the
    cores, GNU's does not let them wait awake for the next part of a step any more but puts them to sleep, some 100
    times a step: with the loading thread's still there, steps of one row took 25 ms on two threads, 12 on one, and 7.3
    on two after they were freed; of 16 rows 52, 60 and 31 ms (two cores of an EPYC 7003, 110M weights in bfloat16).
    """
    if sys.platform != "linux":
        return []
    paths = {line.split()[-1] for line in MAPS.read_text().splitlines() if "/libgomp" in line}
    found: list[Release] = []
    for path in sorted(paths):
        pause = getattr(ctypes.CDLL(path), "omp_pause_resource_all", None)  # already loaded: the very same library
        if pause is not None:
            found.append(partial(pause, SOFT))
    return found
