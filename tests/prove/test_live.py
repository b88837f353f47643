"""Live children: real processes that answer, lie, hang and die; each end is one outcome in words."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.tiny_jobs import ENVIRONMENT, losses, wait_for, write_job

from intone.prove import live
from intone.prove.live import LineChild, LiveFailed, WorkerChild
from intone.records import read_log, read_outcome

# a child in the standard library alone; THEN is what it does with each command
CHILD = """
import json, os, signal, subprocess, sys, time
def say(**answer): print(json.dumps(answer), flush=True)
say(ready=True, first_s=2.5, warm_s=0.5, facts={"who": "me"})
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "quit": break
    THEN
"""


def program(then: str, **arguments) -> LineChild:
    code = CHILD.replace("THEN", then.replace("\n", "\n    "))
    return LineChild([sys.executable, "-c", code], name="the child", **arguments)


@pytest.fixture
def child_of():
    """child_of(then) -> a child that is ready; all are closed at the end."""
    children = []

    def made(then, **arguments):
        children.append(program(then, **arguments))
        children[-1].wait_ready()
        return children[-1]

    yield made
    for child in children:
        child.close()


def failure(call) -> LiveFailed:
    with pytest.raises(LiveFailed) as caught:
        call()
    return caught.value


def test_a_foreign_program_answers_blocks_until_it_is_closed():
    with program("say(seconds=0.5, tokens=10 * command['steps'])") as child:
        ready = child.wait_ready()
        assert (ready.first_s, ready.warm_s, ready.facts) == (2.5, 0.5, {"who": "me"})
        assert child.block(steps=3) == {"seconds": 0.5, "tokens": 30}
        assert child.block(steps=4) == {"seconds": 0.5, "tokens": 40}
    assert not psutil.pid_exists(child.pid)
    child.close()


def test_variables_and_folder_reach_the_program(child_of, tmp_path):
    then = "say(seconds=1, home=os.environ['COLOUR'], folder=os.getcwd())"
    child = child_of(then, env={"COLOUR": "blue"}, cwd=tmp_path)
    assert child.block() == {"seconds": 1, "home": "blue", "folder": str(tmp_path)}


def test_the_programs_surroundings_are_its_own(child_of):
    """Neither our modules nor our name for its parent reach a foreign program."""
    child = child_of("say(seconds=1, path=sys.path, names=list(os.environ))")
    answer = child.block()
    assert "INTONE_PARENT" not in answer["names"]
    assert answer["path"][0] == ""


@pytest.mark.parametrize(
    ("then", "outcome", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", "the child was ended by SIGKILL"),
        ("sys.exit('no more\\nfor today')", "error", "the child ended with exit code 1: for today"),
        ("sys.exit(0)", "error", "the child ended with exit code 0"),
        ("print('step 5', flush=True)", "error", "the child printed 'step 5' where an answer was due"),
        ("print('[1, 2]', flush=True)", "error", "the child printed '[1, 2]' where an answer was due"),
        ("os.write(1, bytes([200, 10]))", "error", "the child printed '\\ufffd' where an answer was due"),
        ("say(tokens=5)", "error", "the child gave no number for seconds: '{\"tokens\": 5}'"),
        ("say(seconds=True)", "error", "the child gave no number for seconds: '{\"seconds\": true}'"),
        ("say(seconds=float('nan'))", "error", "the child gave no number for seconds: '{\"seconds\": NaN}'"),
        ("say(seconds=0)", "error", "the child says that a block took 0 s"),
        ("say(error='too big', outcome='out_of_memory')", "out_of_memory", "the child: too big"),
        ("say(error='odd', outcome='done')", "error", "the child: odd"),
    ],
)  # fmt: skip
def test_every_wrong_end_is_one_outcome_and_the_child_is_gone(child_of, then, outcome, message):
    child = child_of(then)
    failed = failure(child.block)
    assert (failed.outcome.outcome, failed.outcome.message) == (outcome, message.replace("\\ufffd", "\ufffd"))
    assert not psutil.pid_exists(child.pid)
    assert failure(child.block) is failed  # asked again it says the same


def test_a_child_that_hangs_is_killed_with_all_it_started(child_of):
    child = child_of("subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)']); time.sleep(900)")
    failed = failure(lambda: child.block(timeout_s=0.4))
    assert str(failed) == "the child did not finish a block within 0.4 s"
    assert failed.outcome.outcome == "killed"
    assert not psutil.pid_exists(child.pid)
    assert [p for p in psutil.process_iter(["cmdline"]) if "time.sleep(900)" in (p.info["cmdline"] or [])] == []


def test_half_a_line_is_no_answer(child_of):
    child = child_of("sys.stdout.write('{\"seconds\"'); sys.stdout.flush(); time.sleep(900)")
    assert failure(lambda: child.block(timeout_s=0.4)).outcome.outcome == "killed"


def test_an_answer_that_comes_in_pieces_is_put_together(child_of):
    then = "big = 'x' * 300000\nsys.stdout.write('{\"sec'); sys.stdout.flush(); time.sleep(0.1)\n"
    child = child_of(then + "print('onds\": 2, \"big\": \"' + big + '\"}', flush=True)")
    answer = child.block()
    assert (answer["seconds"], len(answer["big"])) == (2, 300000)


def test_a_program_that_is_not_there_says_so():
    child = LineChild(["/no/such/program"], name="the child")
    failed = failure(child.wait_ready)
    assert str(failed) == "the child ended with exit code 1: /no/such/program: No such file or directory"
    child.close()


def test_a_program_that_begins_with_something_else_is_refused():
    child = LineChild([sys.executable, "-c", "print('{\"hello\": 1}')"], name="the child")
    assert str(failure(child.wait_ready)) == "the child answered '{\"hello\": 1}' instead of being ready"
    child.close()


def test_a_foreign_program_dies_with_the_process_that_measures_it(tmp_path):
    code = (
        "import sys, time; from intone.prove.live import LineChild;"
        "child = LineChild([sys.executable, '-c', 'import time; time.sleep(900)']); print(child.pid, flush=True);"
        "time.sleep(900)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: "time.sleep(900)" in child.cmdline()[-1], "the program's start")
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=10)[1] == [], "the program lives on"


# --- our own workers -------------------------------------------------------------------------------


@pytest.fixture
def worker(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=500)
    with WorkerChild(folder, ENVIRONMENT) as child:
        yield child, folder


def test_a_killed_worker_is_an_outcome_also_on_disk(worker):
    child, folder = worker
    child.wait_ready()
    os.kill(child.pid, signal.SIGKILL)
    failed = failure(lambda: child.block(steps=2))
    assert str(failed) == "the worker: the worker was ended by SIGKILL"
    assert read_outcome(folder).outcome == "killed"


def test_a_block_that_cannot_be_ends_the_worker_with_the_reason(worker):
    child, folder = worker
    child.wait_ready()
    failed = failure(lambda: child.block(steps=3, plan={"micro": 3}))
    assert (failed.outcome.outcome, str(failed)) == ("bad_input", "the worker: unknown plan setting 'micro'")
    child.close()
    assert read_outcome(folder).outcome == "bad_input"


def test_a_worker_waits_without_work_and_is_done_when_closed(worker):
    child, folder = worker
    child.wait_ready()
    answer = child.block(steps=4)
    process = psutil.Process(child.pid)
    before = process.cpu_times()
    time.sleep(0.5)  # what is measured is that nothing happens
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.02
    child.close()
    assert read_outcome(folder).outcome == "done"
    assert [row["step"] for row in read_log(folder / "log.jsonl", "step")] == [1, 2, 3, 4, 5, 6, 7]
    assert answer["losses"] == [loss for _, loss in losses(folder)][3:]


def test_a_worker_that_cannot_begin_says_why(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, steps=500, tokenizer=str(tmp_path / "gone"))
    with WorkerChild(folder, ENVIRONMENT) as child:
        failed = failure(child.wait_ready)
    assert failed.outcome.outcome == "bad_input"
    assert str(tmp_path / "gone") in str(failed)


def test_a_long_line_is_quoted_shortened():
    assert live.shown("x" * 500) == repr("x" * live.SHOWN + "…")
