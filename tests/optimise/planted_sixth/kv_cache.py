from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class StaticKVCache(nn.Module):
    """Preallocated keys and values for one attention layer."""

    def __init__(self, batch: int, max_len: int, heads: int, dim: int, dtype=torch.bfloat16):
        super().__init__()
        shape = (batch, heads, max_len, dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype), persistent=False)
        self.max_len = max_len
        self.pos = 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        n = k.shape[2]
        end = min(self.pos + n, self.max_len)
        n = end - self.pos
        self.k[:, :, self.pos : end] = k[:, :, :n]
        self.v[:, :, self.pos : end] = v[:, :, :n]
        self.pos = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def reset(self) -> None:
        self.pos = 0


@dataclass
class PageConfig:
    layers: int
    heads: int
    head_dim: int
    slots: int = 2048


class SharedCache:
    """All layers in one tensor; slot index computed once per step."""

    def __init__(self, cfg: PageConfig, device, dtype=torch.float16):
        self.cfg = cfg
        self.kv = torch.empty(
            cfg.layers, 2, cfg.slots, cfg.heads, cfg.head_dim, device=device, dtype=dtype
        )
        self.length = 0

    def slot(self) -> int:
        return self.length % self.cfg.slots

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        s = self.slot()
        self.kv[layer, 0, s] = k
        self.kv[layer, 1, s] = v

    def advance(self) -> None:
        self.length += 1

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        n = min(self.length + 1, self.cfg.slots)
        return self.kv[layer, 0, :n], self.kv[layer, 1, :n]

    def memory_bytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()


def build_caches(n_layers, batch, max_len, heads, dim, device):
    return [StaticKVCache(batch, max_len, heads, dim).to(device) for _ in range(n_layers)]
