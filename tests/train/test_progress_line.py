"""The line of progress: when it is said, and what its rate and time left are reckoned from."""

import dataclasses

import pytest

from intone.config import TrainJob
from intone.model.cost import train_flops_per_token
from intone.paths import read_json
from intone.records import StepRow
from intone.train import progress_line
from intone.train.progress_line import ProgressLine, progress_text


@pytest.fixture
def job(make_job):
    return TrainJob.from_json(read_json(make_job(steps=1200) / "config.json"))


def row(step, *, step_s=0.5, loss=2.0):
    return StepRow(step, 160 * step, loss, 1.0, step_s, 0.0, 160 / step_s, 2**30)


def test_the_first_and_the_last_step_have_a_line_and_between_them_there_is_one_every_five_seconds(
    job, monkeypatch, capsys
):
    now_s = [1000.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now_s[0])
    line = ProgressLine(job)
    for step in [*range(1, 20), 1200]:
        line.show(row(step))
        now_s[0] += 0.75
    said = [int(text.split()[2].split("/")[0].replace(",", "")) for text in capsys.readouterr().err.splitlines()]
    assert said == [1, 8, 15, 1200]


def test_the_first_step_of_a_process_does_not_count_for_the_rate(job, monkeypatch, capsys):
    monkeypatch.setattr(progress_line, "PROGRESS_EVERY_S", 0.0)
    line = ProgressLine(job)
    for step, step_s in enumerate([60.0, 0.5, 1.5], 101):
        line.show(row(step, step_s=step_s))
    left = [text.rpartition("left ")[2] for text in capsys.readouterr().err.splitlines()]
    assert left == ["18 h 19 min", "9 min 9 s", "11 min"]  # 1,099 steps of 60 s, 1,098 of 0.5 s, 1,097 of 0.6 s


def test_a_line_says_loss_rate_memory_time_left_and_what_is_unknown(job):
    assert progress_text(job, row(7), 0.5) == (
        "base step     7/1,200   loss 2.000   320 tok/s   MFU unknown   peak 1 GiB   left 9 min 56 s"
    )
    assert "   loss not finite   " in progress_text(job, row(7, loss=None), 0.5)


def test_the_mfu_is_a_share_of_the_measured_rate(job):
    flops = train_flops_per_token(job.model, job.context)
    known = dataclasses.replace(job, peak_flops=1280 * flops)
    assert "   MFU 25.0%   " in progress_text(known, row(7), 0.5)
