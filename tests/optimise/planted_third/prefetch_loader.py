"""Feeds fixed-size feature blocks from a memmap to the GPU."""
import time

import numpy as np
import torch
from torch import nn


class BlockFeeder:
    def __init__(self, path, width, batch, device, seed=0):
        flat = np.memmap(path, dtype=np.float32, mode="r")
        self.blocks = flat.reshape(-1, width)
        self.batch = batch
        self.device = device
        self.order = np.random.default_rng(seed).permutation(len(self.blocks))
        self.staging = torch.empty(batch, width, dtype=torch.float32).pin_memory()
        self.cursor = 0

    def __len__(self):
        return len(self.order) // self.batch

    def __iter__(self):
        return self

    def __next__(self):
        if self.cursor >= len(self) * self.batch:
            raise StopIteration
        rows = np.sort(self.order[self.cursor:self.cursor + self.batch])
        self.cursor += self.batch
        self.staging.copy_(torch.from_numpy(self.blocks[rows]))
        return self.staging.to(self.device, non_blocking=True)


class Autoencoder(nn.Module):
    def __init__(self, width, hidden=1024, code=64):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, code))
        self.dec = nn.Sequential(nn.Linear(code, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x):
        return self.dec(self.enc(x))


class Stopwatch:
    def __init__(self, device):
        self.device = torch.device(device)
        self.began = None

    def _settle(self):
        if self.device == "cuda":
            torch.cuda.synchronize(self.device)

    def start(self):
        self._settle()
        self.began = time.perf_counter()

    def stop(self):
        self._settle()
        return time.perf_counter() - self.began


def train(path, width=4096, batch=1024, lr=1e-3, device="cuda"):
    torch.manual_seed(0)
    feeder = BlockFeeder(path, width, batch, device)
    net = Autoencoder(width).to(device)
    step_net = torch.compile(net)
    opt = torch.optim.AdamW(net.parameters(), lr=lr, fused=True)
    watch = Stopwatch(device)
    running = torch.zeros((), device=device)

    watch.start()
    for x in feeder:
        loss = (step_net(x) - x).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += loss.detach()
    took = watch.stop()

    print(f"mean loss {running.item() / len(feeder):.5f}, "
          f"{len(feeder) * batch / took:,.0f} blocks/s")
    return net


if __name__ == "__main__":
    train("data/blocks.f32")
