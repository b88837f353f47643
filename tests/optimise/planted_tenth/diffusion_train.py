import argparse
import copy
import os

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from einops import repeat
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

IMAGE_SIZE = 64
BATCH = 256


def parse():
    ap = argparse.ArgumentParser("unconditional ddpm, 64x64 faces")
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", default="runs/faces64")
    ap.add_argument("--epochs", type=int, default=900)
    ap.add_argument("--lr", type=float, default=1e-4)
    ap.add_argument("--seed", type=int, default=0)
    return ap.parse_args()


def loader_for(root, seed, epoch):
    tf = transforms.Compose([
        transforms.Resize(IMAGE_SIZE),
        transforms.CenterCrop(IMAGE_SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])
    g = torch.Generator().manual_seed(seed * 100003 + epoch)
    return DataLoader(datasets.ImageFolder(root, tf), batch_size=BATCH, shuffle=True,
                      num_workers=12, drop_last=True, generator=g)


@torch.no_grad()
def ema_update(ema, net, decay=0.9995):
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1.0 - decay)


def snapshot(path, **state):
    state["cpu_rng"] = torch.get_rng_state()
    state["cuda_rng"] = torch.cuda.get_rng_state()
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def main():
    args = parse()
    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(args.seed)
    device = torch.device("cuda")

    net = UNet2DModel(
        sample_size=IMAGE_SIZE, in_channels=3, out_channels=3,
        block_out_channels=(128, 256, 384, 512), layers_per_block=2,
    ).to(device)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    sched = DDPMScheduler(num_train_timesteps=1000)
    opt = torch.optim.AdamW(net.parameters(), lr=args.lr, fused=True)

    ckpt, start = os.path.join(args.out, "state.pt"), 0
    if os.path.exists(ckpt):
        s = torch.load(ckpt, map_location="cpu", weights_only=True)
        net.load_state_dict(s["net"])
        ema.load_state_dict(s["ema"])
        opt.load_state_dict(s["opt"])
        torch.set_rng_state(s["cpu_rng"])
        torch.cuda.set_rng_state(s["cuda_rng"])
        start = s["epoch"] + 1

    for epoch in range(start, args.epochs):
        total, seen = torch.zeros((), device=device), 0
        for images, _ in loader_for(args.data, args.seed, epoch):
            images = images.to(device, non_blocking=True)
            noise = torch.randn_like(images)
            t = torch.randint(0, sched.config.num_train_timesteps, (1,), device=device)
            t = repeat(t, "1 -> b", b=images.size(0))
            noisy = sched.add_noise(images, noise, t)
            with torch.autocast("cuda", torch.bfloat16):
                pred = net(noisy, t).sample
            loss = F.mse_loss(pred.float(), noise)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            ema_update(ema, net)
            total += loss.detach()
            seen += 1
        print(f"epoch {epoch}: loss {(total / seen).item():.5f}")
        snapshot(ckpt, net=net.state_dict(), ema=ema.state_dict(), opt=opt.state_dict(), epoch=epoch)


if __name__ == "__main__":
    main()
