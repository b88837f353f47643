#!/usr/bin/env python3
"""bestfit_pack_cli: turn a JSONL corpus into packed uint32 rows.

    bestfit_pack_cli.py corpus.jsonl out/ --tokenizer tok.json --row 8192

Documents longer than a row are cut into row-sized pieces first; the tails go to
the packer.  Every output row is written together with its document boundaries,
so the attention can be restricted to one document.
"""
import argparse
import json
import os
import sys
import tempfile

import numpy as np
import torch
from tokenizers import Tokenizer


class Bin:
    __slots__ = ("room", "docs")

    def __init__(self, cap):
        self.room = cap
        self.docs = []

    def put(self, doc_id, n):
        self.docs.append(doc_id)
        self.room -= n


class Packer:
    def __init__(self, cap):
        self.cap = cap
        self.bins = []

    def tightest(self, n):
        fitting = (b for b in self.bins if b.room >= n)
        return min(fitting, key=lambda b: b.room, default=None)

    def add(self, doc_id, n):
        b = self.tightest(n)
        if b is None:
            b = Bin(self.cap)
            self.bins.append(b)
        b.put(doc_id, n)

    def fill(self):
        total = len(self.bins) * self.cap
        return 1.0 - sum(b.room for b in self.bins) / total if total else 1.0


def pieces(path, tok, eos, row):
    """Yield token arrays of at most `row` tokens."""
    with open(path, encoding="utf-8") as f:
        for no, line in enumerate(f, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError) as err:
                print(f"{path}:{no}: {err}", file=sys.stderr)
                continue
            ids = np.array(tok.encode(text).ids + [eos], dtype=np.uint32)
            for lo in range(0, len(ids), row):
                yield ids[lo:lo + row]


def write_atomically(folder, name, obj):
    fd, tmp = tempfile.mkstemp(dir=folder)
    with os.fdopen(fd, "wb") as f:
        torch.save(obj, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, os.path.join(folder, name))


def emit(bins, docs, folder, rows_per_shard):
    for s, lo in enumerate(range(0, len(bins), rows_per_shard)):
        flat, ends, row_ends = [], [], []
        at = 0
        for b in bins[lo:lo + rows_per_shard]:
            for d in b.docs:
                flat.append(docs[d])
                at += len(docs[d])
                ends.append(at)
            row_ends.append(at)
        write_atomically(folder, f"shard{s:05d}.pt", {
            "tokens": torch.from_numpy(np.concatenate(flat).astype(np.int32)),
            "doc_ends": torch.tensor(ends),
            "row_ends": torch.tensor(row_ends),
        })


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("corpus")
    ap.add_argument("out")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--row", type=int, default=8192)
    ap.add_argument("--eos", default="<|endoftext|>")
    ap.add_argument("--rows-per-shard", type=int, default=4096)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args(argv)

    tok = Tokenizer.from_file(a.tokenizer)
    eos = tok.token_to_id(a.eos)
    if eos is None:
        ap.error(f"the tokenizer has no {a.eos}")
    os.makedirs(a.out, exist_ok=True)

    docs = list(pieces(a.corpus, tok, eos, a.row))
    lengths = np.array([len(d) for d in docs])
    packer = Packer(a.row)
    for i in np.argsort(-lengths, kind="stable"):
        packer.add(int(i), int(lengths[i]))
    np.random.default_rng(a.seed).shuffle(packer.bins)
    emit(packer.bins, docs, a.out, a.rows_per_shard)
    print(f"{len(docs)} pieces -> {len(packer.bins)} rows, fill {packer.fill():.4f}")


if __name__ == "__main__":
    main()
