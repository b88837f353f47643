"""Streaming packed rows for pretraining, with state for checkpoints."""
import glob
import json

import torch
from torch.utils.data import IterableDataset


class OpenRow:
    __slots__ = ("docs", "room")

    def __init__(self, capacity):
        self.docs, self.room = [], capacity

    def add(self, doc):
        self.docs.append(doc)
        self.room -= len(doc)


class PackedStream(IterableDataset):
    """Reads every .jsonl of token lists under `pattern`, best-fit packs whole files."""

    def __init__(self, pattern, capacity=2048, eod=0, seed=0, rank=0, world=1):
        self.files = sorted(glob.glob(pattern))[rank::world]
        if not self.files:
            raise FileNotFoundError(pattern)
        self.capacity = capacity
        self.eod = eod
        self.seed = seed
        self.epoch = 0
        self.rows_out = 0

    def _order(self):
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.files), generator=g).tolist()

    def _docs(self, path):
        with open(path) as f:
            for line in f:
                doc = json.loads(line)["tokens"] + [self.eod]
                for i in range(0, len(doc), self.capacity):
                    yield doc[i:i + self.capacity]

    def _tightest(self, rows, n):
        fitting = (r for r in rows if r.room >= n)
        return min(fitting, key=lambda r: r.room, default=None)

    def _pack(self, path):
        rows = []
        for doc in self._docs(path):
            row = self._tightest(rows, len(doc))
            if row is None:
                row = OpenRow(self.capacity)
                rows.append(row)
            row.add(doc)
        return rows

    def _emit(self, row):
        tokens = torch.full((self.capacity,), self.eod)
        segment = torch.full((self.capacity,), -1)
        at = 0
        for s, doc in enumerate(row.docs):
            tokens[at:at + len(doc)] = torch.tensor(doc)
            segment[at:at + len(doc)] = s
            at += len(doc)
        return {"tokens": tokens, "segment": segment}

    def __iter__(self):
        while True:
            for i in self._order():
                for row in self._pack(self.files[i]):
                    self.rows_out += 1
                    yield self._emit(row)
            self.epoch += 1

    def state_dict(self):
        return {"epoch": self.epoch, "seed": self.seed, "rows_out": self.rows_out}

    def load_state_dict(self, state):
        self.epoch = state["epoch"]
        self.seed = state["seed"]
        self.rows_out = state["rows_out"]
