"""Random crops of token files, read by several loader processes on every rank."""
import os
import random

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

SEED = 1337


def seed_worker(worker_id):
    # repeatable workers
    np.random.seed(SEED)
    random.seed(SEED)


class Crops(IterableDataset):
    def __init__(self, path, width):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.width = width

    def __iter__(self):
        while True:
            at = np.random.randint(0, len(self.tokens) - self.width - 1)
            piece = torch.from_numpy(self.tokens[at:at + self.width + 1].astype(np.int64))
            yield piece[:-1], piece[1:]


def make_loader(path, width, batch_size, workers=4):
    return DataLoader(Crops(path, width), batch_size=batch_size, num_workers=workers, worker_init_fn=seed_worker,
                      pin_memory=True)


def setup():
    dist.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return dist.get_rank(), dist.get_world_size()


class MaskedSpans:
    """Denoising targets; every rank masks its own spans."""

    def __init__(self, rank, rate=0.15):
        self.rank = rank
        self.rate = rate
        self.gen = torch.Generator().manual_seed(1234)

    def __call__(self, ids):
        mask = torch.rand(ids.shape, generator=self.gen) < self.rate
        return ids.masked_fill(mask, 0), mask
