"""How a stage ends, and what follows for the run and for the person."""

import pytest

from intone.errors import DiskFull
from intone.pipeline import stages
from intone.records import Outcome
from intone.runs import find_run
from tests.pipeline.machine import run, train


@pytest.mark.parametrize(
    ("outcome", "exit"),
    [("out_of_memory", 1), ("not_finite", 1), ("killed", 1), ("error", 1), ("bad_input", 2), ("disk_full", 2)],
)
def test_a_stage_that_fails_gives_its_outcome_an_exit_code_and_a_fix(machine, capsys, outcome, exit):
    machine.outcomes["mid"] = Outcome(outcome, 1, "this is why", "do that")
    answer = run()
    assert (answer.outcome, answer.exit, answer.run, answer.text) == (outcome, exit, "d1-1", "")
    assert answer.error == {"message": f"mid ended as {outcome}: this is why", "value": outcome, "fix": "do that"}
    assert capsys.readouterr().err.endswith(f"intone run: mid ended as {outcome}: this is why\n  fix: do that\n")
    assert find_run("d1-1").state == outcome
    assert run().outcome == "done"


def test_a_disk_too_full_for_the_state_of_the_run_still_tells_the_outcome(machine, monkeypatch):
    def full(run, state, **_):
        raise DiskFull("no room for run.json")

    machine.outcomes["base"] = Outcome("disk_full", 1, "no space left", "free some")
    monkeypatch.setattr(stages, "with_state", full)
    answer = run()
    assert answer.error["message"] == "base ended as disk_full: no space left"


def test_an_evaluation_that_fails_is_repeated_alone(machine):
    machine.outcomes["eval"] = Outcome("killed", None, "the worker was ended by SIGKILL")
    answer = run()
    assert answer.error["message"] == "evaluation ended as killed: the worker was ended by SIGKILL"
    assert answer.error["fix"] == "the same command goes on from the last save"
    machine.started.clear()
    assert run().outcome == "done"
    assert machine.started == ["eval"]


def test_what_starts_a_prepared_job_on_several_devices_is_said(machine):
    answer = train(stage="base", prepare=True, devices=2)
    folder = find_run("d1-1").stage_folder("base")
    line = f"torchrun --standalone --nproc-per-node 2 -m intone.worker {folder}"
    assert answer.text == f"the job is in {folder}\nnext: {line}"
