"""Best-fit-decreasing packing in O(n log C) with a tree over the free room of open rows."""
from __future__ import annotations

import os
from typing import Sequence

import numpy as np
import torch


class RoomTree:
    """Stacks of open rows by free room, below a tree of counts that finds the tightest room >= n."""

    def __init__(self, capacity: int):
        self.size = 1 << capacity.bit_length()
        self.count = np.zeros(2 * self.size, dtype=np.int64)
        self.rows: list[list[int]] = [[] for _ in range(capacity + 1)]

    def _bump(self, room: int, by: int) -> None:
        i = room + self.size
        while i:
            self.count[i] += by
            i >>= 1

    def push(self, room: int, row: int) -> None:
        self.rows[room].append(row)
        self._bump(room, 1)

    def pop_at_least(self, need: int) -> tuple[int, int] | None:
        i = need + self.size
        if not self.count[i]:
            # climb until a right sibling holds something, then go down its left-most branch
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


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    lengths = np.asarray(lengths)
    if lengths.size and lengths.max() > capacity:
        raise ValueError(f"a document of {int(lengths.max())} tokens does not fit a row of {capacity}")
    tree, rows = RoomTree(capacity), []
    for doc in np.argsort(-lengths, kind="stable"):
        n = int(lengths[doc])
        hit = tree.pop_at_least(n)
        if hit is None:
            rows.append([int(doc)])
            tree.push(capacity - n, len(rows) - 1)
        else:
            room, row = hit
            rows[row].append(int(doc))
            tree.push(room - n, row)
    return rows


class PackedRows:
    """Flat storage: one concatenation for the whole corpus, then slices."""

    def __init__(self, docs: Sequence[np.ndarray], capacity: int):
        self.plan = pack([len(d) for d in docs], capacity)
        order = [d for row in self.plan for d in row]
        self.flat = np.concatenate([docs[d] for d in order]) if order else np.empty(0, dtype=np.int64)
        self.doc_ends = np.cumsum([len(docs[d]) for d in order])
        self.docs_before = np.concatenate([[0], np.cumsum([len(r) for r in self.plan])]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, r: int) -> dict[str, torch.Tensor]:
        lo, hi = self.docs_before[r], self.docs_before[r + 1]
        start = int(self.doc_ends[lo - 1]) if lo else 0
        ends = self.doc_ends[lo:hi]
        ids = torch.from_numpy(self.flat[start:int(ends[-1])].astype(np.int64))
        cu = torch.from_numpy(np.concatenate([[0], ends - start]).astype(np.int32))
        return {"ids": ids, "cu_seqlens": cu}

    def save(self, path: str) -> None:
        tmp = path + ".tmp"
        with open(tmp, "wb") as f:
            torch.save({"flat": torch.from_numpy(self.flat.astype(np.int32)),
                        "doc_ends": torch.from_numpy(self.doc_ends),
                        "docs_before": torch.from_numpy(self.docs_before)}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
