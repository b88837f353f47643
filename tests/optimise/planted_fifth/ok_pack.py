"""Tokenise documents and pack them in rows of T tokens (best fit by remaining room)."""
import argparse
import json
import random
from bisect import bisect_left, insort
from collections import defaultdict
from pathlib import Path

import numpy as np
import tiktoken

enc = tiktoken.get_encoding("gpt2")
EOT = enc.eot_token


def list_files(root, seed):
    paths = sorted(p for p in Path(root).iterdir() if p.suffix == ".jsonl")
    random.Random(seed).shuffle(paths)
    return paths


def pieces_of(path, seq_len):
    with path.open(encoding="utf-8") as f:
        for line in f:
            ids = enc.encode_ordinary(json.loads(line)["text"])
            ids.append(EOT)
            for i in range(0, len(ids), seq_len):
                yield ids[i : i + seq_len]


class BestFit:
    """Open rows are kept by room; at most seq_len distinct rooms exist."""

    def __init__(self, seq_len):
        self.seq_len = seq_len
        self.rows = []
        self.by_room = defaultdict(list)
        self.rooms = []

    def _put(self, row_id, room):
        if room == 0:
            return
        if not self.by_room[room]:
            insort(self.rooms, room)
        self.by_room[room].append(row_id)

    def _take(self, need):
        i = bisect_left(self.rooms, need)
        if i == len(self.rooms):
            return None, self.seq_len
        room = self.rooms[i]
        row_id = self.by_room[room].pop()
        if not self.by_room[room]:
            del self.rooms[i]
        return row_id, room

    def add(self, piece):
        row_id, room = self._take(len(piece))
        if row_id is None:
            row_id = len(self.rows)
            self.rows.append([])
        self.rows[row_id].extend(piece)
        self._put(row_id, room - len(piece))


def write(rows, path, seq_len):
    out = np.full((len(rows), seq_len), EOT, dtype=np.uint16)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    np.save(path, out)
    print(f"{len(rows)} rows, {sum(map(len, rows)) / out.size:.1%} full")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("root")
    ap.add_argument("out")
    ap.add_argument("--seq-len", type=int, default=2048)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    packer = BestFit(args.seq_len)
    for path in list_files(args.root, args.seed):
        for piece in pieces_of(path, args.seq_len):
            packer.add(piece)
    write(packer.rows, args.out, args.seq_len)


if __name__ == "__main__":
    main()
