"""Training loss and DDIM sampler with classifier-free guidance."""
import torch
from torch import nn


class Guided(nn.Module):
    def __init__(self, net, n_classes, drop=0.1):
        super().__init__()
        self.net, self.null, self.drop = net, n_classes, drop
        self.guided = torch.compile(self.guided)

    def forward(self, x, t, y):
        if self.training:
            lost = torch.rand(y.shape, device=y.device) < self.drop
            y = torch.where(lost, self.null, y)
        return self.net(x, t, y)

    def guided(self, x, t, y, scale):
        # both halves must see the same noisy input
        both = self.net(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([y, torch.full_like(y, self.null)]))
        cond, free = both.chunk(2)
        return free + scale * (cond - free)


class Process:
    def __init__(self, device, T=1000):
        beta = torch.linspace(1e-4, 0.02, T, device=device)
        self.abar = torch.cumprod(1 - beta, 0)
        self.T = T

    def loss(self, model, x0, y):
        n = x0.shape[0]
        t = torch.randint(self.T, (n,), device=x0.device)
        eps = torch.randn_like(x0)
        a = self.abar[t][:, None, None, None]
        # (n,1,1,1) brightness offset: one draw per sample, broadcast over pixels only
        eps = eps + 0.05 * torch.randn(n, x0.shape[1], 1, 1, device=x0.device)
        return (model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, y) - eps).square().mean()

    @torch.no_grad()
    def sample(self, model, labels, shape, steps=50, scale=3.0, seed=None):
        was = model.training
        model.eval()
        gen = torch.Generator(device=labels.device)
        gen.manual_seed(seed) if seed is not None else gen.seed()
        x = torch.randn(len(labels), *shape, device=labels.device, generator=gen)
        grid = list(range(self.T - 1, -1, -(self.T // steps)))
        for i, now in enumerate(grid):
            # all samples are at the same step of the sampler
            t = torch.full((1,), now, device=labels.device).expand(len(labels))
            eps = model.guided(x, t, labels, scale)
            a = self.abar[now]
            b = self.abar[grid[i + 1]] if i + 1 < len(grid) else torch.ones_like(a)
            x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            x = b.sqrt() * x0 + (1 - b).sqrt() * eps
        model.train(was)
        return x


def fit(model, loader, steps):
    """loader: endless, pinned, full batches of 256."""
    proc = Process("cuda")
    model.cuda().train()
    loss_fn = torch.compile(lambda x, y: proc.loss(model, x, y))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for step, (x, y) in zip(range(1, steps + 1), loader):
        loss = loss_fn(x.cuda(non_blocking=True), y.cuda(non_blocking=True))
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 500 == 0:
            print(f"{step} {loss.item():.4f}")
    return model
