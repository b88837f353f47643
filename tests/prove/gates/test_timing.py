"""Plausible times: the parent's clock and the processor time bracket what a child claims."""

import dataclasses
import os
import subprocess
import sys

import pytest

from intone.prove.gates.cases import ASLEEP, BUSY, timed_child
from intone.prove.gates.timing import Block, block, judge, read_process

HONEST = Block("baseline", claimed_s=1.0, seen_s=1.004, cpu_s=0.97, queued_s=0.02)


def blocks(*changes, side="baseline"):
    """An honest candidate block, and one of the side per change."""
    other = "candidate" if side == "baseline" else "baseline"
    wrong = [dataclasses.replace(HONEST, side=side, **change) for change in changes]
    return judge([dataclasses.replace(HONEST, side=other), *wrong])


def test_honest_blocks_pass():
    result = blocks({}, {})
    assert result.passed and result.reason == "3 blocks fit the parent's clock, idle at most 0%"


def test_waiting_for_a_core_and_for_data_is_not_idleness():
    assert blocks({"cpu_s": 0.4, "queued_s": 0.55}).passed
    assert blocks({"cpu_s": 0.4, "data_s": 0.55}).passed
    assert blocks({"cpu_s": 0.4}).passed is False


def test_a_sleeping_baseline_is_rejected_and_one_that_was_held_up_once_is_not_judged():
    asleep = {"cpu_s": 0.05, "queued_s": 0.0}
    result = blocks(asleep, asleep, {})
    assert result.passed is False
    assert result.reason == (
        "the baseline did nothing for 93% of 1.000 s: it slept, waited or was stopped, in 2 of 3 blocks"
    )
    assert blocks(asleep, {}, {}).passed is None


def test_work_outside_the_childs_clock_is_rejected_on_either_side():
    hidden = {"claimed_s": 0.5, "cpu_s": 0.5}
    for side in ("baseline", "candidate"):
        result = blocks(hidden, hidden, side=side)
        assert result.passed is False and f"the {side} claims 0.500 s where 1.004 s passed" in result.reason
    assert blocks(hidden, {}, {}).passed is None


@pytest.mark.parametrize(
    ("claimed_s", "words"),
    [(1.2, "claims 1.200 s, and only 1.004 s passed"), (0.0, "0.0 s, which is no time"), (-1.0, "no time"),
     (float("nan"), "no time"), (True, "True s, which is no time"), ("1", "no time")],
)  # fmt: skip
def test_one_impossible_claim_is_enough(claimed_s, words):
    result = blocks({}, {}, {}, {"claimed_s": claimed_s})
    assert result.passed is False and words in result.reason


def test_a_device_that_computes_makes_idleness_unknown():
    result = judge([dataclasses.replace(HONEST, cpu_s=None)])
    assert result.passed and result.reason.endswith("idleness not looked at")


def test_no_blocks_are_not_judged():
    assert judge([]).passed is None


def test_a_real_process_that_works_and_one_that_sleeps_are_told_apart():
    busy, asleep = (timed_child("baseline", code.format(0.2), 1.0) for code in (BUSY, ASLEEP))
    assert asleep.idle_share > 0.7 and asleep.cpu_s < 0.06
    # a busy machine may hold it up, and says so where it tells
    assert busy.idle_share < 0.25 or busy.seen_s > 0.25
    assert judge([asleep]).passed is False


def test_a_process_that_has_ended_leaves_an_empty_block():
    child = subprocess.Popen([sys.executable, "-c", ""])
    begin = read_process(child.pid)
    child.wait()
    assert read_process(child.pid) is None
    empty = block("candidate", 0.3, begin, None, on_cpu=True)
    assert judge([empty]).passed is False


def test_readings_of_this_process_grow():
    first = read_process(os.getpid())
    sum(range(3_000_000))
    second = read_process(os.getpid())
    found = block("baseline", second.at_s - first.at_s, first, second, on_cpu=True)
    assert found.cpu_s > 0 and found.seen_s == found.claimed_s
    assert block("baseline", 0.1, first, second, on_cpu=False).cpu_s is None
