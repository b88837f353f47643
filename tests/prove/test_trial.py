"""Trials: copies of a job, run and thrown away; the job's own folder is only read."""

import dataclasses
import subprocess
import sys

import pytest
from tests.tiny_jobs import SEGMENT, write_job

from intone.config import TrainJob
from intone.errors import UserError
from intone.paths import read_json
from intone.prove.trial import Side, run_worker, trial
from intone.records import Outcome, read_choices, write_outcome


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_worker_runs_a_changed_copy_that_is_gone_afterwards(tiny_job, tmp_path):
    source = write_job(tmp_path / "job", tiny_job)
    before = contents(source)
    with trial(Side.of(source), tmp_path / "scratch", steps=3, seed=11) as found:
        job = TrainJob.from_json(read_json(found.folder / "config.json"))
        assert (job.steps, job.seed, job.keep, job.val) == (3, 11, 0, None)
        assert found.outcome == Outcome("done", 3)
        assert [row["step"] for row in found.rows] == [1, 2, 3]
        assert found.losses[0] == pytest.approx(5.58, abs=0.02)  # ln 265
        assert not (found.folder / "checkpoints").exists()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert contents(source) == before


def test_other_segments_take_the_place_of_the_plan(tiny_job, tmp_path):
    seen = []

    def run(folder):
        seen.append(read_choices(folder))
        return Outcome("error", None, "no such kernel")

    source = write_job(tmp_path / "job", tiny_job)
    segment = dataclasses.replace(SEGMENT, device_batch=1, dtype="bf16")
    with trial(Side(source, run), tmp_path / "scratch", segments=(segment,), keep=1) as found:
        assert found.outcome.message == "no such kernel" and list(found.rows) == []
    assert seen[0].segments == (segment,) and seen[0].environment == {"OMP_NUM_THREADS": "1"}


def test_a_stopped_worker_stops_the_caller_too(tiny_job, tmp_path, monkeypatch):
    class Stopped:
        def wait(self):
            write_outcome(tmp_path / "job", Outcome("stopped", 1))
            return Outcome("stopped", 1)

    monkeypatch.setattr("intone.prove.trial.jobs.start", lambda *args: Stopped())
    with pytest.raises(KeyboardInterrupt):
        run_worker(write_job(tmp_path / "job", tiny_job))


def test_a_setting_that_no_job_has_is_refused(tiny_job, tmp_path):
    source = write_job(tmp_path / "job", tiny_job)
    with pytest.raises(TypeError), trial(Side.of(source), tmp_path, stepz=3):
        pass
    with pytest.raises(UserError, match=r"config.json does not exist"), trial(Side.of(tmp_path), tmp_path):
        pass


def test_trials_and_the_gates_on_losses_import_no_torch():
    modules = "intone.prove.trial, intone.prove.gates.parity, intone.prove.gates.selftest"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
