"""Saves: however often a run is stopped, killed or damaged, its steps are those of an undisturbed one."""

import shutil
import sys

import pytest
import torch
from tests.tiny_jobs import events, losses, steps_saved

from intone.config import ScheduleConfig
from intone.errors import Damaged, UserError
from intone.model.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint
from intone.paths import read_json, write_json
from intone.records import Outcome, read_choices, read_log, write_choices
from intone.train import evaluation, loop
from intone.train.schedule import place_of, scale_at
from intone.train.step import TrainStep

ALL_STEPS = dict(save_every_s=0.0, keep=50)  # a save after every step, all of them kept


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# --- stopping and going on ------------------------------------------------------------------------


def test_a_stopped_run_goes_on_bitwise(make_job, train, final_state, text_files, capsys):
    settings = dict(val=str(text_files / "val"), eval_every=3, samples=("the cat",), steps=7, keep=2)
    whole, parts = make_job("whole", **settings), make_job("parts", **settings)
    train(whole)
    outcome = train(parts, stop_after=2)
    assert (outcome.outcome, outcome.step) == ("stopped", 2)
    assert train(parts, stop_after=3).step == 5
    assert train(parts) == Outcome("done", 7)
    assert final_state(parts) == final_state(whole)
    assert losses(parts) == losses(whole) and [step for step, _ in losses(parts)] == list(range(1, 8))
    for name in ("samples.jsonl", "eval.json"):
        assert (parts / name).read_text() == (whole / name).read_text()
    assert "going on from the save at step 5" in capsys.readouterr().err
    rows = [row for row in read_log(parts / "log.jsonl", "event") if row["event"] in ("save", "resumed")]
    assert [(row["step"], row["event"], row["message"]) for row in rows] == [
        (2, "save", "step_000002"), (2, "resumed", "from the save at step 2"), (3, "save", "step_000003"),
        (5, "save", "step_000005"), (5, "resumed", "from the save at step 5"), (6, "save", "step_000006"),
        (7, "save", "step_000007"),
    ]  # fmt: skip
    assert all((row["seconds"] > 0) == (row["event"] == "save") for row in rows if row["seconds"] is not None)
    assert [row["event"] for row in rows if row["seconds"] is None] == ["resumed", "resumed"]


@pytest.mark.parametrize("steps", [5, 12])
def test_steps_planned_anew_at_a_save_give_bitwise_the_run_that_was_planned_so(make_job, train, final_state, steps):
    schedule = ScheduleConfig(warmup_steps=1, warmdown_share=0.85)
    parts, whole = (make_job(name, steps=8, schedule=schedule) for name in ("parts", "whole"))
    assert train(parts, stop_after=3).step == 3
    choices = read_choices(parts).with_steps(3, steps, 8, "the machine is as it is")
    for folder in (parts, whole):
        write_choices(folder, choices)
    assert train(parts, stop_after=1).step == 4
    shutil.rmtree(list_checkpoints(parts)[-1])  # as where it was killed before it could save
    for folder in (parts, whole):
        assert train(folder) == Outcome("done", steps)
    assert losses(parts) == losses(whole) and [step for step, _ in losses(whole)] == list(range(1, steps + 1))
    assert final_state(parts) == final_state(whole)
    places = [place_of([(0, 8), (3, steps)], step) for step in range(steps)]
    expected = [scale_at(schedule, step, 8, place=place).lr for step, place in enumerate(places)]
    assert [row["lr"] for row in read_log(whole / "log.jsonl", "step")] == expected


def test_a_stop_in_the_last_step_leaves_the_evaluation_for_the_next_start(make_job, train, text_files):
    folder = make_job(steps=4, val=str(text_files / "val"))
    assert train(folder, stop_after=4) == Outcome("stopped", 4, "stopped before the last evaluation")
    assert not (folder / "eval.json").exists()
    assert train(folder) == Outcome("done", 4)
    assert read_json(folder / "eval.json")["step"] == 4
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 4]


