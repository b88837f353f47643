"""CTC speech recogniser on mel features."""
import os

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn
from torch.utils.data import DataLoader

from asr.dataset import Utterances, SeededSampler
from asr.model import Conformer


class Config:
    sample_rate = 16000
    n_mels = 80
    max_seconds = 30
    batch_size = 16
    epochs = 60
    lr = 1e-3
    ckpt = "exp/conformer.pt"


class Features(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(cfg.sample_rate, n_mels=cfg.n_mels)

    def forward(self, wav):
        return (self.mel(wav) + 1e-6).log()


def fit_length(wav, cfg):
    n = cfg.max_seconds * cfg.sample_rate
    return F.pad(wav[:n], (0, n - len(wav[:n])))


def make_collate(cfg):
    def collate(items):
        wavs = torch.stack([fit_length(w, cfg) for w, _ in items])
        texts = [t for _, t in items]
        lens = torch.tensor([len(t) for t in texts])
        return wavs, torch.cat(texts), lens

    return collate


def on_gpu(device):
    return device == "cuda"


class Trainer:
    def __init__(self, cfg, device):
        self.cfg, self.device = cfg, torch.device(device)
        self.feats = Features(cfg).to(self.device)
        self.model = Conformer(cfg.n_mels, vocab=32).to(self.device)
        self.fast_model = torch.compile(self.model)
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=cfg.lr)
        self.amp = on_gpu(self.device)
        self.ctc = nn.CTCLoss(zero_infinity=True)

    def step(self, wavs, texts, lens):
        wavs, texts, lens = (t.to(self.device) for t in (wavs, texts, lens))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            logp = self.model(self.feats(wavs)).log_softmax(-1)
        T = torch.full((len(wavs),), logp.size(1), dtype=torch.long)
        loss = self.ctc(logp.transpose(0, 1), texts, T, lens)
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.opt.step()
        return loss.detach()

    def save(self, epoch):
        torch.save({"model": self.model.state_dict(), "opt": self.opt.state_dict(), "epoch": epoch}, self.cfg.ckpt)

    def load(self):
        if not os.path.exists(self.cfg.ckpt):
            return 0
        s = torch.load(self.cfg.ckpt, map_location=self.device, weights_only=True)
        self.model.load_state_dict(s["model"])
        self.opt.load_state_dict(s["opt"])
        return s["epoch"] + 1


def main():
    cfg = Config()
    torch.manual_seed(3)
    tr = Trainer(cfg, "cuda" if torch.cuda.is_available() else "cpu")
    ds = Utterances("train.tsv")
    sampler = SeededSampler(len(ds), seed=3)
    dl = DataLoader(ds, cfg.batch_size, sampler=sampler, collate_fn=make_collate(cfg), num_workers=8)
    for epoch in range(tr.load(), cfg.epochs):
        sampler.set_epoch(epoch)
        for i, batch in enumerate(dl):
            loss = tr.step(*batch)
            if i % 100 == 0:
                print(epoch, i, round(loss.item(), 4))
        tr.save(epoch)


if __name__ == "__main__":
    main()
