"""Where the time went: every second in one part, and the rest called not explained."""

import pytest

from intone.paths import read_json, write_json
from intone.records import cut_log
from intone.report.account import time_account
from intone.report.record import read_record


def test_every_part_is_measured_and_the_rest_is_not_explained(finished):
    account = time_account(read_record("first_try"))
    assert account.parts == pytest.approx(
        {"planning": 4.0, "steps": 24.1, "data": 5.9, "first": 2.0, "evaluations": 6.0, "saves": 2.0, "questions": 2.0}
    )
    assert account.total_s == 60.0
    assert account.unexplained_s == pytest.approx(14.0)
    assert account.in_stages_s == pytest.approx(3.0)  # 43 s of stages, 40 s of them on a clock


def test_a_stage_alone_is_held_against_its_own_clock(finished):
    account = time_account(read_record("first_try/sft"))
    assert account.parts == pytest.approx({"steps": 8.0, "data": 2.0, "evaluations": 3.0, "saves": 1.0})
    assert (account.total_s, account.unexplained_s) == (15.0, pytest.approx(1.0))


def test_without_phases_nothing_is_invented(finished):
    spent = finished.folder / "spent.json"
    write_json(spent, {key: value for key, value in read_json(spent).items() if key != "phases"})
    account = time_account(read_record("first_try"))
    assert "planning" not in account.parts and account.in_stages_s is None
    assert account.unexplained_s == pytest.approx(20.0)
    assert time_account(read_record("first_try/base")).total_s is None


def test_more_measured_than_the_clock_says_leaves_nothing_not_less_than_nothing(finished):
    account = time_account(read_record("first_try"))
    assert type(account)(account.parts, 10.0, None).unexplained_s == 0.0


def test_a_stage_that_has_just_begun_has_an_account(finished):
    cut_log(finished.stage_folder("base") / "log.jsonl", 1)
    cut_log(finished.stage_folder("sft") / "log.jsonl", 0)
    assert time_account(read_record("first_try")).parts["steps"] == pytest.approx(2.4)
