"""torchrun --nproc_per_node=8 ddp_pretrain.py --data data/fineweb.bin"""
import argparse
import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from gpt import GPT, GPTConfig


class Blocks(Dataset):
    def __init__(self, path, block):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.block = block

    def __len__(self):
        return (len(self.data) - 1) // self.block

    def __getitem__(self, i):
        chunk = self.data[i * self.block : (i + 1) * self.block + 1].astype(np.int64)
        return torch.from_numpy(chunk[:-1]), torch.from_numpy(chunk[1:])


def save(path, raw, opt, step):
    tmp = path + ".tmp"
    torch.save({"model": raw.state_dict(), "opt": opt.state_dict(), "step": step}, tmp)
    os.replace(tmp, path)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--ckpt", default="out/last.pt")
    ap.add_argument("--block", type=int, default=1024)
    ap.add_argument("--micro-batch", type=int, default=32)
    ap.add_argument("--accum", type=int, default=4)
    ap.add_argument("--max-steps", type=int, default=60000)
    ap.add_argument("--lr", type=float, default=6e-4)
    args = ap.parse_args()

    dist.init_process_group("nccl")
    rank = dist.get_rank()
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    torch.manual_seed(42 + rank)

    ds = Blocks(args.data, args.block)
    sampler = DistributedSampler(ds, shuffle=True, seed=42, drop_last=True)
    loader = DataLoader(ds, batch_size=args.micro_batch, sampler=sampler, num_workers=4,
                        pin_memory=True, drop_last=True)

    raw = GPT(GPTConfig(block_size=args.block)).cuda()
    model = DDP(torch.compile(raw), device_ids=[local])
    opt = torch.optim.AdamW(raw.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    step, micro = 0, 0
    epoch = 0
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt, map_location="cpu", weights_only=True)
        raw.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        step = state["step"]

    model.train()
    while step < args.max_steps:
        sampler.set_epoch(epoch)
        for x, y in loader:
            x, y = x.cuda(non_blocking=True), y.cuda(non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                _, loss = model(x, y)
            loss = loss / args.accum
            loss.backward()
            micro += 1
            if micro % args.accum != 0:
                continue

            torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            if step % 100 == 0 and rank == 0:
                print(f"step {step} loss {loss.item() * args.accum:.4f}")
            if step % 1000 == 0 and rank == 0:
                save(args.ckpt, raw, opt, step)
            if step >= args.max_steps:
                break
        epoch += 1

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
