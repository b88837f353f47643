"""Preallocated key/value cache for autoregressive decoding."""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheSpec:
    layers: int
    kv_heads: int
    head_dim: int
    max_len: int

    def bytes(self, batch: int, dtype: torch.dtype) -> int:
        per_token = 2 * self.layers * self.kv_heads * self.head_dim
        return batch * self.max_len * per_token * dtype.itemsize


class StaticKVCache:
    """Holds keys and values of every layer in two big tensors.

    Layout is (layers, batch, kv_heads, max_len, head_dim).
    """

    def __init__(self, spec: CacheSpec, batch: int, device, dtype=torch.bfloat16):
        self.spec = spec
        shape = (spec.layers, batch, spec.kv_heads, spec.max_len, spec.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def batch(self) -> int:
        return self.k.size(1)

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Store new keys/values of one layer and return all of them so far."""
        new = k.size(2)
        start = min(self.length, self.spec.max_len - new)
        end = start + new
        self.k[layer, :, :, start:end] = k
        self.v[layer, :, :, start:end] = v
        if layer == self.spec.layers - 1:
            self.length += new
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def reorder(self, rows: torch.Tensor) -> None:
        """Rearrange the batch rows, as beam search needs after each step."""
        self.k = self.k.index_select(1, rows)
        self.v = self.v.index_select(1, rows)

    def expand_rows(self, n: int) -> "StaticKVCache":
        """Copy a one-row cache to n rows (shared prompt, several samples)."""
        if self.batch != 1:
            raise ValueError("only a one-row cache can be expanded")
        other = StaticKVCache(self.spec, n, self.k.device, self.k.dtype)
        other.k[:, :, :, : self.length] = self.k[:, :, :, : self.length]
        other.v[:, :, :, : self.length] = self.v[:, :, :, : self.length]
        other.length = self.length
        return other

    def rewind(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind from {self.length} to {length}")
        self.length = length

    def reset(self) -> None:
        self.length = 0
