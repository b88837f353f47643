"""The kill drill, short: a tiny run is killed in three ways and ends as if nothing had happened."""

import json
import random
import shutil
from collections import Counter

import pytest
from tests.tiny_jobs import write_job

from intone.bench import drills
from intone.bench.drills import Drill, differences, kill_drill
from intone.model.checkpoint import list_checkpoints
from intone.paths import read_json, write_json
from intone.records import StepRow, cut_log, log_row
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run
from intone.settings import TrainSettings

SEED = 8  # strikes the supervisor after a step, the group after a save, the worker after a step


def make_run(home, job, name, **changes):
    """A planned run of one stage that `intone train base --depth 1` goes on with."""
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "base", "depth": 1})])
    run = create_run(identity(settings), verb="train", stages=("base",), name=name)
    write_json(run.folder / "forecast.json", {"format": 1, "minutes": 1.0})
    write_job(run.stage_folder("base"), job, **changes)
    return run.folder


@pytest.mark.long
def test_a_tiny_run_survives_three_kills_bitwise(tiny_job, home):
    folder = make_run(home, tiny_job, drills.NAME, steps=200, save_every_s=0.3)
    report = kill_drill(home, ["train", "base"], ["--depth", "1"], rounds=3, seed=SEED, delay_s=0.2)
    assert report["problems"] == [], (home / "drill.log").read_text()
    assert report["passed"]
    assert Counter(kill["target"] for kill in report["kills"]) == {"worker": 1, "group": 1, "supervisor": 1}
    assert [kill["number"] for kill in report["kills"]] == [1, 2, 3]
    times = [kill["at_s"] for kill in report["kills"]]
    assert times == sorted(times)
    assert {kill["stage"] for kill in report["kills"]} <= {"planning", "base"}
    json.dumps(report)

    twin = home / "runs" / drills.TWIN
    assert differences(folder, twin) == []
    log = folder / "base" / "log.jsonl"
    whole = log.read_bytes()
    cut_log(log, 199)
    assert differences(folder, twin)[0] == "base: 199 step rows, not each of 200 once"
    log_row(log, StepRow(200, 1, 0.5, 1.0, 0.1, 0.0, 1.0, None))
    assert differences(folder, twin) == ["base: losses differ from the undisturbed run, first at step 200"]
    steps = [line for line in whole.splitlines(keepends=True) if b'"kind": "step"' in line]
    log.write_bytes(whole + steps[-1])
    assert "step rows, not each of 200 once" in differences(folder, twin)[0]
    log.write_bytes(whole)
    manifest = list_checkpoints(twin / "base")[-1] / "manifest.json"
    content = read_json(manifest)
    content["files"]["model.safetensors"]["sha256"] = "0" * 64
    write_json(manifest, content)
    assert differences(folder, twin) == ["base: model.safetensors differs from the undisturbed run's"]
    shutil.rmtree(list_checkpoints(folder / "base")[-1])


class Ended:
    """A run that has ended with this code."""

    pid = 0

    def __init__(self, code):
        self.returncode = code

    def poll(self):
        return self.returncode

    wait = poll


@pytest.fixture
def ends(monkeypatch):
    """Makes every start of the run end at once with the next of these codes; returns the words of all starts."""
    started = []

    def use(*codes):
        left = list(codes)

        def start(home, words):
            started.append(list(words))
            return Ended(left.pop(0))

        monkeypatch.setattr(drills, "start", start)
        return started

    return use


def test_a_run_that_ends_before_all_kills_fails_the_drill(ends, tmp_path, monkeypatch):
    started = ends(0, 0)
    monkeypatch.setattr(drills, "differences", lambda folder, twin: [])
    report = kill_drill(tmp_path, ["run"], ["--minutes", "1"], rounds=3, seed=0)
    assert not report["passed"]
    assert report["problems"] == ["the run ended after 0 of 3 kills: give it more --minutes"]
    assert started == [
        ["run", "--minutes", "1", "--name", "drill"],
        ["run", "--like", "drill", "--name", "undisturbed"],
    ]


def test_a_run_that_gave_up_is_started_once_more_and_then_counts_as_failed(ends, tmp_path):
    started = ends(1, 1, 1)
    report = kill_drill(tmp_path, ["run"], [], rounds=3, seed=0)
    assert report["problems"][0] == f"the run ended with exit code 1, see {tmp_path / 'drill.log'}"
    assert len(started) == 3


def test_before_there_is_a_run_folder_the_place_is_planning(tmp_path):
    drill = Drill(tmp_path, ["run"], random.Random(0), delay_s=1.0)
    assert drill.place() == ("planning", 0)


def test_the_command_prints_a_table_a_verdict_and_json(monkeypatch, capsys, tmp_path):
    kill = {"number": 1, "at_s": 12.34, "target": "group", "moment": "save", "stage": "mid", "step": 40}
    asked = {}

    def stand_in(home, verb, settings, **others):
        asked.update(home=home, verb=verb, settings=settings, **others)
        problems = asked["problems"]
        return {"format": 1, "kills": [kill], "seconds": 99.0, "problems": problems, "passed": not problems}

    monkeypatch.setattr(drills, "kill_drill", stand_in)
    asked["problems"] = []
    assert drills.main(["kill", "--rounds", "1", "--seed", "4", "--home", str(tmp_path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kill", "at", "target", "waited", "for", "stage", "step"]
    assert lines[1].split() == ["1", "12.3", "s", "group", "save", "mid", "40"]
    assert lines[2] == "1 kills in 99 s: passed: finished, one row per step, bitwise those of the undisturbed run"
    assert json.loads(lines[3])["kills"] == [kill]
    assert (asked["home"], asked["verb"], asked["rounds"], asked["seed"]) == (tmp_path, ["run"], 1, 4)
    assert asked["settings"] == ["--minutes", "3.0", "--compile", "off", "--save-every-s", "10"]
    asked["problems"] = ["base: 9 step rows"]
    assert drills.main(["kill", "--rounds", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["base: 9 step rows", "1 kills in 99 s: FAILED"]
