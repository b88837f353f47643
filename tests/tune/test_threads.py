"""The rule that picks a number of threads."""

import dataclasses

import pytest

from intone.tune.threads import candidates, pick


@pytest.mark.parametrize(
    ("cores", "numbers"), [(1, (1,)), (2, (1, 2)), (4, (1, 4)), (6, (1, 4, 6)), (64, (1, 4, 16, 64))]
)
def test_one_and_all_cores_are_tried_with_steps_between_on_large_machines(facts, cores, numbers):
    assert candidates(dataclasses.replace(facts, cores_physical=cores)) == numbers


def test_more_threads_need_more_than_five_percent():
    assert pick({1: [1.04, 1.04, 1.04], 2: [1.0, 1.0, 1.0]}).value == 1
    assert pick({1: [1.06, 1.06, 1.06], 2: [1.0, 1.0, 1.0]}).value == 2


def test_two_threads_on_busy_cores_lose_and_the_reason_says_by_how_much():
    choice = pick({1: [0.1, 0.1, 0.1], 2: [0.7, 0.1, 0.8]})
    assert choice.value == 1 and choice.origin == "measured"
    assert choice.beat == ({"value": 2, "why": "0.14x as fast as 1, not more than 1.05x"},)
    assert choice.measured == {"step_s": {"1": 0.1, "2": 0.7}, "rounds": 3}
    assert choice.reason == "more threads gain less than 5 % (1: 100 ms, 2: 700 ms; median of 3 rounds)"


def test_the_best_of_many_is_found_even_where_all_cores_lose_again():
    choice = pick({1: [1.0] * 3, 4: [0.3] * 3, 16: [0.29] * 3, 64: [0.5] * 3})
    assert choice.value == 4
    assert [entry["value"] for entry in choice.beat] == [1, 16, 64]
