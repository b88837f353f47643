"""The memory margin: what is left, what is unknown, what ran out."""

import dataclasses
from pathlib import Path

import pytest

from intone.hardware import Facts
from intone.prove.gates.memory import Memory, judge, of_trial, worst
from intone.prove.trial import Trial
from intone.records import Outcome

GIB = 2**30
FACTS = Facts("ab", device="cpu", cores_logical=2, cores_physical=2, memory_available_bytes=7 * GIB)


def test_the_margin_must_be_left_free():
    assert judge(Memory(85 * GIB, 100 * GIB)).passed
    result = judge(Memory(86 * GIB, 100 * GIB))
    assert result.passed is False
    assert result.reason == "peak 86 GiB of 100 GiB available in a training leaves 14.0%, asked are 15%"


def test_a_smaller_margin_is_the_callers_to_give():
    assert judge(Memory(94 * GIB, 100 * GIB), margin=0.05).passed


def test_more_than_there_is_is_named():
    assert "is 10.0% more than there is" in judge(Memory(110 * GIB, 100 * GIB)).reason


@pytest.mark.parametrize(
    ("memory", "passed"),
    [
        (Memory(1, 100, outcome="out_of_memory"), False),
        (Memory(1, 100, num_retries=2), False),
        (Memory(1, 100, num_retries=0), True),
        (Memory(1, 100, outcome="killed"), None),
        (Memory(None, 100), None),
        (Memory(1, None), None),
    ],
)
def test_ends_retries_and_unknown_sizes(memory, passed):
    assert judge(memory).passed is passed


def test_a_trials_peak_is_its_highest_step_against_its_own_device():
    rows = [{"peak_bytes": size} for size in (2 * GIB, 3 * GIB, None)]
    found = Trial(Path("x"), Outcome("done", 3), rows)
    assert of_trial(found, FACTS) == Memory(3 * GIB, 7 * GIB, what="a training of 3 steps")
    gpu = dataclasses.replace(FACTS, device="cuda", gpu_memory_free_bytes=140 * GIB)
    assert of_trial(found, gpu).available_bytes == 140 * GIB
    assert of_trial(Trial(Path("x"), Outcome("out_of_memory", 0), []), FACTS).peak_bytes is None


def test_the_worst_of_several_shapes_decides():
    short, long = Memory(5, 100, what="short rows"), Memory(9, 100, what="the evaluation")
    assert worst([short, long]) is long
    failed = Memory(1, 100, outcome="out_of_memory")
    assert worst([short, failed, long]) is failed
