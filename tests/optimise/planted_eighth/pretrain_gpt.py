"""Pretrain a small GPT on memory-mapped token shards.

    torchrun --nproc_per_node=8 pretrain_gpt.py --data data/fineweb.bin --out runs/a
"""
import argparse
import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from gpt import GPT, GPTConfig

# one 8xH100 node
batch_size = 4
grad_accum = 32
block_size = 1024
max_steps = 60_000
warmup = 700
peak_lr = 6e-4


def lr_at(step):
    if step < warmup:
        return peak_lr * (step + 1) / warmup
    t = (step - warmup) / (max_steps - warmup)
    return 0.1 * peak_lr + 0.45 * peak_lr * (1 + math.cos(math.pi * t))


def get_batch(tokens, gen):
    starts = torch.randint(len(tokens) - block_size - 1, (batch_size,), generator=gen)
    rows = [torch.from_numpy(tokens[s:s + block_size + 1].astype(np.int64)) for s in starts.tolist()]
    xy = torch.stack(rows).pin_memory().cuda(non_blocking=True)
    return xy[:, :-1], xy[:, 1:]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()

    dist.init_process_group("nccl")
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    gen = torch.Generator().manual_seed(1337)

    tokens = np.memmap(args.data, dtype=np.uint16, mode="r")
    net = GPT(GPTConfig(block_size=block_size)).cuda()
    opt = torch.optim.AdamW(net.parameters(), lr=peak_lr, betas=(0.9, 0.95), fused=True)
    step = 0
    path = os.path.join(args.out, f"state_{rank}.pt")
    if args.resume:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        gen.set_state(state["gen"])
        step = state["step"]
    ddp = DDP(torch.compile(net), device_ids=[local])

    running = torch.zeros((), device="cuda")
    while step < max_steps:
        for group in opt.param_groups:
            group["lr"] = lr_at(step)
        for micro in range(grad_accum):
            x, y = get_batch(tokens, gen)
            ddp.require_backward_grad_sync = micro == grad_accum - 1
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = ddp(x)
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / grad_accum
            loss.backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            if rank == 0:
                print(f"step {step} loss {running.item() / 200:.4f}")
            running.zero_()
        if step % 2000 == 0:
            torch.save({"net": net.state_dict(), "opt": opt.state_dict(),
                        "gen": gen.get_state(), "step": step}, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
