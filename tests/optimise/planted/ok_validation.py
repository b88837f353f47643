"""Validation in eval mode without gradients; the mode is put back."""
import contextlib

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def testing(model):
    before = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(before)


def validate(model, batches):
    total = torch.zeros((), device="cuda")
    count = 0
    with testing(model) as m:
        for x, y in batches:
            total += F.cross_entropy(m(x).flatten(0, 1), y.flatten(), reduction="sum")
            count += y.numel()
    return (total / count).item()


@torch.no_grad()
def accuracy(model, batches):
    model.eval()
    right = torch.zeros((), device="cuda")
    n = 0
    for x, y in batches:
        right += (model(x).argmax(-1) == y).sum()
        n += y.numel()
    model.train()
    return right.item() / n


class Probe:
    """Metrics are kept on the device and read once."""

    def __init__(self, device):
        self.sums = torch.zeros(3, device=device)

    def add(self, a, b, c):
        self.sums += torch.stack([a, b, c]).detach()

    def read(self):
        values = self.sums.tolist()
        self.sums.zero_()
        return values
