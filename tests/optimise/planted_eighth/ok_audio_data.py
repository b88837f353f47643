"""Fixed-length audio crops with on-the-fly augmentation."""
import json
import random
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch.utils.data import DataLoader, Dataset, Sampler

CROP = 4 * 16_000


class Crops(Dataset):
    """Augmentation depends on (seed, epoch, index) only, so it is the same for any number of workers."""

    def __init__(self, manifest, seed=0):
        self.items = [json.loads(s) for s in Path(manifest).read_text().splitlines()]
        # clips shorter than a crop are left out, so no crop holds padding
        self.items = [it for it in self.items if it["frames"] >= CROP]
        self.seed = seed

    def __len__(self):
        return len(self.items)

    def __getitem__(self, key):
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i))
        it = self.items[i]
        start = int(rng.integers(0, it["frames"] - CROP + 1))
        wav, _ = torchaudio.load(it["path"], frame_offset=start, num_frames=CROP)
        wav = wav.mean(0) * float(10 ** rng.uniform(-0.3, 0.3))
        if rng.random() < 0.5:
            wav = wav + 0.005 * torch.from_numpy(rng.standard_normal(CROP).astype(np.float32))
        return wav, it["label"]


class EpochKeys(Sampler):
    def __init__(self, n, batch, rank, world, seed, done_batches=0):
        self.batch, self.rank, self.world, self.seed = batch, rank, world, seed
        self.n = n
        self.per_epoch = n // (world * batch)
        self.done = done_batches

    def __iter__(self):
        epoch, first = divmod(self.done, self.per_epoch)
        while True:
            # the permutation is common to the ranks; each takes its own slice of it
            order = list(range(self.n))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            mine = order[self.rank :: self.world]
            for b in range(first, self.per_epoch):
                yield [(epoch, i) for i in mine[b * self.batch : (b + 1) * self.batch]]
            epoch, first = epoch + 1, 0


def make_loader(manifest, batch, rank, world, done_batches, seed=0, workers=8):
    """done_batches is what the trainer has consumed, from its checkpoint."""
    data = Crops(manifest, seed)
    keys = EpochKeys(len(data), batch, rank, world, seed, done_batches)
    return DataLoader(data, batch_sampler=keys, num_workers=workers, pin_memory=True, prefetch_factor=4)
