"""Jobs: a worker in a folder of its own, and exactly one outcome however it ends."""

import errno
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from intone import jobs, pulse
from intone.errors import DiskFull
from intone.paths import FolderLock
from intone.records import Outcome, StepRow, log_row, read_outcome, write_outcome
from tests.tiny_jobs import ENVIRONMENT, losses, wait_for, worker_of, write_job

LONG = 100_000  # steps that no test waits for


class EndedProcess:
    """A worker that has ended with this exit status."""

    def __init__(self, code):
        self.returncode = code

    def wait(self, timeout=None):
        return self.returncode


def ended(folder, code) -> jobs.Job:
    return jobs.Job(folder, EndedProcess(code), jobs.Limits(), None)


def test_a_worker_that_is_asked_to_stop_saves_and_ends(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=LONG, save_every_s=1000.0)
    job, times_asked = jobs.start(folder, ENVIRONMENT), []

    def wants_end():
        times_asked.append(len(losses(folder)))
        return times_asked[-1] >= 3

    outcome = job.wait(wants_end)
    assert [steps for steps in times_asked if steps >= 3] == times_asked[-1:]  # not again after the first yes
    assert (outcome.outcome, outcome.step) == ("stopped", len(losses(folder)))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{outcome.step:06d}"]
    assert read_outcome(folder) == outcome
    assert job.process.returncode == 130
    job.stop()  # harmless by now


def test_a_killed_worker_gets_its_outcome_from_its_end(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=LONG, save_every_s=1000.0)
    write_outcome(folder, Outcome("stopped", 2, "an earlier try"))
    job = jobs.start(folder, ENVIRONMENT)
    assert read_outcome(folder) is None
    wait_for(lambda: len(losses(folder)) >= 3, "the third step")
    job.process.kill()
    outcome = job.wait()
    assert outcome == Outcome("killed", losses(folder)[-1][0], "the worker was ended by SIGKILL")
    assert read_outcome(folder) == outcome
    assert list(folder.glob("*outcome*")) == [folder / "outcome.json"]


def test_a_worker_that_takes_too_long_is_killed(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=LONG)
    outcome = jobs.start(folder, ENVIRONMENT, jobs.Limits(seconds=0.3)).wait()
    assert (outcome.outcome, outcome.message) == ("killed", "the worker did not end within 0.3 s and was killed")
    assert read_outcome(folder) == outcome


def test_a_worker_dies_with_the_process_that_started_it(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=LONG)
    code = f"from pathlib import Path; from intone import jobs; jobs.start(Path({str(folder)!r})).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    worker = wait_for(lambda: worker_of(parent.pid), "the start of the worker")
    wait_for(lambda: losses(folder), "the first step")
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([worker], timeout=10)[1] == [], "the worker lives on"
    FolderLock(folder / "lock").close()  # nobody holds it any more
    assert read_outcome(folder) is None


def test_a_folder_that_another_worker_holds_keeps_its_outcome_to_itself(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job)
    with FolderLock(folder / "lock"):
        outcome = jobs.start(folder, ENVIRONMENT).wait()
    assert outcome.outcome == "bad_input"
    assert outcome.message == f"another process is already using this job folder ({folder})"
    assert read_outcome(folder) is None


def test_no_module_comes_from_the_folder_where_the_person_stands(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "job"
    folder.mkdir()
    assert jobs.start(folder).wait().message == f"{folder / 'config.json'} does not exist"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGSEGV, Outcome("killed", 2, "the worker was ended by SIGSEGV")),
        (1, Outcome("error", 2, "the worker ended with exit code 1 and wrote no outcome")),
        (2, Outcome("error", 2, "the worker ended with exit code 2 and wrote no outcome")),
    ],
)
def test_an_end_without_an_outcome_gets_one_with_the_last_step(tmp_path, code, expected):
    for step in (1, 2):
        log_row(tmp_path / "log.jsonl", StepRow(step, 64, 2.0, 1.0, 0.1, 0.0, 640.0, None))
    assert ended(tmp_path, code).wait() == expected
    assert read_outcome(tmp_path) == expected


