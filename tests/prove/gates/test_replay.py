"""Fresh results: stale, incomplete, repeated or impossible losses are somebody else's or nobody's."""

import dataclasses
import math
import os
import time

import pytest

from intone.paths import append_line
from intone.prove.gates.replay import Written, judge, num_shared, read_written

ONE = Written("run 1", (7, 0), (5.5, 4.9, 4.4, 4.1, 3.9), began_at_s=1000.0, written_at_s=1003.0, num_steps=5)
TWO = dataclasses.replace(ONE, name="run 2", fresh_key=(8, 0), losses=(5.6, 4.8, 4.5, 4.2, 3.7))


def two(**fields):
    return judge([ONE, dataclasses.replace(TWO, **fields)])


def test_different_runs_with_different_losses_pass():
    assert two().passed and judge([ONE]).passed


def test_three_equal_losses_in_a_row_anywhere_are_a_replay():
    result = two(losses=(6.0, 5.5, 4.9, 4.4, 3.0))
    assert result.passed is False and result.reason.startswith("run 2 shows 3 losses of run 1 again")
    assert two(losses=ONE.losses).evidence["shared_losses"] == 5
    assert two(losses=(5.5, 4.9, 4.5, 4.1, 3.9)).passed  # never three in a row


def test_runs_on_the_same_rows_with_the_same_seed_must_agree():
    assert two(fresh_key=ONE.fresh_key, losses=ONE.losses).passed


def test_blocks_of_one_run_have_other_rows_each():
    blocks = [dataclasses.replace(ONE, name=f"block {i}", fresh_key=(7, 5 * i)) for i in range(2)]
    assert judge(blocks).passed is False


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"written_at_s": 400.0}, "a result of run 2 is 600.0 s older than its run"),
        ({"written_at_s": None}, "run 2 left no result"),
        ({"losses": (5.5, 4.9)}, "run 2 has 2 losses, 5 steps were asked for"),
        ({"losses": (5.6, None, 4.5, 4.2, 3.7)}, "the loss of run 2 at step 2 is None, no finite number"),
        ({"losses": (5.6, True, 4.5, 4.2, 3.7)}, "the loss of run 2 at step 2 is True"),
        ({"losses": (5.6, math.nan, 4.5, 4.2, 3.7)}, "the loss of run 2 at step 2 is nan"),
        ({"losses": (5.6, "1.0", 4.5, 4.2, 3.7)}, "the loss of run 2 at step 2 is '1.0'"),
        ({"losses": (5.6, 4.8, 4.8, 4.8, 3.7)}, "run 2 shows one loss 3 times in a row"),
    ],
)
def test_what_is_no_result_of_the_run_never_scores(fields, reason):
    result = two(**fields)
    assert result.passed is False and result.reason.startswith(reason)


def test_no_runs_are_not_judged():
    assert judge([]).passed is None


def test_files_are_as_old_as_their_older_time(tmp_path):
    append_line(tmp_path / "log.jsonl", {"kind": "step"})
    now_s = time.time()
    new = read_written("a", tmp_path, (5.5,), fresh_key=(1,), began_at_s=now_s - 60, num_steps=1)
    assert new.written_at_s == pytest.approx(now_s, abs=30) and judge([new]).passed
    os.utime(tmp_path / "log.jsonl", (now_s - 3600, now_s - 3600))
    old = read_written("a", tmp_path, (5.5,), fresh_key=(1,), began_at_s=now_s - 60, num_steps=1)
    assert judge([old]).reason.startswith("a result of a is 35")
    assert read_written("a", tmp_path / "none", (), fresh_key=(), began_at_s=0.0, num_steps=0).written_at_s is None


def test_shared_stretches_are_found_wherever_they_begin():
    assert num_shared((1, 2, 3, 4, 5), (9, 8, 2, 3, 4, 7)) == 3
    assert num_shared((1, 2, 3, 4), (3, 4, 1, 2)) == 0
    assert num_shared((), (1, 2, 3)) == 0
