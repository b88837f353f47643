"""Streaming pretraining data: token shards in, fixed-size rows out."""
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset


def read_shard(path):
    """A shard is one flat .bin of uint16 tokens plus a .idx.json of offsets."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    offsets = json.loads(path.with_suffix(".idx.json").read_text())
    return [tokens[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


class PackedShardStream(IterableDataset):
    """Yields (input, target) rows of seq_len tokens, forever.

    Shards are dealt out to the ranks and visited in a new order every epoch.
    """

    def __init__(self, root, seq_len, eos_id, rank=0, world=1, seed=0):
        self.paths = sorted(Path(root).glob("*.bin"))[rank::world]
        if not self.paths:
            raise FileNotFoundError(f"no shards for rank {rank} under {root}")
        self.row_len = seq_len + 1
        self.eos_id = eos_id
        self.seed = seed
        self.epoch = 0
        self.pool = []

    def state_dict(self):
        return {"epoch": self.epoch, "seed": self.seed}

    def load_state_dict(self, state):
        self.epoch = state["epoch"]
        self.seed = state["seed"]

    def _order(self):
        rng = random.Random(self.seed * 100003 + self.epoch)
        return rng.sample(self.paths, len(self.paths))

    def _load(self, path):
        self.pool = []
        for doc in read_shard(path):
            for i in range(0, len(doc), self.row_len - 1):
                self.pool.append(doc[i : i + self.row_len - 1])

    def _largest_fitting(self, room):
        fitting = [i for i, doc in enumerate(self.pool) if len(doc) < room]
        return max(fitting, key=lambda i: len(self.pool[i]), default=None)

    def _next_row(self):
        row = np.full(self.row_len, self.eos_id, dtype=np.int64)
        filled = 0
        while filled < self.row_len:
            i = self._largest_fitting(self.row_len - filled + 1)
            if i is None:
                break
            doc = self.pool.pop(i)
            row[filled : filled + len(doc)] = doc
            filled += len(doc) + 1
        return torch.from_numpy(row)

    def __iter__(self):
        while True:
            for path in self._order():
                self._load(path)
                while self.pool:
                    row = self._next_row()
                    yield row[:-1], row[1:]
            self.epoch += 1


def describe(stream):
    total = sum(path.stat().st_size // 2 for path in stream.paths)
    return f"{len(stream.paths)} shards, {total / 1e9:.2f}B tokens, rows of {stream.row_len}"
