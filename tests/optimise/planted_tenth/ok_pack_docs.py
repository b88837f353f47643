"""Turn contributed token dumps into fixed-size training rows (best fit, O(n log size))."""
from __future__ import annotations

import argparse
import hashlib
import pathlib

import numpy as np


class RoomIndex:
    """Open rows by their remaining room; a segment tree finds the tightest one that fits."""

    def __init__(self, size: int):
        self.base = 1 << size.bit_length()
        self.tree = [0] * (2 * self.base)
        self.rows: list[list[int]] = [[] for _ in range(size + 1)]

    def _bump(self, room: int, by: int) -> None:
        node = room + self.base
        while node:
            self.tree[node] += by
            node //= 2

    def put(self, room: int, row: int) -> None:
        self.rows[room].append(row)
        self._bump(room, 1)

    def take(self, need: int) -> tuple[int, int] | None:
        node = need + self.base
        while not self.tree[node]:
            while node & 1:
                node //= 2
            if node == 0:
                return None
            node += 1
        while node < self.base:
            node = 2 * node if self.tree[2 * node] else 2 * node + 1
        room = node - self.base
        self._bump(room, -1)
        return room, self.rows[room].pop()


def read_dump(path: pathlib.Path) -> list[np.ndarray]:
    """A dump is an .npz with a flat token array and the offsets of its documents."""
    with np.load(path, allow_pickle=False) as z:
        return np.split(z["tokens"].astype(np.int32), z["offsets"][1:-1])


def collect(inbox: pathlib.Path) -> list[np.ndarray]:
    store: dict[str, np.ndarray] = {}
    for path in sorted(inbox.glob("*.npz")):
        for doc in read_dump(path):
            store.setdefault(hashlib.sha1(doc.tobytes()).hexdigest(), doc)
    return [store[key] for key in sorted(store)]


def fill_rows(docs: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    rows: list[list[np.ndarray]] = []
    index = RoomIndex(size)
    pieces = [d[i : i + size] for d in docs for i in range(0, len(d), size)]
    pieces.sort(key=len, reverse=True)
    for piece in pieces:
        found = index.take(len(piece))
        room, row = found if found else (size, len(rows))
        if found is None:
            rows.append([])
        rows[row].append(piece)
        if room > len(piece):
            index.put(room - len(piece), row)
    return rows


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("inbox", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--row", type=int, default=4096)
    a = ap.parse_args()
    rows = fill_rows(collect(a.inbox), a.row)
    tokens = np.zeros((len(rows), a.row), dtype=np.int32)
    for i, row in enumerate(rows):
        flat = np.concatenate(row)
        tokens[i, : len(flat)] = flat
    np.save(a.out, tokens)


if __name__ == "__main__":
    main()
