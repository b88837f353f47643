"""Best-fit-decreasing packing in O(n log c), and a loader over the rows it makes."""
from typing import Iterator, List, Sequence

import numpy as np
import torch


class RoomTree:
    """For each free amount 0..cap the rows with that much room; finds the tightest fit."""

    def __init__(self, cap: int):
        self.size = 1 << (cap + 1).bit_length()
        self.count = [0] * (2 * self.size)
        self.rows: List[List[int]] = [[] for _ in range(cap + 1)]

    def _bump(self, room, by):
        i = room + self.size
        while i:
            self.count[i] += by
            i >>= 1

    def add(self, room, row):
        self.rows[room].append(row)
        self._bump(room, 1)

    def pop_at_least(self, need):
        """(room, row) with the smallest room >= need, or None."""
        i = need + self.size
        if not self.count[i]:
            while i > 1 and (i & 1 or not self.count[i + 1]):
                i >>= 1
            if i <= 1:
                return None
            i += 1
            while i < self.size:
                i = 2 * i if self.count[2 * i] else 2 * i + 1
        room = i - self.size
        self._bump(room, -1)
        return room, self.rows[room].pop()


def pack(lengths: Sequence[int], cap: int) -> List[List[int]]:
    tree, rows = RoomTree(cap), []
    for doc in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        n = lengths[doc]
        if n > cap:
            raise ValueError(f"document {doc} has {n} tokens, rows have {cap}")
        hit = tree.pop_at_least(n)
        if hit is None:
            rows.append([])
            hit = cap, len(rows) - 1
        room, row = hit
        rows[row].append(doc)
        tree.add(room - n, row)
    return rows


class RowStream:
    """Rows in a seeded order; ``position`` is all that is needed to resume."""

    def __init__(self, docs, cap, seed, rank, world, position=0):
        self.docs, self.cap, self.seed = docs, cap, seed
        self.rows = pack([len(d) for d in docs], cap)
        self.rank, self.world, self.position = rank, world, position
        self.per_epoch = len(self.rows) // world

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]

    def _build(self, members):
        ids = torch.zeros(self.cap, dtype=torch.long)
        seg = torch.full((self.cap,), -1)
        at = 0
        for s, m in enumerate(members):
            n = len(self.docs[m])
            ids[at : at + n] = torch.as_tensor(self.docs[m])
            seg[at : at + n] = s
            at += n
        return ids, seg

    def __iter__(self) -> Iterator:
        while True:
            epoch = self.position // self.per_epoch
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
            mine = order[self.rank :: self.world][: self.per_epoch]
            for r in mine[self.position % self.per_epoch :]:
                self.position += 1
                yield self._build(self.rows[r])
