import random
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import get_worker_info


class ShardOrder:
    """Visits shards in an order given by (seed, epoch), and can continue where it stopped."""

    def __init__(self, root, seed=0, rank=0, world=1):
        self.shards = sorted(Path(root).glob("*.u16"))
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        self.position = 0

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self):
        while True:
            order = list(self.shards)
            random.Random(self.seed * 100_003 + self.epoch).shuffle(order)
            mine = order[self.rank :: self.world]
            while self.position < len(mine):
                path = mine[self.position]
                self.position += 1
                yield np.memmap(path, dtype=np.uint16, mode="r")
            self.epoch += 1
            self.position = 0


def seed_worker(worker_id):
    info = get_worker_info()
    np.random.seed(info.seed % 2**32)
    random.seed(info.seed)


def sampling_generator(seed, rank, device="cuda"):
    return torch.Generator(device=device).manual_seed(seed + 7919 * rank)
