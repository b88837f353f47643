"""Long-context decoding with the cold part of the key/value cache kept in host memory."""
import threading
from typing import List

import torch


class HostPool:
    """Pinned host blocks, one per evicted span."""

    def __init__(self, block_shape, blocks, dtype=torch.bfloat16):
        self.mem = torch.empty((blocks, *block_shape), dtype=dtype, pin_memory=True)
        self.free: List[int] = list(range(blocks))
        self.lock = threading.Lock()

    def take(self) -> int:
        with self.lock:
            return self.free.pop()

    def give(self, idx: int) -> None:
        with self.lock:
            self.free.append(idx)


class HotWindow:
    """The newest spans, on the device.  Attention reads all of them."""

    def __init__(self, spans, shape, device):
        self.spans = spans
        self.data = torch.zeros((spans, *shape), dtype=torch.bfloat16, device=device)
        self.written = 0

    def _where(self) -> int:
        return self.written % self.spans

    def put(self, span):
        self.data[self._where()].copy_(span)
        self.written += 1

    def live(self):
        return torch.arange(self.spans, device=self.data.device) < self.written

    def view(self):
        return self.data[: min(self.written, self.spans)]


class Restorer:
    """Streams a list of cold spans to the device through one staging buffer."""

    def __init__(self, pool: HostPool, device):
        self.pool = pool
        self.stage = torch.empty(pool.mem.shape[1:], dtype=pool.mem.dtype, pin_memory=True)
        self.stream = torch.cuda.Stream(device)
        self.device = device

    def fetch(self, indices: List[int], unpack) -> torch.Tensor:
        out = torch.empty((len(indices), *self.stage.shape), dtype=self.stage.dtype, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for j, idx in enumerate(indices):
                unpack(self.pool.mem[idx], self.stage)
                out[j].copy_(self.stage, non_blocking=True)
        out.record_stream(self.stream)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return out


class Decoder:
    def __init__(self, trunk, head, window: HotWindow, restorer: Restorer, cold: List[int],
                 max_new: int = 1024):
        self.trunk, self.head = trunk.eval(), head.eval()
        self.step = torch.compile(self.trunk)
        self.window, self.restorer, self.cold = window, restorer, cold
        self.max_new = max_new

    def _logits(self, hidden):
        full = self.head(hidden).float()
        return full[:, -1]

    @torch.inference_mode()
    def generate(self, chunk, n_new, temperature, unpack):
        """chunk: (B, L) the last prompt chunk; cold spans are fetched once."""
        if n_new > self.max_new:
            raise ValueError(f"at most {self.max_new} new tokens")
        cold = self.restorer.fetch(self.cold, unpack)
        hidden, span = self.trunk(chunk, cold, self.window.view())
        self.window.put(span)
        made = torch.empty(chunk.shape[0], n_new, dtype=torch.long, device=chunk.device)
        tail = self.trunk.new_tail(capacity=self.max_new)
        live = self.window.live()
        for i in range(n_new):
            probs = (self._logits(hidden) / temperature).softmax(-1)
            tok = torch.multinomial(probs, 1)
            made[:, i : i + 1] = tok
            hidden, _ = self.step(tok, cold, self.window.data, live=live, tail=tail)
        return made
