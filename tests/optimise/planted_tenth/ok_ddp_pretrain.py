"""124M GPT, data parallel. torchrun --nproc_per_node=8 ok_ddp_pretrain.py"""
import contextlib
import math
import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import GPT2Config, GPT2LMHeadModel

SEQ, GLOBAL_BATCH, MICRO_BATCH = 1024, 1024, 64
STEPS, WARMUP, PEAK, SEED = 300_000, 2000, 6e-4, 1337
OUT = "runs/gpt124"


def lr_at(step):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * (0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def batch(mm, rank, micro_step, device):
    """A pure function of its arguments: a restarted run sees what the first would have seen."""
    rng = np.random.default_rng([SEED, rank, micro_step])
    starts = rng.integers(0, len(mm) - SEQ - 1, size=MICRO_BATCH)
    rows = np.stack([mm[s : s + SEQ] for s in starts]).astype(np.int64)
    return torch.from_numpy(rows).pin_memory().to(device, non_blocking=True)


def save(raw, opt, step):
    path = os.path.join(OUT, "last.pt")
    torch.save({"model": raw.state_dict(), "opt": opt.state_dict(), "step": step}, path + ".part")
    os.replace(path + ".part", path)


def main():
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    torch.manual_seed(SEED + rank)
    os.makedirs(OUT, exist_ok=True)

    raw = GPT2LMHeadModel(GPT2Config(n_positions=SEQ, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).to(device)
    opt = torch.optim.AdamW(raw.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    first, path = 0, os.path.join(OUT, "last.pt")
    if os.path.exists(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        raw.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        first = state["step"] + 1
    ddp = DDP(raw, device_ids=[device.index])
    net = torch.compile(ddp)
    accum = GLOBAL_BATCH // (MICRO_BATCH * world)
    mm = np.memmap("data/owt/train.bin", dtype=np.uint16, mode="r")

    for step in range(first, STEPS):
        for group in opt.param_groups:
            group["lr"] = lr_at(step)
        total = torch.zeros((), device=device)
        for micro in range(accum):
            ids = batch(mm, rank, step * accum + micro, device)
            quiet = ddp.no_sync() if micro < accum - 1 else contextlib.nullcontext()
            with quiet:
                with torch.autocast("cuda", torch.bfloat16):
                    loss = net(input_ids=ids, labels=ids).loss / accum
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if rank == 0 and step % 100 == 0:
            print(f"{step} {total.item():.4f}", flush=True)
        if rank == 0 and step % 1000 == 0:
            save(raw, opt, step)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
