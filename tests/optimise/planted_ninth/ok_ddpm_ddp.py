import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP


def setup():
    dist.init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class NoiseSource:
    """Per-rank noise and timestep generator."""

    def __init__(self, T, device, seed):
        self.T = T
        self.gen = torch.Generator(device=device)
        self.gen.manual_seed(seed * 65_537 + dist.get_rank())

    def timesteps(self, n):
        return torch.randint(self.T, (n,), generator=self.gen, device=self.gen.device)

    def noise(self, like):
        return torch.randn(
            like.shape, generator=self.gen, device=like.device, dtype=like.dtype
        )


class Trainer:
    def __init__(self, net, alphas_bar, device, source, lr, accum):
        net = net.to(device)
        self.ddp = DDP(net, device_ids=[device.index])
        self.fwd = torch.compile(self.ddp)
        self.opt = torch.optim.AdamW(self.ddp.parameters(), lr=lr, fused=True)
        self.device, self.source, self.accum = device, source, accum
        self.ab = alphas_bar.to(device)

    def loss(self, x):
        t = self.source.timesteps(x.size(0))
        eps = self.source.noise(x)
        ab = self.ab[t].view(-1, 1, 1, 1)
        noisy = ab.sqrt() * x + (1 - ab).sqrt() * eps
        with torch.autocast("cuda", dtype=torch.bfloat16):
            pred = self.fwd(noisy, t)
        return F.mse_loss(pred.float(), eps)

    def epoch(self, loader, sampler, number):
        """loader: pinned, drop_last; sampler: DistributedSampler."""
        self.ddp.train()
        sampler.set_epoch(number)
        total = torch.zeros((), device=self.device)
        usable = len(loader) - len(loader) % self.accum
        for i, (x, _) in enumerate(loader):
            if i == usable:
                break
            x = x.to(self.device, non_blocking=x.is_pinned())
            boundary = (i + 1) % self.accum == 0
            with contextlib.nullcontext() if boundary else self.ddp.no_sync():
                loss = self.loss(x) / self.accum
                loss.backward()
            total += loss.detach()
            if boundary:
                torch.nn.utils.clip_grad_norm_(self.ddp.parameters(), 1.0)
                self.opt.step()
                self.opt.zero_grad(set_to_none=True)
        dist.all_reduce(total, op=dist.ReduceOp.AVG)
        return total.item() * self.accum / max(usable, 1)
