import torch


class Prefetcher:
    """Two page-locked buffers; a buffer is refilled once its last copy has been completed."""

    def __init__(self, source, batch, length, device):
        self.source = source
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.buffers = [torch.empty(batch, length, dtype=torch.int64, pin_memory=True) for _ in range(2)]
        self.events = [torch.cuda.Event() for _ in range(2)]

    def _copies(self):
        for i, array in enumerate(self.source):
            slot = i % 2
            self.events[slot].synchronize()
            self.buffers[slot].copy_(torch.from_numpy(array))
            with torch.cuda.stream(self.stream):
                gpu = self.buffers[slot].to(self.device, non_blocking=True)
                self.events[slot].record(self.stream)
            yield gpu, self.events[slot]

    def __iter__(self):
        copies = self._copies()
        ahead = next(copies, None)
        while ahead is not None:
            current, event = ahead
            torch.cuda.current_stream(self.device).wait_event(event)
            current.record_stream(torch.cuda.current_stream(self.device))
            ahead = next(copies, None)
            yield current


def fetch_metrics(values: torch.Tensor) -> list:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    done = torch.cuda.Event()
    host.copy_(values, non_blocking=True)
    done.record()
    done.synchronize()
    return host.tolist()
