import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from unet import UNet
from ema import EMA


class Schedule(nn.Module):
    """Cosine schedule of Nichol & Dhariwal."""

    def __init__(self, T=1000, s=0.008):
        super().__init__()
        f = torch.cos((torch.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
        self.register_buffer("abar", (f / f[0]).clamp(1e-5, 1.0)[1:])
        self.T = T

    def q_sample(self, x0, t, eps):
        a = self.abar[t].view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * eps


class LatentSet(Dataset):
    """(N, 4, 32, 32) latents, memory mapped."""

    def __init__(self, path, n):
        self.z = torch.from_file(path, size=n * 4096, dtype=torch.float32).view(n, 4, 32, 32)

    def __len__(self):
        return self.z.shape[0]

    def __getitem__(self, i):
        return self.z[i] * 0.18215


class DiffusionLoss(nn.Module):
    def __init__(self, net, schedule):
        super().__init__()
        self.net, self.schedule = net, schedule

    def forward(self, x0):
        eps = torch.randn_like(x0)
        t = torch.randint(self.schedule.T, (1,), device=x0.device).expand(x0.shape[0])
        snr = self.schedule.abar[t] / (1 - self.schedule.abar[t])
        pred = self.net(self.schedule.q_sample(x0, t, eps), t)
        per = (pred - eps).pow(2).mean(dim=(1, 2, 3))
        return (per * snr.clamp(max=5.0) / snr).mean()


def lr_lambda(step, warm=1000):
    return min(1.0, (step + 1) / warm)


def run(path, n, steps=400_000, bs=256):
    torch.backends.cuda.matmul.allow_tf32 = True
    net = UNet(ch=192, mult=(1, 2, 3, 4), attn=(16, 8)).cuda()
    ema = EMA(net, 0.9999)
    model = DiffusionLoss(net, Schedule()).cuda()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lr_lambda)
    loader = DataLoader(LatentSet(path, n), bs, shuffle=True, num_workers=8, drop_last=True,
                        persistent_workers=True)
    avg = torch.zeros((), device="cuda")
    step = 0
    while step < steps:
        for x0 in loader:
            x0 = x0.to("cuda", non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(x0)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            sched.step()
            ema.update(net)
            avg.lerp_(loss.detach().float(), 0.01)
            step += 1
            if step % 500 == 0:
                print(f"{step:>7d}  {avg.item():.5f}")
            if step == steps:
                break
    return ema


if __name__ == "__main__":
    run("latents.f32", 1_281_167)
