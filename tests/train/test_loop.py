"""The loop: every step once, in the planned way, with its row in the log; and losses that are not finite."""

import dataclasses

import pytest
import torch
from tests.tiny_jobs import events, steps_saved

from intone.config import OptimConfig, TrainJob
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.model.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, save_checkpoint
from intone.model.gpt import GPT
from intone.model.optim import StepScale
from intone.paths import read_json, write_json
from intone.records import Outcome, read_log
from intone.train import evaluation, loop
from intone.train.step import TrainStep

ALL_STEPS = dict(save_every_s=0.0, keep=50)  # a save after every step, all of them kept


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl", "step")]


def steps_logged(folder):
    return [row["step"] for row in read_log(folder / "log.jsonl", "step")]


def weights_at(folder, step):
    return read_checkpoint(folder / "checkpoints" / f"step_{step:06d}").weights


def spoil_losses(monkeypatch, *numbers):
    """The loss of these forward passes in training, counted from 0, is not a number."""
    real, seen = GPT.forward, []

    def forward(self, ids, targets, documents=None):
        loss, count = real(self, ids, targets, documents)
        seen.append(None)
        return (loss * float("nan") if len(seen) - 1 in numbers else loss), count

    monkeypatch.setattr(GPT, "forward", forward)


# --- an undisturbed run ---------------------------------------------------------------------------


def test_a_run_logs_every_step_once_learns_and_saves(make_job, train, capsys):
    folder = make_job(steps=9)
    assert train(folder) == Outcome("done", 9)
    rows = read_log(folder / "log.jsonl", "step")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["tokens"] for row in rows] == [160 * step for step in range(1, 10)]
    assert not any(row["skipped"] for row in rows)
    assert rows[0]["loss"] == pytest.approx(5.58, abs=0.01)  # ln 265: it knows nothing yet
    assert rows[-1]["loss"] < 4.5
    assert rows[0]["lr"] == 0.5 and rows[-1]["lr"] < 0.3  # warm-up and fall
    assert all(0 <= row["data_s"] < row["step_s"] for row in rows)
    assert all(row["peak_bytes"] is None or row["peak_bytes"] > 1e7 for row in rows)
    assert steps_saved(folder) == [9]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("base step 1/9   loss 5.5") and "MFU unknown" in lines[0]
    assert sum(line.startswith("base step 9/9   loss") for line in lines) == 1


def test_two_runs_of_equal_settings_are_bitwise_equal_and_another_seed_is_not(make_job, train, final_state):
    states = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        folder = make_job(name, seed=seed, steps=4)
        train(folder)
        states.append((final_state(folder)[1], losses(folder)))
    assert states[0] == states[1]
    assert states[0][0] != states[2][0]


def test_reading_losses_one_step_late_changes_no_number_and_misses_no_row(make_job, train, final_state, monkeypatch):
    at_once = make_job("at-once", save_every_s=1e9, eval_every=4)
    train(at_once)
    monkeypatch.setattr(loop, "step_lag", lambda device, dtype: 1)
    late = make_job("late", save_every_s=1e9, eval_every=4)
    train(late)
    assert steps_logged(late) == [1, 2, 3, 4, 5, 6, 7]
    assert losses(late) == losses(at_once)
    assert final_state(late) == final_state(at_once)
    assert steps_saved(late) == steps_saved(at_once)


def test_only_a_queue_makes_losses_late_and_never_with_a_loss_scale():
    assert loop.step_lag(torch.device("cpu"), "bf16") == 0
    assert loop.step_lag(torch.device("cuda"), "bf16") == 1
    assert loop.step_lag(torch.device("cuda"), "fp16") == 0


def test_each_step_gets_the_next_rows(make_job, train, text_files, monkeypatch):
    seen = []
    real = TrainStep.run
    monkeypatch.setattr(TrainStep, "run", lambda self, batch, scale: seen.append(batch) or real(self, batch, scale))
    train(make_job(steps=3))
    rows = Rows([TokenSet.open(text_files / "train")], 32, 3)
    for step, batch in enumerate(seen):
        assert (batch.ids == rows.rows(5 * step, 5).ids).all()


