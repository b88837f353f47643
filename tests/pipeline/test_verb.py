"""`intone run` and `intone train` from beginning to end, around the training."""

import pytest

from intone.paths import read_json, write_json
from intone.records import Outcome
from intone.runs import find_run
from tests.pipeline.machine import run, train


def test_a_run_trains_every_stage_evaluates_and_says_what_came_out(machine, home, capsys):
    answer = run(minutes=2.0)
    assert machine.started == ["base", "mid", "sft", "eval"]
    assert (answer.outcome, answer.exit, answer.run, answer.path) == ("done", 0, "d1-1", str(home / "runs" / "d1-1"))
    finished = find_run("d1-1")
    assert (finished.state, finished.result) == ("done", answer.result)
    assert capsys.readouterr().err.splitlines() == [
        f"run d1-1 in {home}/runs/d1-1",
        "base: 9 steps of 160 tokens",
        "mid: 9 steps of 160 tokens",
        "sft: 9 steps of 160 tokens",
        "evaluating",
    ]


def test_a_single_stage_has_its_result_and_no_skills(machine):
    answer = train(stage="base")
    assert machine.started == ["base"]
    assert set(answer.result) == {"minutes", "peak_bytes", "bpb", "stages"}
    assert answer.text.splitlines()[-1] == "next: intone chat --from d1-1"
    assert find_run("d1-1").verb == "train"


def test_prepare_writes_the_job_and_stops(machine):
    answer = train(stage="base", prepare=True)
    folder = find_run("d1-1").stage_folder("base")
    assert machine.started == []
    assert (folder / "config.json").exists()
    assert answer.text == f"the job is in {folder}\nnext: python -m intone.worker {folder}"
    assert answer.result == {"folder": str(folder)}
    assert train(stage="base").outcome == "done"
    assert machine.started == ["base"]


def test_what_earlier_calls_cost_is_added_and_lateness_is_said(machine):
    machine.outcomes["mid"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run()
    spent = find_run("d1-1").folder / "spent.json"
    assert read_json(spent)["seconds"] > 0
    write_json(spent, {"format": 1, "seconds": 180.0, "peak_bytes": 2**45})
    answer = run()
    assert 3.0 <= answer.result["minutes"] < 3.5
    assert answer.result["peak_bytes"] == 2**45
    assert f"{answer.result['minutes']:.3g} minutes instead of 2: " in answer.text
    assert "minutes instead of" not in run().text
