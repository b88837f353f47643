"""The supervisor: a job goes on after a kill and a size lower after memory ran out, and always comes to an end."""

import os
import signal
import threading

import psutil
import pytest

from intone import jobs, supervisor
from intone.model.checkpoint import list_checkpoints
from intone.paths import append_line
from intone.records import (
    Choice,
    EventRow,
    Outcome,
    StepRow,
    log_row,
    read_choices,
    read_log,
    read_outcome,
    write_choices,
    write_outcome,
)
from intone.supervisor import go_smaller, supervise
from tests.tiny_jobs import ENVIRONMENT, SEGMENT, losses, replace, wait_for, worker_of, write_job

MIB = 2**20
STEPS = 150  # on a busy machine a watcher sees step 20 up to a second late
SAVE_EVERY_S = 0.2  # a few saves in the seconds that the steps take, and steps after the last one


@pytest.fixture(scope="module")
def undisturbed(tiny_job, tmp_path_factory):
    """The folder of the job after it ran without any trouble."""
    folder = write_job(tmp_path_factory.mktemp("undisturbed"), tiny_job, steps=STEPS, save_every_s=SAVE_EVERY_S)
    assert supervise(folder, ENVIRONMENT) == Outcome("done", STEPS)
    assert [step for step, _ in losses(folder)] == list(range(1, STEPS + 1))
    assert read_outcome(folder) == Outcome("done", STEPS)
    return folder


def weights(folder) -> bytes:
    """The newest save's weights file."""
    return (list_checkpoints(folder)[-1] / "model.safetensors").read_bytes()


def assert_same_result(folder, undisturbed):
    assert losses(folder) == losses(undisturbed)
    assert weights(folder) == weights(undisturbed)
    assert list(folder.glob("*outcome*")) == [folder / "outcome.json"]


def after_saved_steps(folder, count, act):
    """Calls act from another thread once the job has a save and count steps in its log."""

    def watch():
        wait_for(lambda: list_checkpoints(folder) and len(losses(folder)) >= count, f"step {count}")
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_worker_killed_once_goes_on_from_its_save_and_nothing_shows(tiny_job, tmp_path, undisturbed):
    folder = write_job(tmp_path / "job", tiny_job, steps=STEPS, save_every_s=SAVE_EVERY_S)
    killer = after_saved_steps(folder, 20, lambda: worker_of(os.getpid()).kill())
    assert supervise(folder, ENVIRONMENT) == Outcome("done", STEPS)
    killer.join()
    assert_same_result(folder, undisturbed)
    [restart] = [row for row in read_log(folder / "log.jsonl", "event") if row["event"] == "restart"]
    assert restart["message"] == f"the worker was ended by SIGKILL; going on from step {restart['step']:,}"


def test_ctrl_c_ends_as_stopped_and_the_same_call_goes_on(tiny_job, tmp_path, undisturbed):
    folder = write_job(tmp_path / "job", tiny_job, steps=STEPS, save_every_s=SAVE_EVERY_S)
    # once the worker has ended, nobody here waits for a signal
    thread = after_saved_steps(folder, 20, lambda: worker_of(os.getpid()) and os.kill(os.getpid(), signal.SIGINT))
    outcome = supervise(folder, ENVIRONMENT)
    thread.join()
    assert outcome.outcome == "stopped"
    assert supervisor.last_save(folder) == outcome.step == losses(folder)[-1][0]
    assert supervise(folder, ENVIRONMENT) == Outcome("done", STEPS)
    assert_same_result(folder, undisturbed)


def test_out_of_memory_goes_on_with_the_next_smaller_micro_batch(tiny_job, tmp_path):
    """At 700 MiB a pass of 2,048 rows fails in the allocator, one of 64 rows needs a tenth."""
    large = replace(SEGMENT, device_batch=2048)
    folder = write_job(tmp_path / "job", tiny_job, large, fallbacks=(2048, 64, 1), rows_per_step=2048, steps=2)
    outcome = supervise(folder, ENVIRONMENT, limits=jobs.Limits(data_bytes=700 * 2**20))
    assert outcome == Outcome("done", 2)
    first, second = read_choices(folder).segments
    assert first == large
    assert second == replace(SEGMENT, device_batch=64, reason=second.reason)
    assert second.reason.startswith("device_batch 2048 -> 64: memory ran out: ")
    events = [row["event"] for row in read_log(folder / "log.jsonl", "event") if row["event"] != "save"]
    assert events == ["smaller micro-batch"]
    assert [step for step, _ in losses(folder)] == [1, 2]


