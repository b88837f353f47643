"""`intone run` and `intone train` around the training: which run, whose plan, what is left behind, what is said."""

import json
from dataclasses import replace

import pytest

from intone import pipeline
from intone.errors import DiskFull, UserError
from intone.jobs import Limits, devices_of
from intone.model.cost import train_flops_per_token
from intone.paths import FolderLock, read_json, write_json
from intone.pipeline import honest_word, run_pipeline, run_train
from intone.planning import Plan
from intone.records import (
    Choice,
    Choices,
    EvalRow,
    Outcome,
    StepRow,
    log_row,
    read_choices,
    write_choices,
    write_outcome,
)
from intone.runs import create_run, find_run, list_runs, with_state
from intone.settings import Layer, RunSettings, TrainSettings, identity, resolve
from tests.tiny_jobs import ENVIRONMENT, SEGMENT

SKILL = {"score": 0.95, "low": 0.9, "high": 0.98, "num_items": 200}
STARTER = {"mean": 0.95, "low": 0.93, "high": 0.97, "skills": {"facts": SKILL, "story": SKILL}}
WRONG = {"skill": "facts", "question": "Who?", "expected": "Ada.", "got": "Bo.", "reason": "stop"}
BPB = {"value": 1.25, "low": 1.2, "high": 1.3, "num_bytes": 4096}


class Machine:
    """Stands in for planning and supervising; remembers what was asked of it."""

    def __init__(self, job):
        self.job = job
        self.planned = []
        self.started = []
        self.outcomes = {}  # stage -> outcome instead of done
        self.error = None  # of planning

    def plan_run(self, settings, origins, folder, *, started_s):
        self.planned.append(settings)
        if self.error is not None:
            raise self.error
        choices = Choices({}, (SEGMENT,), {"device_batch": (3, 1)}, ENVIRONMENT)
        jobs = {
            "base": self.job,
            "mid": replace(self.job, stage="mid", init_from=str(folder / "base")),
            "sft": replace(self.job, stage="sft", init_from=str(folder / "mid")),
        }
        evaluation = {"format": 1, "job": "evaluate", "from": str(folder / "sft")}
        forecast = {"format": 1, "steps": 27, "step_s": 0.5, "minutes": 2.0}
        return Plan({stage: (job, choices) for stage, job in jobs.items()}, evaluation, forecast)

    def plan_stage(self, settings, origins, folder, *, started_s):
        whole = self.plan_run(settings, origins, folder, started_s=started_s)
        return Plan({settings.stage: whole.stages[settings.stage]}, None, whole.forecast)

    def supervise(self, folder, env, limits=None):
        assert env == ENVIRONMENT
        self.limits = limits
        self.started.append(folder.name)
        outcome = self.outcomes.pop(folder.name, Outcome("done", 2))
        if outcome.outcome == "done" and folder.name == "eval":
            write_json(folder / "eval.json", {"format": 1, "starter": {**STARTER, "wrong": [WRONG]}})
        elif outcome.outcome == "done":
            for step in (1, 2):
                log_row(folder / "log.jsonl", StepRow(step, 160 * step, 3.0 / step, 1.0, 0.5, 0.0, 320.0, 7, False))
            log_row(folder / "log.jsonl", EvalRow(2, 0.1, {"bpb": BPB["value"]}))
            write_json(folder / "eval.json", {"format": 1, "step": 2, "bpb": BPB})
        write_outcome(folder, outcome)
        return outcome


@pytest.fixture
def machine(home, tiny_job, monkeypatch):
    stand_in = Machine(tiny_job)
    for name in ("plan_run", "plan_stage", "supervise"):
        monkeypatch.setattr(pipeline, name, getattr(stand_in, name))
    return stand_in


def run(**flags):
    """`intone run` with these flags; a depth, so that nothing is measured for the name of the run."""
    given = flags if "like" in flags else {"depth": 1, **flags}
    return run_pipeline(*resolve(RunSettings, [Layer("flag", "test", given)]))


def train(**flags):
    given = flags if "like" in flags else {"depth": 1, **flags}
    return run_train(*resolve(TrainSettings, [Layer("flag", "test", given)]))


def names() -> set[str]:
    return {run.name for run in list_runs()[0]}


# --- from beginning to end ------------------------------------------------------------------------------------------


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


