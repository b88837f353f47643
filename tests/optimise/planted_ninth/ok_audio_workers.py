# Augmented audio crops, reproducible for any number of workers.
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, DistributedSampler

SR = 16_000


class Crops(Dataset):
    def __init__(self, root, seed):
        self.files = sorted(Path(root).glob("**/*.wav"))
        labels = sorted({p.parent.name for p in self.files})
        self.index = {name: i for i, name in enumerate(labels)}
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, self.epoch, i])
        wav, _ = sf.read(self.files[i], dtype="float32")
        if len(wav) > SR:
            start = int(rng.integers(len(wav) - SR + 1))
            wav = wav[start:start + SR]
        wav = np.pad(wav, (0, SR - len(wav)))
        wav = wav * rng.uniform(0.5, 1.5) + rng.normal(0.0, 0.005, SR)
        label = self.index[self.files[i].parent.name]
        return torch.from_numpy(wav.astype(np.float32)), label


class Epochs:
    def __init__(self, ds, batch_size, rank, world, seed, device):
        self.ds, self.device = ds, device
        self.sampler = DistributedSampler(
            ds, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=True
        )
        self.loader = DataLoader(
            ds,
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=8,
            pin_memory=True,
            persistent_workers=False,
            drop_last=True,
        )

    def epoch(self, number):
        self.ds.set_epoch(number)
        self.sampler.set_epoch(number)
        for wav, label in self.loader:
            yield (
                wav.to(self.device, non_blocking=True),
                label.to(self.device, non_blocking=True),
            )


def load_stats(path, device):
    stats = load_file(path)
    return stats["mean"].to(device), stats["std"].to(device)
