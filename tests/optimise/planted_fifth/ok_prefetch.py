"""Token batches copied to the GPU on a side stream, two pinned buffers in turn."""
from pathlib import Path

import numpy as np
import torch


class Slot:
    def __init__(self, B, T):
        self.host = torch.empty(B, T + 1, dtype=torch.long, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.device = None


class Prefetcher:
    def __init__(self, root, B, T, rank=0, world=1, device="cuda"):
        self.shards = sorted(Path(root).glob("*.bin"))
        if not self.shards:
            raise FileNotFoundError(f"no shards in {root}")
        self.B, self.T = B, T
        self.rank, self.world = rank, world
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)
        self.slots = [Slot(B, T), Slot(B, T)]
        self.turn = 0
        self._open(0, 0)
        self._launch()

    def _open(self, shard, row):
        self.shard = shard % len(self.shards)
        self.tokens = np.memmap(self.shards[self.shard], dtype=np.uint16, mode="r")
        self.row = row
        if (len(self.tokens) - 1) // self.T < self.B * self.world:
            raise ValueError(f"{self.shards[self.shard]} is smaller than one global batch")

    def _launch(self):
        slot = self.slots[self.turn]
        slot.copied.synchronize()
        if (self.row + self.B * self.world) * self.T + 1 > len(self.tokens):
            self._open(self.shard + 1, 0)
        self.at = (self.shard, self.row)
        first = self.row + self.rank * self.B
        view = slot.host.numpy()
        for b in range(self.B):
            i = (first + b) * self.T
            view[b] = self.tokens[i : i + self.T + 1]
        with torch.cuda.stream(self.stream):
            slot.device = slot.host.to(self.device, non_blocking=True)
            slot.copied.record(self.stream)
        self.row += self.B * self.world

    def next_batch(self):
        slot = self.slots[self.turn]
        current = torch.cuda.current_stream(self.device)
        current.wait_event(slot.copied)
        batch = slot.device
        batch.record_stream(current)
        self.turn ^= 1
        self._launch()
        return batch[:, :-1], batch[:, 1:]

    def state_dict(self):
        """Where the next batch to be handed out begins."""
        shard, row = self.at
        return {"shard": shard, "row": row}

    def load_state_dict(self, state):
        self._open(state["shard"], state["row"])
        self._launch()

    def __iter__(self):
        while True:
            yield self.next_batch()


def token_histogram(loader, vocab, n_batches):
    counts = torch.zeros(vocab, dtype=torch.long, device=loader.device)
    for _ in range(n_batches):
        x, _ = loader.next_batch()
        counts.scatter_add_(0, x.reshape(-1), torch.ones_like(x).reshape(-1))
    return counts.cpu()
