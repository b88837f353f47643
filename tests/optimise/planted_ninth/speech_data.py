# Keyword-spotting data: fixed one-second crops with noise / gain augmentation.
import csv
from pathlib import Path

import joblib
import numpy as np
import soundfile as sf
import torch
from huggingface_hub import hf_hub_download
from torch.utils.data import DataLoader, Dataset, RandomSampler

SR = 16_000


def read_manifest(path):
    with open(path, newline="") as fh:
        return [(row["wav"], int(row["label"])) for row in csv.DictReader(fh)]


class KeywordSet(Dataset):
    def __init__(self, root, manifest, noise_dir, seed=0, train=True):
        self.root = Path(root)
        self.items = read_manifest(manifest)
        self.noises = sorted(Path(noise_dir).glob("*.wav"))
        self.train = train
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return len(self.items)

    def _fixed(self, wav):
        if len(wav) < SR:
            return np.pad(wav, (0, SR - len(wav)))
        start = int(self.rng.integers(0, len(wav) - SR + 1)) if self.train else (len(wav) - SR) // 2
        return wav[start:start + SR]

    def _augment(self, wav):
        gain = self.rng.uniform(0.5, 1.5)
        noise, _ = sf.read(self.noises[self.rng.integers(len(self.noises))], dtype="float32")
        snr = self.rng.uniform(5.0, 20.0)
        noise = np.resize(noise, SR)
        scale = np.sqrt((wav ** 2).mean() / ((noise ** 2).mean() * 10 ** (snr / 10) + 1e-9))
        return gain * wav + scale * noise

    def __getitem__(self, i):
        name, label = self.items[i]
        wav, sr = sf.read(self.root / name, dtype="float32")
        assert sr == SR, f"{name}: {sr} Hz"
        wav = self._fixed(wav)
        if self.train:
            wav = self._augment(wav)
        return torch.from_numpy(wav.astype(np.float32)), label


class Normaliser:
    """Per-bin mean/variance normalisation from a published sklearn scaler."""

    def __init__(self, repo_id, revision, device):
        scaler = joblib.load(hf_hub_download(repo_id, "cmvn.joblib", revision=revision))
        self.mean = torch.as_tensor(scaler.mean_, dtype=torch.float32, device=device)
        self.std = torch.as_tensor(scaler.scale_, dtype=torch.float32, device=device)

    def __call__(self, feats):
        return (feats - self.mean) / self.std


def train_loader(ds, batch_size, epoch, seed=17):
    order = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return DataLoader(
        ds,
        batch_size=batch_size,
        sampler=RandomSampler(ds, generator=order),
        num_workers=8,
        prefetch_factor=4,
        drop_last=True,
    )


class Batches:
    """Iterates a loader, yielding features and labels on the accelerator."""

    def __init__(self, loader, frontend, norm, device):
        self.loader, self.frontend, self.norm, self.device = loader, frontend, norm, device

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for wav, y in self.loader:
            wav, y = (t.to(self.device, non_blocking=True) for t in (wav, y))
            with torch.no_grad():
                feats = self.norm(self.frontend(wav).clamp_min(1e-6).log().transpose(1, 2))
            yield feats, y
