"""Host-to-device feeder with two page-locked buffers, a copy stream and events."""
import queue
import threading

import numpy as np
import torch


class Slot:
    def __init__(self, shape, dtype):
        self.host = torch.empty(shape, dtype=dtype, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.busy = False

    def wait_until_free(self):
        if self.busy:
            self.copied.synchronize()  # the last copy out of this buffer is over


class Feeder:
    """Iterates over device batches of shape (batch, ctx + 1).

    The buffers alternate.  A buffer is refilled only after the event of its last
    copy, and the consumer's stream waits for the copy before it uses the batch.
    """

    def __init__(self, tokens, ctx, batch, device, seed, start=0):
        self.tokens, self.ctx, self.batch = tokens, ctx, batch
        asked = torch.device(device)
        if asked.type != "cuda":
            raise ValueError("this feeder needs a CUDA device")
        self.device = torch.device("cuda", torch.cuda.current_device() if asked.index is None else asked.index)
        self.seed, self.index = seed, start
        self.stream = torch.cuda.Stream(self.device)
        self.slots = [Slot((batch, ctx + 1), torch.long) for _ in range(2)]

    def state_dict(self):
        return {"seed": self.seed, "index": self.index}

    def load_state_dict(self, state):
        self.seed, self.index = state["seed"], state["index"]

    def _rows(self, index):
        # counter-based: batch number -> offsets, so a resumed run continues with the next batch
        rs = np.random.default_rng([self.seed, index])
        at = rs.integers(0, len(self.tokens) - self.ctx - 1, self.batch)
        return np.stack([self.tokens[a:a + self.ctx + 1] for a in at])

    def _producer(self, first, out, stop):
        torch.cuda.set_device(self.device)
        index = first
        while not stop.is_set():
            slot = self.slots[index % 2]
            slot.wait_until_free()
            slot.host.numpy()[...] = self._rows(index)
            with torch.cuda.stream(self.stream):
                dev = slot.host.to(self.device, non_blocking=True)
                slot.copied.record(self.stream)
            slot.busy = True
            ready = torch.cuda.Event()
            ready.record(self.stream)
            while not stop.is_set():
                try:
                    out.put((dev, ready), timeout=0.5)
                    break
                except queue.Full:
                    continue
            index += 1

    def __iter__(self):
        out, stop = queue.Queue(maxsize=2), threading.Event()
        worker = threading.Thread(target=self._producer, args=(self.index, out, stop), daemon=True)
        worker.start()
        try:
            while True:
                dev, ready = out.get()
                here = torch.cuda.current_stream(self.device)
                here.wait_event(ready)
                dev.record_stream(here)
                self.index += 1
                yield dev
        finally:
            stop.set()
            worker.join()


class HostMirror:
    """Device-to-host copies of small statistics, read one logging period later."""

    def __init__(self, n):
        self.buf = torch.zeros(n, pin_memory=True)
        self.event = torch.cuda.Event()
        self.pending = False

    def push(self, stats):
        if self.pending:
            self.event.synchronize()
        self.buf.copy_(stats, non_blocking=True)
        self.event.record()
        self.pending = True

    def read(self):
        if not self.pending:
            return None
        self.event.synchronize()
        return self.buf.clone()
