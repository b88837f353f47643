import json
import random
from collections import namedtuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = namedtuple("Batch", "src tgt")

MAX_LEN = 512
PAD = 0


class PairDataset(Dataset):
    def __init__(self, path, encode):
        self.items = []
        with open(path, encoding="utf8") as f:
            for line in f:
                r = json.loads(line)
                self.items.append((encode(r["src"])[:MAX_LEN], encode(r["tgt"])[:MAX_LEN]))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class BucketSampler(Sampler):
    """Batches of neighbours in length, at most max_tokens each."""

    def __init__(self, lengths, max_tokens=8192):
        self.lengths = list(lengths)
        self.max_tokens = max_tokens
        self.batches = self._build()

    def _build(self):
        left = list(range(len(self.lengths)))
        batches, cur = [], []
        while left:
            i = min(left, key=lambda j: self.lengths[j])
            left.remove(i)
            if cur and self.lengths[i] * (len(cur) + 1) > self.max_tokens:
                batches.append(cur)
                cur = []
            cur.append(i)
        if cur:
            batches.append(cur)
        return batches

    def __iter__(self):
        order = list(self.batches)
        random.shuffle(order)
        return iter(order)

    def __len__(self):
        return len(self.batches)


def fill(rows):
    out = torch.full((len(rows), MAX_LEN), PAD, dtype=torch.long)
    for i, r in enumerate(rows):
        out[i, : len(r)] = torch.tensor(r)
    return out


def collate(items):
    src, tgt = zip(*items)
    return Batch(fill(src), fill(tgt))


def make_loader(path, encode, workers=4):
    ds = PairDataset(path, encode)
    sampler = BucketSampler([max(len(s), len(t)) for s, t in ds.items])
    return DataLoader(ds, batch_sampler=sampler, collate_fn=collate,
                      num_workers=workers, pin_memory=True)
