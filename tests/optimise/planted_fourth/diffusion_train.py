"""Denoising diffusion on 64x64 images (research code)."""
import argparse
import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ddpm.unet import UNet


def cosine_alphas(steps, s=0.008):
    t = torch.linspace(0, 1, steps + 1)
    f = torch.cos((t + s) / (1 + s) * torch.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


class Diffusion:
    def __init__(self, steps, device, seed):
        self.steps = steps
        self.seed = seed
        self.alphas = cosine_alphas(steps).to(device)

    def noised(self, x0, t, noise):
        a = self.alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def loss(self, net, x0):
        torch.manual_seed(self.seed)
        t = torch.randint(0, self.steps, (x0.size(0),), device=x0.device)
        noise = torch.randn_like(x0)
        pred = net(self.noised(x0, t, noise), t)
        return F.mse_loss(pred, noise)


@torch.no_grad()
def update_ema(ema, net, decay):
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)


def build_loader(root, batch_size):
    tf = transforms.Compose([
        transforms.Resize(64),
        transforms.CenterCrop(64),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ])
    ds = datasets.ImageFolder(root, tf)
    return DataLoader(ds, batch_size=batch_size, shuffle=True, num_workers=8, drop_last=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", default="data/flowers")
    ap.add_argument("--epochs", type=int, default=100)
    ap.add_argument("--batch-size", type=int, default=64)
    ap.add_argument("--lr", type=float, default=2e-4)
    ap.add_argument("--ema", type=float, default=0.9995)
    ap.add_argument("--seed", type=int, default=3)
    args = ap.parse_args()

    device = torch.device("cuda")
    net = UNet(base=128, mults=(1, 2, 2, 4)).to(device)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    fast_net = torch.compile(net)
    diffusion = Diffusion(1000, device, args.seed)
    opt = torch.optim.Adam(net.parameters(), lr=args.lr)
    loader = build_loader(args.data, args.batch_size)

    for epoch in range(args.epochs):
        total = torch.zeros((), device=device)
        for images, _ in loader:
            images = images.to(device, non_blocking=True)
            loss = diffusion.loss(fast_net, images)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            update_ema(ema, net, args.ema)
            total += loss.detach()
        print(f"epoch {epoch:3d} loss {total.item() / len(loader):.5f}")


if __name__ == "__main__":
    main()
