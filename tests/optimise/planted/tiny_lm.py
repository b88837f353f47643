"""A decoder of a few layers with a sampling loop."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class TinyLM(nn.Module):
    def __init__(self, vocab, width=256, depth=4, heads=4, window=512):
        super().__init__()
        self.window = window
        self.tok = nn.Embedding(vocab, width)
        self.pos = nn.Embedding(window, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, vocab, bias=False)

    def forward(self, ids):
        x = self.tok(ids) + self.pos(torch.arange(ids.size(1), device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    @torch.no_grad()
    def babble(self, seed_ids, count, temp=1.0):
        self.eval()
        so_far = seed_ids
        for _ in range(count):
            scores = self(so_far[:, -self.window:])[:, -1]
            nxt = torch.multinomial(F.softmax(scores / temp, -1), 1)
            so_far = torch.cat((so_far, nxt), 1)
        return so_far
