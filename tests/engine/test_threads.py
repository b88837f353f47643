"""Threads that a caller's own computing started are gone when the engine computes"""

import os
import sys
import threading

import pytest
import torch

from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.engine.threads import openmp_releases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")


def counted(function):
    """What function returns in a thread of its own, in which PyTorch computes with two."""
    found = []

    def run():
        torch.set_num_threads(2)
        found.append(function())

    thread = threading.Thread(target=run)
    before = torch.get_num_threads()
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    return found[0]


def num_threads():
    return len(os.listdir("/proc/self/task"))


def test_openmp_threads_of_the_calling_thread_are_freed_and_started_again():
    if not openmp_releases():
        pytest.skip("no GNU OpenMP here")

    def work():
        counts = [num_threads()]
        for _ in range(2):
            total = torch.ones(1 << 20).sum().item()
            counts.append(num_threads())
            for release in openmp_releases():
                release()
            counts.append(num_threads())
        return counts, total

    (first, *counts), total = counted(work)
    assert counts == [first + 1, first, first + 1, first] and total == 1 << 20


def test_an_engine_frees_the_threads_of_whoever_opens_it_and_asks_it(random_model, byte_tokenizer):
    if not openmp_releases():
        pytest.skip("no GNU OpenMP here")
    model = random_model(vocab_size=265, depth=1, dtype=torch.float32)
    request = Request([1, 2], max_tokens=2, temperature=0.0)

    def work():
        first, counts = num_threads(), []
        torch.ones(1 << 20).sum()
        with Engine(model, byte_tokenizer) as engine:
            engine.generate([request])  # whatever the engine's own thread starts is there from here on
            counts.append(num_threads())
            torch.ones(1 << 20).sum()
            counts.append(num_threads())
            engine.generate([request])
            counts.append(num_threads())
        return first, counts

    first, (open_, busy, after) = counted(work)
    assert busy == open_ + 1 and after == open_, "those of the caller's sum are gone again"
