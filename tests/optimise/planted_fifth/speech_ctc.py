"""CTC acoustic model on log-mel features. Manifest: wav path <tab> transcript."""
import os
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchaudio
from torch.utils.data import DataLoader, Dataset

ALPHABET = "_ abcdefghijklmnopqrstuvwxyz'"
CHAR_TO_ID = {c: i for i, c in enumerate(ALPHABET)}

SAMPLE_RATE = 16000
N_MELS = 80
MAX_FRAMES = 3000
BATCH_SIZE = 2
ACCUM_STEPS = 32
EPOCHS = 40
LR = 4e-4


class Utterances(Dataset):
    def __init__(self, manifest):
        with open(manifest) as f:
            self.items = [line.rstrip("\n").split("\t") for line in f]
        self.mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=400, hop_length=160, n_mels=N_MELS)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        path, text = self.items[i]
        wav, sr = torchaudio.load(path)
        if sr != SAMPLE_RATE:
            wav = torchaudio.functional.resample(wav, sr, SAMPLE_RATE)
        feats = self.mel(wav.mean(0)).clamp(min=1e-5).log().t()
        target = torch.tensor([CHAR_TO_ID[c] for c in text.lower() if c in CHAR_TO_ID])
        return feats[:MAX_FRAMES], target


def collate(batch):
    feats = torch.zeros(len(batch), MAX_FRAMES, N_MELS)
    for i, (f, _) in enumerate(batch):
        feats[i, : f.size(0)] = f
    n_frames = torch.tensor([f.size(0) for f, _ in batch])
    targets = torch.cat([t for _, t in batch])
    n_targets = torch.tensor([t.numel() for _, t in batch])
    return feats, n_frames, targets, n_targets


class CTCModel(nn.Module):
    def __init__(self, dim=256, depth=10, heads=4):
        super().__init__()
        self.sub = nn.Sequential(
            nn.Conv1d(N_MELS, dim, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(dim, dim, 5, stride=2, padding=2), nn.GELU(),
        )
        self.pos = nn.Parameter(torch.randn(1, MAX_FRAMES // 4, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(dim, len(ALPHABET))

    def forward(self, feats, n_frames):
        x = self.sub(feats.transpose(1, 2)).transpose(1, 2)
        mask = torch.arange(x.size(1), device=x.device)[None] >= (n_frames // 4)[:, None]
        x = self.encoder(x + self.pos[:, : x.size(1)], src_key_padding_mask=mask)
        return F.log_softmax(self.out(x), dim=-1)


def save(net, epoch, path):
    torch.save({"model": net.state_dict(), "epoch": epoch}, path + ".part")
    os.replace(path + ".part", path)


def main(manifest, path="ctc.pt"):
    torch.manual_seed(3)
    loader = DataLoader(Utterances(manifest), BATCH_SIZE, shuffle=True, collate_fn=collate, num_workers=8,
                        generator=torch.Generator().manual_seed(3), pin_memory=True, drop_last=True)
    net = CTCModel().cuda()
    model = torch.compile(net)
    opt = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=1e-2)

    micro = 0
    for epoch in range(EPOCHS):
        net.train()
        for feats, n_frames, targets, n_targets in loader:
            feats = feats.cuda(non_blocking=True)
            frames_gpu = n_frames.cuda(non_blocking=True)
            logp = model(feats, frames_gpu)
            loss = F.ctc_loss(logp.transpose(0, 1), targets.cuda(non_blocking=True), n_frames // 4, n_targets,
                              zero_infinity=True)
            (loss / ACCUM_STEPS).backward()
            micro += 1
            if micro % ACCUM_STEPS == 0:
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                opt.step()
                opt.zero_grad(set_to_none=True)
            if micro % (50 * ACCUM_STEPS) == 0:
                print(f"epoch {epoch} update {micro // ACCUM_STEPS} ctc {loss.item():.3f}")
        save(net, epoch, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
