"""Copies that overlap and are waited for."""
import torch
from torch.utils.data import DataLoader


def feed(dataset, size, device):
    loader = DataLoader(dataset, batch_size=size, pin_memory=True, num_workers=2, drop_last=True)
    for x, y in loader:
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


class TwoBuffers:
    """Two page-locked buffers; an event says when each may be filled again."""

    def __init__(self, rows, width, device):
        self.device = device
        self.host = [torch.empty(rows, width, dtype=torch.long).pin_memory() for _ in range(2)]
        self.free = [torch.cuda.Event() for _ in range(2)]
        self.turn = 0

    def send(self, batch):
        i = self.turn
        self.turn = 1 - i
        self.free[i].synchronize()
        self.host[i].copy_(batch)
        there = self.host[i].to(self.device, non_blocking=True)
        self.free[i].record()
        return there


def fetch(logits):
    host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
    host.copy_(logits, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return host.numpy()


def fetch_blocking(logits):
    return logits.float().cpu().numpy()


def upload(array, device):
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)
