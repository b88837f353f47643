"""The plan of a run on disk: whole or not there, copied with its choices, and what may change in it later."""

from dataclasses import replace

import pytest

from intone.errors import DiskFull
from intone.jobs import Limits, devices_of
from intone.paths import read_json, write_json
from intone.pipeline import plan_files
from intone.records import Choice, Outcome, read_choices, write_choices
from intone.runs import find_run
from tests.pipeline.machine import run, train
from tests.tiny_jobs import SEGMENT


def test_a_plan_that_is_written_by_half_is_no_plan(machine, home, monkeypatch):
    def full(folder, choices):
        if folder.name == "sft":
            raise DiskFull("no space left")

    monkeypatch.setattr(plan_files, "write_choices", full)
    with pytest.raises(DiskFull):
        run()
    assert list((home / "runs").iterdir()) == []


def test_like_starts_afresh_with_the_plan_of_another_run(machine, home):
    run(name="first", seed=9)
    first = find_run("first").folder
    choices = read_choices(first / "base")
    write_choices(first / "base", choices.with_segment(replace(SEGMENT, from_step=1, device_batch=1)))
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


def test_one_stage_of_another_run_can_be_repeated(machine):
    run(name="first")
    machine.started.clear()
    answer = train(stage="sft", like="first")
    assert machine.started == ["sft"]
    job = read_json(find_run(answer.run).folder / "sft" / "config.json")
    assert job["init_from"] == str(find_run("first").folder / "mid")


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
