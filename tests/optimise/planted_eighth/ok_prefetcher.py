"""Host-to-device and device-to-host copies that overlap with compute."""
import collections

import numpy as np
import torch


class Uploader:
    """Iterates over pinned batches; the copy of batch i+1 overlaps the work on batch i."""

    def __init__(self, loader, device):
        if not loader.pin_memory:
            raise ValueError("the loader must pin its batches")
        self.loader, self.device = loader, torch.device(device)
        self.side = torch.cuda.Stream(self.device)

    def _send(self, batch):
        with torch.cuda.stream(self.side):
            return [t.to(self.device, non_blocking=True) for t in batch]

    def __iter__(self):
        source = iter(self.loader)
        first = next(source, None)
        ahead = None if first is None else self._send(first)
        while ahead is not None:
            main = torch.cuda.current_stream(self.device)
            main.wait_stream(self.side)
            ready = ahead
            for t in ready:
                t.record_stream(main)
            host = next(source, None)
            ahead = None if host is None else self._send(host)
            yield ready


class Downloader:
    """Brings results to the host through a ring of pinned buffers."""

    def __init__(self, shape, dtype=torch.float32, depth=4):
        self.free = collections.deque(
            (torch.empty(shape, dtype=dtype, pin_memory=True), torch.cuda.Event()) for _ in range(depth)
        )
        self.busy = collections.deque()

    def submit(self, t: torch.Tensor):
        if not self.free:
            raise RuntimeError("ring is full: call collect() first")
        buf, event = self.free.popleft()
        buf.copy_(t, non_blocking=True)
        event.record()
        self.busy.append((buf, event))

    def collect(self) -> np.ndarray:
        buf, event = self.busy.popleft()
        event.synchronize()
        out = buf.numpy().copy()  # the buffer goes back to the ring
        self.free.append((buf, event))
        return out


@torch.inference_mode()
def embed_all(net, loader, shape, sink):
    """net: compiled once by the caller.  loader must drop its last incomplete batch."""
    was = net.training
    net.eval()
    down = Downloader(shape)
    for (x,) in Uploader(loader, "cuda"):
        if not down.free:
            sink(down.collect())
        down.submit(net(x))
    while down.busy:
        sink(down.collect())
    net.train(was)
