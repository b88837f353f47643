"""Validation during training: modes restored, totals kept on the device."""
import contextlib

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def evaluating(model):
    before = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in before.items():
            module.training = mode


def is_cuda(device):
    return torch.device(device).type == "cuda"


class Totals:
    def __init__(self, device):
        self.values = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, logits, target):
        loss = F.cross_entropy(logits, target, reduction="sum")
        hits = (logits.argmax(-1) == target).sum()
        self.values += torch.stack([loss.double(), hits.double(),
                                    torch.full_like(loss, target.numel()).double()])

    def read(self):
        loss, hits, count = self.values.tolist()
        return {"loss": loss / count, "accuracy": hits / count}


@torch.no_grad()
def validate(model, loader, device):
    totals = Totals(device)
    pinned = is_cuda(device) and loader.pin_memory
    with evaluating(model):
        for x, y in loader:
            x = x.to(device, non_blocking=pinned)
            y = y.to(device, non_blocking=pinned)
            totals.add(model(x), y)
    return totals.read()


def train(model, train_loader, val_loader, device, epochs=5, lr=1e-3, log_every=200):
    if not train_loader.drop_last:
        raise ValueError("the compiled step wants batches of one shape: set drop_last")
    model.to(device).train()
    fast = torch.compile(model)
    pinned = is_cuda(device) and train_loader.pin_memory
    opt = torch.optim.AdamW(model.parameters(), lr=lr, fused=is_cuda(device))
    step = 0
    for epoch in range(epochs):
        for x, y in train_loader:
            x, y = x.to(device, non_blocking=pinned), y.to(device, non_blocking=pinned)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                loss = F.cross_entropy(fast(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            if step % log_every == 0:
                print(f"step {step} loss {loss.item():.4f}")
        print(f"epoch {epoch}", validate(model, val_loader, device))
