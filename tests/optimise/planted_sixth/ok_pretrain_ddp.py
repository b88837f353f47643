import os
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from nanolm.model import Transformer, ModelArgs

SEED, MICRO, ACCUM, SEQ, STEPS = 17, 32, 4, 1024, 40_000
CKPT = "ckpt/last.pt"


def batch_for(data, step, micro, rank, world, device):
    rng = np.random.default_rng((SEED, step, micro, rank, world))
    ix = rng.integers(0, len(data) - SEQ - 1, size=MICRO)
    rows = torch.from_numpy(np.stack([data[i : i + SEQ + 1] for i in ix]).astype(np.int64))
    rows = rows.pin_memory().to(device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def save(state):
    tmp = CKPT + ".tmp"
    with open(tmp, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, CKPT)


def main():
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    data = np.memmap("data/train.bin", dtype=np.uint16, mode="r")
    model = Transformer(ModelArgs(max_seq_len=SEQ)).to(device)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    start = 0
    if os.path.exists(CKPT):
        s = torch.load(CKPT, map_location=device, weights_only=True)
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        start = s["step"]
    torch.manual_seed(SEED + start * world + rank)
    ddp = DDP(torch.compile(model), device_ids=[device.index])

    running = torch.zeros((), device=device)
    for step in range(start, STEPS):
        opt.zero_grad(set_to_none=True)
        for micro in range(ACCUM):
            x, y = batch_for(data, step, micro, rank, world, device)
            last = micro == ACCUM - 1
            with nullcontext() if last else ddp.no_sync():
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten()) / ACCUM
                loss.backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        opt.step()
        if step % 100 == 99:
            if rank == 0:
                print(step, running.item() / 100)
            running.zero_()
        if rank == 0 and step % 1000 == 999:
            save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step + 1})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
