"""DDP training with gradient accumulation; torchrun --nproc_per_node=N ok_ddp_accum.py"""
import contextlib
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from minillama import MiniLlama, MiniLlamaConfig

CTX = 2048
SEQS_PER_UPDATE = 1024
SEED = 77
UPDATES = 30_000
BYTES_PER_SEQ = 1.6e9  # activations of one sequence, measured for this configuration


def micro_batch_for(device, world):
    """Largest power of two that fits and divides the share of this rank."""
    room = 0.8 * torch.cuda.get_device_properties(device).total_memory - 6e9
    share = SEQS_PER_UPDATE // world
    m = 1
    while 2 * m * BYTES_PER_SEQ <= room and share % (2 * m) == 0:
        m *= 2
    return m


def agree(value, device):
    t = torch.tensor(value, device=device)
    dist.all_reduce(t, op=dist.ReduceOp.MIN)
    return int(t.item())


class Crops:
    def __init__(self, path, rank):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.gen = torch.Generator().manual_seed(SEED + 1_000_003 * (rank + 1))  # other crops on each rank

    def draw(self, n, device):
        at = torch.randint(0, len(self.data) - CTX - 1, (n,), generator=self.gen).numpy()
        rows = np.stack([self.data[a:a + CTX + 1] for a in at]).astype(np.int64)
        x = torch.from_numpy(rows).pin_memory().to(device, non_blocking=True)
        return x[:, :-1], x[:, 1:]


def lr_at(u):
    if u < 1000:
        return 4e-4 * (u + 1) / 1000
    return 4e-4 * (0.1 + 0.45 * (1 + np.cos(np.pi * (u - 1000) / (UPDATES - 1000))))


def main():
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    device = torch.device("cuda", local)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(SEED + rank)  # DDP broadcasts the weights of rank 0 below

    net = MiniLlama(MiniLlamaConfig(ctx=CTX)).to(device)
    ddp = DDP(torch.compile(net), device_ids=[local], gradient_as_bucket_view=True)
    opt = torch.optim.AdamW(net.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    micro = agree(micro_batch_for(device, world), device)
    accum = SEQS_PER_UPDATE // (micro * world)
    crops = Crops("data/train.bin", rank)
    if rank == 0:
        print(f"micro-batch {micro}, accumulation {accum}, world {world}")

    net.train()
    for u in range(UPDATES):
        for g in opt.param_groups:
            g["lr"] = lr_at(u)
        total = torch.zeros((), device=device)
        for k in range(accum):
            x, y = crops.draw(micro, device)
            sync = contextlib.nullcontext() if k == accum - 1 else ddp.no_sync()
            with sync:
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten()) / accum
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if u % 25 == 0:
            dist.all_reduce(total, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"{u} {total.item():.4f}", flush=True)

    if rank == 0:
        torch.save(net.state_dict(), "final.pt.tmp")
        os.replace("final.pt.tmp", "final.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
