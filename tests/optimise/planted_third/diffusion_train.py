"""Multi-resolution diffusion training, fp32 masters with a bf16 forward."""
import os
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.func import functional_call

from imgdata import LatentStore
from unet import UNet


@dataclass
class Cfg:
    steps: int = 200_000
    batch: int = 48
    lr: float = 1e-4
    ema: float = 0.9999
    sizes: tuple = (24, 64)
    seed: int = 5
    out: str = "runs/diff"
    save_every: int = 5_000


def alphas(t):
    return torch.cos(t * torch.pi / 2)[:, None, None, None]


class Masters:
    """fp32 parameters of a module that computes in bf16."""

    def __init__(self, net):
        self.net = net
        self.fp32 = {k: p.detach().float().requires_grad_() for k, p in net.named_parameters()}
        self.average = {k: p.detach().clone() for k, p in self.fp32.items()}

    def low(self):
        return {k: p.to(torch.bfloat16) for k, p in self.fp32.items()}

    @torch.no_grad()
    def track(self, decay):
        torch._foreach_lerp_(list(self.average.values()), list(self.fp32.values()), 1 - decay)


def pick_size(cfg, step):
    lo, hi = cfg.sizes
    return random.Random(cfg.seed * 1_000_003 + step).randrange(lo, hi + 1, 4)


def save(cfg, masters, opt, step):
    path = os.path.join(cfg.out, "last.pt")
    state = {"fp32": masters.fp32, "average": masters.average,
             "opt": opt.state_dict(), "step": step}
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def restore(cfg, masters, opt):
    path = os.path.join(cfg.out, "last.pt")
    if not os.path.exists(path):
        return 0
    state = torch.load(path, map_location="cuda", weights_only=True)
    with torch.no_grad():
        for k, p in masters.fp32.items():
            p.copy_(state["fp32"][k])
            masters.average[k].copy_(state["average"][k])
    opt.load_state_dict(state["opt"])
    return state["step"] + 1


def main(cfg=Cfg()):
    os.makedirs(cfg.out, exist_ok=True)
    device = torch.device("cuda")
    torch.manual_seed(cfg.seed)
    net = UNet(channels=4).to(device)
    masters = Masters(net)
    forward = torch.compile(lambda params, x, t: functional_call(net, params, (x, t)))
    opt = torch.optim.AdamW(masters.fp32.values(), lr=cfg.lr, fused=True)
    store = LatentStore("data/latents", batch=cfg.batch, seed=cfg.seed)

    noise_rng = torch.Generator(device=device)

    for step in range(restore(cfg, masters, opt), cfg.steps):
        noise_rng.manual_seed(cfg.seed * 1_000_003 + step)
        size = pick_size(cfg, step)
        x0 = F.interpolate(store.batch_at(step).to(device), size=(size, size), mode="area")
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        t = torch.rand(len(x0), generator=noise_rng, device=device)
        a = alphas(t)
        noisy = a * x0 + (1 - a.square()).sqrt() * noise
        guess = forward(masters.low(), noisy.bfloat16(), t)
        loss = F.mse_loss(guess, noise.bfloat16())
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        masters.track(cfg.ema)
        if step % 100 == 0:
            print(step, f"{loss.item():.4f}")
        if step and step % cfg.save_every == 0:
            save(cfg, masters, opt, step)


if __name__ == "__main__":
    main()
