"""The peak of memory: it sees what is gone again, and forgets it when told to."""

import mmap
import sys

import pytest
import torch

from intone.train.memory import peak_bytes, reset_peak

CPU = torch.device("cpu")
SIZE = 80 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of the resident size")
def test_the_peak_sees_what_was_freed_and_a_reset_forgets_it():
    reset_peak(CPU)
    before = peak_bytes(CPU)
    # straight from the system: after many tests the allocator has as much lying idle
    with mmap.mmap(-1, SIZE) as memory:
        for page in range(0, SIZE, mmap.PAGESIZE):
            memory[page] = 1
    peak = peak_bytes(CPU)
    assert peak - before > 0.9 * SIZE
    reset_peak(CPU)
    assert peak_bytes(CPU) < peak - 0.9 * SIZE


def test_where_the_system_does_not_tell_the_peak_is_unknown(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    assert peak_bytes(CPU) is None
