"""124M GPT on OpenWebText tokens. torchrun --nproc_per_node=8 ddp_pretrain.py (8 x H100 80GB)"""
import math
import os
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass
class Config:
    data: str = "data/owt/train.bin"
    out: str = "runs/gpt124"
    seq_len: int = 1024
    global_batch: int = 512
    micro_batch: int = 2
    steps: int = 600_000
    warmup: int = 2000
    peak_lr: float = 6e-4
    seed: int = 1337
    save_every: int = 1000
    log_every: int = 50


def lr_at(step, c):
    if step < c.warmup:
        return c.peak_lr * (step + 1) / c.warmup
    frac = (step - c.warmup) / (c.steps - c.warmup)
    return 0.1 * c.peak_lr + 0.45 * c.peak_lr * (1 + math.cos(math.pi * frac))


class Tokens:
    """Windows are a pure function of (seed, rank, micro step): nothing to save for a restart."""

    def __init__(self, c, rank, device):
        self.mm = np.memmap(c.data, dtype=np.uint16, mode="r")
        self.c, self.rank, self.device = c, rank, device

    def batch(self, micro_step):
        rng = np.random.default_rng([self.c.seed, self.rank, micro_step])
        starts = rng.integers(0, len(self.mm) - self.c.seq_len - 1, size=self.c.micro_batch)
        rows = np.stack([self.mm[s : s + self.c.seq_len] for s in starts]).astype(np.int64)
        return torch.from_numpy(rows).pin_memory().to(self.device, non_blocking=True)


def save(raw, step, c):
    state = {"model": raw.state_dict(), "step": step, "config": asdict(c)}
    path = os.path.join(c.out, "last.pt")
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)


def main():
    c = Config()
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    device = torch.device("cuda", local)
    os.makedirs(c.out, exist_ok=True)
    torch.manual_seed(c.seed + rank)

    raw = GPT2LMHeadModel(GPT2Config(n_positions=c.seq_len, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    raw.to(device)
    opt = torch.optim.AdamW(raw.parameters(), lr=c.peak_lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    first = 0
    if os.path.exists(os.path.join(c.out, "last.pt")):
        state = torch.load(os.path.join(c.out, "last.pt"), map_location="cpu", weights_only=True)
        raw.load_state_dict(state["model"])
        first = state["step"] + 1
    net = torch.compile(DDP(raw, device_ids=[local]))
    accum = c.global_batch // (c.micro_batch * world)
    tokens = Tokens(c, rank, device)

    for step in range(first, c.steps):
        for group in opt.param_groups:
            group["lr"] = lr_at(step, c)
        total = torch.zeros((), device=device)
        for micro in range(accum):
            ids = tokens.batch(step * accum + micro)
            with torch.autocast("cuda", torch.bfloat16):
                loss = net(input_ids=ids, labels=ids).loss / accum
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % c.log_every == 0 and rank == 0:
            print(f"{step} {total.item():.4f}", flush=True)
        if step % c.save_every == 0 and rank == 0:
            save(raw, step, c)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
