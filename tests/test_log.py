"""Numbers as people read them."""

import pytest

from intone.log import human_bytes, human_count, human_duration, say, table, three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.2134, "3.21"),
        (0.012345, "0.0123"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-2.5, "-2.5"),
        (2e-5, "0.00002"),
    ],
)
def test_three_significant_digits(value, text):
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(443_210, "443k"), (2.61e6, "2.61M"), (9_999, "9,999"), (1.78e8, "178M"), (3e9, "3G")]
)
def test_counts_get_a_letter(value, text):
    assert human_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "unknown"), (2**30, "1 GiB"), (44.04 * 2**30, "44 GiB"), (5 * 2**20, "5 MiB")]
)
def test_memory_is_gib_and_a_missing_fact_is_unknown(value, text):
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (1.234, "1.23 s"),
        (45.4, "45 s"),
        (200, "3 min 20 s"),
        (1500, "25 min"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600, "3 days 4 h"),
    ],
)
def test_durations_use_the_two_largest_units(seconds, text):
    assert human_duration(seconds) == text


def test_a_table_aligns_names_left_and_numbers_right():
    assert table([["base", "3"], ["sft", "12"]], header=["stage", "steps"]) == (
        "stage  steps\nbase       3\nsft       12"
    )
    assert table([["a", "b", "7"]], header=["x", "yyy", "zz"], left=2) == "x  yyy  zz\na  b     7"


def test_progress_goes_to_stderr(capsys):
    say("step 1")
    assert capsys.readouterr() == ("", "step 1\n")
