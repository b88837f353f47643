"""The worker: whatever happens to its job, one outcome is left that a person can read."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from intone import worker
from intone.dist import World
from intone.errors import Damaged, DiskFull, RankLost
from intone.jobs import EXIT_CODES
from intone.paths import FolderLock, disk_errors, read_json, write_json
from intone.records import Outcome, StepRow, log_row, read_outcome, write_outcome
from tests.tiny_jobs import ENVIRONMENT, write_job


def run_worker(folder) -> tuple[int, str]:
    """(exit code, stderr) of a worker started by hand."""
    done = subprocess.run(
        [sys.executable, "-m", "intone.worker", str(folder)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """The outcome of a job that does what the given function does, after four steps."""
    for step in (1, 2, 3, 4):
        log_row(tmp_path / "log.jsonl", StepRow(step, 64, 2.0, 1.0, 0.1, 0.0, 640.0, None))

    def use(function):
        monkeypatch.setattr(worker, "run_job", lambda *_: function())
        return worker.run_guarded(tmp_path, lambda: False)

    return use


def raising(error):
    def function():
        raise error

    return function


def test_an_unknown_setting_of_a_job_is_the_persons_input(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "stepps": 3})
    code, err = run_worker(folder)
    assert code == 2
    assert err == "bad_input: unknown job setting 'stepps'\n"
    assert read_outcome(folder) == Outcome(
        "bad_input", None, "unknown job setting 'stepps'", "did you mean 'steps'?"
    )
    assert not (folder / "log.jsonl").exists()


def test_a_tokenizer_that_is_gone_is_the_persons_input(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, tokenizer=str(tmp_path / "gone"))
    code, err = run_worker(folder)
    outcome = read_outcome(folder)
    assert (code, outcome.outcome) == (2, "bad_input")
    assert str(tmp_path / "gone") in outcome.message
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        ({"job": "trian"}, "unknown job 'trian' in FOLDER/config.json", "train, evaluate or generate"),
        ({}, "FOLDER/config.json names no job: key 'job' is missing", "train, evaluate or generate"),
        (None, "FOLDER/config.json does not exist", None),
    ],
)
def test_a_folder_without_a_job_says_what_is_missing(tmp_path, content, message, fix):
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    outcome = worker.run_guarded(tmp_path, lambda: False)
    assert outcome.message.replace(str(tmp_path), "FOLDER") == message
    assert (outcome.outcome, outcome.fix) == ("bad_input", fix)


def test_a_second_worker_ends_at_once_and_leaves_the_folder_alone(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job)
    with FolderLock(folder / "lock"):
        code, err = run_worker(folder)
    assert code == 2
    assert err.splitlines() == [
        f"another process is already using this job folder ({folder})",
        "  fix: wait for it to end, or choose another --name",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["choices.json", "config.json", "lock"]


@pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "--life"], ["a", "--live", "b"]])
def test_anything_but_one_folder_is_answered_with_the_usage(words, capsys):
    assert worker.main(words) == 2
    assert capsys.readouterr().err == "usage: python -m intone.worker FOLDER [--live]\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out (MemoryError: no message)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 67108864 bytes. Error 12"),
            "memory ran out: 64 MiB more could not be had",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"),
            "memory ran out: 2.50 GiB more could not be had",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (RuntimeError("can't start new thread"), "memory ran out (RuntimeError: can't start new thread)"),
        (type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate 9.0 GiB for an array"), None),
    ],
)  # fmt: skip
def test_memory_that_ran_out_is_recognised_however_it_is_said(guarded, error, message):
    outcome = guarded(raising(error))
    assert (outcome.outcome, outcome.step) == ("out_of_memory", 4)
    assert outcome.fix == "use a smaller --device-batch, --context or --depth"
    assert message is None or outcome.message == message


def test_memory_that_ran_out_below_another_error_is_recognised(guarded):
    def fail():
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("could not pack") from error

    assert guarded(fail).outcome == "out_of_memory"


def test_a_full_disk_is_recognised_translated_or_not(guarded, tmp_path):
    def fill():
        with disk_errors(tmp_path):
            raise OSError(errno.ENOSPC, "full")

    for function in (fill, raising(OSError(errno.ENOSPC, "full")), raising(DiskFull("full", fix="free some"))):
        outcome = guarded(function)
        assert (outcome.outcome, outcome.step) == ("disk_full", 4)
        assert outcome.fix.startswith("free some")


def test_what_went_wrong_in_another_process_of_a_team_is_the_outcome(tmp_path, monkeypatch):
    def lose(*_):
        raise RankLost("another process of the run ended or did not answer (Connection closed by peer)")

    monkeypatch.setattr(worker, "run_job", lose)
    alone = worker.run_guarded(tmp_path, lambda: False, None, World(0, 3, 0, 3))
    assert (alone.outcome, alone.fix) == ("killed", "the same command goes on from the last save")
    write_outcome(worker.rank_folder(tmp_path, 2), Outcome("out_of_memory", 4, "memory ran out", "use less"))
    assert worker.run_guarded(tmp_path, lambda: False, None, World(0, 3, 0, 3)) == Outcome(
        "out_of_memory", 4, "process 2: memory ran out", "use less"
    )
    assert worker.run_guarded(tmp_path, lambda: False, None, World(1, 3, 1, 3)).outcome == "killed"


def test_a_further_process_leaves_its_outcome_where_the_first_looks_for_it(tmp_path, monkeypatch):
    outcomes = [Outcome("disk_full", 4, "full"), Outcome("done", 9), Outcome("killed", 4, "lost")]
    monkeypatch.setattr(worker, "run_guarded", lambda *_: outcomes[0])
    place = worker.rank_folder(tmp_path, 1)
    for left in (outcomes[0], None, None):
        code = worker.run_beside(tmp_path, worker.StopFlag(), World(1, 2, 1, 2))
        assert read_outcome(place) == left
        assert code == EXIT_CODES.get(outcomes.pop(0).outcome, 1)


def test_one_ctrl_c_under_torchrun_arrives_twice_and_asks_once(monkeypatch, capsys):
    clock = [50.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    flag = worker.StopFlag(under_torchrun=True)
    flag._on_signal(signal.SIGINT, None)
    clock[0] += 0.2
    flag._on_signal(signal.SIGINT, None)
    assert flag()
    clock[0] += worker.ECHO_S
    with pytest.raises(KeyboardInterrupt):
        flag._on_signal(signal.SIGINT, None)


def test_an_evaluation_is_not_for_several_processes(tmp_path):
    write_json(tmp_path / "config.json", {"job": "evaluate"})
    outcome = worker.run_guarded(tmp_path, worker.StopFlag(), None, World(0, 2, 0, 2))
    assert outcome.message == "a job 'evaluate' runs in one process, this is one of 2"


def test_a_damaged_file_is_the_persons_input_with_its_fix(guarded):
    assert guarded(raising(Damaged("x is damaged", fix="delete it"))) == Outcome(
        "bad_input", 4, "x is damaged", "delete it"
    )


def test_our_own_fault_is_one_line_and_the_traceback_a_file(guarded, tmp_path, capsys):
    outcome = guarded(raising(ZeroDivisionError("division by zero")))
    assert (outcome.outcome, outcome.step, outcome.message) == ("error", 4, "ZeroDivisionError: division by zero")
    assert outcome.fix == f"the full trace is in {tmp_path / 'traceback.txt'}"
    assert (tmp_path / "traceback.txt").read_text().endswith("ZeroDivisionError: division by zero\n")


@pytest.fixture
def stop_flag():
    """A flag with its signal handlers, and those of the tests put back afterwards."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield worker.StopFlag().listen()
    for number, handler in before:
        signal.signal(number, handler)


