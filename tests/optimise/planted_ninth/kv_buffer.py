"""Attention block with a preallocated key/value buffer for incremental decoding."""

from __future__ import annotations

import math
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


class KVBuffer(nn.Module):
    """Keys and values for one layer, laid out as [batch, heads, capacity, head_dim]."""

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int,
                 dtype: torch.dtype = torch.bfloat16, device: Optional[torch.device] = None):
        super().__init__()
        shape = (batch, heads, capacity, head_dim)
        self.capacity = capacity
        self.filled = 0
        self.register_buffer("k", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype, device=device), persistent=False)

    def reset(self) -> None:
        self.filled = 0

    def update(self, k: torch.Tensor, v: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        new = k.size(2)
        offsets = torch.arange(self.filled, self.filled + new, device=k.device)
        slots = offsets.clamp(max=self.capacity - 1)
        self.k.index_copy_(2, slots, k)
        self.v.index_copy_(2, slots, v)
        self.filled = min(self.filled + new, self.capacity)
        return self.k[:, :, : self.filled], self.v[:, :, : self.filled]


class Projection(nn.Module):
    """Linear map whose weight is kept in fp32; activations are bf16."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=torch.float32), requires_grad=False)
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(d_in))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.type_as(x))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CachedAttention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, max_positions: int = 32768):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.hd = dim // heads
        self.wq = Projection(dim, heads * self.hd)
        self.wkv = Projection(dim, 2 * kv_heads * self.hd)
        self.wo = Projection(heads * self.hd, dim)
        inv = 10000.0 ** (-torch.arange(0, self.hd, 2).float() / self.hd)
        ang = torch.outer(torch.arange(max_positions).float(), inv)
        self.register_buffer("cos", ang.cos().to(torch.bfloat16), persistent=False)
        self.register_buffer("sin", ang.sin().to(torch.bfloat16), persistent=False)

    @torch.inference_mode()
    def forward(self, x: torch.Tensor, buf: KVBuffer, start: int) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.hd).transpose(1, 2)
        k, v = self.wkv(x).view(b, t, 2, self.kv_heads, self.hd).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        cos, sin = self.cos[start:start + t], self.sin[start:start + t]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = buf.update(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))
