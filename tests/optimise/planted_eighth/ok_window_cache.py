"""Key/value caches for full and sliding-window attention."""
import torch
from torch import nn
import torch.nn.functional as F


class CacheFull(RuntimeError):
    pass


class FullCache:
    """Fixed capacity; the caller is told when it is used up."""

    def __init__(self, batch, heads, capacity, dim, device, dtype=torch.bfloat16):
        self.k = torch.zeros(batch, heads, capacity, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.capacity, self.used = capacity, 0

    def extend(self, k, v):
        n = k.size(2)
        if self.used + n > self.capacity:
            raise CacheFull(f"{self.used} + {n} > {self.capacity}")
        self.k[:, :, self.used : self.used + n] = k
        self.v[:, :, self.used : self.used + n] = v
        self.used += n
        return self.k[:, :, : self.used], self.v[:, :, : self.used]


class WindowCache:
    """Ring for a layer that was *trained* with attention over the last ``window`` positions.

    Overwriting the oldest entry is the definition of the layer, not a loss: the position
    that leaves the ring is outside the window of every later query.  One token at a time.
    """

    def __init__(self, batch, heads, window, dim, device, dtype=torch.bfloat16):
        self.k = torch.zeros(batch, heads, window, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.window, self.seen = window, 0

    def push(self, k, v):
        if k.size(2) != 1:
            raise ValueError("push takes one position")
        at = self.seen % self.window
        self.k[:, :, at : at + 1] = k
        self.v[:, :, at : at + 1] = v
        self.seen += 1
        n = min(self.seen, self.window)
        return self.k[:, :, :n], self.v[:, :, :n]


class DecodeAttention(nn.Module):
    """Queries carry their rotary position already, so the order inside the ring is free."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x, rotary, cache):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotary(q), rotary(k)
        if isinstance(cache, WindowCache):
            k, v = cache.push(k, v)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            if t > 1 and cache.used:
                raise ValueError("prefill must come first")
            k, v = cache.extend(k, v)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        return self.out(y.transpose(1, 2).reshape(b, t, d))
