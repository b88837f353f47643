"""Move batches to the GPU ahead of time."""
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset


def feed(tokens, size, device):
    """Pairs of inputs and targets on the device."""
    loader = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=size, shuffle=True, num_workers=2)
    for x, y in loader:
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


class Stager:
    """One page-locked buffer that is filled and sent again and again."""

    def __init__(self, rows, width, device):
        self.device = device
        self.staging = torch.empty(rows, width, dtype=torch.long).pin_memory()

    def send(self, batch):
        self.staging.copy_(batch)
        return self.staging.to(self.device, non_blocking=True)

    def stream(self, batches):
        for batch in batches:
            yield self.send(batch)


class LogitsDump:
    def __init__(self, path):
        self.path = path
        self.parts = []

    def add(self, logits):
        host = logits.to("cpu", non_blocking=True)
        self.parts.append(host.numpy().copy())

    def close(self):
        np.save(self.path, np.concatenate(self.parts))


def upload(array, device):
    t = torch.from_numpy(array).to(device)
    return t.pin_memory()
