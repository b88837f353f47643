"""The mask of blocks for flex_attention: it sees what the plain mask sees, in whatever way the model is compiled."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from intone.config import model_config
from intone.errors import UserError
from intone.model.attention import FLEX_BLOCK, block_mask, fused_kernels, packed_mask
from intone.model.gpt import GPT
from intone.records import Choices, Segment
from intone.train.plan import check_segments

POSITIONS = 4 * FLEX_BLOCK


def some_documents(rows: int, positions: int, *, mean: float, seed: int = 0) -> Tensor:
    starts = torch.rand(rows, positions, generator=torch.Generator().manual_seed(seed)) < 1 / mean
    return starts.int().cumsum(1).int()


@pytest.mark.parametrize("window", [1, FLEX_BLOCK - 1, FLEX_BLOCK, FLEX_BLOCK + 1, 300, POSITIONS])
@pytest.mark.parametrize("mean", [None, 3.0, 100.0, 1e9])
def test_blocks_cover_what_is_seen_and_whole_ones_hide_nothing(window: int, mean: float | None) -> None:
    documents = None if mean is None else some_documents(3, POSITIONS, mean=mean)
    device = torch.device("cpu")
    expected = packed_mask(documents, POSITIONS, window, device)
    mask = block_mask(documents, POSITIONS, window, device)
    if expected is None:
        assert mask is None
        return
    assert mask is not None
    rows = expected.shape[0]
    places = [torch.arange(size) for size in (rows, POSITIONS, POSITIONS)]
    sees = mask.mask_mod(places[0][:, None, None], torch.tensor(0), places[1][None, :, None], places[2][None, None, :])
    assert torch.equal(sees.expand(rows, -1, -1), expected[:, 0])
    seen = expected[:, 0].unflatten(1, (-1, FLEX_BLOCK)).unflatten(3, (-1, FLEX_BLOCK)).transpose(2, 3)
    num = POSITIONS // FLEX_BLOCK
    for row in range(rows):
        for query in range(num):
            lists = [
                (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
            ]  # fmt: skip
            some, whole = (set(at[row, 0, query, : count[row, 0, query]].tolist()) for count, at in lists)  # type: ignore[index]
            assert not some & whole
            for key in range(num):
                part = seen[row, query, key]
                assert key not in whole or bool(part.all())
                assert key in some | whole or not bool(part.any())


def test_a_short_window_and_short_documents_leave_most_blocks_out() -> None:
    documents = some_documents(4, 16 * FLEX_BLOCK, mean=50.0)
    mask = block_mask(documents, 16 * FLEX_BLOCK, 16 * FLEX_BLOCK, torch.device("cpu"))
    assert mask is not None and int(mask.kv_num_blocks.sum()) <= 4 * 16 * 3  # of 4 * 136 that lie before their query


@pytest.mark.parametrize("is_one_text", [False, True])
def test_the_compiled_model_computes_the_same_with_blocks(is_one_text: bool) -> None:
    config = replace(
        model_config("modern", depth=2, vocab_size=300, context=3 * FLEX_BLOCK, head_width=32), window_pattern="SL"
    )
    model = GPT(config)
    model.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    ids, targets = (torch.randint(0, 300, (2, config.context), generator=generator) for _ in range(2))
    documents = None if is_one_text else some_documents(2, config.context, mean=40.0)
    found = []
    for backend, run in (("sdpa", model), ("flex", torch.compile(model, dynamic=False, backend="aot_eager"))):
        model.attention_backend = backend  # type: ignore[assignment]
        loss, _ = run(ids, targets, documents)
        loss.backward()
        found.append((float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for mine, other in zip(found[1][1], found[0][1], strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_eager_code_keeps_the_plain_mask() -> None:
    config = model_config("modern", depth=1, vocab_size=300, context=FLEX_BLOCK, head_width=32)
    model = GPT(config)
    model.init_weights(seed=0)
    ids = torch.randint(0, 300, (1, config.context), generator=torch.Generator().manual_seed(0))
    losses = []
    for backend in ("sdpa", "flex"):
        model.attention_backend = backend  # type: ignore[assignment]
        losses.append(float(model(ids, ids, some_documents(1, config.context, mean=20.0))[0].detach()))
    assert losses[0] == losses[1]


def test_a_plan_with_blocks_in_eager_code_is_refused() -> None:
    for compiled, by_block in ((False, False), (True, True)):
        segment = Segment(
            0, device_batch=1, compiled=compiled, by_block=by_block, dtype="bf16", attention="flex", reason="test"
        )
        with pytest.raises(UserError, match="flex"):
            check_segments(Choices({}, (segment,), {}, {}))


def test_other_devices_keep_the_order_of_pytorch() -> None:
    before = torch._C._get_sdp_priority_order()
    with fused_kernels(torch.device("cpu")):
        assert torch._C._get_sdp_priority_order() == before
