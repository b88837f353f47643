"""Copy batches to the GPU ahead of the step that uses them."""
import numpy as np
import torch


class Prefetcher:
    """Wraps an iterator of host tensors; one batch ahead on a side stream."""

    def __init__(self, loader, device):
        self.loader = iter(loader)
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.next = None
        self._load()

    def _load(self):
        try:
            x, y = next(self.loader)
        except StopIteration:
            self.next = None
            return
        with torch.cuda.stream(self.stream):
            self.next = (
                x.pin_memory().to(self.device, non_blocking=True),
                y.pin_memory().to(self.device, non_blocking=True),
            )

    def __iter__(self):
        return self

    def __next__(self):
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        if self.next is None:
            raise StopIteration
        batch = self.next
        for t in batch:
            t.record_stream(torch.cuda.current_stream(self.device))
        self._load()
        return batch


class TokenFeeder:
    """Reads rows of a memmap through one reusable pinned buffer."""

    def __init__(self, path, batch, seq, device):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.buf = torch.empty(batch, seq + 1, dtype=torch.int64, pin_memory=True)
        self.view = self.buf.numpy()
        self.device = device
        self.batch, self.seq = batch, seq

    def __call__(self, starts):
        for r, s in enumerate(starts):
            self.view[r] = self.data[s : s + self.seq + 1]
        rows = self.buf.to(self.device, non_blocking=True)
        return rows[:, :-1], rows[:, 1:]


def random_batch(data, batch, seq, device, rng):
    ix = rng.integers(0, len(data) - seq - 1, size=batch)
    rows = np.stack([data[i : i + seq + 1] for i in ix]).astype(np.int64)
    t = torch.from_numpy(rows)
    t = t.to(device, non_blocking=True)
    return t[:, :-1], t[:, 1:]


def to_host(metrics):
    """Gather a dict of device scalars with one copy."""
    names = list(metrics)
    return dict(zip(names, torch.stack([metrics[n] for n in names]).tolist()))
