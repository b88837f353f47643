"""Attention with a static cache written by position."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class CachedAttention(nn.Module):
    def __init__(self, width, heads, max_seq):
        super().__init__()
        self.heads = heads
        self.max_seq = max_seq
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.k_cache = None
        self.v_cache = None

    def allocate(self, batch, device, dtype):
        d = self.q.out_features // self.heads
        self.k_cache = torch.zeros(batch, self.heads, self.max_seq, d, device=device, dtype=dtype)
        self.v_cache = torch.zeros_like(self.k_cache)

    def _split(self, x):
        b, t, _ = x.shape
        return x.view(b, t, self.heads, -1).transpose(1, 2)

    def forward(self, x, positions):
        q = self._split(self.q(x))
        k, v = (self._split(part) for part in self.kv(x).chunk(2, -1))
        where = positions.clamp(max=self.max_seq - 1)
        self.k_cache.index_copy_(2, where, k)
        self.v_cache.index_copy_(2, where, v)
        mask = torch.arange(self.max_seq, device=x.device)[None, :] <= positions[:, None]
        y = F.scaled_dot_product_attention(q, self.k_cache, self.v_cache, attn_mask=mask)
        return self.o(y.transpose(1, 2).flatten(2))
