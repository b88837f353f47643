"""torchrun --nproc_per_node=8 ddp_trainer.py"""
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler

from corpus import TokenRows
from nets import Decoder


class Meter:
    """Running mean of a scalar."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, value):
        self.total += float(value)
        self.count += 1

    def read(self):
        mean = self.total / max(self.count, 1)
        self.total, self.count = 0.0, 0
        return mean


class DDPTrainer:
    def __init__(self, rows, micro=16, accumulate=4, lr=3e-4, ckpt="runs/ddp.pt"):
        self.rank = dist.get_rank()
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(self.device)
        self.accumulate = accumulate
        self.ckpt = ckpt
        self.net = Decoder().to(self.device)
        self.model = torch.compile(DDP(self.net, device_ids=[self.device.index]))
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=lr, fused=True)
        self.sampler = DistributedSampler(rows, shuffle=True, seed=7, drop_last=True)
        self.loader = DataLoader(rows, batch_size=micro, sampler=self.sampler,
                                 num_workers=4, pin_memory=True, drop_last=True)
        self.meter = Meter()
        self.epoch = 0
        self.step = 0

    def save(self):
        if self.rank == 0:
            state = {"net": self.net.state_dict(), "opt": self.opt.state_dict(),
                     "epoch": self.epoch, "step": self.step}
            part = self.ckpt + ".part"
            torch.save(state, part)
            os.replace(part, self.ckpt)
        dist.barrier()

    def load(self):
        if os.path.exists(self.ckpt):
            state = torch.load(self.ckpt, map_location=self.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.opt.load_state_dict(state["opt"])
            self.epoch = state["epoch"]
            self.step = state["step"]

    def forward_backward(self, rows):
        rows = rows.to(self.device, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(rows[:, :-1], targets=rows[:, 1:])
        (loss / self.accumulate).backward()
        self.meter.add(loss.detach())

    def fit(self, epochs, save_every=1000, log_every=50):
        self.load()
        while self.epoch < epochs:
            self.sampler.set_epoch(self.epoch)
            for i, rows in enumerate(self.loader, start=1):
                self.forward_backward(rows)
                if i % self.accumulate:
                    continue
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.opt.step()
                self.opt.zero_grad(set_to_none=True)
                self.step += 1
                if self.step % log_every == 0 and self.rank == 0:
                    print(f"step {self.step} loss {self.meter.read():.4f}")
                if self.step % save_every == 0:
                    self.save()
            self.opt.zero_grad(set_to_none=True)
            self.epoch += 1


if __name__ == "__main__":
    dist.init_process_group("nccl")
    torch.manual_seed(7 + dist.get_rank())
    DDPTrainer(TokenRows("data/rows.bin", length=2048)).fit(epochs=3)
    dist.destroy_process_group()
