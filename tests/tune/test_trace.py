"""The traced memory of a step: that of the same step on real tensors, and of a worker that really trains."""

from dataclasses import replace

import pytest
import torch

from intone.config import OptimConfig, model_config
from intone.model.gpt import GPT
from intone.model.native import ops, trunk
from intone.model.native.build import SOURCES, obstacle
from intone.model.optim import Optimizer
from intone.tune.trace import live_bytes, trace, traced, worst_of

CONFIG = replace(model_config("modern", depth=2, vocab_size=331, context=48), width=64, num_heads=2, num_kv_heads=2)
CONFIG = replace(CONFIG, head_width=32)


def really(config, rows, dtype, head_pieces=1, kernels="torch"):
    """Bytes of the tensors alive at the worst moment of a second step's passes and update, computed for real."""
    model = GPT(config)
    model.init_weights(0)
    model.compute_dtype, model.head_pieces = dtype, head_pieces
    optimizer = Optimizer(model, OptimConfig())
    model.kernels = optimizer.kernels = kernels
    worst = worst_of(model, optimizer, torch.zeros(rows, config.context, dtype=torch.int32))
    return worst.pass_bytes, worst.update_bytes


@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.long), 4])
def test_tensors_without_contents_take_what_real_ones_take(pieces):
    worst = trace(CONFIG, 3, dtype="fp32", head_pieces=pieces)
    assert (worst.pass_bytes, worst.update_bytes) == pytest.approx(really(CONFIG, 3, torch.float32, pieces), rel=0.01)


@pytest.mark.skipif(obstacle("avx2") is not None, reason="our kernels cannot be built here")
def test_tensors_of_our_kernels_are_the_same_where_the_kernels_are_not_called():
    shape = replace(CONFIG, depth=1)
    worst = trace(shape, 3, dtype="fp32", kernels="native")
    found = really(shape, 3, torch.float32, kernels="native")
    assert (worst.pass_bytes, worst.update_bytes) == pytest.approx(found, rel=0.01)


def test_what_our_products_pack_is_counted_from_their_calls(monkeypatch):
    shape = replace(CONFIG, depth=1)
    for part in (ops, trunk):
        monkeypatch.setattr(part, "has_own_products", lambda: True)
    # the head's product packs its weight turned, (64, 384): more than the MLP's (64, 256) and the gradients' (144, 64)
    assert trace(shape, 3, dtype="fp32", kernels="native").packed_bytes == 4 * 64 * 384
    # of gradients of weights at most 2,048 tokens are packed at a time
    assert trace(shape, 70, dtype="fp32", kernels="native").packed_bytes == 4 * 64 * 2048
    assert f"PACKED = {ops.PACKED};" in (SOURCES / "product_avx2.cpp").read_text()
    for part in (ops, trunk):
        monkeypatch.setattr(part, "has_own_products", lambda: False)
    assert trace(shape, 3, dtype="fp32", kernels="native").packed_bytes == 0


def test_what_is_alive_is_counted_once_and_only_while_it_lives():
    before = torch.zeros(100)
    with live_bytes([before]) as live:
        a = torch.zeros(1000)
        view = a[10:].view(2, -1)
        before.add_(1.0)
        assert live.peak_bytes == 4000
        del a, view
        live.forget_peak()
        assert live.peak_bytes == 0
        b = torch.zeros(250) + 1  # two for a moment
        assert live.peak_bytes == 2000
        assert len(b) == 250


@pytest.mark.long
def test_memory_is_a_line_in_the_rows_and_logits_in_pieces_take_less():
    two, four, eight = (trace(CONFIG, rows, dtype="fp32").pass_bytes for rows in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)
    wide = replace(CONFIG, vocab_size=8192)
    whole, pieces = (trace(wide, 8, dtype="fp32", head_pieces=number).pass_bytes for number in (1, 16))
    assert pieces < 0.6 * whole


@pytest.mark.long
def test_a_child_answers_for_several_sizes(home):
    small, large = traced(CONFIG, [1, 2], dtype="fp32")
    assert small == trace(CONFIG, 1, dtype="fp32") and large.pass_bytes > small.pass_bytes
    assert small.growth_bytes == max(small.pass_bytes, small.update_bytes)