def test_a_worker_that_could_not_write_that_the_disk_is_full_says_so_by_its_status(tmp_path, monkeypatch):
    def no_room(*_):
        raise DiskFull("no space left")

    monkeypatch.setattr(jobs, "write_outcome", no_room)
    outcome = ended(tmp_path, errno.ENOSPC).wait()
    assert (outcome.outcome, outcome.message) == ("disk_full", f"no space left on the disk of {tmp_path}")
    assert outcome.fix.startswith("free some space, or set INTONE_HOME to a larger disk")


def test_a_kill_by_the_kernel_for_want_of_memory_is_out_of_memory(tmp_path, monkeypatch):
    before = jobs.kernel_oom_kills()
    job = ended(tmp_path, -signal.SIGKILL)
    monkeypatch.setattr(jobs, "kernel_oom_kills", lambda: before + 1)
    assert job.wait().outcome == "out_of_memory"


def test_an_outcome_that_the_worker_wrote_is_not_replaced(tmp_path):
    write_outcome(tmp_path, Outcome("done", 9))
    assert ended(tmp_path, -signal.SIGKILL).wait() == Outcome("done", 9)


def test_ctrl_c_on_a_job_that_has_ended_meanwhile_is_not_lost(tmp_path):
    class Interrupted(EndedProcess):
        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt
            return self.returncode

        def send_signal(self, number):
            write_outcome(tmp_path, Outcome("done", 9))

    job = jobs.Job(tmp_path, Interrupted(0), jobs.Limits(), None)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert read_outcome(tmp_path) == Outcome("done", 9)


def test_a_worker_that_hangs_is_ended_and_goes_on_from_its_save(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=12)
    job = jobs.start(folder, ENVIRONMENT)
    wait_for(lambda: len(losses(folder)) >= 3, "the third step")
    job.process.send_signal(signal.SIGSTOP)  # from here on it shows no sign of life, as in a deadlock
    outcome = jobs.Job(folder, job.process, jobs.Limits(stall_s=0.2), None).wait()
    assert (outcome.outcome, outcome.message) == ("killed", "the worker gave no sign of life for 0.2 s and was killed")
    assert read_outcome(folder) == outcome
    assert jobs.start(folder, ENVIRONMENT).wait() == Outcome("done", 12)
    assert [step for step, _ in losses(folder)] == list(range(1, 13))


def test_only_silence_counts_as_hanging_and_the_time_of_day_does_not(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: clock[0])
    watch = pulse.Watch(tmp_path)
    clock[0] += 50
    assert watch.silent_s() == 50
    pulse.beat(tmp_path)
    assert watch.silent_s() == 0
    clock[0] += 3
    os.utime(tmp_path / "pulse", (0, 0))  # the clock of the machine was set back to 1970 before the next sign
    assert watch.silent_s() == 0
    clock[0] += 4
    log_row(tmp_path / "log.jsonl", StepRow(1, 64, 2.0, 1.0, 0.1, 0.0, 640.0, None))
    assert watch.silent_s() == 0
    clock[0] += 5
    assert watch.silent_s() == 5


def test_trials_of_killed_processes_go_after_an_hour(tmp_path):
    old, held, new = (tmp_path / f"trial-{name}" for name in ("old", "held", "new"))
    for folder in (old, held, new):
        folder.mkdir()
        (folder / "log.jsonl").write_text("{}")
        (folder / "lock").touch()
    an_hour_ago = time.time() - 3601
    for path in (old, held, old / "log.jsonl", held / "log.jsonl", old / "lock", held / "lock"):
        os.utime(path, (an_hour_ago, an_hour_ago))
    (tmp_path / "other").mkdir()
    os.utime(tmp_path / "other", (an_hour_ago, an_hour_ago))
    lock = FolderLock(held / "lock")
    os.utime(held / "lock", (an_hour_ago, an_hour_ago))
    with lock, jobs.trial_folder(tmp_path) as folder:
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {folder.name, "trial-held", "trial-new", "other"}


def test_a_trial_folder_is_gone_afterwards(tmp_path):
    with jobs.trial_folder(tmp_path / "trials") as folder:
        (folder / "log.jsonl").write_text("{}\n")
    assert list((tmp_path / "trials").iterdir()) == []
