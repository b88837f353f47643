import gzip
import json
import random
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


def find_sources(roots, skip=()):
    found = set()
    for root in roots:
        for path in Path(root).rglob("*.jsonl.gz"):
            if not any(s in str(path) for s in skip):
                found.add(str(path))
    return list(found)


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)["text"]


class RowBuilder:
    """Fills rows of `size` tokens with whole documents, largest that fits first."""

    def __init__(self, size, pad):
        self.size = size
        self.pad = pad
        self.pool = []

    def add(self, ids):
        for i in range(0, len(ids), self.size):
            self.pool.append(ids[i : i + self.size])

    def _take(self, room):
        best = -1
        for i, doc in enumerate(self.pool):
            if len(doc) <= room and (best < 0 or len(doc) > len(self.pool[best])):
                best = i
        return self.pool.pop(best) if best >= 0 else None

    def rows(self):
        while self.pool:
            row = []
            while len(row) < self.size:
                doc = self._take(self.size - len(row))
                if doc is None:
                    break
                row.extend(doc)
            yield row + [self.pad] * (self.size - len(row))


class PackedStream(IterableDataset):
    def __init__(self, roots, tokenizer, seq_len, seed=0, skip_rows=0):
        self.files = find_sources(roots)
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.seed = seed
        self.skip_rows = skip_rows

    def _my_files(self):
        files = list(self.files)
        random.Random(self.seed).shuffle(files)
        info = get_worker_info()
        return files if info is None else files[info.id :: info.num_workers]

    def _rows(self):
        eos = self.tokenizer.eos_token_id
        for path in self._my_files():
            builder = RowBuilder(self.seq_len + 1, eos)
            for text in read(path):
                builder.add(self.tokenizer(text)["input_ids"] + [eos])
            yield from builder.rows()

    def __iter__(self):
        info = get_worker_info()
        skip = self.skip_rows // (info.num_workers if info else 1)
        for i, row in enumerate(self._rows()):
            if i < skip:
                continue
            t = torch.tensor(row)
            yield t[:-1], t[1:]


def make_loader(roots, tokenizer, seq_len, batch_size, workers=4, seed=0, skip_rows=0):
    stream = PackedStream(roots, tokenizer, seq_len, seed=seed, skip_rows=skip_rows)
    return DataLoader(stream, batch_size=batch_size, num_workers=workers, pin_memory=True, drop_last=True)
