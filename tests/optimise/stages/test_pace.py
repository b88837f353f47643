"""How long the rest of a round takes: only by what was measured, and nothing where nothing was."""

import pytest

from intone.optimise.stages.pace import Pace

MEASURED = {("look", "train"): [12.0, 10.0, 8.0], ("gates", "train"): [5.0], ("side", "train"): [8.0]}


def test_nothing_is_said_before_every_kind_of_work_was_measured():
    assert Pace({("look", "train"): [10.0]}).left_s("train", tries=1, kept=0) is None


def test_a_try_is_a_look_gates_and_two_sides_and_the_sum_has_a_side_for_every_change():
    pace = Pace(dict(MEASURED))
    one = 10 + 5 + 2 * 8
    assert pace.left_s("train", tries=1, kept=0) == one + 5 + 2 * 8, "alone it is the whole"
    assert pace.left_s("train", tries=2, kept=1) == 2 * one + 5 + (2 + 3) * 8
    assert pace.left_s("train", tries=0, kept=0) == 0


def test_a_part_that_was_not_begun_goes_by_the_other_one():
    pace = Pace({**MEASURED, ("look", "generate"): [1.0]})
    assert pace.left_s("generate", tries=1, kept=0) == pace.left_s("train", tries=1, kept=0) - 9


def test_a_comparison_counts_by_its_sides_and_what_fails_does_not_count():
    pace = Pace()
    with pace.timed("side", "train", shares=4):
        pass
    with pytest.raises(ValueError), pace.timed("gates", "train"):
        raise ValueError
    assert list(pace.seconds) == [("side", "train")] and pace.seconds["side", "train"][0] < 1
