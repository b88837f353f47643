import copy
import os

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

SIDE, BATCH, EPOCHS, SEED = 64, 256, 900, 0


def loader_for(root, epoch):
    tf = transforms.Compose([
        transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])
    g = torch.Generator().manual_seed(SEED * 100003 + epoch)
    return DataLoader(datasets.ImageFolder(root, tf), batch_size=BATCH, shuffle=True, num_workers=12,
                      drop_last=True, pin_memory=True, generator=g)


@torch.no_grad()
def ema_update(ema, net, decay=0.9995):
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1.0 - decay)


def snapshot(path, **state):
    state["cpu_rng"] = torch.get_rng_state()
    state["cuda_rng"] = torch.cuda.get_rng_state()
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def main(root="data/faces", out="runs/faces64"):
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(SEED)
    device = torch.device("cuda")
    net = UNet2DModel(sample_size=SIDE, in_channels=3, out_channels=3,
                      block_out_channels=(128, 256, 384, 512), layers_per_block=2).to(device)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    fast = torch.compile(net)
    sched = DDPMScheduler(num_train_timesteps=1000)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    ckpt, start = os.path.join(out, "state.pt"), 0
    if os.path.exists(ckpt):
        s = torch.load(ckpt, map_location="cpu", weights_only=True)
        net.load_state_dict(s["net"])
        ema.load_state_dict(s["ema"])
        opt.load_state_dict(s["opt"])
        torch.set_rng_state(s["cpu_rng"])
        torch.cuda.set_rng_state(s["cuda_rng"])
        start = s["epoch"] + 1

    for epoch in range(start, EPOCHS):
        total, seen = torch.zeros((), device=device), 0
        for images, _ in loader_for(root, epoch):
            images = images.to(device, non_blocking=True)
            noise = torch.randn_like(images)
            t = torch.randint(0, sched.config.num_train_timesteps, (images.size(0),), device=device)
            noisy = sched.add_noise(images, noise, t)
            with torch.autocast("cuda", torch.bfloat16):
                pred = fast(noisy, t).sample
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
