"""Building blocks for Llama-style decoding."""
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class LlamaConfig:
    hidden_size: int = 2048
    num_heads: int = 32
    num_kv_heads: int = 8
    max_seq_len: int = 4096
    rope_theta: float = 500000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


class MixedLinear(nn.Module):
    """Linear layer with fp32 master weights, usable with low-precision activations."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.master = nn.Parameter(torch.empty(d_out, d_in, dtype=torch.float32))
        nn.init.normal_(self.master, std=1 / math.sqrt(d_in))

    def weight_as(self, ref: torch.Tensor) -> torch.Tensor:
        return self.master.to(ref.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_as(x))


class StaticCache(nn.Module):
    def __init__(self, cfg: LlamaConfig, batch: int, dtype=torch.bfloat16):
        super().__init__()
        shape = (batch, cfg.num_kv_heads, cfg.max_seq_len, cfg.head_dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype), persistent=False)
        self.capacity = cfg.max_seq_len

    def update(self, pos: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        slots = pos.clamp(max=self.capacity - 1)
        self.k.index_copy_(2, slots, k)
        self.v.index_copy_(2, slots, v)
        return self.k, self.v


def rope_at(cfg: LlamaConfig, pos: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    half = cfg.head_dim // 2
    inv = cfg.rope_theta ** (-torch.arange(half, device=pos.device).float() / half)
    ang = torch.outer(pos.float(), inv)
    return ang.cos(), ang.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.cfg = cfg
        self.q = MixedLinear(cfg.hidden_size, cfg.num_heads * cfg.head_dim)
        self.kv = MixedLinear(cfg.hidden_size, 2 * cfg.num_kv_heads * cfg.head_dim)
        self.o = MixedLinear(cfg.num_heads * cfg.head_dim, cfg.hidden_size)

    @property
    def placement(self) -> torch.device:
        return self.q.master.device

    def flash_ok(self) -> bool:
        return self.placement in ("cuda", "cuda:0")

    def forward(self, x, pos, cos, sin, cache: Optional[StaticCache] = None):
        b, t, _ = x.shape
        c = self.cfg
        q = self.q(x).view(b, t, c.num_heads, c.head_dim).transpose(1, 2)
        k, v = self.kv(x).view(b, t, 2, c.num_kv_heads, c.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = None
        if cache is not None:
            k, v = cache.update(pos, k, v)
            mask = torch.arange(cache.capacity, device=x.device) <= pos[:, None]
        backend = nn.attention.SDPBackend.EFFICIENT_ATTENTION if self.flash_ok() else nn.attention.SDPBackend.MATH
        with nn.attention.sdpa_kernel(backend):
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))
