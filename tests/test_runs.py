"""Run folders: names, what RUN means, and which run the same command goes on with."""

import json
import os

import pytest

from intone.errors import Damaged, UserError
from intone.paths import read_json, write_json
from intone.records import Outcome, StepRow, log_row, write_outcome
from intone.resolving import identity
from intone.runs import (
    check_same,
    create_run,
    find_run,
    find_stage,
    first_difference,
    list_runs,
    read_run,
    runs_verb,
    unfinished_run,
    with_state,
)
from intone.settings import RunSettings, RunsSettings

SETTINGS = identity(RunSettings(depth=3))
STAGES = ("base", "mid", "sft")


def make(name=None, *, finished=(), begun=(), settings=SETTINGS, depth=3, verb="run"):
    """A run with these stages on disk."""
    run = create_run(settings, verb=verb, stages=STAGES, name=name, depth=depth)
    for stage in (*finished, *begun):
        write_json(run.stage_folder(stage) / "config.json", {"format": 1, "job": "train"})
    for stage in finished:
        write_outcome(run.stage_folder(stage), Outcome("done", 10))
    return run


def test_runs_are_numbered_per_depth(home):
    assert [make(depth=depth).name for depth in (4, 4, 12, 4)] == ["d4-1", "d4-2", "d12-1", "d4-3"]


def test_run_json_holds_stages_state_and_settings(home):
    run = make()
    content = read_json(home / "runs" / "d3-1" / "run.json")
    assert content["format"] == 1
    assert content["stages"] == ["base", "mid", "sft"]
    assert content["state"] == "unfinished"
    assert content["settings"] == json.loads(json.dumps(SETTINGS))
    assert read_run(run.folder) == run


def test_a_name_that_is_taken_or_no_folder_name_is_refused(home):
    make("first")
    with pytest.raises(UserError, match="run 'first' exists already"):
        make("first")
    for name in ("a/b", "..", ".hidden", "", "latest", "x" * 81, "two words"):
        with pytest.raises(UserError, match="cannot be the name of a run"):
            make(name)


def test_run_means_a_name_a_path_or_the_latest(home, tmp_path, monkeypatch):
    first, second = make("first"), make("second")
    assert find_run("first") == first
    assert find_run("latest") == second
    assert find_run("first/sft") == first
    assert find_run(str(first.folder)) == first
    assert find_run(str(first.folder / "base")) == first
    monkeypatch.chdir(home)
    assert find_run("runs/second") == second


def test_a_stage_is_named_or_the_last_finished_one(home):
    run = make("first", finished=("base", "mid"), begun=("sft",))
    assert find_stage("first").stage == "mid"
    assert find_stage("first/base").folder == run.folder / "base"
    assert find_stage("first/sft").stage == "sft"
    assert find_stage(str(run.folder)).stage == "mid"
    assert find_stage(str(run.folder / "base")).stage == "base"
    assert find_stage(str(run.folder / "base")).run == run


def test_latest_is_the_newest_run_that_has_something_to_show(home):
    make("old", finished=("base",))
    make("finished", finished=("base",))
    make("empty")
    assert find_run("latest").name == "empty"
    assert find_stage("latest").run.name == "finished"


def test_a_stage_copied_out_of_its_run_can_be_used_by_its_path(home, tmp_path):
    write_json(tmp_path / "copied" / "config.json", {"format": 1})
    assert find_stage(str(tmp_path / "copied")).run is None
    assert find_stage(str(tmp_path / "copied")).stage == "copied"


@pytest.mark.parametrize(
    ("reference", "message", "fix"),
    [
        ("frist", "unknown run 'frist'", "did you mean 'first'?"),
        ("frist/base", "unknown run 'frist/base'", "did you mean 'first'?"),
        ("zzz", "unknown run 'zzz'", "known: first"),
        ("first/mid", "run first has no stage 'mid' on disk", "it has: base"),
        ("first/bse", "run first has no stage 'bse' on disk", "it has: base"),
        ("/", "/ is no run: it has no run.json", "name a run or the folder of one"),
        ("first", "run first has no finished stage", "or name a stage that has a save: first/base"),
    ],
)
def test_what_cannot_be_found_is_named_with_what_there_is(home, reference, message, fix):
    make("first", begun=("base",))
    with pytest.raises(UserError) as caught:
        find_stage(reference)
    assert caught.value.message == message
    assert fix in caught.value.fix


