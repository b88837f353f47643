from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class KV:
    def __init__(self, layers, batch, heads, max_len, dim, device, dtype):
        self.max_len = max_len
        self.keys = torch.empty(layers, batch, heads, max_len, dim, device=device, dtype=dtype)
        self.vals = torch.empty_like(self.keys)
        self.seen = 0

    def put(self, layer, k, v):
        at = torch.arange(self.seen, self.seen + k.shape[2], device=k.device) % self.max_len
        self.keys[layer].index_copy_(2, at, k)
        self.vals[layer].index_copy_(2, at, v)
        upto = min(self.seen + k.shape[2], self.max_len)
        return self.keys[layer, :, :, :upto], self.vals[layer, :, :, :upto]


class Attention(nn.Module):
    def __init__(self, width, heads, layer):
        super().__init__()
        self.heads, self.layer = heads, layer
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x, kv: KV):
        B, T, W = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        k, v = kv.put(self.layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.proj(y.transpose(1, 2).reshape(B, T, W))


class RingDecoder(nn.Module):
    """bf16 decoder with tied embeddings; positions are added to the embeddings by `pos`."""

    def __init__(self, vocab, width, heads, layers, pos: nn.Module):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.pos = pos
        self.attn = nn.ModuleList(Attention(width, heads, i) for i in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.to(torch.bfloat16)

    def step(self, ids, kv: KV):
        h = self.wte(ids) + self.pos(kv.seen, ids.shape[1])
        for attn, mlp in zip(self.attn, self.mlps):
            h = h + attn(h, kv)
            h = h + mlp(h)
        kv.seen += ids.shape[1]
        last = self.norm(h[:, -1])
        return last.float() @ self.wte.weight.float().t()


@torch.inference_mode()
def greedy(model: RingDecoder, prompt: torch.Tensor, kv: KV, n: int) -> torch.Tensor:
    out = [model.step(prompt, kv).argmax(-1, keepdim=True)]
    while len(out) < n:
        out.append(model.step(out[-1], kv).argmax(-1, keepdim=True))
    return torch.cat(out, 1)
