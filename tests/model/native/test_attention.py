"""Attention of our CPU kernels against plain PyTorch: what queries see, those left out, and rows of many blocks."""

import pytest
import torch

from intone.model.attention import attend, packed_mask
from intone.model.native import build
from intone.model.native.ops import Attend, first_visible


def only_where(variant):
    reason = build.obstacle(variant)
    return pytest.mark.skipif(reason is not None, reason=f"no kernels here: {reason}")


BFLOAT16 = pytest.param(torch.bfloat16, marks=only_where("avx512_bf16"), id="bf16")
FLOAT32 = pytest.param(torch.float32, marks=only_where("avx2"), id="fp32")
both = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])

ROWS, POSITIONS = 3, 77  # no multiples of the kernels' 16, 32 and 128


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def documents():
    return (torch.rand(ROWS, POSITIONS, generator=torch.Generator().manual_seed(2)) < 0.06).cumsum(1).int()


def distance(a, b):
    return ((a.to(b.dtype) - b).norm() / b.norm()).item()


@pytest.mark.parametrize("window", [1, 19, POSITIONS])
@both
def test_a_query_sees_its_window_of_its_own_document_and_nothing_else(documents, window, dtype):
    """Keys outside may hold anything: the outputs do not change by a bit."""
    first = first_visible(documents, ROWS, POSITIONS, window)
    heads = torch.randn(ROWS, POSITIONS, 6, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = Attend.apply(heads, first, 2)
    row, query = 1, 40
    outside = torch.ones(POSITIONS, dtype=torch.bool)
    outside[first[row, query] : query + 1] = False
    heads[row, outside, 2:] = 1e4
    place = row * POSITIONS + query
    assert torch.equal(Attend.apply(heads, first, 2)[place], before[place])
    assert first[row, query] >= query - window + 1
    assert (documents[row, first[row, query] : query + 1] == documents[row, query]).all()


def attention_and_gradient(heads, first, kv_heads, taken, weight):
    heads = heads.clone().requires_grad_()
    seen = Attend.apply(heads, first, kv_heads, taken)
    (seen * weight).sum().backward()
    return seen.detach(), heads.grad


@pytest.mark.parametrize(("window", "kv_heads", "width"), [(POSITIONS, 2, 32), (19, 1, 16), (1, 2, 16)])
@both
def test_queries_that_are_not_taken_change_nothing_and_have_no_gradient(documents, window, kv_heads, width, dtype):
    generator = torch.Generator().manual_seed(7)
    first = first_visible(documents, ROWS, POSITIONS, window)
    heads = torch.randn(ROWS, POSITIONS, 2 + 2 * kv_heads, width, generator=generator).to(dtype)
    is_taken = torch.rand(ROWS, POSITIONS, generator=generator) < 0.4
    is_taken[0, 30:] = False
    is_taken[1] = False  # a row without any
    taken = is_taken.flatten().nonzero().squeeze(1)
    weight = torch.randn(ROWS * POSITIONS, 2, width, generator=generator).to(dtype)
    weight[~is_taken.flatten()] = 0
    every, d_every = attention_and_gradient(heads, first, kv_heads, None, weight)
    few, d_few = attention_and_gradient(heads, first, kv_heads, taken, weight[taken])
    # other queries stand side by side in the lanes: other maxima, and in bfloat16 other roundings
    coarse = dtype == torch.bfloat16
    assert distance(few, every[taken].float()) < (0.005 if coarse else 1e-6)
    assert distance(d_few, d_every.float()) < (0.01 if coarse else 1e-6)
    assert not d_few[~is_taken][:, :2].any()
    assert not d_few[1].any()


@pytest.mark.parametrize(
    ("positions", "window", "share", "kv_heads"), [(301, 301, 0.0, 1), (301, 130, 0.01, 2), (230, 230, 0.05, 1)]
)
@only_where("avx2")
def test_attention_over_many_blocks_is_as_exact_as_float32_is(positions, window, share, kv_heads):
    """Documents from a few tokens to more than any block; the bits are those of one thread."""
    generator = torch.Generator().manual_seed(8)
    documents = (torch.rand(2, positions, generator=generator) < share).cumsum(1).int()
    heads = torch.randn(2, positions, 2 + 2 * kv_heads, 48, generator=generator)
    weight = torch.randn(2 * positions, 2, 48, generator=generator)
    first = first_visible(documents, 2, positions, window)
    seen, gradient = attention_and_gradient(heads, first, kv_heads, None, weight)
    wide = heads.double().requires_grad_()
    q, k, v = (part.transpose(1, 2) for part in wide.split((2, kv_heads, kv_heads), dim=2))
    mask = packed_mask(documents, positions, window, torch.device("cpu"))
    exact = attend(q, k, v, mask, backend="products").transpose(1, 2).flatten(0, 1)
    (exact * weight).sum().backward()
    assert distance(seen, exact) < 1e-6
    assert distance(gradient, wide.grad) < 2e-6
    torch.set_num_threads(1)
    alone = attention_and_gradient(heads, first, kv_heads, None, weight)
    assert torch.equal(alone[0], seen) and torch.equal(alone[1], gradient)
