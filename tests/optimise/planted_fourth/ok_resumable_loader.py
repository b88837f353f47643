"""A shuffled, sharded loader whose position is part of the checkpoint."""
import json
import os

import numpy as np
import torch


class ResumableLoader:
    def __init__(self, path, seq_len, batch, seed, rank=0, world=1):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len, self.batch = seq_len, batch
        self.seed, self.rank, self.world = seed, rank, world
        self.rows = (len(self.tokens) - 1) // seq_len
        self.per_epoch = self.rows // (batch * world)
        if self.per_epoch == 0:
            raise ValueError(f"{self.rows} rows do not fill one global batch")
        self.epoch = 0
        self.index = 0
        self._order = None

    def _permutation(self):
        if self._order is None:
            rng = np.random.default_rng((self.seed, self.epoch))
            self._order = rng.permutation(self.rows)
        return self._order

    def next(self):
        order = self._permutation()
        a = (self.index * self.world + self.rank) * self.batch
        picked = order[a : a + self.batch]
        out = torch.empty(self.batch, self.seq_len + 1, dtype=torch.int64)
        for i, row in enumerate(picked):
            start = int(row) * self.seq_len
            chunk = self.tokens[start : start + self.seq_len + 1]
            out[i] = torch.from_numpy(chunk.astype(np.int64))
        self.index += 1
        if self.index == self.per_epoch:
            self.epoch, self.index, self._order = self.epoch + 1, 0, None
        return out[:, :-1], out[:, 1:]

    def state_dict(self):
        return {"seed": self.seed, "epoch": self.epoch, "index": self.index,
                "batch": self.batch, "world": self.world, "rows": self.rows}

    def load_state_dict(self, state):
        for key in ("batch", "world", "rows"):
            if state[key] != getattr(self, key):
                raise ValueError(f"{key} was {state[key]}, is now {getattr(self, key)}")
        self.seed = state["seed"]
        self.epoch = state["epoch"]
        self.index = state["index"]
        self._order = None


def write_position(loader, path):
    tmp = path + ".new"
    with open(tmp, "w", encoding="utf-8") as f:
        json.dump(loader.state_dict(), f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def read_position(loader, path):
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            loader.load_state_dict(json.load(f))
