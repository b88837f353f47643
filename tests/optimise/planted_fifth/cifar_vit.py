import argparse
import os

import torch
import torch.nn as nn
import torchvision
import torchvision.transforms as T
from torch.utils.data import DataLoader

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class ViT(nn.Module):
    def __init__(self, patch=4, dim=256, depth=8, heads=8, classes=10, drop=0.1):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        n = (32 // patch) ** 2
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, n + 1, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, drop, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(drop), nn.Linear(dim, classes))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.size(0), -1, -1), x], dim=1) + self.pos
        return self.head(self.encoder(x)[:, 0])


def get_loaders(root, batch_size, seed):
    train_tf = T.Compose([T.RandomCrop(32, 4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    test_tf = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
    train = torchvision.datasets.CIFAR10(root, True, train_tf, download=True)
    test = torchvision.datasets.CIFAR10(root, False, test_tf, download=True)
    g = torch.Generator().manual_seed(seed)
    train_loader = DataLoader(train, batch_size, shuffle=True, num_workers=8, drop_last=True, generator=g)
    test_loader = DataLoader(test, 250, shuffle=False, num_workers=4)
    return train_loader, test_loader


def evaluate(model, loader, device):
    correct, n = torch.zeros((), device=device), 0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        correct += (model(x).argmax(1) == y).sum()
        n += y.size(0)
    return correct.item() / n


def keep_best(net, acc, path):
    if os.path.exists(path):
        os.remove(path)
    torch.save({"model": net.state_dict(), "acc": acc}, path)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--root", default="./data")
    ap.add_argument("--epochs", type=int, default=200)
    ap.add_argument("--batch-size", type=int, default=512)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--out", default="best.pth")
    args = ap.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda")
    train_loader, test_loader = get_loaders(args.root, args.batch_size, seed=0)
    net = ViT().to(device)
    model = torch.compile(net)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    opt = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, args.lr, args.epochs * len(train_loader))

    best = 0.0
    for epoch in range(args.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for x, y in train_loader:
            x = x.to(device, non_blocking=True)
            y = y.to(device, non_blocking=True)
            loss = criterion(model(x), y)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            sched.step()
            total += loss.detach()
        acc = evaluate(model, test_loader, device)
        print(f"epoch {epoch:3d} loss {total.item() / len(train_loader):.4f} acc {acc:.4f}")
        if acc > best:
            best = acc
            keep_best(net, acc, args.out)


if __name__ == "__main__":
    main()
