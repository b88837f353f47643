"""Static KV cache with an explicit error on overflow, and a compiled decode step."""
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CacheFull(RuntimeError):
    pass


class StaticCache:
    def __init__(self, layers: int, rows: int, heads: int, capacity: int, head_dim: int, device, dtype):
        shape = (layers, rows, heads, capacity, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.used = 0

    def reserve(self, n: int) -> Tensor:
        """Positions of the next n tokens.  Raises when they do not fit; nothing is ever dropped."""
        if self.used + n > self.capacity:
            raise CacheFull(f"{self.used} + {n} tokens exceed the capacity of {self.capacity}")
        at = torch.arange(self.used, self.used + n, device=self.k.device)
        self.used += n
        return at

    def write(self, layer: int, at: Tensor, k: Tensor, v: Tensor):
        self.k[layer].index_copy_(2, at, k)
        self.v[layer].index_copy_(2, at, v)
        return self.k[layer], self.v[layer]


class Layer(nn.Module):
    def __init__(self, index: int, dim: int, heads: int):
        super().__init__()
        self.index, self.heads = index, heads
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, at: Tensor, mask: Tensor, cache: StaticCache) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        k, v = cache.write(self.index, at, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Decoder(nn.Module):
    def __init__(self, vocab: int = 32000, dim: int = 768, depth: int = 12, heads: int = 12, ctx: int = 2048):
        super().__init__()
        self.heads, self.ctx, self.dim = heads, ctx, dim
        self.tok, self.pos = nn.Embedding(vocab, dim), nn.Embedding(ctx, dim)
        self.layers = nn.ModuleList(Layer(i, dim, heads) for i in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor, at: Tensor, cache: StaticCache) -> Tensor:
        x = self.tok(ids) + self.pos(at)
        mask = torch.arange(cache.k.size(3), device=ids.device) <= at[:, None]
        for layer in self.layers:
            x = layer(x, at, mask, cache)
        return self.head(self.norm(x[:, -1]))


class Generator:
    def __init__(self, net: Decoder, rows: int, eos: int):
        self.net, self.rows, self.eos = net.eval(), rows, eos
        p = net.head.weight
        self.k_shape = (len(net.layers), rows, net.heads, net.ctx, net.dim // net.heads)
        self.device, self.dtype = p.device, p.dtype

        def step(ids, at, k_cache):
            return net(ids, at, k_cache)

        self.step = torch.compile(step) if self.device.type == "cuda" else step

    @torch.inference_mode()
    def __call__(self, prompt: Tensor, max_new: int, temperature: float = 1.0,
                 rng: Optional[torch.Generator] = None) -> Tensor:
        cache = StaticCache(*self.k_shape, device=self.device, dtype=self.dtype)
        if prompt.size(1) + max_new > cache.capacity:
            raise CacheFull(f"prompt of {prompt.size(1)} + {max_new} new tokens exceed {cache.capacity}")
        logits = self.net(prompt, cache.reserve(prompt.size(1)), _Frozen(cache))
        done = torch.zeros(self.rows, 1, dtype=torch.bool, device=self.device)
        out = []
        for i in range(max_new):
            probs = torch.softmax(logits / temperature, dim=-1)
            tok = torch.multinomial(probs, 1, generator=rng)  # one draw for each row
            tok = tok.masked_fill(done, self.eos)
            done |= tok == self.eos
            out.append(tok)
            if i + 1 == max_new or i % 64 == 63 and bool(done.all()):
                break
            logits = self.step(tok, cache.reserve(1), _Frozen(cache))
        return torch.cat(out, 1)


class _Frozen:
    """View of a cache without its Python counter, so that the compiled step has no changing integers to guard on."""

    def __init__(self, cache: StaticCache):
        self.k, self.v = cache.k, cache.v

    write = StaticCache.write
