"""Trials of the real worker: memory that runs out in one costs a size, not the run."""

from pathlib import Path

import pytest
from tests.tiny_jobs import ENVIRONMENT, make_data

from intone.prove.trial import Trial
from intone.records import Outcome
from intone.tune import trial
from intone.tune.precision import NoTrial
from intone.tune.trial import TrialRunner


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner of trials that fit as long as they have at most runner.most rows a pass; tried: those rows."""
    made = TrialRunner(make_data(tmp_path), "cpu", 1, 8, ENVIRONMENT, tmp_path / "trials", devices=2)
    made.tried, made.most = [], 8
    made.failure = Outcome("out_of_memory", 0, "memory ran out: 2 GiB more could not be had")

    def run(folder, job, choices, worker):
        rows = choices.segments[0].device_batch
        assert choices.settings["devices"].value == 2
        made.tried.append(rows)
        if rows > made.most:
            return Trial(Path(folder), made.failure, [])
        rows = [{"loss": 2.0, "step_s": 0.1, "data_s": 0.001, "peak_bytes": 1} for _ in range(job.steps)]
        return Trial(Path(folder), Outcome("done", job.steps), rows)

    monkeypatch.setattr(trial, "run_job", run)
    return made


def test_a_trial_without_memory_goes_down_a_size_and_the_next_begins_there(runner, capsys):
    runner.most = 5
    assert runner.run("fp32", compiled=False, num_steps=3).step_s == 0.1
    assert runner.run("bf16", compiled=False, num_steps=3).losses == [2.0] * 3
    assert (runner.tried, runner.device_batch) == ([8, 6, 4, 4], 4)
    assert "device_batch 8 -> 6: memory ran out: 2 GiB more could not be had" in capsys.readouterr().err


def test_a_trial_that_is_killed_without_a_word_may_have_wanted_memory(runner):
    """In a container the kernel's count of such kills may not be seen."""
    runner.most, runner.failure = 5, Outcome("killed", 0, "the worker was ended by SIGKILL")
    assert runner.run("fp32", compiled=False, num_steps=3).step_s == 0.1
    assert runner.tried == [8, 6, 4]


@pytest.mark.parametrize(
    "failure",
    [
        Outcome("killed", 0, "the worker did not end within 300 s and was killed"),
        Outcome("killed", 0, "the worker was ended by SIGSEGV"),
        Outcome("error", 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_trial_that_ends_for_another_reason_is_not_repeated_with_fewer_rows(runner, failure):
    runner.most, runner.failure = 5, failure
    with pytest.raises(NoTrial, match=failure.message):
        runner.run("fp32", compiled=False, num_steps=3)
    assert runner.tried == [8]


def test_memory_that_does_not_hold_one_row_is_no_trial(runner):
    runner.most = 0
    with pytest.raises(NoTrial, match="memory ran out"):
        runner.run("fp32", compiled=False, num_steps=3)
    assert runner.tried == [8, 6, 4, 3, 2, 1]
