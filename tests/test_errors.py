"""Errors that a person can fix: what is wrong, the value, the fix."""

import pytest

from intone.errors import DiskFull, UserError, nearest, unknown_name


def test_an_error_prints_its_message_and_its_fix():
    assert str(UserError("depth is 0", value=0, fix="use 1 or more")) == "depth is 0\n  fix: use 1 or more"
    assert str(UserError("depth is 0")) == "depth is 0"


def test_an_error_says_the_same_to_machines():
    error = UserError("depth is 0", value=0, fix="use 1 or more")
    assert error.as_json() == {"message": "depth is 0", "value": 0, "fix": "use 1 or more"}


@pytest.mark.parametrize(
    ("typed", "known", "expected"),
    [("dept", ["depth", "data"], "depth"), ("xyz", ["depth"], None), ("rnu", ["run", "runs"], "run"), ("a", [], None)],
)
def test_the_nearest_name_is_offered_only_if_it_is_near(typed, known, expected):
    assert nearest(typed, known) == expected


def test_an_unknown_name_offers_the_nearest_or_lists_what_is_known():
    assert str(unknown_name("verb", "rnu", ["train", "run"])) == "unknown verb 'rnu'\n  fix: did you mean 'run'?"
    assert unknown_name("verb", "xyz", ["train", "run"]).fix == "known: run, train"


def test_a_full_disk_is_something_the_person_can_fix():
    assert issubclass(DiskFull, UserError)
