from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

CACHE_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass
class LMArgs:
    vocab: int = 32000
    dim: int = 1024
    heads: int = 16
    layers: int = 16
    capacity: int = 1024


def cache_dtype(device: torch.device) -> torch.dtype:
    return CACHE_DTYPE.get(device, torch.float32)


class LayerCache(nn.Module):
    def __init__(self, a: LMArgs, batch: int, device: torch.device):
        super().__init__()
        shape = (batch, a.heads, a.capacity, a.dim // a.heads)
        dt = cache_dtype(device)
        self.register_buffer("k", torch.zeros(shape, dtype=dt, device=device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dt, device=device), persistent=False)

    def write(self, pos, k, v):
        slot = pos.clamp(max=self.k.size(2) - 1)
        self.k.index_copy_(2, slot, k.to(self.k.dtype))
        self.v.index_copy_(2, slot, v.to(self.v.dtype))
        return self.k, self.v


class Block(nn.Module):
    def __init__(self, a: LMArgs):
        super().__init__()
        self.h = a.heads
        self.n1, self.n2 = nn.RMSNorm(a.dim), nn.RMSNorm(a.dim)
        self.qkv = nn.Linear(a.dim, 3 * a.dim, bias=False)
        self.o = nn.Linear(a.dim, a.dim, bias=False)
        self.up = nn.Linear(a.dim, 4 * a.dim, bias=False)
        self.down = nn.Linear(4 * a.dim, a.dim, bias=False)

    def forward(self, x, pos, mask, cache):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        k, v = cache.write(pos, k, v)
        y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d).to(x.dtype))
        return x + self.down(F.silu(self.up(self.n2(x))))


class LM(nn.Module):
    def __init__(self, a: LMArgs):
        super().__init__()
        self.a = a
        self.emb = nn.Embedding(a.vocab, a.dim)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = nn.RMSNorm(a.dim)
        self.lm_head = nn.Linear(a.dim, a.vocab, bias=False)

    def forward(self, ids, pos, caches):
        mask = torch.arange(self.a.capacity, device=ids.device)[None] <= pos[:, None]
        x = self.emb(ids)
        for blk, c in zip(self.blocks, caches):
            x = blk(x, pos, mask, c)
        last = self.norm(x[:, -1])
        return F.linear(last.float(), self.lm_head.weight.float())


class Decoder:
    def __init__(self, model: LM, batch: int, device: torch.device):
        self.model = model.to(device=device, dtype=torch.bfloat16).eval()
        self.caches = [LayerCache(model.a, batch, device) for _ in range(model.a.layers)]
        self.step = torch.compile(self.one, mode="reduce-overhead", fullgraph=True)

    def one(self, ids, pos):
        return self.model(ids, pos, self.caches).argmax(-1, keepdim=True)

    @torch.inference_mode()
    def __call__(self, prompt, new_tokens):
        pos = torch.arange(prompt.size(1), device=prompt.device)
        token = self.one(prompt, pos)
        pos = pos[-1:] + 1
        produced = [token]
        for _ in range(new_tokens - 1):
            token = self.step(token, pos).clone()
            pos = pos + 1
            produced.append(token)
        return torch.cat(produced, dim=1)
