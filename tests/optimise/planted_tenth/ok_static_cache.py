import torch
import torch.nn as nn
import torch.nn.functional as F

CACHE_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


class LayerCache(nn.Module):
    def __init__(self, batch, heads, capacity, head_dim, device: torch.device):
        super().__init__()
        dt = CACHE_DTYPE[device.type]
        shape = (batch, heads, capacity, head_dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dt, device=device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dt, device=device), persistent=False)

    def write(self, pos, k, v):
        self.k.index_copy_(2, pos, k.to(self.k.dtype))
        self.v.index_copy_(2, pos, v.to(self.v.dtype))
        return self.k, self.v


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h = heads
        self.n1, self.n2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv, self.o = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x, pos, mask, cache):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        k, v = cache.write(pos, k, v)
        y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d).to(x.dtype))
        return x + self.down(F.silu(self.up(self.n2(x))))


class LM(nn.Module):
    def __init__(self, vocab=32000, dim=1024, heads=16, layers=16, capacity=1024):
        super().__init__()
        self.heads, self.capacity, self.dim = heads, capacity, dim
        self.emb = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids, pos, caches):
        mask = torch.arange(self.capacity, device=ids.device)[None] <= pos[:, None]
        x = self.emb(ids)
        for blk, c in zip(self.blocks, caches):
            x = blk(x, pos, mask, c)
        return self.lm_head(self.norm(x[:, -1]))


class Decoder:
    def __init__(self, model: LM, batch: int, device: torch.device):
        dt = CACHE_DTYPE[device.type]
        self.model = model.to(device=device, dtype=dt).eval()
        self.caches = [
            LayerCache(batch, model.heads, model.capacity, model.dim // model.heads, device)
            for _ in model.blocks
        ]
        self.step = torch.compile(self.one, mode="reduce-overhead", fullgraph=True)

    def one(self, ids, pos):
        return self.model(ids, pos, self.caches).argmax(-1, keepdim=True)

    @torch.inference_mode()
    def __call__(self, prompt, new_tokens):
        if prompt.size(1) + new_tokens > self.model.capacity:
            raise ValueError(f"{prompt.size(1)} + {new_tokens} tokens exceed {self.model.capacity} slots")
        pos = torch.arange(prompt.size(1), device=prompt.device)
        token = self.one(prompt, pos)
        pos = pos[-1:] + 1
        produced = [token]
        for _ in range(new_tokens - 1):
            token = self.step(token, pos).clone()
            pos = pos + 1
            produced.append(token)
        return torch.cat(produced, dim=1)