@pytest.mark.parametrize("reference", ["latest", "d4-1"])
def test_without_any_run_the_fix_is_to_make_one(home, reference):
    with pytest.raises(UserError, match="there is no run under") as caught:
        find_stage(reference)
    assert caught.value.fix == "make one with intone run, or set INTONE_HOME"


def test_the_same_command_goes_on_with_the_newest_unfinished_run_of_equal_settings(home):
    assert unfinished_run("run", SETTINGS) is None
    make("a")
    newest = make("b")
    make("other", settings=identity(RunSettings(depth=4)))
    assert unfinished_run("run", SETTINGS) == newest
    assert unfinished_run("train", SETTINGS) is None
    with_state(newest, "done")
    assert unfinished_run("run", SETTINGS).name == "a"
    with_state(find_run("a"), "stopped")
    assert unfinished_run("run", SETTINGS).name == "a"


def test_settings_read_back_from_disk_equal_those_that_were_asked(home):
    assert first_difference(read_run(make().folder).settings, SETTINGS) is None


def test_a_named_run_with_other_settings_names_the_first_that_differs(home):
    run = make("first")
    check_same(run, SETTINGS)
    with pytest.raises(UserError) as caught:
        check_same(run, identity(RunSettings(depth=4, seed=1)))
    assert caught.value.message == "run first was started with depth 3, now it is 4"
    assert caught.value.fix == "use the same depth to go on with it, or another --name for a new run"
    assert first_difference({"a": 1, "b": 2}, {"a": 1}) == "b"


def test_the_table_lists_runs_newest_first_with_what_is_known(home):
    make("first", finished=("base", "mid", "sft"))
    result = {"minutes": 7.98, "bpb": {"value": 0.8123}, "starter": {"mean": 0.934}}
    with_state(find_run("first"), "done", result=result)
    make("second", begun=("base",))
    answer = runs_verb(RunsSettings(), {})
    lines = answer.text.splitlines()
    assert lines[0].split() == ["name", "state", "finished", "minutes", "bpb", "starter", "age", "size"]
    assert lines[1].split()[:6] == ["second", "unfinished", "-", "-", "-", "-"]
    assert lines[2].split()[:8] == ["first", "done", "base", "mid", "sft", "7.98", "0.812", "93.4%"]
    assert [run["name"] for run in answer.result["runs"]] == ["second", "first"]
    assert answer.result["runs"][1]["starter_mean"] == 0.934
    assert answer.result["runs"][0]["stages"] == {"base": "unfinished", "mid": "planned", "sft": "planned"}
    assert answer.result["runs"][0]["bpb"] is None


def test_one_damaged_run_does_not_hide_the_others(home):
    make("good")
    broken, foreign, failed = make("broken"), make("foreign"), make("failed", begun=("base",))
    (broken.folder / "run.json").write_text("{")
    write_json(foreign.folder / "run.json", {**read_json(foreign.folder / "run.json"), "state": "asleep"})
    (failed.folder / "base" / "outcome.json").write_text("{")
    assert {run.name for run in list_runs()[0]} == {"good", "failed"}
    answer = runs_verb(RunsSettings(), {})
    assert [run["name"] for run in answer.result["runs"]] == ["good"]
    assert len(answer.result["not_readable"]) == 3
    assert answer.text.count("not readable: ") == 3
    with pytest.raises(Damaged):
        find_run("broken")


def test_one_run_in_full_says_what_to_do_next(home):
    run = make("first", finished=("base",), begun=("mid",))
    write_outcome(run.folder / "mid", Outcome("not_finite", 3, "the loss was not finite three times"))
    for step in (1, 2, 3):
        log_row(run.folder / "mid" / "log.jsonl", StepRow(step, 64, 2.0, 1.0, 0.1, 0.0, 640.0, None))
    text = runs_verb(RunsSettings(run="first"), {}).text
    assert "\nmid      not_finite  3 steps  the loss was not finite three times\n" in text
    assert "\ndepth          3\n" in text
    assert text.splitlines()[-1].startswith("next: the command that started it goes on")
    with_state(run, "done")
    assert runs_verb(RunsSettings(run="first"), {}).text.endswith("next: intone chat --from first")


def test_no_runs_yet_is_said_and_is_no_error(home):
    answer = runs_verb(RunsSettings(), {})
    assert answer.text == f"no runs yet under {home}/runs; make one with: intone run"
    assert (answer.exit, answer.result) == (0, {"runs": [], "not_readable": []})
    assert not os.path.exists(home)
