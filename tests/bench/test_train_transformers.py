"""Our training step beside transformers': both compute one function, and what is kept of the comparison."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.bench.test_casestudy import FACTS, measured

from intone.bench import rows as bench_rows
from intone.bench import train_transformers
from intone.bench.casestudy_settings import TransformersSettings
from intone.bench.train_transformers import DRIVER, bench_transformers, inverted, rows_of, text_of
from intone.config import model_config
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import UserError
from intone.exchange.exporting import Source, write_transformers
from intone.model.gpt import GPT
from intone.prove.live import LineChild

CONFIG = model_config("classic", depth=2, vocab_size=265, context=32, head_width=16, num_kv_heads=4)


@pytest.fixture
def model():
    model = GPT(CONFIG)
    model.init_weights(seed=0)
    with torch.no_grad():  # output projections start at zero, which would hide everything below them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.long
def test_both_compute_the_same_first_loss_and_theirs_learns(tmp_path, model):
    pytest.importorskip("transformers", reason="transformers is not installed")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 265, (6, 32)).astype(np.int32)
    targets = np.where(rng.random((6, 32)) < 0.7, np.roll(ids, -1, 1), -1).astype(np.int32)
    documents = np.sort(rng.integers(0, 4, (6, 32)), axis=1).astype(np.int32)
    for name, array in (("ids", ids), ("targets", targets), ("documents", documents)):
        np.save(tmp_path / f"{name}.npy", array)
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    (tmp_path / "model").mkdir()
    write_transformers(tmp_path / "model", Source(None, CONFIG, model.state_dict(), 1, tokenizer))
    words = ["--model", tmp_path / "model", "--rows", tmp_path, "--micro-rows", 4, "--rows-per-step", 6, "--threads", 1]
    with LineChild([sys.executable, str(DRIVER), *map(str, words)], {"HF_HUB_OFFLINE": "1"}) as child:
        ready = child.wait_ready()
        answer = child.block(steps=3)
    with torch.no_grad():
        loss, learned = model(*(torch.from_numpy(array) for array in (ids, targets, documents)))
    assert ready.facts["masked_loss"] == pytest.approx(float(loss / learned), rel=1e-5)
    assert answer["tokens"] == 3 * 6 * 32
    assert answer["losses"][2] < answer["losses"][0]


def test_only_the_classic_architecture_can_be_compared():
    with pytest.raises(UserError, match="classic architecture only"):
        bench_transformers(TransformersSettings(preset="modern"), {})


@pytest.fixture
def beside(monkeypatch):
    """Ours at 300, transformers at 100 eager and 150 compiled."""
    monkeypatch.setattr(bench_rows, "load_facts", lambda: FACTS)
    found = measured({"intone": 300.0, "transformers eager": 100.0, "transformers compiled": 150.0})
    sides = [replace(side, facts={"transformers": "9.9"}) for side in found.sides]
    return replace(found, sides=tuple(sides))


def test_the_row_is_ours_over_their_faster_way(beside):
    [row] = rows_of(beside, TransformersSettings(), "cpu", 4)
    assert row.id == "cpu.train.d4.vs_transformers"
    assert row.value == pytest.approx(2.0, rel=0.01) and row.low <= row.value <= row.high
    assert row.baseline == "transformers 9.9, compiled, AdamW: 150 tokens/s"
    assert rows_of(beside, TransformersSettings(quick=True), "cpu", 4) == []
    assert rows_of(replace(beside, rounds=beside.rounds[:4]), TransformersSettings(), "cpu", 4) == []


def test_people_read_how_often_ours_is_as_fast(beside):
    text = text_of(beside)
    assert "3.00x [" in text and "2.00x [" in text and "AdamW" in text


def test_seen_from_the_other_side_the_interval_turns_round(beside):
    found = beside.comparisons[0]
    back = inverted(found)
    assert (back.ratio, back.low, back.high) == (1 / found.ratio, 1 / found.high, 1 / found.low)


def test_other_losses_mean_another_function(beside, monkeypatch):
    monkeypatch.setattr(train_transformers, "first_loss", lambda ready: 5.0)
    sides = [replace(side, facts={"masked_loss": 5.1}) for side in beside.sides]
    with pytest.raises(UserError, match="not the same function"):
        train_transformers.check_loss(None, replace(beside, sides=tuple(sides)))
