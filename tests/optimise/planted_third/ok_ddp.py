"""Distributed trainer with a resumable sampler."""
import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Sampler

from corpus import TokenRows
from nets import Decoder


class ResumableSampler(Sampler):
    def __init__(self, size, rank, world, seed):
        self.size, self.rank, self.world, self.seed = size, rank, world, seed
        self.epoch, self.start = 0, 0

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        usable = self.size // self.world * self.world
        mine = torch.randperm(self.size, generator=g)[:usable][self.rank::self.world]
        return iter(mine[self.start:].tolist())

    def __len__(self):
        return self.size // self.world - self.start


class Trainer:
    def __init__(self, rows, micro=16, accumulate=4, path="runs/last.pt"):
        self.rank, world = dist.get_rank(), dist.get_world_size()
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        self.net = Decoder().cuda()
        self.ddp = DDP(self.net, device_ids=[local])
        self.fast = torch.compile(self.ddp)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=3e-4, fused=True)
        self.sampler = ResumableSampler(len(rows), self.rank, world, seed=5)
        self.loader = DataLoader(rows, batch_size=micro, sampler=self.sampler, num_workers=4,
                                 pin_memory=True, drop_last=True)
        self.micro, self.accumulate, self.path, self.step = micro, accumulate, path, 0

    def save(self, used):
        if self.rank == 0:
            torch.save({"net": self.net.state_dict(), "opt": self.opt.state_dict(),
                        "step": self.step, "epoch": self.sampler.epoch, "used": used},
                       self.path + ".tmp")
            os.replace(self.path + ".tmp", self.path)
        dist.barrier()

    def load(self):
        if os.path.exists(self.path):
            s = torch.load(self.path, map_location="cuda", weights_only=True)
            self.net.load_state_dict(s["net"])
            self.opt.load_state_dict(s["opt"])
            self.step, self.sampler.epoch, self.sampler.start = s["step"], s["epoch"], s["used"]

    def fit(self, epochs):
        self.load()
        while self.sampler.epoch < epochs:
            used = self.sampler.start
            for i, rows in enumerate(self.loader, start=1):
                last = i % self.accumulate == 0
                used += self.micro
                rows = rows.cuda(non_blocking=True)
                with contextlib.nullcontext() if last else self.ddp.no_sync():
                    with torch.autocast("cuda", dtype=torch.bfloat16):
                        loss = self.fast(rows[:, :-1], targets=rows[:, 1:])
                    (loss / self.accumulate).backward()
                if not last:
                    continue
                self.opt.step()
                self.opt.zero_grad(set_to_none=True)
                self.step += 1
                if self.step % 1000 == 0:
                    self.save(used)
            self.opt.zero_grad(set_to_none=True)
            self.sampler.epoch, self.sampler.start = self.sampler.epoch + 1, 0


if __name__ == "__main__":
    dist.init_process_group("nccl")
    torch.manual_seed(5 + dist.get_rank())
    Trainer(TokenRows("data/rows.bin", length=2048)).fit(epochs=2)
    dist.destroy_process_group()