def test_the_schedule_of_the_job_reaches_the_optimizer(make_job, train, monkeypatch):
    scales = []
    real = TrainStep.run
    monkeypatch.setattr(TrainStep, "run", lambda self, batch, scale: scales.append(scale) or real(self, batch, scale))
    train(make_job(steps=2))
    assert scales[0] == StepScale(lr=1.0, momentum=0.85, weight_decay=1.0)
    assert scales[1].weight_decay == 0.5


def test_an_mfu_is_shown_where_the_machines_rate_is_known(make_job, train, capsys):
    train(make_job(steps=2, peak_flops=1e12))
    assert "%   peak" in capsys.readouterr().err


def test_a_trial_saves_and_evaluates_nothing(make_job, train, text_files):
    folder = make_job(keep=0, steps=3, val=str(text_files / "val"), eval_every=1, save_every_s=0.0)
    assert train(folder) == Outcome("done", 3)
    assert sorted(path.name for path in folder.iterdir()) == ["choices.json", "config.json", "log.jsonl"]


# --- what is refused ------------------------------------------------------------------------------


def test_a_job_file_with_an_unknown_key_is_refused(make_job, train):
    folder = make_job()
    job = read_json(folder / "config.json")
    write_json(folder / "config.json", {**job, "stepz": 3})
    with pytest.raises(UserError, match="unknown job setting 'stepz'"):
        train(folder)
    assert TrainJob.from_json(job).optim == OptimConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp64"}, "'dtype' is 'fp64', it must be one of fp32, bf16, fp16"),
        ({"attention": "product"}, "unknown attention backend 'product'"),
        ({"device_batch": 0}, "device_batch is 0, it must be at least 1"),
        ({"steps": 4}, "from step 4 on the plan has 4 steps: they would be over before"),
    ],
)
def test_a_plan_that_nothing_here_computes_is_refused(make_job, train, plan, change, message):
    folder = make_job(segments=[plan(0), dataclasses.replace(plan(4), **change)])
    with pytest.raises(UserError, match=message):
        train(folder)
    assert not (folder / "log.jsonl").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_job_settled_for_a_device_that_is_not_here_is_refused(make_job, train):
    with pytest.raises(UserError, match="settled for a CUDA device and there is none here"):
        train(make_job(device="cuda"))


# --- losses that are not finite -------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_skipped_counted_and_changes_no_weight(make_job, train, monkeypatch):
    folder = make_job(steps=5, **ALL_STEPS)
    spoil_losses(monkeypatch, 2)
    assert train(folder) == Outcome("done", 5)
    rows = read_log(folder / "log.jsonl", "step")
    assert [row["skipped"] for row in rows] == [False, False, True, False, False]
    assert rows[2]["loss"] is None and rows[3]["loss"] is not None
    before, after = weights_at(folder, 2), weights_at(folder, 3)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    state = newest_checkpoint(folder)[0].state
    assert (state["num_skipped"], state["num_not_finite"]) == (1, 0)


def test_two_in_a_row_are_survived_and_three_end_the_run_with_the_address(make_job, train, monkeypatch):
    folder = make_job(steps=9)
    spoil_losses(monkeypatch, 1, 2, 4, 5, 6)
    outcome = train(folder)
    assert (outcome.outcome, outcome.step) == ("not_finite", 7)
    assert "3 steps in a row, the last of rows 30 to 34" in outcome.message
    assert read_json(folder / "not_finite.json") == {"step": 7, "first_row": 30, "num_rows": 5, "in_a_row": 3}
    assert [row["skipped"] for row in read_log(folder / "log.jsonl", "step")] == [bool(int(c)) for c in "0110111"]


def test_weights_that_are_not_numbers_end_the_run_after_three_steps(make_job, train, tiny_config):
    before, folder = make_job("before", steps=1), make_job("after", init_from="before")
    train(before)
    good = newest_checkpoint(before)[0]
    spoiled = {**good.weights, "head.weight": good.weights["head.weight"] * float("nan")}
    save_checkpoint(
        before, 2, model=tiny_config, weights=spoiled, optimizer=good.optimizer, state=good.state,
        tokenizer_hash=good.tokenizer_hash,
    )  # fmt: skip
    job = read_json(folder / "config.json")
    write_json(folder / "config.json", {**job, "init_from": str(before)})
    outcome = train(folder)
    assert (outcome.outcome, outcome.step) == ("not_finite", 3)
    assert list_checkpoints(folder) == []


