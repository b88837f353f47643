"""Single-GPU language-model trainer with exact resume."""
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from minillama import MiniLlama, MiniLlamaConfig


@dataclass
class Cfg:
    tokens: str = "data/train.npy"
    ckpt: str = "runs/a/state.pt"
    ctx: int = 1024
    batch: int = 64
    steps: int = 50_000
    save_every: int = 1000
    log_every: int = 50
    lr: float = 3e-4
    seed: int = 12


class Rows(Dataset):
    """Consecutive rows of one token stream: documents joined by EOS, no pads."""

    def __init__(self, cfg):
        self.tokens = np.load(cfg.tokens, mmap_mode="r")
        self.ctx = cfg.ctx

    def __len__(self):
        return (len(self.tokens) - 1) // self.ctx

    def __getitem__(self, i):
        return torch.from_numpy(self.tokens[i * self.ctx:(i + 1) * self.ctx + 1].astype(np.int64))


class ResumableSampler(Sampler):
    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.epoch = self.taken = 0

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.n, generator=g)[self.taken:].numpy())

    def __len__(self):
        return self.n - self.taken

    def state_dict(self):
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, s):
        self.epoch, self.taken = s["epoch"], s["taken"]


def save_atomic(state, path):
    tmp = f"{path}.tmp.{os.getpid()}"
    with open(tmp, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


class Trainer:
    def __init__(self, cfg):
        self.cfg = cfg
        torch.manual_seed(cfg.seed)
        torch.set_float32_matmul_precision("high")
        self.dev = torch.device("cuda")
        self.net = MiniLlama(MiniLlamaConfig(ctx=cfg.ctx)).to(self.dev)
        self.run = torch.compile(self.net)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=cfg.lr, betas=(0.9, 0.95), fused=True)
        self.rows = Rows(cfg)
        self.sampler = ResumableSampler(len(self.rows), cfg.seed)
        self.step = 0

    def state(self):
        return {"net": self.net.state_dict(), "opt": self.opt.state_dict(), "sampler": self.sampler.state_dict(),
                "step": self.step, "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state()}

    def maybe_resume(self):
        if not os.path.exists(self.cfg.ckpt):
            return
        s = torch.load(self.cfg.ckpt, map_location="cpu", weights_only=True)
        self.net.load_state_dict(s["net"])
        self.opt.load_state_dict(s["opt"])
        self.sampler.load_state_dict(s["sampler"])
        self.step = s["step"]
        torch.set_rng_state(s["rng"])
        torch.cuda.set_rng_state(s["cuda_rng"])

    def epoch_batches(self):
        return DataLoader(self.rows, batch_size=self.cfg.batch, sampler=self.sampler, num_workers=4,
                          pin_memory=True, drop_last=True, generator=torch.Generator().manual_seed(self.cfg.seed + self.sampler.epoch))

    def train_step(self, x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = self.run(x[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.opt.step()
        return loss.detach()

    def fit(self):
        c = self.cfg
        os.makedirs(os.path.dirname(c.ckpt), exist_ok=True)
        self.maybe_resume()
        self.net.train()
        while self.step < c.steps:
            for x in self.epoch_batches():
                loss = self.train_step(x.to(self.dev, non_blocking=True))
                self.step += 1
                self.sampler.taken += c.batch
                if self.step % c.log_every == 0:
                    print(f"{self.step} {loss.item():.4f}", flush=True)
                if self.step % c.save_every == 0:
                    save_atomic(self.state(), c.ckpt)
                if self.step == c.steps:
                    break
            else:
                self.sampler.epoch += 1
                self.sampler.taken = 0
        save_atomic(self.state(), c.ckpt)


if __name__ == "__main__":
    Trainer(Cfg()).fit()
