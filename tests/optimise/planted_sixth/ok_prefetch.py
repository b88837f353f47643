import numpy as np
import torch


class TokenFeeder:
    """Two pinned buffers; each waits for its own last copy before it is refilled."""

    def __init__(self, path, batch, seq, device):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.bufs = [torch.empty(batch, seq + 1, dtype=torch.int64, pin_memory=True) for _ in range(2)]
        self.events = [torch.cuda.Event() for _ in range(2)]
        self.turn = 0
        self.device, self.seq = device, seq

    def __call__(self, starts):
        i = self.turn
        self.turn = 1 - i
        self.events[i].synchronize()
        view = self.bufs[i].numpy()
        for r, s in enumerate(starts):
            view[r] = self.data[s : s + self.seq + 1]
        rows = self.bufs[i].to(self.device, non_blocking=True)
        self.events[i].record()
        return rows[:, :-1], rows[:, 1:]


class HostBuffer:
    def __init__(self, device):
        self.device = device
        self.parts = []

    def push(self, t):
        host = torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
        host.copy_(t, non_blocking=True)
        self.parts.append(host)

    def array(self):
        torch.cuda.synchronize(self.device)
        return torch.cat(self.parts).numpy()
