"""Causal attention over packed rows: who may see whom, and the ways to compute it."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# sdpa: PyTorch's fused kernel; products: plain batched matrix products that a compiler fuses around
Backend = Literal["sdpa", "products"]
BACKENDS: tuple[Backend, ...] = ("sdpa", "products")


def packed_mask(documents: Tensor | None, positions: int, window: int, device: torch.device) -> Tensor | None:
    """Boolean mask (B, 1, T, T) or (1, 1, T, T), True where a query (row) sees a key (column).

    A token sees the window's latest tokens of its own document, itself included. documents (B, T) int32
    numbers the segments of each row, None: a row is one document. Returns None where plain causal
    attention is meant: one document and a window that covers the row.
    """
    if documents is None and window >= positions:
        return None
    place = torch.arange(positions, device=device)
    distance = place[:, None] - place[None, :]
    allowed = (distance >= 0) & (distance < window)
    if documents is None:
        return allowed[None, None]
    same = documents[:, :, None] == documents[:, None, :]
    return (allowed & same)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, backend: Backend = "sdpa") -> Tensor:
    """q (B, H, T, C), k and v (B, K, S, C) -> (B, H, T, C); mask broadcasts to (B, H, T, S), None: causal, T == S.

    K divides H: each key head serves H / K query heads. Softmax in float32 or better.
    A query that sees nothing gives undefined values: callers must let every query see itself.
    """
    if q.shape[1] != k.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def rotary_tables(
    positions: int, head_width: int, base: float, device: torch.device, *, as_bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, C / 2) float32 for rotary positions (Su et al. 2021, RoFormer).

    as_bf16 rounds them to bfloat16. The angles are then float32, as in the code that trained with such tables:
    near position 2,000 one entry in 300 of the exact ones would round to the bfloat16 beside it, up to 0.8 % away.
    """
    dtype = torch.float32 if as_bf16 else torch.float64
    channel = torch.arange(0, head_width, 2, dtype=dtype, device=device)
    frequency = 1.0 / base ** (channel / head_width) if as_bf16 else base ** -(channel / head_width)
    angle = torch.outer(torch.arange(positions, dtype=dtype, device=device), frequency)
    cos, sin = angle.cos(), angle.sin()
    return (cos.bfloat16().float(), sin.bfloat16().float()) if as_bf16 else (cos.float(), sin.float())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, C) with its halves rotated by minus the position's angle; cos, sin broadcast to (B, T, 1, C / 2).

    The sign is nanochat's (and of the checkpoints written by it); only differences of angles matter.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)
