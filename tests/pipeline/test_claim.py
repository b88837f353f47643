"""Which run a command goes on with, which it leaves alone, and when a new one is forgotten again."""

from dataclasses import replace

import pytest

from intone import recipe
from intone.errors import DiskFull, UserError
from intone.paths import FolderLock
from intone.pipeline import claim, stages
from intone.pipeline.claim import guess_depth
from intone.records import Outcome
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run, find_run, with_state
from intone.settings import RunSettings, TrainSettings
from tests.pipeline.machine import names, run, train
from tests.test_bad_input import FACTS


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
        stages, "supervise", lambda *words, **_: (states.append(find_run("d1-1").state), supervise(*words))[1]
    )
    run()
    assert set(states) == {"unfinished"}


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


@pytest.mark.parametrize("error", [UserError("no text"), KeyboardInterrupt(), DiskFull("full"), ZeroDivisionError()])
def test_a_run_without_a_plan_leaves_nothing_behind(machine, home, error):
    machine.error = error
    with pytest.raises(type(error)):
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


def test_the_depth_in_a_name_is_the_one_that_planning_will_settle_on(machine, monkeypatch):
    monkeypatch.setattr(claim, "load_facts", lambda: replace(FACTS, fp32_flops_per_s=2e12))
    depth, _ = recipe.auto_depth(2e12, 90.0, is_starter=True)
    assert depth > recipe.MIN_DEPTH
    assert run(depth="auto", minutes=90.0).run == f"d{depth}-1"


def test_the_depth_in_a_name_is_that_of_the_run_it_starts_from(machine, tiny_job):
    run(name="first")
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "sft", "from_run": "first/mid"})])
    assert guess_depth(settings) == tiny_job.model.depth
    with_state(find_run("first"), "done")
    assert train(stage="sft", from_run="first").run == "d1-1"
