"""One job on several devices: torchrun starts the workers, and however they end, one outcome is left."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from intone import jobs, launch
from intone.model.checkpoint import list_checkpoints
from intone.paths import FolderLock
from intone.records import Choice, Outcome, read_choices, read_log, read_outcome, write_choices, write_outcome
from intone.supervisor import supervise
from tests.tiny_jobs import ENVIRONMENT, losses, wait_for, write_job

LONG = 100_000  # steps that no test waits for


def on_devices(folder, devices):
    """The plan of the folder's job, on so many devices."""
    choices = read_choices(folder)
    settings = {**choices.settings, "devices": Choice(devices, "test", "flag")}
    write_choices(folder, dataclasses.replace(choices, settings=settings))
    return folder


def workers() -> dict[int, psutil.Process]:
    """The workers below this process, by rank."""
    found = {}
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if "intone.worker" in child.cmdline():
                found[int(child.environ()["RANK"])] = child
        except (psutil.Error, KeyError):
            continue
    return found


@pytest.mark.long
def test_a_run_on_two_devices_survives_a_kill_and_stops_and_goes_on_by_hand_on_three(tiny_job, tmp_path):
    """One story, since every start of several workers takes seconds."""
    folder = on_devices(write_job(tmp_path / "job", tiny_job, steps=LONG, save_every_s=0.1), 2)

    def disturb():
        wait_for(lambda: list_checkpoints(folder) and len(losses(folder)) >= 3, "a save")
        killed.append(workers()[1])
        killed[0].kill()
        wait_for(lambda: restarts(folder), "the restart")
        wait_for(lambda: len(losses(folder)) > restarts(folder)[0]["step"] + 2, "steps after the restart")
        os.kill(os.getpid(), signal.SIGINT)

    killed: list[psutil.Process] = []
    thread = threading.Thread(target=disturb)
    thread.start()
    outcome = supervise(folder, ENVIRONMENT)
    thread.join()
    assert outcome.outcome == "stopped"
    assert outcome == read_outcome(folder)
    [restart] = restarts(folder)
    assert restart["message"] == f"process 1 of 2 was ended by SIGKILL; going on from step {restart['step']:,}"
    assert list_checkpoints(folder)[-1].name == f"step_{outcome.step:06d}"
    assert sorted(path.name for path in list_checkpoints(folder)[-1].glob("optimizer*")) == [
        "optimizer.rank0.safetensors", "optimizer.rank1.safetensors"
    ]  # fmt: skip
    assert workers() == {}

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    by_hand = subprocess.Popen(
        [*torchrun, "-m", "intone.worker", str(folder)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(losses(folder)) >= outcome.step + 2, "steps on three devices")
    os.killpg(by_hand.pid, signal.SIGINT)  # a Ctrl-C in its terminal, which torchrun hands on once more
    by_hand.wait(60)
    assert read_outcome(folder).outcome == "stopped"
    assert list_checkpoints(folder)[-1].name == f"step_{losses(folder)[-1][0]:06d}"
    assert [step for step, _ in losses(folder)] == list(range(1, len(losses(folder)) + 1))


def restarts(folder):
    return [row for row in read_log(folder / "log.jsonl", "event") if row["event"] == "restart"]


class Failure:
    """What torchrun says about one process."""

    def __init__(self, code):
        self.exitcode = code


@pytest.mark.parametrize(
    ("failures", "written", "expected"),
    [
        ({1: -9}, None, Outcome("killed", None, "process 1 of 3 was ended by SIGKILL")),
        ({0: -11, 1: 1}, None, Outcome("killed", None, "process 0 of 3 was ended by SIGSEGV")),
        ({1: -9, 0: 1}, Outcome("killed", 4, "lost"), Outcome("killed", None, "process 1 of 3 was ended by SIGKILL")),
        ({1: -15, 0: 1}, Outcome("out_of_memory", 4, "x"), Outcome("out_of_memory", 4, "x")),
        ({2: -9, 0: 1}, Outcome("disk_full", 4, "x"), Outcome("disk_full", 4, "x")),
        ({0: 1, 1: -15}, None, None),
        ({}, Outcome("stopped", 4, "x"), Outcome("stopped", 4, "x")),
    ],
    ids=str,
)
def test_the_outcome_is_that_of_the_process_that_ended_first_and_by_itself(tmp_path, failures, written, expected):
    if written is not None:
        write_outcome(tmp_path, written)
    said = {rank: Failure(code) for rank, code in failures.items()}
    code = launch.exit_code(tmp_path, 3, said, oom_kills_before=jobs.kernel_oom_kills())
    assert read_outcome(tmp_path) == expected
    assert code == jobs.EXIT_CODES.get(expected.outcome if expected else "error", 1)


def test_a_folder_that_others_hold_is_left_alone(tmp_path):
    """The first worker has said so and ended; torchrun has ended the others with SIGTERM."""
    with FolderLock(tmp_path / "lock"):
        code = launch.exit_code(tmp_path, 2, {0: Failure(2), 1: Failure(-15)}, oom_kills_before=0)
    assert (code, read_outcome(tmp_path)) == (2, None)


def test_a_process_killed_for_want_of_memory_is_out_of_memory(tmp_path):
    launch.exit_code(tmp_path, 2, {1: Failure(-9)}, oom_kills_before=jobs.kernel_oom_kills() - 1)
    assert read_outcome(tmp_path).outcome == "out_of_memory"
    assert read_outcome(tmp_path).message == "the kernel killed process 1 of 2 because the machine's memory ran out"


@pytest.mark.parametrize("words", [[], ["x"], ["x", "none"], ["x", "0"], ["x", "2", "3"]])
def test_anything_but_a_folder_and_a_number_is_answered_with_the_usage(words, capsys):
    assert launch.main(words) == 2
    assert capsys.readouterr().err == "usage: python -m intone.launch FOLDER DEVICES\n"
