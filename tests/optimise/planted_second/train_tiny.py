"""Pre-train a small decoder on memory-mapped token shards.

torchrun --nproc_per_node=8 train_tiny.py --data /data/fineweb --steps 20000
"""
import argparse
import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from tinylm.model import Decoder, DecoderConfig


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--steps", type=int, default=20_000)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--accum", type=int, default=4)
    p.add_argument("--ctx", type=int, default=1024)
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--warmup", type=int, default=500)
    p.add_argument("--seed", type=int, default=1337)
    return p.parse_args()


def lr_at(step, args):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    t = (step - args.warmup) / max(1, args.steps - args.warmup)
    return 0.1 * args.lr + 0.45 * args.lr * (1 + math.cos(math.pi * t))


def draw(tokens, batch, ctx, device):
    starts = torch.randint(len(tokens) - ctx - 1, (batch,)).numpy()
    window = np.stack([tokens[s : s + ctx + 1] for s in starts]).astype(np.int64)
    pinned = torch.from_numpy(window).pin_memory()
    chunk = pinned.to(device, non_blocking=True)
    return chunk[:, :-1], chunk[:, 1:]


def main():
    args = parse_args()
    dist.init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    rank = dist.get_rank()
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    torch.manual_seed(args.seed)

    tokens = np.memmap(os.path.join(args.data, "train.bin"), dtype=np.uint16, mode="r")
    model = Decoder(DecoderConfig(ctx=args.ctx)).to(device)
    model = DDP(torch.compile(model), device_ids=[local])
    opt = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), fused=True)

    for step in range(args.steps):
        for group in opt.param_groups:
            group["lr"] = lr_at(step, args)
        running = torch.zeros((), device=device)
        for _ in range(args.accum):
            x, y = draw(tokens, args.batch, args.ctx, device)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = model(x)
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            (loss / args.accum).backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 100 == 0 and rank == 0:
            print(f"{step:6d} loss {running.item() / args.accum:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
