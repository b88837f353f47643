"""Threads that a caller's own computing started are gone when the engine computes"""

import os
import sys
import threading
import time

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


def tasks():
    """The threads of this process as the system numbers them."""
    return set(os.listdir("/proc/self/task"))


def are_gone(started):
    """Whether threads have ended, or do so within 20 s: they are told to, and nobody waits until they have."""
    end_s = time.monotonic() + 20
    while started & tasks() and time.monotonic() < end_s:
        time.sleep(0.001)
    return not started & tasks()


def test_openmp_threads_of_the_calling_thread_are_freed_and_started_again():
    if not openmp_releases():
        pytest.skip("no GNU OpenMP here")

    def work():
        found = []
        for _ in range(2):
            before = tasks()  # some of an earlier test may still be ending
            total = torch.ones(1 << 20).sum().item()
            started = tasks() - before
            for release in openmp_releases():
                release()
            found.append((len(started), are_gone(started), total))
        return found

    assert counted(work) == [(1, True, 1 << 20)] * 2


def test_an_engine_frees_the_threads_of_whoever_opens_it_and_asks_it(random_model, byte_tokenizer):
    if not openmp_releases():
        pytest.skip("no GNU OpenMP here")
    model = random_model(vocab_size=265, depth=1, dtype=torch.float32)
    request = Request([1, 2], max_tokens=2, temperature=0.0)

    def work():
        before = tasks()
        torch.ones(1 << 20).sum()
        first = tasks() - before
        with Engine(model, byte_tokenizer) as engine:
            opened = are_gone(first)
            engine.generate([request])  # whatever the engine's own thread starts is there from here on
            before = tasks()
            torch.ones(1 << 20).sum()
            again = tasks() - before
            engine.generate([request])
            return len(first), opened, len(again), are_gone(again)

    assert counted(work) == (1, True, 1, True)