def test_memory_that_runs_out_in_mid_run_gives_the_losses_of_a_plan_that_makes_the_same_switch(
    tiny_job, tmp_path, capfd
):
    """A limit below what the worker holds already, and an allocator that asks the system for every large tensor."""
    environment = {**ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "65536"}
    large = replace(SEGMENT, device_batch=48)
    asked = dict(fallbacks=(48, 20), rows_per_step=48, steps=30, save_every_s=1e4, eval_every=10, val=None)
    folder = write_job(tmp_path / "job", tiny_job, large, **asked)
    limiter = after_saved_steps(folder, 11, lambda: worker_of(os.getpid()).rlimit(psutil.RLIMIT_DATA, (MIB, MIB)))
    assert supervise(folder, environment) == Outcome("done", 30)
    limiter.join()
    first, second = read_choices(folder).segments
    assert first == large and (second.device_batch, second.from_step) == (20, 10)
    told = [line for line in capfd.readouterr().err.splitlines() if "memory ran out" in line]
    assert len(told) == 1 and told[0].startswith("smaller micro-batch: device_batch 48 -> 20: memory ran out")
    planned = write_job(tmp_path / "planned", tiny_job, *read_choices(folder).segments, **asked)
    assert supervise(planned, environment) == Outcome("done", 30)
    assert_same_result(folder, planned)


class Worker:
    """Stands in for jobs: each start takes the next of these outcomes, and saves where it says so."""

    def __init__(self, monkeypatch, folder, outcomes, saves=()):
        self.folder, self.outcomes, self.saves = folder, list(outcomes), list(saves)
        self.count = 0
        monkeypatch.setattr(jobs, "start", self.start)
        monkeypatch.setattr(supervisor, "last_save", lambda folder: sum(self.saves[: self.count]))

    def start(self, folder, env, limits):
        assert (folder, env) == (self.folder, ENVIRONMENT)
        self.limits = limits
        self.count += 1
        return self

    interrupted = False

    def wait(self, wants_end=None):
        self.wants_end = wants_end
        return self.outcomes[min(self.count, len(self.outcomes)) - 1]


KILLED = Outcome("killed", 3, "the worker was ended by SIGKILL")
NO_MEMORY = Outcome("out_of_memory", 3, "memory ran out")


def test_a_worker_that_dies_again_and_again_is_given_up_after_three_restarts(tiny_job, tmp_path, monkeypatch):
    crashed = replace(KILLED, message="the worker was ended by SIGSEGV")
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [crashed])
    assert supervise(tmp_path, ENVIRONMENT) == crashed
    assert worker.count == 4
    assert read_choices(tmp_path).segments == (SEGMENT,)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT"])
def test_killed_or_aborted_twice_without_a_save_between_goes_a_size_down_each_time(
    tiny_job, tmp_path, monkeypatch, name
):
    """So ends a process in a container that took too much, or one whose library aborts: nobody says why."""
    ended = replace(KILLED, message=f"the worker was ended by {name}")
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [ended])
    assert supervise(tmp_path, ENVIRONMENT) == ended
    assert [segment.device_batch for segment in read_choices(tmp_path).segments] == [3, 2, 1]
    assert worker.count == 4  # 3 rows twice, 2, 1
    events = [row["event"] for row in read_log(tmp_path / "log.jsonl", "event")]
    assert events == ["restart", "smaller micro-batch", "smaller micro-batch"]


@pytest.mark.parametrize(("planned", "expected"), [(None, None), (30.0, 30.0), ("not planned", 1800.0)])
def test_how_long_a_worker_may_be_silent_is_what_was_planned(tiny_job, tmp_path, monkeypatch, planned, expected):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [Outcome("done", 9)])
    if planned != "not planned":
        choices = read_choices(tmp_path)
        settings = {**choices.settings, "stall_s": Choice(planned, "test", "flag")}
        write_choices(tmp_path, replace(choices, settings=settings))
    supervise(tmp_path, ENVIRONMENT)
    assert worker.limits == jobs.Limits(stall_s=expected)


def test_every_new_save_earns_three_more_restarts(tiny_job, tmp_path, monkeypatch):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [KILLED], saves=[0, 0, 5, 0, 0, 7])
    assert supervise(tmp_path, ENVIRONMENT) == KILLED
    assert worker.count == 9


def test_memory_that_never_suffices_ends_after_the_last_size(tiny_job, tmp_path, monkeypatch):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [NO_MEMORY])
    assert supervise(tmp_path, ENVIRONMENT) == NO_MEMORY
    assert worker.count == 3
    assert [segment.device_batch for segment in read_choices(tmp_path).segments] == [3, 2, 1]


@pytest.mark.parametrize("outcome", ["done", "stopped", "not_finite", "bad_input", "disk_full", "error"])
def test_every_other_end_is_an_end(tiny_job, tmp_path, monkeypatch, outcome):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [Outcome(outcome, 3)])
    assert supervise(tmp_path, ENVIRONMENT) == Outcome(outcome, 3)
    assert worker.count == 1


def test_a_job_that_is_done_is_not_started_again(tiny_job, tmp_path, monkeypatch):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [KILLED])
    write_outcome(tmp_path, Outcome("done", 9))
    assert supervise(tmp_path, ENVIRONMENT) == Outcome("done", 9)
    assert worker.count == 0


