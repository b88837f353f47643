"""Threads that wait: asleep soon beside other programs, spinning without them."""

import os
import subprocess
import sys

import pytest

from intone.train.waiting import LOOK_S, Waiting, used

# loops that two threads share, with gaps longer than 100 spins and shorter than the default's 300,000
SLEEPS = """
import resource, sys, time, torch
from intone.train.waiting import Waiting
seen = iter([(0.0, 0.0), (9.0, 0.0)])
clock = iter([0.0, 3.0])
x = torch.zeros(2**18)
with Waiting(torch.get_num_threads(), used=lambda: next(seen), clock=lambda: next(clock)) as waiting:
    if sys.argv[1] == "busy":
        waiting.look()
    assert waiting.sleeps_soon == (sys.argv[1] == "busy")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(200):
        x.add_(1.0)
        until = time.perf_counter() + 3e-4
        while time.perf_counter() < until:
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
"""


class Machine:
    """A clock, and what others and this process use of two processors."""

    def __init__(self):
        self.now_s = self.busy_s = self.own_s = 0.0

    def pass_time(self, seconds, *, others, own=1.9):
        self.now_s += seconds
        self.own_s += seconds * own
        self.busy_s += seconds * (own + others)

    def waiting(self, threads=2, num_cpus=2):
        return Waiting(
            threads, num_cpus=num_cpus, used=lambda: (self.busy_s, self.own_s), clock=lambda: self.now_s
        )  # fmt: skip


def test_others_switch_spinning_off_and_on_again_and_it_is_said_once(capsys):
    machine = Machine()
    with machine.waiting() as waiting:
        found = []
        for others in (0.0, 0.4, 0.9, 1.0, 0.4, 0.1, 0.1):
            machine.pass_time(LOOK_S, others=others)
            waiting.look()
            found.append(waiting.sleeps_soon)
    assert found == [False, False, True, True, True, False, False]
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "others keep 0.9 cores busy", "others need the cores no more"
    ]  # fmt: skip


def test_steps_are_looked_at_together_until_they_say_something():
    machine = Machine()
    with machine.waiting() as waiting:
        for _ in range(3):
            machine.pass_time(LOOK_S / 4, others=1.0)
            waiting.look()
        assert not waiting.sleeps_soon
        machine.pass_time(LOOK_S / 4, others=1.0)
        waiting.look()
        assert waiting.sleeps_soon
    assert not waiting.sleeps_soon, "the end of training ends it"


@pytest.mark.parametrize(("threads", "num_cpus"), [(1, 1), (2, 4), (4, 8)])
def test_threads_that_leave_processors_to_others_have_nothing_to_switch(threads, num_cpus):
    machine = Machine()
    with machine.waiting(threads, num_cpus) as waiting:
        machine.pass_time(LOOK_S, others=2.0)
        waiting.look()
        assert not waiting.sleeps_soon


def test_where_the_system_does_not_say_nothing_is_switched():
    with Waiting(2, num_cpus=2, used=lambda: None) as waiting:
        waiting.look()
        assert not waiting.sleeps_soon


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux counts what processors do in /proc/stat")
def test_what_this_process_computes_counts_as_its_own():
    before = used()
    sum(range(10**6))
    after = used()
    assert after[0] >= before[0] and after[1] > before[1]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="libgomp on two processors")
def test_the_switch_makes_threads_that_wait_sleep():
    def sleeps(how):
        cpus = str(len(os.sched_getaffinity(0)))
        command = [sys.executable, "-c", SLEEPS, how]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": cpus}, capture_output=True, text=True, timeout=120, check=True
        )
        return int(done.stdout)

    # every gap sends at least one thread to sleep; on a busy machine a few sleep anyhow
    assert sleeps("quiet") < 100 < sleeps("busy")
