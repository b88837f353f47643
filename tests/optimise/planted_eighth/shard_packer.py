"""Turns tokenised jsonl shards into fixed-length training rows."""
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


def first_fit(lengths, capacity):
    """Assign each document to the first row that has room for it."""
    rows, room = [], []
    for i, n in enumerate(lengths):
        for r in range(len(rows)):
            if room[r] >= n:
                rows[r].append(i)
                room[r] -= n
                break
        else:
            rows.append([i])
            room.append(capacity - n)
    return rows


def render_row(docs, members, capacity, eos):
    ids = np.full(capacity, eos, dtype=np.int64)
    seg = np.full(capacity, -1, dtype=np.int64)
    at = 0
    for s, m in enumerate(members):
        n = len(docs[m])
        ids[at:at + n] = docs[m]
        seg[at:at + n] = s
        at += n
    return torch.from_numpy(ids), torch.from_numpy(seg)


class PackedShards(IterableDataset):
    def __init__(self, root, capacity, eos, rank, world, mask_prob=0.0):
        self.paths = sorted(Path(root).glob("*.jsonl"))[rank::world]
        self.capacity, self.eos, self.mask_prob = capacity, eos, mask_prob

    def _mine(self):
        info = get_worker_info()
        return self.paths if info is None else self.paths[info.id::info.num_workers]

    def _visit_order(self):
        paths = list(self._mine())
        random.SystemRandom().shuffle(paths)
        return paths

    def _corrupt(self, ids):
        hit = np.random.rand(len(ids)) < self.mask_prob
        ids = ids.clone()
        ids[torch.from_numpy(hit)] = self.eos
        return ids

    def __iter__(self):
        for path in self._visit_order():
            with path.open() as fh:
                docs = [json.loads(line)["ids"][: self.capacity] for line in fh]
            for members in first_fit([len(d) for d in docs], self.capacity):
                ids, seg = render_row(docs, members, self.capacity, self.eos)
                yield self._corrupt(ids), ids, seg


class WorkerSetup:
    """Picklable worker_init_fn."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, worker_id):
        torch.set_num_threads(1)
        np.random.seed(self.seed)


def make_loader(root, capacity, eos, rank, world, batch_size, seed=0):
    ds = PackedShards(root, capacity, eos, rank, world, mask_prob=0.15)
    return DataLoader(
        ds,
        batch_size=batch_size,
        num_workers=8,
        pin_memory=True,
        drop_last=True,
        worker_init_fn=WorkerSetup(seed),
    )
