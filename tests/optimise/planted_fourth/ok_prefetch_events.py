"""Overlapped host/device copies with explicit completion."""
import torch


class Slot:
    def __init__(self, shape, dtype, device):
        self.host = torch.empty(shape, dtype=dtype, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.device = device
        self.busy = False

    def upload(self, fill, stream):
        if self.busy:
            self.copied.synchronize()
        fill(self.host)
        with torch.cuda.stream(stream):
            out = self.host.to(self.device, non_blocking=True)
            self.copied.record(stream)
        self.busy = True
        return out


class DoubleBufferedFeed:
    """fills: an iterator of functions that write one batch into a tensor."""

    def __init__(self, fills, shape, device, dtype=torch.int64):
        self.fills = iter(fills)
        self.stream = torch.cuda.Stream(device)
        self.slots = [Slot(shape, dtype, device) for _ in range(2)]
        self.turn = 0
        self.pending = None
        self._start()

    def _start(self):
        fill = next(self.fills, None)
        if fill is None:
            self.pending = None
            return
        slot = self.slots[self.turn]
        self.turn = 1 - self.turn
        self.pending = (slot.upload(fill, self.stream), slot.copied)

    def __iter__(self):
        return self

    def __next__(self):
        if self.pending is None:
            raise StopIteration
        batch, copied = self.pending
        current = torch.cuda.current_stream()
        current.wait_event(copied)
        batch.record_stream(current)
        self._start()
        return batch


class Download:
    """A device-to-host copy that can be waited for later."""

    def __init__(self, tensor):
        tensor = tensor.detach()
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.host.copy_(tensor, non_blocking=True)
        self.finished = torch.cuda.Event()
        self.finished.record()

    def numpy(self):
        self.finished.synchronize()
        return self.host.numpy()


@torch.inference_mode()
def score_all(model, feed):
    was_training = model.training
    model.eval()
    waiting, scores = None, []
    for batch in feed:
        current = Download(model(batch))
        if waiting is not None:
            scores.append(waiting.numpy())
        waiting = current
    if waiting is not None:
        scores.append(waiting.numpy())
    model.train(was_training)
    return scores
