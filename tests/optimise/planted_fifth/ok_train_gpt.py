"""Single GPU pretraining on a token memmap. Restart the same command to go on."""
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from gpt import GPT, GPTConfig


@dataclass
class Settings:
    data: str = "data/train.bin"
    out: str = "out/ckpt.pt"
    batch_size: int = 48
    block_size: int = 1024
    max_iters: int = 100_000
    warmup: int = 1000
    lr: float = 6e-4
    log_every: int = 50
    save_every: int = 1000
    seed: int = 1337


class Batches:
    def __init__(self, s, split_path):
        self.tokens = np.memmap(split_path, dtype=np.uint16, mode="r")
        self.s = s
        self.gen = torch.Generator().manual_seed(s.seed)

    def next(self):
        B, T = self.s.batch_size, self.s.block_size
        starts = torch.randint(len(self.tokens) - T - 1, (B,), generator=self.gen).numpy()
        rows = np.stack([self.tokens[i : i + T + 1] for i in starts]).astype(np.int64)
        rows = torch.from_numpy(rows).pin_memory().to("cuda", non_blocking=True)
        return rows[:, :-1], rows[:, 1:]


def lr_at(s, it):
    if it < s.warmup:
        return s.lr * (it + 1) / s.warmup
    frac = (it - s.warmup) / (s.max_iters - s.warmup)
    return s.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * frac)))


def save(path, state):
    tmp = f"{path}.{os.getpid()}.tmp"
    with open(tmp, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def main():
    s = Settings()
    os.makedirs(os.path.dirname(s.out), exist_ok=True)
    torch.manual_seed(s.seed)
    torch.set_float32_matmul_precision("high")
    batches = Batches(s, s.data)
    raw = GPT(GPTConfig(block_size=s.block_size)).cuda()
    opt = torch.optim.AdamW(raw.parameters(), lr=s.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    start = 0
    if os.path.exists(s.out):
        ck = torch.load(s.out, map_location="cpu", weights_only=True)
        raw.load_state_dict(ck["model"])
        opt.load_state_dict(ck["opt"])
        batches.gen.set_state(ck["data_rng"])
        start = ck["it"]

    model = torch.compile(raw)
    model.train()
    running = torch.zeros((), device="cuda")
    t0 = time.time()
    for it in range(start, s.max_iters):
        for g in opt.param_groups:
            g["lr"] = lr_at(s, it)
        x, y = batches.next()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += loss.detach()

        if (it + 1) % s.log_every == 0:
            mean = running.item() / s.log_every
            running.zero_()
            rate = s.log_every * s.batch_size * s.block_size / (time.time() - t0)
            t0 = time.time()
            print(f"it {it + 1} loss {mean:.4f} {rate:,.0f} tok/s")
        if (it + 1) % s.save_every == 0:
            save(s.out, {
                "model": raw.state_dict(),
                "opt": opt.state_dict(),
                "data_rng": batches.gen.get_state(),
                "it": it + 1,
            })


if __name__ == "__main__":
    main()
