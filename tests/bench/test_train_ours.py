"""Our side of the comparison with nanochat: plans, matched jobs, rows for the other side, and what is kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from intone.bench.foreign.nanochat_train import recipe_for
from intone.bench.train_ours import (
    Kept,
    export_rows,
    make_bench_home,
    matched,
    plan_flags,
    prepare,
    read_job,
    write_job,
)
from intone.bench.train_settings import BenchTrainSettings
from intone.data.loader import Rows, validation_rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.paths import home as intone_home
from intone.paths import read_json, write_json
from intone.records import Choice, Choices, Segment
from intone.train.schedule import scale_at

SEGMENT = Segment(0, device_batch=5, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)
CHOICES = Choices({"device": Choice("cpu", "test", "default")}, (SEGMENT,), {}, {"OMP_NUM_THREADS": "1"})


def settings_with(**changes):
    return BenchTrainSettings(**{"nanochat": "/nowhere", "data": ("text.jsonl",), **changes})


def test_what_is_compared_is_asked_for_and_auto_is_left_to_the_verb():
    flags = plan_flags(settings_with(threads=3, val=("val.txt",)), depth=6, batch_tokens=4096, minutes=2.5)
    assert flags == [
        "--preset", "modern", "--depth", "6", "--context", "512", "--vocab-size", "8192", "--batch-tokens", "4096",
        "--minutes", "2.5", "--threads", "3", "--data", "text.jsonl", "--val", "val.txt",
    ]  # fmt: skip


@pytest.mark.long
def test_a_plan_is_settled_by_the_verb_apart_from_the_persons_runs_and_found_again(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "Ship {n} sails past island {n * 7 % 31} now."}}\n' for n in range(90)))
    settings = settings_with(
        data=(str(text),), dtype="fp32", threads=1, compile="off", kernels="torch", device_batch=3, context=32,
        vocab_size=300,
    )
    flags = plan_flags(settings, depth=1, batch_tokens=256, steps=7)
    folder = prepare(flags)
    job, choices = read_job(folder)
    assert folder.is_relative_to(intone_home() / "bench" / "train" / "runs")
    assert (make_bench_home() / "machine").resolve() == intone_home() / "machine"
    assert (job.steps, job.rows_per_step, job.context, job.model.depth) == (7, 8, 32, 1)
    assert (choices.segments[0].dtype, choices.segments[0].device_batch) == ("fp32", 3)
    before = (folder / "config.json").stat().st_mtime_ns
    assert prepare(flags) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_a_plan_that_cannot_be_settled_says_why():
    flags = plan_flags(settings_with(data=("nowhere.txt",)), depth=1, steps=7)
    with pytest.raises(UserError, match=r"our side could not be settled: .*nowhere.txt"):
        prepare(flags)


def test_a_matched_job_has_nanochats_rates_at_every_step(tiny_job, tmp_path):
    recipe = recipe_for(2_000_000, 110_100_912, batch_tokens=16_384, steps=0)
    facts = {"rate_scale": recipe.rate_scale, "weight_decay": recipe.weight_decay, "steps": recipe.steps}
    job = matched(tiny_job, facts, tmp_path)
    assert (job.steps, job.keep, job.init_from, job.one_text) == (recipe.steps, 0, str(tmp_path), True)
    for step in (0, 1, 17, 39, 40, 56):
        scale = scale_at(job.schedule, step, job.steps)
        assert scale.lr == pytest.approx(recipe.rate(step) * recipe.rate_scale)
        assert scale.momentum == pytest.approx(recipe.momentum(step))
        decay = job.optim.weight_decay * scale.weight_decay
        assert decay == pytest.approx(recipe.decay(step), rel=0.05)
    # smear and backout have a rate of their own that nanochat does not scale with the batch
    assert job.optim.gate_lr * recipe.rate_scale == pytest.approx(0.2)
    assert job.optim.weight_decay == recipe.weight_decay
    slow = matched(tiny_job, facts, tmp_path, scalar_rates=0.1).optim
    names = ("residual_scale_lr", "embedding_scale_lr", "gate_lr")
    assert [getattr(slow, name) for name in names] == pytest.approx([0.1 * getattr(job.optim, name) for name in names])
    assert dataclasses.replace(slow, **{name: getattr(job.optim, name) for name in names}) == job.optim


def test_the_other_side_reads_the_rows_that_we_train_on(tiny_job):
    folder = export_rows(tiny_job, 1030, 8 * tiny_job.context)
    rows = Rows([TokenSet.open(path) for path in map(Path, tiny_job.data)], tiny_job.context, tiny_job.seed)
    batch = rows.rows(0, 1030)
    assert np.array_equal(np.load(folder / "ids.npy"), batch.ids)
    assert np.array_equal(np.load(folder / "targets.npy"), batch.targets)
    val = list(validation_rows(TokenSet.open(Path(tiny_job.val)), tiny_job.context, 8 * tiny_job.context))
    assert np.array_equal(np.load(folder / "val_targets.npy"), np.concatenate([entry.targets for entry in val]))
    assert np.array_equal(np.load(folder / "val_documents.npy"), np.concatenate([entry.documents for entry in val]))
    assert np.load(folder / "token_bytes.npy").tolist() == [1] * 256 + [0] * 9
    written = (folder / "ids.npy").stat().st_mtime_ns
    assert export_rows(tiny_job, 500, 8 * tiny_job.context) == folder
    assert (folder / "ids.npy").stat().st_mtime_ns == written
    assert export_rows(tiny_job, 1031, 8 * tiny_job.context) == folder
    assert read_json(folder / "rows.json")["num_rows"] == 1031
    other_seed = dataclasses.replace(tiny_job, seed=tiny_job.seed + 1)
    assert export_rows(other_seed, 3, 8 * tiny_job.context) != folder


def test_parts_of_a_case_are_made_once_until_the_case_is_done(home):
    made = []

    def make():
        made.append(1)
        return {"n": len(made)}

    assert [Kept("tokens", settings_with(), "x").get("part", make) for _ in range(2)] == [{"n": 1}, {"n": 1}]
    assert Kept("tokens", settings_with(tokens=5), "x").get("part", make) == {"n": 2}
    assert Kept("tokens", settings_with(), "another nanochat").get("part", make) == {"n": 3}
    assert Kept("tokens", settings_with(fresh=True), "x").get("part", make) == {"n": 4}
    Kept("tokens", settings_with(), "x").forget()
    assert Kept("tokens", settings_with(), "x").get("part", make) == {"n": 5}


def test_a_job_folder_is_written_without_what_an_earlier_try_left(tiny_job, tmp_path):
    folder = tmp_path / "job"
    write_json(folder / "log.jsonl", {"old": True})
    write_job(folder, tiny_job, CHOICES)
    assert sorted(path.name for path in folder.iterdir()) == ["choices.json", "config.json"]
    assert read_job(folder) == (tiny_job, CHOICES)
