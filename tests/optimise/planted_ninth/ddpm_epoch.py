import math
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler


def cosine_alphas(T, s=0.008):
    x = torch.linspace(0, T, T + 1, dtype=torch.float64)
    f = torch.cos(((x / T) + s) / (1 + s) * math.pi / 2) ** 2
    return (f / f[0]).float()


class Diffusion:
    """Forward process plus eps-prediction objective."""

    def __init__(self, T, device, seed):
        self.T = T
        self.device = device
        abar = cosine_alphas(T)[1:].to(device)
        self.sqrt_ab = abar.sqrt()
        self.sqrt_1mab = (1 - abar).clamp(min=1e-8).sqrt()
        self.gen = torch.Generator(device=device)
        self.gen.manual_seed(seed)

    def gauss(self, like):
        return torch.randn(like.shape, generator=self.gen, device=self.device, dtype=like.dtype)

    def steps_for(self, batch):
        step = torch.randint(self.T, (1,), generator=self.gen, device=self.device)
        return step.expand(batch)

    def q_sample(self, x0, t, eps):
        a = self.sqrt_ab[t][:, None, None, None]
        b = self.sqrt_1mab[t][:, None, None, None]
        return a * x0 + b * eps

    def objective(self, net, x0):
        t = self.steps_for(x0.shape[0])
        eps = self.gauss(x0)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            pred = net(self.q_sample(x0, t, eps), t)
        return F.mse_loss(pred.float(), eps)


def setup():
    dist.init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return dist.get_rank(), torch.device("cuda", local)


def make_loader(dataset, batch_size, seed):
    sampler = DistributedSampler(dataset, shuffle=True, seed=seed, drop_last=True)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=8,
        pin_memory=True,
        drop_last=True,
    )
    return loader, sampler


def wrap(net, device):
    net = net.to(device, memory_format=torch.channels_last)
    net = DDP(net, device_ids=[device.index], gradient_as_bucket_view=True)
    return torch.compile(net)


def build(net, dataset, args):
    _, device = setup()
    diff = Diffusion(args.timesteps, device, args.seed)
    loader, sampler = make_loader(dataset, args.batch_size, args.seed)
    net = wrap(net, device)
    opt = torch.optim.AdamW(net.parameters(), lr=args.lr, fused=True)
    return net, diff, loader, sampler, opt


def train_epoch(net, diff, loader, sampler, opt, sched, epoch, accum, log=print):
    net.train()
    sampler.set_epoch(epoch)
    running = torch.zeros((), device=diff.device)
    opt.zero_grad(set_to_none=True)
    usable = len(loader) - len(loader) % accum
    for i, (x, _) in enumerate(loader):
        if i >= usable:
            break
        x = x.to(diff.device, non_blocking=True, memory_format=torch.channels_last)
        loss = diff.objective(net, x)
        (loss / accum).backward()
        running += loss.detach()
        if (i + 1) % accum == 0:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            sched.step()
            opt.zero_grad(set_to_none=True)
    dist.all_reduce(running, op=dist.ReduceOp.AVG)
    if dist.get_rank() == 0:
        log(f"epoch {epoch}: loss {running.item() / max(usable, 1):.5f}")
