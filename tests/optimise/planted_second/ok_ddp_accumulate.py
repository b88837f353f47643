"""Data-parallel pre-training, gradients summed over several micro-batches."""
import argparse
import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from tinylm.data import RowFile
from tinylm.model import Decoder, DecoderConfig


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rows", required=True)
    p.add_argument("--steps", type=int, default=10_000)
    p.add_argument("--batch", type=int, default=48)
    p.add_argument("--accum", type=int, default=4)
    p.add_argument("--seed", type=int, default=1337)
    args = p.parse_args()

    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    torch.manual_seed(args.seed + rank)

    rows = RowFile(args.rows)
    net = Decoder(DecoderConfig()).to(device)
    ddp = DDP(torch.compile(net), device_ids=[device.index])
    opt = torch.optim.AdamW(net.parameters(), lr=4e-4, fused=True)
    index = rank

    for step in range(args.steps):
        total = torch.zeros((), device=device)
        for micro in range(args.accum):
            batch = rows.block(index, args.batch).to(device)
            index += world
            last = micro == args.accum - 1
            with contextlib.nullcontext() if last else ddp.no_sync():
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    logits = ddp(batch[:, :-1])
                    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()) / args.accum
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if rank == 0 and step % 100 == 0:
            print(f"step {step} loss {total.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
