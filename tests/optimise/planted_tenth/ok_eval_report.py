"""Evaluation helpers for the image classifiers: accuracy, calibration, embeddings."""
from contextlib import contextmanager
from typing import Dict, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """eval() for the block; every submodule gets its own former mode back."""
    before = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for m, mode in before.items():
            m.training = mode


def batches(loader: DataLoader, device: torch.device):
    fast = device.type == "cuda" and loader.pin_memory
    for images, labels in loader:
        yield images.to(device, non_blocking=fast), labels.to(device, non_blocking=fast)


def report(model: nn.Module, loader: DataLoader, device: torch.device, bins: int = 15) -> Dict[str, float]:
    hits = torch.zeros(bins, device=device)
    trust = torch.zeros(bins, device=device)
    count = torch.zeros(bins, device=device)
    nll = torch.zeros((), device=device)
    with evaluating(model):
        for images, labels in batches(loader, device):
            logits = model(images)
            nll += nn.functional.cross_entropy(logits, labels, reduction="sum")
            conf, guess = logits.softmax(-1).max(-1)
            which = (conf * bins).long().clamp(max=bins - 1)
            ones = torch.ones_like(conf)
            hits.index_add_(0, which, (guess == labels).to(conf.dtype))
            trust.index_add_(0, which, conf)
            count.index_add_(0, which, ones)
    n = count.sum()
    table = torch.stack([hits.sum() / n, nll / n, (hits - trust).abs().sum() / n])
    accuracy, loss, ece = table.tolist()
    return {"accuracy": accuracy, "nll": loss, "ece": ece}


def embeddings(model: nn.Module, loader: DataLoader, device: torch.device) -> torch.Tensor:
    rows = []
    with evaluating(model):
        for images, _ in batches(loader, device):
            rows.append(nn.functional.normalize(model(images), dim=-1))
        return torch.cat(rows).cpu()


def load_weights(model: nn.Module, path: str) -> nn.Module:
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model
