"""Fine-tune a segmentation network on CT slices."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation import deeplabv3_resnet50


@dataclass
class Config:
    root: str = "data/ct_slices"
    classes: int = 5
    micro_batch: int = 2
    global_batch: int = 64
    epochs: int = 40
    lr: float = 1e-4
    weight_decay: float = 0.01
    seed: int = 8

    @property
    def accumulate(self):
        return self.global_batch // self.micro_batch


class SliceDataset(Dataset):
    def __init__(self, root, split):
        self.images = np.load(Path(root) / f"{split}_images.npy", mmap_mode="r")
        self.masks = np.load(Path(root) / f"{split}_masks.npy", mmap_mode="r")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = torch.from_numpy(self.images[i].astype(np.float32) / 255.0)
        mask = torch.from_numpy(self.masks[i].astype(np.int64))
        return image.unsqueeze(0).expand(3, -1, -1), mask


def dice(pred, mask, classes):
    p = F.one_hot(pred, classes).flatten(0, 2)
    m = F.one_hot(mask, classes).flatten(0, 2)
    return 2 * (p * m).sum(0), p.sum(0) + m.sum(0)


@torch.no_grad()
def evaluate(net, loader, cfg, device):
    net.eval()
    top = torch.zeros(cfg.classes, device=device)
    bottom = torch.zeros(cfg.classes, device=device)
    for image, mask in loader:
        image, mask = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        a, b = dice(net(image)["out"].argmax(1), mask, cfg.classes)
        top += a
        bottom += b
    net.train()
    return (top / bottom.clamp(min=1)).mean().item()


def train_epoch(net, loader, optimizer, cfg, device):
    total = torch.zeros((), device=device)
    for image, mask in loader:
        image, mask = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        loss = F.cross_entropy(net(image)["out"], mask)
        (loss / cfg.accumulate).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
    return total.item() / len(loader)


def main():
    cfg = Config()
    torch.manual_seed(cfg.seed)
    device = torch.device("cuda")
    net = deeplabv3_resnet50(num_classes=cfg.classes, weights_backbone="DEFAULT").to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    net = torch.compile(net)
    train = DataLoader(SliceDataset(cfg.root, "train"), cfg.micro_batch, shuffle=True,
                       num_workers=6, pin_memory=True, drop_last=True)
    val = DataLoader(SliceDataset(cfg.root, "val"), 16, num_workers=6, pin_memory=True)
    print(f"effective batch {cfg.global_batch} ({cfg.accumulate} micro-batches)")
    for epoch in range(cfg.epochs):
        loss = train_epoch(net, train, optimizer, cfg, device)
        score = evaluate(net, val, cfg, device)
        print(f"epoch {epoch:02d} loss {loss:.4f} dice {score:.4f}")


if __name__ == "__main__":
    main()
