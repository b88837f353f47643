"""Fine-tune a ViT on a folder of images, then mine hard examples."""
import os
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

EPOCHS = 90
BATCH = 256

train_tf = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor()])
test_tf = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor()])


class CheckpointManager:
    def __init__(self, folder):
        self.path = Path(folder) / "last.pth"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def save(self, **state):
        with open(self.path, "wb") as f:
            torch.save(state, f)

    def load(self):
        if self.path.exists():
            return torch.load(self.path, map_location="cpu", weights_only=True)
        return None


class HostBuffer:
    """Collects outputs on the host without stalling the GPU."""

    def __init__(self):
        self.parts = []

    def push(self, t):
        self.parts.append(t.to("cpu", non_blocking=True))

    def array(self):
        return torch.cat(self.parts).numpy()


def loader(root, tf, epoch=None):
    ds = ImageFolder(root, tf)
    g = torch.Generator().manual_seed(2024 + epoch) if epoch is not None else None
    return DataLoader(ds, BATCH, shuffle=epoch is not None, generator=g, num_workers=12,
                      pin_memory=True, drop_last=epoch is not None)


@torch.inference_mode()
def score(model, dl, device):
    model.eval()
    buf, correct = HostBuffer(), torch.zeros((), device=device)
    for x, y in dl:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(x)
        buf.push(F.cross_entropy(logits, y, reduction="none"))
        correct += (logits.argmax(1) == y).sum()
    model.train()
    return buf.array(), correct.item() / len(dl.dataset)


def main():
    device = torch.device("cuda")
    torch.manual_seed(2024)
    model = timm.create_model("vit_small_patch16_224", pretrained=True, num_classes=100).to(device)
    net = torch.compile(model)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    manager = CheckpointManager(os.environ.get("OUT", "runs/vit"))
    start = 0
    if (s := manager.load()) is not None:
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        start = s["epoch"] + 1
    val = loader("data/val", test_tf)
    for epoch in range(start, EPOCHS):
        for i, (x, y) in enumerate(loader("data/train", train_tf, epoch)):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x), y, label_smoothing=0.1)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            if i % 50 == 0:
                print(f"[{epoch}:{i}] {loss.item():.4f}")
        losses, acc = score(model, val, device)
        print(f"epoch {epoch} acc {acc:.4f} hardest {np.argsort(-losses)[:10]}")
        manager.save(model=model.state_dict(), opt=opt.state_dict(), epoch=epoch)


if __name__ == "__main__":
    main()
