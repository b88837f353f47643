"""What a run says at its end: its result object, its text and its page."""

import json
from dataclasses import replace

import pytest

from intone.model.cost import train_flops_per_token
from intone.paths import read_json, write_json
from intone.pipeline.result import answers_lines, honest_word, rollout_summary, stage_answers
from intone.runs import create_run, find_run
from tests.pipeline.machine import SKILL, STARTER, run


def test_the_result_has_the_shape_that_the_contract_names(machine):
    result = json.loads(json.dumps(run().result))
    assert 0 < result["minutes"] < 1
    assert result["peak_bytes"] >= 0
    assert result["bpb"] == {"value": 1.25, "low": 1.2, "high": 1.3}
    assert result["starter"] == STARTER
    assert result["chat"] == "intone chat --from d1-1"
    assert [entry["stage"] for entry in result["stages"]] == ["base", "mid", "sft"]
    expected = {"seconds": 1.0, "tokens": 320, "tokens_per_s": 320.0, "steps": 2, "loss": 1.5, "skipped": 0}
    assert {key: result["stages"][0][key] for key in expected} == expected


def test_the_text_ends_with_the_command_to_chat(machine, home):
    lines = run().text.splitlines()
    assert lines[0].split() == ["stage", "steps", "tokens", "tokens/s", "last", "loss", "time"]
    assert lines[1].split() == ["base", "2", "320", "320", "1.500", "1", "s"]
    assert "base model: 1.250 bits per byte [1.200, 1.300] on validation text" in lines
    assert "It is reliable at facts, story. It knows a small world only: other topics get confident nonsense." in lines
    assert lines[-3].endswith(f", in {home}/runs/d1-1")
    assert lines[-2] == f"report: {home}/runs/d1-1/report.html"
    assert lines[-1] == "next: intone chat --from d1-1"


def test_a_run_ends_with_its_page_beside_it_and_where_its_time_went(machine, home):
    run()
    folder = home / "runs" / "d1-1"
    assert "<h1>d1-1</h1>" in (folder / "report.html").read_text()
    assert (folder / "report.md").read_text().startswith("# d1-1\n")
    phases = read_json(folder / "spent.json")["phases"]
    assert sorted(phases) == ["base", "evaluation", "mid", "planning", "sft"]
    report = read_json(folder / "report.json")
    assert report["result"]["chat"] == "intone chat --from d1-1"
    # each stage of the stand-in has logged two steps of 0.5 s, and no clock can have seen them
    assert report["time"]["parts_s"]["planning"] == phases["planning"]
    assert report["machine"]["facts"]["cores_logical"]["value"] >= 1


def test_a_page_that_cannot_be_written_does_not_fail_the_run(machine, home, monkeypatch, capsys):
    def broken(folder):
        raise KeyError("planted")

    monkeypatch.setattr("intone.report.write.write_run_report", broken)
    answer = run()
    assert (answer.outcome, answer.exit, find_run("d1-1").state) == ("done", 0, "done")
    assert answer.text.splitlines()[-1] == "next: intone chat --from d1-1"
    assert "report:" not in answer.text
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "the report was not written (KeyError: 'planted'); try: intone report d1-1"


def test_the_share_of_the_machines_rate_is_that_of_the_median_step(machine):
    machine.job = replace(machine.job, peak_flops=1e9)
    [base, *_] = run().result["stages"]
    flops = train_flops_per_token(machine.job.model, machine.job.context) * 5 * machine.job.context
    assert base["mfu"] == pytest.approx(flops / 0.5 / 1e9)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"facts": 0.9, "units": 1.0}, "It is reliable at facts, units. "),
        ({"facts": 0.89, "units": 0.5}, "It is often right at facts, units. "),
        ({"facts": 0.49}, "It is mostly wrong at facts: train longer (--minutes). "),
        (
            {"a": 0.95, "b": 0.6, "c": 0.0},
            "It is reliable at a. It is often right at b. It is mostly wrong at c: train longer (--minutes). ",
        ),
    ],
)
def test_the_honest_word_follows_from_the_scores_alone(scores, expected):
    starter = {"skills": {name: {**SKILL, "score": score} for name, score in scores.items()}}
    assert honest_word(starter) == expected + "It knows a small world only: other topics get confident nonsense."


def test_held_out_questions_before_and_after_are_a_table_of_both(home):
    made = create_run({}, verb="train", stages=("rl",), name="rewarded")
    assert stage_answers(made, "rl") is None

    def answers(score):
        ends = {"low": score - 0.1, "high": score + 0.1}
        return {"mean": score, **ends, "skills": {"story": {"score": score, **ends, "num_items": 60}}, "wrong": [{}]}

    for before, words in ((answers(0.5), "50.0% [40, 60]"), (None, "unknown")):
        found = {"format": 1, "step": 9, "answers": answers(0.63), "before": before}
        write_json(made.stage_folder("rl") / "eval.json", found)
        shown = stage_answers(made, "rl")
        assert "wrong" not in shown["after"]
        rows = [" ".join(line.split()) for line in answers_lines(shown)[1].splitlines()]
        assert rows[1:] == [f"story {words} 63.0% [53, 73] 60", f"mean {words} 63.0% [53, 73]"]


def test_what_a_reinforcement_stage_wrote_is_summed_up():
    rows = [
        {"step_s": 2.0, "rollouts": dict(right=n / 20, groups=4, even_groups=1, answers=8, cut=n == 3, rollout_s=0.5)}
        for n in range(20)
    ]
    found = rollout_summary(rows)
    assert (found["answers"], found["cut"], found["even_groups_share"], found["rollout_share"]) == (160, 1, 0.25, 0.25)
    assert (found["right_first"], found["right_last"]) == (pytest.approx(0.025), pytest.approx(0.925))
