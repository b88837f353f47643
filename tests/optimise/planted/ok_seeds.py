"""Seeds done with care."""
import random

import numpy as np
import torch
from torch.utils.data import DataLoader


def seed_worker(worker_id):
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


def seed_everything(seed, rank):
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)


def make_loader(dataset, size, seed):
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=size, shuffle=True, generator=order, worker_init_fn=seed_worker,
                      num_workers=2)


class Row:
    """One request with a generator of its own, made once."""

    def __init__(self, ids, seed, device):
        self.ids = ids
        self.dice = torch.Generator(device=device)
        self.dice.manual_seed(seed)

    def draw(self, scores, temperature):
        p = torch.softmax(scores / temperature, -1)
        return torch.multinomial(p, 1, generator=self.dice)


class Pool:
    def __init__(self, device):
        self.device = device
        self.rows = {}

    def admit(self, name, ids, seed):
        self.rows[name] = Row(ids, seed, self.device)

    def draw(self, names, logits, temperature=1.0):
        return torch.stack([self.rows[n].draw(row, temperature) for n, row in zip(names, logits)])
