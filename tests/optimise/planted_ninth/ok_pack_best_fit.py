"""Best-fit-decreasing packing with a segment tree: O(n log ctx)."""
import argparse
import json
import random
from pathlib import Path

import numpy as np


class RoomTree:
    """Over room sizes 0..ctx: finds the smallest non-empty size >= want."""

    def __init__(self, ctx):
        self.leaves = 1 << ctx.bit_length()
        self.has = bytearray(2 * self.leaves)
        self.rows = [[] for _ in range(ctx + 1)]

    def _set(self, size, flag):
        i = size + self.leaves
        self.has[i] = flag
        while i > 1:
            i >>= 1
            self.has[i] = self.has[2 * i] | self.has[2 * i + 1]

    def add(self, size, row):
        if not self.rows[size]:
            self._set(size, 1)
        self.rows[size].append(row)

    def take(self, want):
        i = want + self.leaves
        if not self.has[i]:
            while i > 1 and (i & 1 or not self.has[i + 1]):
                i >>= 1
            if i <= 1:
                return None, 0
            i += 1
            while i < self.leaves:
                i = 2 * i if self.has[2 * i] else 2 * i + 1
        size = i - self.leaves
        row = self.rows[size].pop()
        if not self.rows[size]:
            self._set(size, 0)
        return row, size


def pack(lengths, ctx):
    tree, rows = RoomTree(ctx), []
    for doc in np.argsort(-np.asarray(lengths), kind="stable"):
        n = int(lengths[doc])
        row, room = tree.take(n)
        if row is None:
            row, room = len(rows), ctx
            rows.append([])
        rows[row].append(int(doc))
        tree.add(room - n, row)
    return rows


def shards(root, worker, workers):
    return sorted(Path(root).rglob("*.jsonl"))[worker::workers]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("root")
    ap.add_argument("--ctx", type=int, default=4096)
    ap.add_argument("--worker", type=int, default=0)
    ap.add_argument("--workers", type=int, default=1)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    for path in shards(args.root, args.worker, args.workers):
        with path.open() as fh:
            lengths = [min(json.loads(line)["n_tokens"], args.ctx) for line in fh]
        rows = pack(lengths, args.ctx)
        random.Random(f"{args.seed}:{path.name}").shuffle(rows)
        path.with_suffix(".rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