class Review:
    """Stands in for whoever plans anew: says each time whether it wanted to."""

    def __init__(self, *wanted):
        self.wanted, self.planned_from = list(wanted), []

    def wants_end(self):
        return False

    def plan_anew(self, from_step):
        self.planned_from.append(from_step)
        return self.wanted.pop(0)


STOPPED = Outcome("stopped", 5, "stopped by a signal")


def test_a_worker_that_ends_for_a_new_plan_starts_again_with_it(tiny_job, tmp_path, monkeypatch):
    outcomes = [STOPPED, KILLED, STOPPED, Outcome("done", 9)]
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), outcomes, saves=[0, 5, 0, 2])
    review = Review(True, True)
    assert supervise(tmp_path, ENVIRONMENT, review=review) == Outcome("done", 9)
    assert (worker.count, review.planned_from) == (4, [0, 5])
    assert worker.wants_end == review.wants_end


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_person_who_stops_a_worker_is_obeyed_whatever_is_planned(tiny_job, tmp_path, monkeypatch, interrupted):
    worker = Worker(monkeypatch, write_job(tmp_path, tiny_job), [STOPPED])
    worker.interrupted = interrupted
    review = Review(interrupted)  # with Ctrl-C it may have wanted a new plan in the same moment
    assert supervise(tmp_path, ENVIRONMENT, review=review) == STOPPED
    assert worker.count == 1 and len(review.planned_from) == (not interrupted)


@pytest.mark.long
def test_steps_planned_anew_and_a_kill_after_that_give_the_losses_of_a_run_planned_so(tiny_job, tmp_path):
    asked = dict(steps=STEPS, save_every_s=SAVE_EVERY_S)
    folder = write_job(tmp_path / "job", tiny_job, **asked)

    class Longer(Review):
        def wants_end(self):
            return len(read_choices(folder).segments) == 1 and len(losses(folder)) >= 15

        def plan_anew(self, from_step):
            choices = read_choices(folder).with_steps(from_step, 2 * STEPS, STEPS, "it is faster than that")
            write_choices(folder, choices)
            return True

    killer = after_saved_steps(folder, STEPS, lambda: worker_of(os.getpid()).kill())
    assert supervise(folder, ENVIRONMENT, review=Longer()) == Outcome("done", 2 * STEPS)
    killer.join()
    planned = write_job(tmp_path / "planned", tiny_job, *read_choices(folder).segments, **asked)
    assert supervise(planned, ENVIRONMENT) == Outcome("done", 2 * STEPS)
    assert_same_result(folder, planned)
    assert [row["event"] for row in read_log(folder / "log.jsonl", "event")].count("restart") == 1


def test_an_evaluation_without_memory_has_nothing_to_go_down(tmp_path, monkeypatch):
    worker = Worker(monkeypatch, tmp_path, [NO_MEMORY])
    assert supervise(tmp_path, ENVIRONMENT) == NO_MEMORY
    assert worker.count == 1


def test_segments_planned_for_later_stay_and_are_no_larger(tiny_job, tmp_path):
    later = replace(SEGMENT, from_step=40, compiled=True, attention="products", reason="compiled by then")
    write_job(tmp_path, tiny_job, SEGMENT, later)
    assert go_smaller(tmp_path, 10, NO_MEMORY)
    segments = read_choices(tmp_path).segments
    assert [(s.from_step, s.device_batch) for s in segments] == [(0, 3), (10, 2), (40, 2)]
    assert [s.compiled for s in segments] == [False, False, True]
    assert segments[1].reason == "device_batch 3 -> 2: memory ran out"


def test_the_segment_that_failed_decides_how_far_down(tiny_job, tmp_path):
    """The first steps ran with one row, the next ones failed with three; the last save is from the first steps."""
    small, large = replace(SEGMENT, device_batch=1), replace(SEGMENT, from_step=4)
    write_job(tmp_path, tiny_job, small, large)
    for step in range(1, 6):
        log_row(tmp_path / "log.jsonl", StepRow(step, 64, 2.0, 1.0, 0.1, 0.0, 640.0, None))
    assert go_smaller(tmp_path, 2, NO_MEMORY)
    segments = read_choices(tmp_path).segments
    assert [(s.from_step, s.device_batch) for s in segments] == [(0, 1), (2, 1), (4, 2)]


def test_a_torn_last_row_of_the_log_does_not_hide_the_restart(tmp_path):
    append_line(tmp_path / "log.jsonl", {"kind": "event", "step": 1, "event": "x", "message": "y"})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "st')
    supervisor.note(tmp_path, 1, "restart", "killed")
    supervisor.note(tmp_path, 1, "restart", "killed again")
    assert [row["message"] for row in read_log(tmp_path / "log.jsonl")] == ["y", "killed", "killed again"]
    assert EventRow(1, "restart", "killed").event == "restart"
