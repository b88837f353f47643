"""Ranks from the environment."""

import pytest

from intone.dist import World, read_world
from intone.errors import UserError

GOOD = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_without_torchrun_this_is_the_only_process():
    assert read_world({}) == World(0, 1, 0, 1)
    assert read_world({}).is_main


def test_torchruns_variables_are_read():
    world = read_world(GOOD)
    assert world == World(3, 8, 1, 2)
    assert not world.is_main


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "8"}, "contradict"),
        ({"LOCAL_WORLD_SIZE": "9"}, "contradict"),
        ({"LOCAL_RANK": "-1"}, "contradict"),
        ({"WORLD_SIZE": "many"}, "whole numbers"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        read_world(GOOD | change)


def test_a_missing_variable_is_named():
    with pytest.raises(UserError, match="LOCAL_RANK is not set"):
        read_world({name: value for name, value in GOOD.items() if name != "LOCAL_RANK"})
