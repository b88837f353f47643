"""Data-parallel pretraining that restarts where it stopped."""
import argparse
import contextlib
import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from lm.model import Transformer, TransformerConfig


class StepSampler:
    """The batch is a pure function of (seed, step, micro step, rank)."""

    def __init__(self, path, seq_len, batch, seed, rank):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len, self.batch, self.seed, self.rank = seq_len, batch, seed, rank

    def get(self, step, micro):
        rng = np.random.default_rng((self.seed, step, micro, self.rank))
        starts = rng.integers(0, len(self.tokens) - self.seq_len - 1, size=self.batch)
        rows = np.stack([self.tokens[a : a + self.seq_len + 1] for a in starts]).astype(np.int64)
        return torch.from_numpy(rows).pin_memory()


def save_atomic(state, path):
    tmp = f"{path}.tmp{os.getpid()}"
    with open(tmp, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokens", required=True)
    ap.add_argument("--ckpt", default="runs/base/last.pt")
    ap.add_argument("--steps", type=int, default=50_000)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--accumulate", type=int, default=4)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()

    dist.init_process_group("nccl")
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    torch.manual_seed(args.seed + rank)

    os.makedirs(os.path.dirname(args.ckpt) or ".", exist_ok=True)
    cfg = TransformerConfig()
    net = Transformer(cfg).to(device)
    opt = torch.optim.AdamW(net.parameters(), lr=3e-4, fused=True)
    first = 0
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        first = state["step"]
    model = DDP(torch.compile(net), device_ids=[local])
    sampler = StepSampler(args.tokens, cfg.seq_len, args.batch, args.seed, rank)
    running = torch.zeros((), device=device)

    for step in range(first, args.steps):
        for micro in range(args.accumulate):
            rows = sampler.get(step, micro).to(device, non_blocking=True)
            last = micro == args.accumulate - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss = model(rows[:, :-1], rows[:, 1:]) / args.accumulate
                loss.backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            dist.all_reduce(running, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"step {step + 1} loss {running.item() / 100:.4f}")
            running.zero_()
        if (step + 1) % 1000 == 0 and rank == 0:
            save_atomic({"net": net.state_dict(), "opt": opt.state_dict(), "step": step + 1}, args.ckpt)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
