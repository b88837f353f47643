"""Layers whose parameters stay in fp32 while activations are in bf16."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class WideLinear(nn.Module):
    """Keeps a full-precision weight for the optimizer."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.master = nn.Parameter(torch.randn(fan_out, fan_in) / fan_in ** 0.5)

    def forward(self, x):
        w = self.master.to(torch.bfloat16)
        return F.linear(x, w)


class Head(nn.Module):
    def __init__(self, width, vocab):
        super().__init__()
        self.proj = WideLinear(width, vocab)

    def forward(self, hidden, targets=None):
        scores = self.proj(hidden)
        if targets is None:
            return scores[:, -1:]
        wide = scores.to(dtype=torch.float32)
        return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=-1)


class Net(nn.Module):
    def __init__(self, vocab, width=1024, layers=12):
        super().__init__()
        self.emb = nn.Embedding(vocab, width, dtype=torch.bfloat16)
        self.body = nn.ModuleList(WideLinear(width, width) for _ in range(layers))
        self.head = Head(width, vocab)

    def forward(self, ids, targets=None):
        h = self.emb(ids)
        for layer in self.body:
            h = h + F.silu(layer(F.rms_norm(h, (h.size(-1),))))
        return self.head(h, targets)
