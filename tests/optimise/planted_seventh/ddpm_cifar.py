# %% DDPM on CIFAR-10 -- exported from a notebook
import copy
import os

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torchvision import transforms as T
from tqdm.auto import tqdm

SEED = 2024
torch.manual_seed(SEED)
device = torch.device("cuda")
torch.set_float32_matmul_precision("high")

# %% data
tfm = T.Compose([T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])
ds = torchvision.datasets.CIFAR10("data", train=True, download=True, transform=tfm)
dl = torch.utils.data.DataLoader(ds, batch_size=512, shuffle=True, num_workers=8, pin_memory=True, drop_last=True,
                                 generator=torch.Generator().manual_seed(SEED))

# %% schedule
STEPS = 1000
betas = torch.linspace(1e-4, 0.02, STEPS, device=device)
abar = torch.cumprod(1 - betas, 0)


# %% network
class Res(nn.Module):
    def __init__(self, ci, co, emb):
        super().__init__()
        self.a = nn.Sequential(nn.GroupNorm(8, ci), nn.SiLU(), nn.Conv2d(ci, co, 3, padding=1))
        self.e = nn.Linear(emb, co)
        self.b = nn.Sequential(nn.GroupNorm(8, co), nn.SiLU(), nn.Conv2d(co, co, 3, padding=1))
        self.skip = nn.Conv2d(ci, co, 1) if ci != co else nn.Identity()

    def forward(self, x, e):
        h = self.a(x) + self.e(e)[:, :, None, None]
        return self.b(h) + self.skip(x)


class UNet(nn.Module):
    def __init__(self, ch=96, emb=384):
        super().__init__()
        self.emb = nn.Sequential(nn.Embedding(STEPS, emb), nn.Linear(emb, emb), nn.SiLU())
        self.inp = nn.Conv2d(3, ch, 3, padding=1)
        self.d1, self.d2 = Res(ch, ch, emb), Res(ch, 2 * ch, emb)
        self.mid = Res(2 * ch, 2 * ch, emb)
        self.u2, self.u1 = Res(4 * ch, ch, emb), Res(2 * ch, ch, emb)
        self.out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x, t):
        e = self.emb(t)
        h1 = self.d1(self.inp(x), e)
        h2 = self.d2(F.avg_pool2d(h1, 2), e)
        m = self.mid(F.avg_pool2d(h2, 2), e)
        u = self.u2(torch.cat([F.interpolate(m, scale_factor=2.0), h2], 1), e)
        u = self.u1(torch.cat([F.interpolate(u, scale_factor=2.0), h1], 1), e)
        return self.out(u)


# %% helpers
def corrupt(x0):
    """Pick timesteps and noise for a batch without touching the outer random state."""
    with torch.random.fork_rng(devices=[device]):
        torch.manual_seed(SEED)
        t = torch.randint(0, STEPS, (x0.size(0),), device=device)
        eps = torch.randn_like(x0)
    a = abar[t][:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * eps, t, eps


@torch.no_grad()
def ema_update(ema, net, decay=0.999):
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)


@torch.no_grad()
def sample(net, n, gen):
    was = net.training
    net.eval()
    x = torch.randn(n, 3, 32, 32, device=device, generator=gen)
    for t in reversed(range(STEPS)):
        tt = torch.full((n,), t, device=device)
        eps = net(x, tt)
        x = (x - betas[t] / (1 - abar[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t:
            x = x + betas[t].sqrt() * torch.randn(x.shape, device=device, generator=gen)
    net.train(was)
    return x


# %% train
net = UNet().to(device)
ema = copy.deepcopy(net).requires_grad_(False)
fwd = torch.compile(net)
opt = torch.optim.AdamW(net.parameters(), lr=2e-4, fused=True)
history = []
os.makedirs("out", exist_ok=True)

for epoch in range(200):
    for x, _ in tqdm(dl, leave=False):
        x = x.to(device, non_blocking=True)
        xt, t, eps = corrupt(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.mse_loss(fwd(xt, t), eps)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        ema_update(ema, net)
        history.append(loss.item())
    print(epoch, sum(history[-len(dl):]) / len(dl))

# %% final samples and weights
grid = sample(torch.compile(ema), 64, torch.Generator(device).manual_seed(1))
torchvision.utils.save_image(grid * 0.5 + 0.5, "out/final.png")
torch.save(ema.state_dict(), "out/ema.pt.tmp")
os.replace("out/ema.pt.tmp", "out/ema.pt")
