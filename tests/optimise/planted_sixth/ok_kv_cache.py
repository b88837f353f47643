import torch
from torch import nn


class CacheFull(RuntimeError):
    pass


class KVCache(nn.Module):
    def __init__(self, batch, max_len, heads, dim, dtype=torch.bfloat16):
        super().__init__()
        shape = (batch, heads, max_len, dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype), persistent=False)
        self.max_len = max_len
        self.pos = 0

    @property
    def room(self):
        return self.max_len - self.pos

    def update(self, k, v):
        n = k.shape[2]
        if n > self.room:
            raise CacheFull(f"{n} new positions, room for {self.room} of {self.max_len}")
        end = self.pos + n
        self.k[:, :, self.pos : end] = k
        self.v[:, :, self.pos : end] = v
        self.pos = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def reset(self):
        self.pos = 0


class GrowingCache:
    """Doubles its room when it is full, so nothing is lost."""

    def __init__(self, k, v):
        self.k, self.v = k, v
        self.n = k.shape[2]

    def _grow(self, need):
        size = max(need, 2 * self.k.shape[2])
        for name in ("k", "v"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], old.shape[1], size, old.shape[3])
            new[:, :, : self.n] = old[:, :, : self.n]
            setattr(self, name, new)

    def update(self, k, v):
        end = self.n + k.shape[2]
        if end > self.k.shape[2]:
            self._grow(end)
        self.k[:, :, self.n : end] = k
        self.v[:, :, self.n : end] = v
        self.n = end
        return self.k[:, :, :end], self.v[:, :, :end]