def test_a_run_that_dies_in_a_step_goes_on_bitwise_and_logs_every_step_once(make_job, train, final_state, monkeypatch):
    whole, killed = make_job("whole", steps=6), make_job("killed", steps=6)
    train(whole)
    train(killed, stop_after=2)
    with monkeypatch.context() as patched:
        real, left = TrainStep.run, iter([True, True])
        patched.setattr(TrainStep, "run", lambda self, *args: real(self, *args) if next(left, False) else sys.exit(9))
        with pytest.raises(SystemExit):
            train(killed)
    assert [step for step, _ in losses(killed)] == [1, 2, 3, 4] and steps_saved(killed) == [2]
    with open(killed / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "st')  # a row that the end of the process tore
    train(killed)
    assert final_state(killed) == final_state(whole)
    assert losses(killed) == losses(whole) and [step for step, _ in losses(killed)] == list(range(1, 7))


def test_the_best_step_is_known_after_a_restart(make_job, train, text_files, monkeypatch):
    scores = iter([1.0, 2.0, 2.0])
    real = evaluation.bits_per_byte
    monkeypatch.setattr(
        evaluation, "bits_per_byte", lambda *args, **kwargs: {**real(*args, **kwargs), "value": next(scores)}
    )
    folder = make_job(steps=6, val=str(text_files / "val"), eval_every=2, keep=1)
    train(folder, stop_after=2)  # saved, then evaluated: the save does not know how good it is
    train(folder)
    assert steps_saved(folder) == [2, 6]


# --- damage ---------------------------------------------------------------------------------------


def test_a_damaged_newest_save_falls_back_and_is_written_anew(make_job, train, final_state, copied, capsys):
    folder = make_job(steps=5, **ALL_STEPS)
    train(folder)
    damaged = copied(folder, "damaged")
    for step in (4, 5):
        flip_last_byte(damaged / "checkpoints" / f"step_{step:06d}" / "model.safetensors")
    assert train(damaged) == Outcome("done", 5)
    assert final_state(damaged) == final_state(folder)
    assert losses(damaged) == losses(folder)
    assert events(damaged) == [(3, "damaged save skipped")] * 2
    assert "step_000005/model.safetensors does not have the checksum" in capsys.readouterr().err
    assert all(read_checkpoint(path) for path in list_checkpoints(damaged))


def test_damaged_saves_do_not_stay_to_push_out_good_ones(make_job, train):
    folder = make_job(steps=7, save_every_s=0.0, keep=3)
    train(folder, stop_after=5)
    for step in (4, 5):
        flip_last_byte(folder / "checkpoints" / f"step_{step:06d}" / "state.json")
    assert train(folder, stop_after=1).step == 4
    assert steps_saved(folder) == [3, 4]
    assert newest_checkpoint(folder)[1] == []


def test_saves_that_are_all_damaged_end_the_run_with_a_way_out(make_job, train):
    folder = make_job(steps=2)
    train(folder)
    flip_last_byte(folder / "checkpoints" / "step_000002" / "model.safetensors")
    with pytest.raises(Damaged, match="every save in .* is damaged"):
        train(folder)


def test_a_save_of_another_model_is_refused(make_job, train, tiny_config):
    folder = make_job(steps=2)
    train(folder)
    job = read_json(folder / "config.json")
    write_json(folder / "config.json", {**job, "model": {**tiny_config.as_json(), "softcap": 20.0}, "steps": 3})
    with pytest.raises(UserError, match="has another model or tokenizer than this job"):
        train(folder)


# --- stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_optimizer", [False, True])
def test_a_stage_begins_with_the_weights_of_the_one_before(make_job, train, text_files, monkeypatch, keep_optimizer):
    before = make_job("base", steps=3)
    train(before)
    start = newest_checkpoint(before)[0]
    begun = {}
    real = loop.Trainer.advance

    def steps(self, batches, last_step):
        begun.update({name: value.clone() for name, value in self.model.state_dict().items()})
        begun.update({name: value.clone() for name, value in self.optimizer.state_tensors().items()})
        return real(self, batches, last_step)

    monkeypatch.setattr(loop.Trainer, "advance", steps)
    after = make_job(
        "sft", stage="sft", steps=2, data=(str(text_files / "talks"),), init_from=str(before),
        keep_optimizer=keep_optimizer, samples=("the cat",),
    )  # fmt: skip
    assert train(after) == Outcome("done", 2)
    assert all(torch.equal(begun[name], value) for name, value in start.weights.items())
    moments = [torch.equal(begun[name], value) for name, value in start.optimizer.items()]
    assert all(moments) if keep_optimizer else not any(moments)
    assert [step for step, _ in losses(after)] == [1, 2]  # a stage counts its own steps
    assert newest_checkpoint(after)[0].optimizer["num_steps"] == (5 if keep_optimizer else 2)


def test_a_stage_that_starts_from_an_older_save_says_so(make_job, train, capsys):
    before = make_job("base", steps=3, **ALL_STEPS)
    train(before)
    flip_last_byte(before / "checkpoints" / "step_000003" / "model.safetensors")
    after = make_job("mid", steps=1, init_from=str(before))
    train(after)
    assert "damaged save skipped: " in capsys.readouterr().err
    assert events(after) == [(0, "damaged save skipped")]
    assert steps_saved(before) == [1, 2, 3]  # another job's folder is only read


def test_a_stage_without_a_save_to_start_from_is_refused(make_job, train, tmp_path):
    with pytest.raises(UserError, match="nothing has no save to start from"):
        train(make_job(init_from=str(tmp_path / "nothing")))
