"""Train a ViT-S/16 from scratch on one GPU."""
import argparse
import os
import random

import numpy as np
import timm
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def worker_init(worker_id):
    # torch.initial_seed() already differs between workers and epochs
    s = torch.initial_seed() % 2**32
    np.random.seed(s)
    random.seed(s)


class RunningMean:
    """Mean on the device; the host asks for it once in a logging period."""

    def __init__(self, device):
        self.sum = torch.zeros((), device=device)
        self.n = 0

    def add(self, x):
        self.sum += x.detach()
        self.n += 1

    def pop(self):
        v = self.sum.item() / max(self.n, 1)
        self.sum.zero_()
        self.n = 0
        return v


def loaders(a):
    norm = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    aug = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.TrivialAugmentWide(), T.ToTensor(), norm])
    plain = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), norm])
    train = ImageFolder(os.path.join(a.data, "train"), aug)
    val = ImageFolder(os.path.join(a.data, "val"), plain)
    mix = v2.MixUp(num_classes=len(train.classes), alpha=0.2)
    common = dict(batch_size=a.batch, num_workers=a.workers, pin_memory=True, worker_init_fn=worker_init)
    return (
        lambda epoch: DataLoader(train, shuffle=True, drop_last=True, collate_fn=lambda b: mix(*default_collate(b)),
                                 generator=torch.Generator().manual_seed(a.seed + epoch), **common),
        DataLoader(val, **common),
        train,
    )


@torch.no_grad()
def accuracy(net, run, loader, device):
    was_training = net.training
    net.eval()
    right, n = torch.zeros((), dtype=torch.long, device=device), 0
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            right += (run(x).argmax(1) == y).sum()
        n += len(y)
    net.train(was_training)
    return right.item() / n


def save(path, **state):
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("data")
    p.add_argument("--out", default="vit.pt")
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=4)
    a = p.parse_args()

    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda")
    train_for, val_loader, train_set = loaders(a)
    net = timm.create_model("vit_small_patch16_224", num_classes=len(train_set.classes), drop_path_rate=0.1).to(device)
    run = torch.compile(net)
    opt = torch.optim.AdamW(net.parameters(), lr=a.lr, weight_decay=0.05, fused=True)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, a.lr, total_steps=a.epochs * (len(train_set) // a.batch))
    loss_fn = nn.CrossEntropyLoss()
    first = step = 0
    if os.path.exists(a.out):
        s = torch.load(a.out, map_location="cpu", weights_only=True)
        net.load_state_dict(s["net"])
        opt.load_state_dict(s["opt"])
        sched.load_state_dict(s["sched"])
        first, step = s["epoch"], s["step"]

    mean = RunningMean(device)
    net.train()
    for epoch in range(first, a.epochs):
        for x, y in train_for(epoch):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = loss_fn(run(x), y)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            sched.step()
            mean.add(loss)
            step += 1
            if step % 100 == 0:
                print(f"{epoch} {step} {mean.pop():.4f}", flush=True)
        print(f"epoch {epoch} val {accuracy(net, run, val_loader, device):.4f}", flush=True)
        # checkpoints only between epochs: the data order of an epoch follows from its number
        save(a.out, net=net.state_dict(), opt=opt.state_dict(), sched=sched.state_dict(), epoch=epoch + 1, step=step)


if __name__ == "__main__":
    main()
