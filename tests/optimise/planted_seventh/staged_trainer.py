"""Training loop with a hand-written host-to-device feeder (video frame classifier)."""
import argparse
import os
import pathlib

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

N_CLASS = 174
FRAMES, SIDE = 16, 112


class ClipStore:
    """uint8 clips in one big memmap of shape (n, FRAMES, 3, SIDE, SIDE)."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.labels = np.load(folder / "labels.npy")
        self.clips = np.memmap(folder / "clips.u8", dtype=np.uint8, mode="r",
                               shape=(len(self.labels), FRAMES, 3, SIDE, SIDE))

    def order(self, epoch, seed):
        return np.random.default_rng([seed, epoch]).permutation(len(self.labels))


class Feeder:
    """Copies batches through one page-locked staging area."""

    def __init__(self, store, batch, device):
        self.store, self.batch, self.device = store, batch, device
        self.stage_x = torch.empty(batch, FRAMES, 3, SIDE, SIDE, dtype=torch.uint8, pin_memory=True)
        self.stage_y = torch.empty(batch, dtype=torch.long, pin_memory=True)

    def load(self, rows):
        rows = np.sort(rows)
        self.stage_x.numpy()[...] = self.store.clips[rows]
        self.stage_y.numpy()[...] = self.store.labels[rows]
        x = self.stage_x.to(self.device, non_blocking=True)
        y = self.stage_y.to(self.device, non_blocking=True)
        return x, y

    def batches(self, epoch, seed, start):
        order = self.store.order(epoch, seed)
        for lo in range(start, len(order) - self.batch + 1, self.batch):
            yield self.load(order[lo:lo + self.batch])


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.43, 0.40, 0.38]).view(1, 1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.27, 0.26, 0.26]).view(1, 1, 3, 1, 1))

    def forward(self, clip):
        if clip.device in ("cuda", "cuda:0"):
            clip = clip.half()
        else:
            clip = clip.float()
        return ((clip / 255 - self.mean) / self.std).transpose(1, 2)


class C3D(nn.Module):
    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        self.norm = Normalise()
        layers, ci = [], 3
        for w in widths:
            layers += [nn.Conv3d(ci, w, 3, padding=1, bias=False), nn.BatchNorm3d(w), nn.ReLU(inplace=True),
                       nn.MaxPool3d((1, 2, 2) if ci == 3 else 2)]
            ci = w
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(ci, N_CLASS)

    def forward(self, clip):
        h = self.features(self.norm(clip))
        return self.fc(h.mean((2, 3, 4)))


def checkpoint(path, **state):
    torch.save(state, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def train(a):
    torch.manual_seed(a.seed)
    dev = torch.device("cuda")
    net = C3D().to(dev, memory_format=torch.channels_last_3d)
    opt = torch.optim.SGD(net.parameters(), lr=a.lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    feeder = Feeder(ClipStore(a.data), a.batch, dev)
    epoch0 = at = step = 0
    if os.path.exists(a.ckpt):
        ck = torch.load(a.ckpt, map_location="cpu", weights_only=True)
        net.load_state_dict(ck["net"])
        opt.load_state_dict(ck["opt"])
        epoch0, at, step = ck["epoch"], ck["at"], ck["step"]
    run = torch.compile(net)
    net.train()
    for epoch in range(epoch0, a.epochs):
        for x, y in feeder.batches(epoch, a.seed, at):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = F.cross_entropy(run(x), y)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            step += 1
            at += a.batch
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.3f}", flush=True)
            if step % 1000 == 0:
                checkpoint(a.ckpt, net=net.state_dict(), opt=opt.state_dict(), epoch=epoch, at=at, step=step)
        at = 0
    checkpoint(a.ckpt, net=net.state_dict(), opt=opt.state_dict(), epoch=a.epochs, at=0, step=step)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("data")
    p.add_argument("--ckpt", default="c3d.pt")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--seed", type=int, default=8)
    train(p.parse_args())
