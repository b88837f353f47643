"""Device selection and a small image-classifier run that uses it."""
import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def pick_device(name="auto"):
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_cuda(device):
    return device.type == "cuda"


def same_device(a, b):
    return a.type == b.type and (a.index or 0) == (b.index or 0)


def synchronize(device):
    if is_cuda(device):
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def move(batch, device):
    pinned = is_cuda(device)
    return [t.to(device, non_blocking=pinned) for t in batch]


def loader(root, train, batch, device):
    tf = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
    ds = datasets.CIFAR10(root, train=train, transform=tf)
    return DataLoader(ds, batch, shuffle=train, drop_last=train, num_workers=4,
                      pin_memory=is_cuda(device))


@torch.no_grad()
def accuracy(net, data, device):
    net.eval()
    hits = torch.zeros((), dtype=torch.long, device=device)
    seen = 0
    for batch in data:
        x, y = move(batch, device)
        hits += (net(x).argmax(1) == y).sum()
        seen += y.numel()
    net.train()
    return hits.item() / seen


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--root", default="data")
    ap.add_argument("--device", default="auto")
    ap.add_argument("--epochs", type=int, default=10)
    ap.add_argument("--batch", type=int, default=256)
    args = ap.parse_args()
    torch.manual_seed(0)
    device = pick_device(args.device)
    if is_cuda(device):
        torch.set_float32_matmul_precision("high")
    net = torch.compile(models.resnet18(num_classes=10).to(device))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    train = loader(args.root, True, args.batch, device)
    test = loader(args.root, False, args.batch, device)
    for epoch in range(args.epochs):
        for batch in train:
            x, y = move(batch, device)
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
        synchronize(device)
        print(f"{epoch}: accuracy {accuracy(net, test, device):.4f} on {device}")


if __name__ == "__main__":
    main()
