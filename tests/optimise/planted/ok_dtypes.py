"""Casts that are cheap or that are done once."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class ScaledNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        # statistics in fp32: one row of numbers, no matrix
        rms = x.pow(2).mean(-1, keepdim=True).float().add(1e-6).rsqrt()
        return x * rms.to(x.dtype) * self.gain


class Chunked(nn.Module):
    """Loss from bf16 logits; the mean is kept in fp32."""

    def __init__(self, width, vocab):
        super().__init__()
        self.out = nn.Linear(width, vocab, bias=False, dtype=torch.bfloat16)

    def forward(self, h, y):
        loss = F.cross_entropy(self.out(h).flatten(0, 1), y.flatten())
        return loss.float()


def freeze(model):
    """Weights to bf16 once, before anything is served."""
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16)
        p.requires_grad_(False)
    return model.eval()


def report(losses):
    values = torch.stack(losses).float().cpu()
    return values.mean().item(), values.std().item()


def half_for_export(model, path):
    state = {k: v.half() for k, v in model.state_dict().items()}
    return {"path": path, "state": state}
