"""torchrun --nproc_per_node=8 ok_ddp.py --data data/fineweb.bin"""
import argparse
import contextlib
import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from gpt import GPT, GPTConfig


class Order:
    """Position `step` alone decides which blocks are read, whatever the world size."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.epoch, self.perm = None, None

    def __call__(self, index):
        epoch, i = divmod(index, self.n)
        if epoch != self.epoch:
            self.perm = np.random.default_rng((self.seed, epoch)).permutation(self.n)
            self.epoch = epoch
        return int(self.perm[i])


def read(data, order, block, first, count):
    rows = np.empty((count, block + 1), dtype=np.int64)
    for r in range(count):
        i = order(first + r) * block
        rows[r] = data[i : i + block + 1]
    rows = torch.from_numpy(rows).pin_memory().cuda(non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def save(path, raw, opt, step):
    tmp = path + ".tmp"
    torch.save({"model": raw.state_dict(), "opt": opt.state_dict(), "step": step}, tmp)
    os.replace(tmp, path)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--ckpt", default="out/last.pt")
    ap.add_argument("--block", type=int, default=1024)
    ap.add_argument("--global-batch", type=int, default=1024)
    ap.add_argument("--micro-batch", type=int, default=64)
    ap.add_argument("--max-steps", type=int, default=60000)
    args = ap.parse_args()

    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    torch.manual_seed(42 + rank)
    accum, rest = divmod(args.global_batch, args.micro_batch * world)
    if rest or not accum:
        raise SystemExit("global batch must be a multiple of micro batch * world size")

    data = np.memmap(args.data, dtype=np.uint16, mode="r")
    order = Order((len(data) - 1) // args.block, seed=42)
    raw = GPT(GPTConfig(block_size=args.block)).cuda()
    opt = torch.optim.AdamW(raw.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    start = 0
    os.makedirs(os.path.dirname(args.ckpt) or ".", exist_ok=True)
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt, map_location="cpu", weights_only=True)
        raw.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        start = state["step"]
    model = DDP(torch.compile(raw), device_ids=[local])

    model.train()
    for step in range(start, args.max_steps):
        total = torch.zeros((), device="cuda")
        for micro in range(accum):
            first = step * args.global_batch + (micro * world + rank) * args.micro_batch
            x, y = read(data, order, args.block, first, args.micro_batch)
            last = micro == accum - 1
            with contextlib.nullcontext() if last else model.no_sync():
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    _, loss = model(x, y)
                (loss / accum).backward()
            total += loss.detach() / accum
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)

        if step % 100 == 0:
            dist.all_reduce(total, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"step {step} loss {total.item():.4f}")
        if (step + 1) % 1000 == 0 and rank == 0:
            save(args.ckpt, raw, opt, step + 1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