def test_a_step_with_nothing_to_learn_is_logged_and_not_counted_as_not_finite(make_job, train, monkeypatch):
    real = Rows.rows

    def masked(self, first, count):
        batch = real(self, first, count)
        if first in (5, 10, 15):
            batch.targets[:] = -1
        return batch

    monkeypatch.setattr(Rows, "rows", masked)
    folder = make_job(steps=5, **ALL_STEPS)
    assert train(folder) == Outcome("done", 5)
    assert [loss is None for loss in losses(folder)] == [False, True, True, True, False]
    assert not any(row["skipped"] for row in read_log(folder / "log.jsonl", "step"))
    before, after = weights_at(folder, 1), weights_at(folder, 4)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_loss_scale_of_fp16_goes_on_where_it_was(make_job, train, final_state, plan):
    whole, parts = (make_job(name, steps=4, segments=[plan(0, dtype="fp16")]) for name in ("whole", "parts"))
    train(whole)
    train(parts, stop_after=2)
    train(parts)
    state = final_state(whole)[2]
    assert state["loss_scale"] >= 2.0 and state["good_steps"] == 4
    assert final_state(parts) == final_state(whole)


# --- segments -------------------------------------------------------------------------------------


def test_segments_change_how_a_planned_step_is_computed_and_nothing_else(make_job, train, plan, monkeypatch):
    seen = []
    real = TrainStep.run

    def run(self, batch, scale):
        seen.append((self.device_batch, self._model.attention_backend))
        return real(self, batch, scale)

    monkeypatch.setattr(TrainStep, "run", run)
    one = make_job("one", steps=6)
    segments = [plan(0, device_batch=4), plan(2, device_batch=2, attention="products"), plan(5, device_batch=1)]
    many = make_job("many", steps=6, segments=segments)
    train(one)
    del seen[:]
    train(many, stop_after=3)
    train(many)
    assert seen == [(4, "sdpa")] * 2 + [(2, "products")] * 3 + [(1, "sdpa")]
    assert events(many) == [(2, "segment"), (5, "segment")]
    assert losses(many) == pytest.approx(losses(one), rel=1e-4)


# --- evaluations ----------------------------------------------------------------------------------


def test_evaluations_are_logged_with_samples_and_the_best_save_is_kept(make_job, train, text_files, monkeypatch):
    scores = iter([2.0, 1.5, 1.7, 1.6])
    real = evaluation.bits_per_byte
    monkeypatch.setattr(
        evaluation, "bits_per_byte", lambda *args, **kwargs: {**real(*args, **kwargs), "value": next(scores)}
    )
    folder = make_job(steps=8, val=str(text_files / "val"), eval_every=2, samples=("the cat",), keep=1)
    assert train(folder) == Outcome("done", 8)
    rows = read_log(folder / "log.jsonl", "eval")
    assert [(row["step"], row["values"]["bpb"]) for row in rows] == [(2, 2.0), (4, 1.5), (6, 1.7), (8, 1.6)]
    assert [row["step"] for row in read_log(folder / "samples.jsonl", "sample")] == [2, 4, 6, 8]
    assert steps_saved(folder) == [4, 8]
    assert read_json(folder / "eval.json")["step"] == 8


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(make_job, train, text_files, monkeypatch):
    settings = dict(steps=6, val=str(text_files / "val"), eval_every=2, samples=("the cat", "a bird"), keep=1)
    whole, killed = make_job("whole", **settings), make_job("killed", **settings)
    train(whole)
    with monkeypatch.context() as patched:
        real, count = evaluation.log_row, iter(range(100))

        def log_row(path, row):
            if next(count) == 4:  # three rows of step 2, one sample of step 4
                raise KeyboardInterrupt
            real(path, row)

        patched.setattr(evaluation, "log_row", log_row)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert steps_saved(killed)[-1] == 4
    train(killed)
    kinds = [[(row["step"], row["values"]) for row in read_log(f / "log.jsonl", "eval")] for f in (whole, killed)]
    assert kinds[0] == kinds[1] and len(kinds[0]) == 3
    assert (killed / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert steps_saved(killed) == steps_saved(whole)
