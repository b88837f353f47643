"""Fine-tune a ViT-B/16 on an ImageFolder tree.  A100, bf16 autocast."""
import os
import sys
import time

import timm
import torch
import torch.nn as nn
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


class AverageMeter(object):
    """Computes and stores the average and current value"""

    def __init__(self, name, fmt=":.3f"):
        self.name = name
        self.fmt = fmt
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        self.val = val.item()
        self.sum += self.val * n
        self.count += n
        self.avg = self.sum / self.count

    def __str__(self):
        return ("{name} {val" + self.fmt + "} ({avg" + self.fmt + "})").format(**self.__dict__)


def topk_acc(output, target, k):
    pred = output.topk(k, dim=1).indices
    return (pred == target[:, None]).any(1).float().mean() * 100


def build_loaders(root, model, bs, seed):
    conf = resolve_data_config({}, model=model)
    train = ImageFolder(os.path.join(root, "train"), create_transform(**conf, is_training=True))
    val = ImageFolder(os.path.join(root, "val"), create_transform(**conf))
    kw = dict(batch_size=bs, num_workers=12, pin_memory=True, persistent_workers=True)
    gen = torch.Generator().manual_seed(seed)
    return DataLoader(train, shuffle=True, drop_last=True, generator=gen, **kw), DataLoader(val, **kw), len(train.classes)


def validate(model, loader, device):
    model.eval()
    right = torch.zeros((), device=device)
    seen = 0
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        for images, target in loader:
            images = images.to(device, non_blocking=True)
            target = target.to(device, non_blocking=True)
            right += (model(images).argmax(1) == target).sum()
            seen += target.numel()
    return 100.0 * right.item() / seen


def atomic_save(obj, path):
    tmp = path + ".tmp"
    torch.save(obj, tmp)
    os.replace(tmp, path)


def main(root, out="best.pt", epochs=15, bs=256, lr=3e-4, val_every=1000, seed=0):
    torch.manual_seed(seed)
    device = torch.device("cuda")
    probe = timm.create_model("vit_base_patch16_224", pretrained=False)
    train_loader, val_loader, n_cls = build_loaders(root, probe, bs, seed)
    model = timm.create_model("vit_base_patch16_224", pretrained=True, num_classes=n_cls, drop_rate=0.1, drop_path_rate=0.1).to(device)

    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(train_loader))

    best, step = 0.0, 0
    model.train()
    for epoch in range(epochs):
        losses, top1, top5 = AverageMeter("loss"), AverageMeter("top1"), AverageMeter("top5")
        t0 = time.time()
        for images, target in train_loader:
            images = images.to(device, non_blocking=True)
            target = target.to(device, non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                output = model(images)
                loss = criterion(output, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()

            losses.update(loss, images.size(0))
            top1.update(topk_acc(output, target, 1), images.size(0))
            top5.update(topk_acc(output, target, 5), images.size(0))
            step += 1
            if step % 100 == 0:
                print(f"epoch {epoch} step {step} {losses} {top1} {top5} {time.time() - t0:.0f}s")
            if step % val_every == 0:
                acc = validate(model, val_loader, device)
                print(f"step {step} val top1 {acc:.2f}")
                if acc > best:
                    best = acc
                    atomic_save(model.state_dict(), out)
    print("best", best)


if __name__ == "__main__":
    main(*sys.argv[1:3])