def test_one_signal_asks_to_stop_and_only_a_second_ctrl_c_stops_at_once(stop_flag, capsys):
    assert not stop_flag()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop_flag()
    os.kill(os.getpid(), signal.SIGTERM)  # a supervisor sends one when Ctrl-C reached the worker already
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err.startswith("stopping after this step")


def test_a_job_that_saves_nothing_stops_at_the_first_signal(stop_flag, tmp_path, monkeypatch):
    write_json(tmp_path / "config.json", {"job": "evaluate"})
    monkeypatch.setattr(
        "intone.evals.job.evaluate_job", lambda folder, config: os.kill(os.getpid(), signal.SIGTERM)
    )
    outcome = worker.run_guarded(tmp_path, stop_flag)
    assert outcome.outcome == "stopped"


def test_an_outcome_that_finds_no_room_is_told_by_the_exit_status(tmp_path, stop_flag, monkeypatch, capsys):
    def no_room(folder, outcome):
        raise DiskFull("no space left")

    monkeypatch.setattr(worker, "write_outcome", no_room)
    monkeypatch.setattr(worker, "run_job", lambda *_: no_room(None, None))
    assert worker.main([str(tmp_path)]) == errno.ENOSPC
    assert capsys.readouterr().err == "disk_full: no space left\n"


def test_training_without_compiling_is_deterministic_and_never_imports_the_compiler(tmp_path, tiny_job):
    """torch.use_deterministic_algorithms would: that is 2.4 of the 5.8 s of a core that a tiny training takes."""
    code = """
import sys
from intone import worker
assert worker.main(sys.argv[1:]) == 0
import torch
compiler = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
print(torch.are_deterministic_algorithms_enabled(), compiler)
"""
    folder = write_job(tmp_path, tiny_job, steps=1, samples=())
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, check=False)
    assert done.stdout.strip() == "True []", done.stderr
