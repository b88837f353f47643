"""The loop: however often it is stopped, killed or damaged, the steps are those of an undisturbed run."""

import sys

import pytest
import torch

from intone.config import OptimConfig, TrainJob
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import Damaged, UserError
from intone.model.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, save_checkpoint, saved_step
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


def events(folder):
    """What happened besides saving and going on."""
    rows = read_log(folder / "log.jsonl", "event")
    return [(row["step"], row["event"]) for row in rows if row["event"] not in ("save", "resumed")]


def steps_saved(folder):
    return [saved_step(path) for path in list_checkpoints(folder)]


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


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


def test_an_mfu_is_shown_where_the_machines_rate_is_known(make_job, train, capsys):
    train(make_job(steps=2, peak_flops=1e12))
    assert "%   peak" in capsys.readouterr().err


def test_a_trial_saves_and_evaluates_nothing(make_job, train, text_files):
    folder = make_job(keep=0, steps=3, val=str(text_files / "val"), eval_every=1, save_every_s=0.0)
    assert train(folder) == Outcome("done", 3)
    assert sorted(path.name for path in folder.iterdir()) == ["choices.json", "config.json", "log.jsonl"]


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
    assert losses(parts) == losses(whole) and steps_logged(parts) == list(range(1, 8))
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


def test_a_stop_in_the_last_step_leaves_the_evaluation_for_the_next_start(make_job, train, text_files):
    folder = make_job(steps=4, val=str(text_files / "val"))
    assert train(folder, stop_after=4) == Outcome("stopped", 4, "stopped before the last evaluation")
    assert not (folder / "eval.json").exists()
    assert train(folder) == Outcome("done", 4)
    assert read_json(folder / "eval.json")["step"] == 4
    assert steps_logged(folder) == [1, 2, 3, 4]


def test_a_run_that_dies_in_a_step_goes_on_bitwise_and_logs_every_step_once(make_job, train, final_state, monkeypatch):
    whole, killed = make_job("whole", steps=6), make_job("killed", steps=6)
    train(whole)
    train(killed, stop_after=2)
    with monkeypatch.context() as patched:
        real, left = TrainStep.run, iter([True, True])
        patched.setattr(TrainStep, "run", lambda self, *args: real(self, *args) if next(left, False) else sys.exit(9))
        with pytest.raises(SystemExit):
            train(killed)
    assert steps_logged(killed) == [1, 2, 3, 4] and steps_saved(killed) == [2]
    with open(killed / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "st')  # a row that the end of the process tore
    train(killed)
    assert final_state(killed) == final_state(whole)
    assert losses(killed) == losses(whole) and steps_logged(killed) == list(range(1, 7))


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


def test_another_tokenizer_or_model_is_refused(make_job, train, tiny_config):
    with pytest.raises(Damaged, match="is not the one this job was written for"):
        train(make_job("tokenizer", tokenizer_hash="0" * 64))
    folder = make_job("model", steps=2)
    train(folder)
    job = read_json(folder / "config.json")
    write_json(folder / "config.json", {**job, "model": {**tiny_config.as_json(), "softcap": 20.0}, "steps": 3})
    with pytest.raises(UserError, match="has another model or tokenizer than this job"):
        train(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp64"}, "'dtype' is 'fp64', it must be one of fp32, bf16, fp16"),
        ({"attention": "product"}, "unknown attention backend 'product'"),
        ({"device_batch": 0}, "device_batch is 0, it must be at least 1"),
    ],
)
def test_a_plan_that_nothing_here_computes_is_refused(make_job, train, plan, change, message):
    folder = make_job(segments=[plan(0), plan(4, **change)])
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
    assert steps_logged(after) == [1, 2]  # a stage counts its own steps
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


def test_a_job_file_with_an_unknown_key_is_refused(make_job, train):
    folder = make_job()
    job = read_json(folder / "config.json")
    write_json(folder / "config.json", {**job, "stepz": 3})
    with pytest.raises(UserError, match="unknown job setting 'stepz'"):
        train(folder)
    assert TrainJob.from_json(job).optim == OptimConfig()


def test_the_schedule_of_the_job_reaches_the_optimizer(make_job, train, monkeypatch):
    scales = []
    real = TrainStep.run
    monkeypatch.setattr(TrainStep, "run", lambda self, batch, scale: scales.append(scale) or real(self, batch, scale))
    train(make_job(steps=2))
    assert scales[0] == StepScale(lr=1.0, momentum=0.85, weight_decay=1.0)
    assert scales[1].weight_decay == 0.5
