"""nanochat's weights under our names: all of them, and no others."""

import dataclasses

import numpy as np
import pytest
import torch

from intone.bench import train_weights
from intone.bench.train_ours import export_rows
from intone.bench.train_weights import save_start, score
from intone.exchange.nanochat import their_name
from intone.model.checkpoint import load_weights
from intone.model.gpt import GPT


def test_nanochats_weights_become_a_start_and_another_shape_is_refused(tiny_job, tmp_path, monkeypatch):
    model = tiny_job.model
    source = GPT(model)
    source.init_weights(4)
    state = source.state_dict()
    arrays = {their_name(name): state[name].numpy() for name, _ in source.named_parameters()}
    np.savez(tmp_path / "weights.npz", **arrays)
    monkeypatch.setattr(train_weights, "ask_child", lambda _, question, **__: train_weights.answer(question))
    save_start(model, tmp_path / "weights.npz", tmp_path / "start", tiny_job.tokenizer_hash)
    config, weights, save = load_weights(tmp_path / "start")
    assert (config, save.step, save.tokenizer_hash) == (model, 0, tiny_job.tokenizer_hash)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())
    deeper = dataclasses.replace(model, depth=model.depth + 1)
    with pytest.raises(SystemExit, match="is only on one side: not nanochat at 92d63d4, or another shape"):
        score(export_rows(tiny_job, 1, 64), model=deeper, weights=tmp_path / "weights.npz")
