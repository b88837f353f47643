"""Pretrain a small GPT on a flat token file."""
import argparse
import math
import os
import time
from contextlib import nullcontext

import numpy as np
import torch

from model import GPT, GPTConfig

out_dir = "out"
batch_size = 1
gradient_accumulation_steps = 128
block_size = 1024
max_iters = 200_000
warmup_iters = 2000
learning_rate = 6e-4
min_lr = 6e-5
eval_interval = 1000
eval_iters = 50
log_interval = 50
seed = 1337
device = "cuda"

torch.manual_seed(seed)
torch.backends.cuda.matmul.allow_tf32 = True
ctx = torch.autocast("cuda", dtype=torch.bfloat16) if "cuda" in device else nullcontext()


def get_batch(split, step):
    data = np.memmap(os.path.join("data", f"{split}.bin"), dtype=np.uint16, mode="r")
    r = np.random.default_rng((seed, step, split == "val"))
    ix = r.integers(0, len(data) - block_size - 1, size=batch_size)
    x = torch.from_numpy(np.stack([data[i : i + block_size].astype(np.int64) for i in ix]))
    y = torch.from_numpy(np.stack([data[i + 1 : i + 1 + block_size].astype(np.int64) for i in ix]))
    return x.to(device), y.to(device)


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * it / warmup_iters
    ratio = (it - warmup_iters) / (max_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@torch.no_grad()
def estimate_loss(model):
    model.eval()
    out = {}
    for split in ("train", "val"):
        total = torch.zeros((), device=device)
        for k in range(eval_iters):
            x, y = get_batch(split, 10_000_000 + k)
            with ctx:
                _, loss = model(x, y)
            total += loss
        out[split] = (total / eval_iters).item()
    model.train()
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()
    os.makedirs(out_dir, exist_ok=True)

    model = GPT(GPTConfig(block_size=block_size)).to(device)
    opt = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)
    start, best = 0, 1e9
    if args.resume:
        ck = torch.load(os.path.join(out_dir, "ckpt.pt"), map_location=device, weights_only=True)
        model.load_state_dict(ck["model"])
        opt.load_state_dict(ck["opt"])
        start, best = ck["iter"], ck["best"]

    t0 = time.time()
    losses = []
    for it in range(start, max_iters):
        for group in opt.param_groups:
            group["lr"] = get_lr(it)
        if it % eval_interval == 0:
            est = estimate_loss(model)
            print(f"step {it}: train {est['train']:.4f} val {est['val']:.4f}")
            best = min(best, est["val"])
            state = {"model": model.state_dict(), "opt": opt.state_dict(), "iter": it, "best": best}
            torch.save(state, os.path.join(out_dir, "ckpt.pt"))
        for micro in range(gradient_accumulation_steps):
            x, y = get_batch("train", it * gradient_accumulation_steps + micro)
            with ctx:
                _, loss = model(x, y)
            (loss / gradient_accumulation_steps).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if it % log_interval == 0:
            dt, t0 = time.time() - t0, time.time()
            print(f"iter {it} loss {np.mean(losses):.4f} {dt:.1f}s")
            losses.clear()


if __name__ == "__main__":
    main()
