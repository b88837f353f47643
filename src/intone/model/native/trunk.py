"""The training forward pass of the GPT on our CPU kernels: the same function as gpt.GPT.forward, in its dtype"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from intone.model.native.build import has_own_products
from intone.model.native.ops import (
    AddNorm,
    Attend,
    HeadLoss,
    Heads,
    MixNorm,
    NarrowLinear,
    NarrowWeights,
    ReluSquare,
    ReluSquareLinear,
    TakeRows,
    first_visible,
)

if TYPE_CHECKING:
    from intone.model.gpt import GPT, Block


def forward(
    model: "GPT", narrow: NarrowWeights, ids: Tensor, targets: Tensor, documents: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See GPT.forward. Gradients flow to the float32 master weights. compute_dtype is bfloat16 or float32."""
    config, dtype = model.config, model.compute_dtype
    ids = ids.long()
    rows, positions = ids.shape
    cos, sin = model.cos[:positions].contiguous(), model.sin[:positions].contiguous()
    # the last block's keys and values serve all tokens; what follows its attention serves only those that are learned
    learned = targets.flatten() >= 0
    taken = None if bool(learned.all()) else learned.nonzero().squeeze(1)  # scan: ok[S32] these are a CPU's kernels
    first = {window: first_visible(documents, rows, positions, window) for window in model.windows()}
    start = norm(model.embedding(ids).to(dtype), config.norm_eps)
    if config.smear:
        start = model.smeared(start, documents, None)
    x, h = start, None
    middle = start
    for i in range(config.depth):
        block = cast("Block", model.blocks[i])
        if config.residual_scalars:
            total, x, normed = MixNorm.apply(
                x, h, start, model.residual_scale[i], model.embedding_scale[i], config.norm_eps
            )
        elif h is None:
            total, normed = x, norm(x, config.norm_eps)
        else:
            x, normed = AddNorm.apply(x, h, config.norm_eps)
            total = x
        if i == config.depth // 2 + 1:
            middle = total
        value = model.value_embeddings[str(i)](ids).to(dtype) if config.has_value_embedding(i) else None
        is_last = i == config.depth - 1
        x, h = block_forward(
            block, narrow, x, normed, value, cos, sin, first[config.window(i)], taken if is_last else None
        )
    assert h is not None, "a model has at least one block"
    if config.backout:
        if config.depth // 2 + 1 >= config.depth:
            middle = x + h
        elif taken is not None:
            middle = TakeRows.apply(middle.flatten(0, 1), taken)
        _, _, x = MixNorm.apply(x, h, middle, torch.ones(()), -model.backout_scale[0], config.norm_eps)
    else:
        _, x = AddNorm.apply(x, h, config.norm_eps)
    loss_sum: Tensor = HeadLoss.apply(
        x.flatten(0, -2), model.head.weight, narrow(model.head.weight, dtype=dtype),
        targets.flatten() if taken is None else targets.flatten()[taken],
        config.vocab_size, config.softcap,
        weights if weights is None else weights.flatten() if taken is None else weights.flatten()[taken],
    )  # fmt: skip
    return loss_sum, learned.sum()


def block_forward(
    block: "Block", narrow: NarrowWeights, x: Tensor, normed: Tensor, value: Tensor | None, cos: Tensor, sin: Tensor,
    first: Tensor, taken: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x and its norm (B, T, D) -> the stream after attention, and what the MLP adds to it.

    taken (M,): only these of the B * T tokens come out, (M, D).
    """
    attention, config = block.attention, block.attention.config
    flat = normed.flatten(0, 1)
    weights = (attention.q.weight, attention.k.weight, attention.v.weight)
    qkv = linear(flat, narrow, *weights)
    gate = None if value is None else attention.gate(normed).float()
    heads = Heads.apply(
        qkv.view(*x.shape[:2], -1, config.head_width), gate, value, cos, sin, config.num_kv_heads, config.qk_scale,
        config.norm_eps,
    )  # fmt: skip
    seen = Attend.apply(heads, first, config.num_kv_heads, taken).flatten(1)
    if taken is not None:
        x = TakeRows.apply(x.flatten(0, 1), taken)
    h = linear(seen, narrow, attention.out.weight).view_as(x)
    x, normed = AddNorm.apply(x, h, block.eps)
    up = linear(normed.flatten(0, -2), narrow, block.mlp.up.weight)
    down = down_projection(up, narrow, block.mlp.down.weight)
    return x, down.view_as(x)


def linear(x: Tensor, narrow: NarrowWeights, *weights: Tensor) -> Tensor:
    """x (N, D) -> (N, sum of M): products with weights (M, D), side by side."""
    out: Tensor = NarrowLinear.apply(x, narrow(*weights, dtype=x.dtype), *weights)
    return out


def down_projection(up: Tensor, narrow: NarrowWeights, weight: Tensor) -> Tensor:
    """up (N, H), weight (D, H) -> the product with max(up, 0) squared, (N, D)."""
    if up.dtype == torch.float32 and has_own_products() and not (weight.shape[0] % 16 or weight.shape[1] % 16):
        out: Tensor = ReluSquareLinear.apply(up, narrow(weight, dtype=up.dtype), weight)
        return out
    return linear(ReluSquare.apply(up), narrow, weight)


def norm(x: Tensor, eps: float) -> Tensor:
    """gpt.norm()."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), eps=eps)
