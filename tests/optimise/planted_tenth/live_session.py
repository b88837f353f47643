"""Long-lived voice-assistant sessions over a plain full-attention decoder.

Each session keeps its own attention memory between turns, so that a turn only
feeds what was said since the last one.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


class SessionMemory:
    """Keys and values of everything said in the session, system prompt first."""

    def __init__(self, layers, heads, head_dim, size, device, dtype):
        self.size = size
        self.count = 0
        self.keys = torch.empty(layers, heads, size, head_dim, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)

    def put(self, layer, k, v):
        t = k.size(1)
        where = torch.arange(self.count, self.count + t, device=k.device).remainder(self.size)
        self.keys[layer].index_copy_(1, where, k)
        self.values[layer].index_copy_(1, where, v)
        n = min(self.count + t, self.size)
        return self.keys[layer, :, :n], self.values[layer, :, :n]

    def advance(self, t):
        self.count += t


class Attention(nn.Module):
    def __init__(self, dim, heads, index):
        super().__init__()
        self.heads, self.index = heads, index
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x, memory):
        t, d = x.shape
        split = lambda y: y.view(t, self.heads, d // self.heads).transpose(0, 1)
        q = split(self.q(x))
        k, v = memory.put(self.index, split(self.k(x)), split(self.v(x)))
        mask = None
        if t > 1:
            n = k.size(1)
            mask = torch.ones(t, n, dtype=torch.bool, device=x.device).tril(n - t)
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        return self.out(y.transpose(0, 1).reshape(t, d))


class Talker(nn.Module):
    def __init__(self, vocab, dim=768, heads=12, layers=12):
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.attn = nn.ModuleList(Attention(dim, heads, i) for i in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in range(layers)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers + 1))
        self.scale = 1.0 / math.sqrt(dim)

    def forward(self, ids, memory):
        x = self.wte(ids)
        for norm, attn, mlp in zip(self.norm, self.attn, self.mlp):
            x = x + attn(norm(x), memory)
            x = x + mlp(x)
        memory.advance(ids.numel())
        return F.linear(self.norm[-1](x[-1]), self.wte.weight) * self.scale


class Session:
    def __init__(self, model, memory, seed):
        self.model, self.memory = model.eval(), memory
        self.seed = seed

    @property
    def generator(self):
        return torch.Generator(device=self.memory.keys.device).manual_seed(self.seed)

    def sample(self, logits, temperature):
        probs = F.softmax(logits.float() / temperature, dim=-1)
        return torch.multinomial(probs, 1, generator=self.generator)

    @torch.inference_mode()
    def turn(self, ids, length, temperature=0.7):
        said = []
        logits = self.model(ids, self.memory)
        for _ in range(length):
            token = self.sample(logits, temperature)
            said.append(token)
            logits = self.model(token, self.memory)
        return torch.cat(said)