# --- which run ------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_with_the_unfinished_run_and_says_so(machine, capsys):
    machine.outcomes["mid"] = Outcome("stopped", 1, "stopped")
    with pytest.raises(KeyboardInterrupt):
        run()
    assert find_run("d1-1").state == "stopped"
    capsys.readouterr()
    assert run().run == "d1-1"
    assert capsys.readouterr().err.splitlines()[0] == "going on with run d1-1"
    assert machine.started == ["base", "mid", "mid", "sft", "eval"]
    assert len(machine.planned) == 1


def test_other_settings_a_finished_run_and_new_each_start_another(machine):
    machine.outcomes["base"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run(seed=4).run == "d1-2"
    assert run(new=True).run == "d1-3"
    assert run().run == "d1-1"
    assert run().run == "d1-4"


def test_a_run_that_another_process_works_on_is_left_alone(machine):
    machine.outcomes["base"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run(name="mine")
    with FolderLock(find_run("mine").folder / "lock"):
        with pytest.raises(UserError, match="another process is already using run mine"):
            run(name="mine")
        assert run().run == "d1-1"
    assert find_run("mine").state == "stopped"


def test_a_named_run_goes_on_only_with_its_own_settings(machine):
    machine.outcomes["base"] = Outcome("killed", 1)
    assert run(name="mine", seed=3).outcome == "killed"
    with pytest.raises(UserError) as caught:
        run(name="mine", seed=4, minutes=3)
    assert caught.value.message == "run mine was started with minutes auto, now it is 3"
    with pytest.raises(UserError, match="run 'mine' exists already\n  fix: choose another --name, or leave out --new"):
        run(name="mine", seed=3, new=True)
    assert run(name="mine", seed=3).outcome == "done"
    with pytest.raises(UserError, match="run mine is finished\n  fix: intone chat --from mine, or another --name"):
        run(name="mine", seed=3)
    assert names() == {"mine"}


def test_while_a_run_is_at_work_it_is_unfinished_whatever_it_was_before(machine, monkeypatch):
    machine.outcomes["base"] = Outcome("not_finite", 1)
    run()
    assert find_run("d1-1").state == "not_finite"
    states = []
    supervise = machine.supervise
    monkeypatch.setattr(
        pipeline, "supervise", lambda *words, **_: (states.append(find_run("d1-1").state), supervise(*words))[1]
    )
    run()
    assert set(states) == {"unfinished"}


# --- like another ---------------------------------------------------------------------------------------------------


def test_like_starts_afresh_with_the_plan_of_another_run(machine, home):
    run(name="first", seed=9)
    first = find_run("first").folder
    choices = read_choices(first / "base")
    pipeline.write_choices(first / "base", choices.with_segment(replace(SEGMENT, from_step=1, device_batch=1)))
    machine.started.clear()
    answer = run(like="first")
    twin = find_run(answer.run).folder
    assert (answer.run, len(machine.planned)) == ("d1-1", 1)
    assert machine.started == ["base", "mid", "sft", "eval"]
    for stage in ("base", "mid", "sft"):
        assert (twin / stage / "choices.json").read_bytes() == (first / stage / "choices.json").read_bytes()
        ours, theirs = (read_json(folder / stage / "config.json") for folder in (twin, first))
        before = {"base": None, "mid": str(twin / "base"), "sft": str(twin / "mid")}[stage]
        assert ours == {**theirs, "init_from": before}
    assert read_json(twin / "eval" / "config.json")["from"] == str(twin / "sft")


def test_like_goes_on_with_its_own_unfinished_run(machine):
    run(name="first")
    machine.outcomes["mid"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run(like="first", name="twin")
    machine.started.clear()
    assert run(like="first", name="twin").run == "twin"
    assert machine.started == ["mid", "sft", "eval"]


def test_a_setting_beside_like_is_refused_since_it_would_be_ignored(machine):
    run(name="first")
    with pytest.raises(UserError) as caught:
        run(like="first", seed=4)
    assert caught.value.message == "--seed cannot be given with --like: run first brings its own seed"
    assert caught.value.fix == "leave out --seed, or --like"
    assert names() == {"first"}


def test_like_needs_a_run_with_these_stages_and_a_plan(machine):
    train(stage="base", name="only-base")
    with pytest.raises(UserError) as caught:
        run(like="only-base")
    assert caught.value.message == "run only-base has no stage mid, it has: base"
    create_run(identity(RunSettings(depth=1)), verb="run", stages=("base", "mid", "sft"), name="bare")
    with pytest.raises(UserError, match="run bare has no settled plan yet\n  fix: let it get to its first step"):
        run(like="bare")
    assert names() == {"only-base", "bare"}


def test_one_stage_of_another_run_can_be_repeated(machine):
    run(name="first")
    machine.started.clear()
    answer = train(stage="sft", like="first")
    assert machine.started == ["sft"]
    job = read_json(find_run(answer.run).folder / "sft" / "config.json")
    assert job["init_from"] == str(find_run("first").folder / "mid")


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UserError("no text"), KeyboardInterrupt(), DiskFull("full"), ZeroDivisionError()])
def test_a_run_without_a_plan_leaves_nothing_behind(machine, home, error):
    machine.error = error
    with pytest.raises(type(error)):
        run()
    assert list((home / "runs").iterdir()) == []


def test_a_plan_that_is_written_by_half_is_no_plan(machine, home, monkeypatch):
    def full(folder, choices):
        if folder.name == "sft":
            raise DiskFull("no space left")

    monkeypatch.setattr(pipeline, "write_choices", full)
    with pytest.raises(DiskFull):
        run()
    assert list((home / "runs").iterdir()) == []


def test_data_that_is_not_there_is_said_before_a_run_is_made(machine, home, tmp_path):
    (tmp_path / "stories.txt").write_text("Once.")
    with pytest.raises(UserError) as caught:
        run(data=(str(tmp_path / "storys.txt"),))
    assert caught.value.message == f"{tmp_path}/storys.txt does not exist"
    assert caught.value.fix == f"did you mean {tmp_path}/stories.txt?"
    assert machine.planned == []
    assert not (home / "runs").exists()


def test_a_run_with_saves_is_kept_even_where_a_part_of_its_plan_is_gone(machine, home):
    machine.outcomes["mid"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run()
    folder = find_run("d1-1").folder
    (folder / "base" / "checkpoints" / "step_000002").mkdir(parents=True)
    (folder / "sft" / "config.json").unlink()
    machine.error = UserError("no text")
    with pytest.raises(UserError):
        run()
    assert (folder / "base" / "checkpoints" / "step_000002").exists()


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
    monkeypatch.setattr(pipeline, "with_state", full)
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


# --- one stage ------------------------------------------------------------------------------------------------------


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


def test_a_run_goes_on_with_other_devices_and_patience_where_they_are_asked_for(machine, capsys):
    machine.outcomes["mid"] = Outcome("stopped", 1)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert devices_of(find_run("d1-1").stage_folder("sft")) == 1
    assert run(devices=3, stall_s=60.0).run == "d1-1"
    said = capsys.readouterr().err
    assert "mid: devices none -> 3" in said and "sft: stall_s none -> 60.0" in said
    assert "base: devices" not in said  # it is done
    assert [devices_of(find_run("d1-1").stage_folder(stage)) for stage in ("base", "mid", "sft")] == [1, 3, 3]
    assert machine.limits == Limits(stall_s=60.0)  # of the evaluation, which has no plan of its own


def test_the_rate_that_mfu_is_of_follows_the_gpus_but_not_the_processes_on_a_cpu(machine):
    for kind, expected in (("cuda", 6e12), ("cpu", 2e12)):
        train(stage="base", prepare=True, name=kind)
        folder = find_run(kind).stage_folder("base")
        settings = {"device": Choice(kind, "test", "default"), "devices": Choice(1, "test", "default")}
        write_choices(folder, replace(read_choices(folder), settings=settings))
        write_json(folder / "config.json", {**read_json(folder / "config.json"), "peak_flops": 2e12})
        train(stage="base", prepare=True, name=kind, devices=3)
        assert read_json(folder / "config.json")["peak_flops"] == expected


def test_what_starts_a_prepared_job_on_several_devices_is_said(machine):
    answer = train(stage="base", prepare=True, devices=2)
    folder = find_run("d1-1").stage_folder("base")
    line = f"torchrun --standalone --nproc-per-node 2 -m intone.worker {folder}"
    assert answer.text == f"the job is in {folder}\nnext: {line}"


def test_the_depth_in_a_name_is_that_of_the_run_it_starts_from(machine, tiny_job):
    run(name="first")
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "sft", "from_run": "first/mid"})])
    assert pipeline.guess_depth(settings) == tiny_job.model.depth
    with_state(find_run("first"), "done")
    assert train(stage="sft", from_run="first").run == "d1-1"
