"""Attention sees what the mask says and nothing else, whichever way it is computed."""

import pytest
import torch
from torch.testing import assert_close

from intone.model.attention import BACKENDS, attend, packed_mask, rotary_tables, rotate

CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("window", [1, 4, 11, 99])
def test_a_query_sees_its_windows_latest_tokens_of_its_own_document(window):
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]], dtype=torch.int32)
    mask = packed_mask(documents, 11, window, CPU)
    assert mask.shape == (2, 1, 11, 11)
    for row in range(2):
        for query in range(11):
            for key in range(11):
                same = documents[row, query] == documents[row, key]
                assert mask[row, 0, query, key] == (same and 0 <= query - key < window)


def test_one_document_that_the_window_covers_needs_no_mask():
    assert packed_mask(None, 11, 11, CPU) is None
    mask = packed_mask(None, 11, 10, CPU)
    assert mask.shape == (1, 1, 11, 11)
    assert mask.sum() == 11 * 12 / 2 - 1  # only the first token is out of the last one's sight


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_weighted_mean_of_the_values_in_sight(backend, num_kv_heads, masked):
    q, k, v = random(2, 6, 7, 10), random(2, num_kv_heads, 7, 10, seed=1), random(2, num_kv_heads, 7, 10, seed=2)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1]] * 2, dtype=torch.int32)
    mask = packed_mask(documents, 7, 3, CPU) if masked else None
    y = attend(q, k, v, mask, backend=backend)
    for head in range(6):
        shared = head * num_kv_heads // 6  # neighbouring query heads share a key head
        for query in range(7):
            seen = [key for key in range(query + 1) if mask is None or mask[0, 0, query, key]]
            weights = (k[1, shared, seen] @ q[1, head, query] / 10**0.5).softmax(0)
            assert_close(y[1, head, query], weights @ v[1, shared, seen])


@pytest.mark.parametrize("backend", BACKENDS)
def test_attend_keeps_the_dtype_of_the_values(backend):
    q, k, v = (random(1, 2, 5, 8, seed=i).bfloat16() for i in range(3))
    assert attend(q, k, v, None, backend=backend).dtype == torch.bfloat16


def test_rotation_keeps_lengths_and_shows_only_distances():
    cos, sin = rotary_tables(50, 8, 10_000.0, CPU)
    assert cos.dtype == torch.float32 and cos.shape == (50, 4)
    a, b = random(8), random(8, seed=1)

    def turned(x, position):
        return rotate(x.view(1, 1, 1, 8), cos[position], sin[position]).flatten()

    assert_close(turned(a, 37).norm(), a.norm(), rtol=1e-6, atol=0)
    # the tables are float32: 1e-6 is their rounding
    assert_close(turned(a, 37) @ turned(b, 30), turned(a, 7) @ turned(b, 0), rtol=0, atol=1e-5)
    assert (turned(a, 37) @ turned(b, 30) - turned(a, 8) @ turned(b, 0)).abs() > 1e-3
    assert_close(turned(a, 0), a)


def test_the_first_channel_turns_one_radian_per_position_backwards():
    cos, sin = rotary_tables(3, 4, 100.0, CPU)
    assert_close(sin[:, 0], torch.tensor([0.0, 1.0, 2.0]).sin())
    assert_close(cos[:, 1], (torch.arange(3) / 10).cos())
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    turned = rotate(x, cos[1], sin[1]).flatten()
    assert_close(turned, torch.tensor([cos[1, 0], 0.0, -sin[1, 0], 0.0]))


def test_tables_in_bfloat16_are_the_rounded_float32_ones_at_every_position():
    """Bit for bit what nanochat computed before 2026-03-04: base ** (channel / width) and the product in float32."""
    cos, sin = rotary_tables(4096, 128, 10_000.0, CPU, as_bf16=True)
    frequency = 1.0 / (10_000.0 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    angle = torch.outer(torch.arange(4096, dtype=torch.float32), frequency)
    assert torch.equal(cos, angle.cos().bfloat16().float()) and cos.dtype == torch.float32
    assert torch.equal(sin, angle.sin().bfloat16().float())
    exact, _ = rotary_tables(4096, 128, 10_000.0, CPU)
    assert 0 < (exact.bfloat16().float() != cos).float().mean() < 0.01
