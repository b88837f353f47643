"""Regression of molecular energies from fixed-size descriptors, one GPU."""
import os
from typing import Iterable, Iterator, Tuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Pair = Tuple[torch.Tensor, torch.Tensor]


class Prefetcher:
    """Copies the next batch on a side stream while the current one is worked on."""

    def __init__(self, loader: Iterable[Pair], device: torch.device):
        self.loader, self.device = loader, device
        self.stream = torch.cuda.Stream(device)

    def _load(self, it: Iterator[Pair]):
        host = next(it, None)
        if host is None:
            return None
        with torch.cuda.stream(self.stream):
            return tuple(t.to(self.device, non_blocking=True) for t in host)

    def __iter__(self) -> Iterator[Pair]:
        it = iter(self.loader)
        ready = self._load(it)
        while ready is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self.stream)
            for t in ready:
                t.record_stream(here)
            current, ready = ready, self._load(it)
            yield current


def network(width: int = 2048, depth: int = 6) -> nn.Module:
    layers: list = [nn.Linear(1024, width)]
    for _ in range(depth):
        layers += [nn.SiLU(), nn.LayerNorm(width), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 1))


def train(features: torch.Tensor, energies: torch.Tensor, epochs: int = 200, lr: float = 1e-3,
          seed: int = 21) -> nn.Module:
    torch.manual_seed(seed)
    device = torch.device("cuda:0")
    model = network().to(device)
    fast = torch.compile(model)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    loader = DataLoader(
        TensorDataset(features, energies), batch_size=8192, shuffle=True, drop_last=True,
        pin_memory=True, num_workers=4, generator=torch.Generator().manual_seed(seed),
    )
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for x, y in Prefetcher(loader, device):
            with torch.autocast("cuda", torch.bfloat16):
                guess = fast(x).squeeze(-1)
            loss = nn.functional.smooth_l1_loss(guess.float(), y)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            total += loss.detach()
        print(f"epoch {epoch:3d}  loss {(total / len(loader)).item():.5f}")
    return model


def main(dataset: str) -> None:
    data = torch.load(dataset, weights_only=True)
    model = train(data["x"], data["y"])
    target = dataset + ".weights"
    torch.save(model.state_dict(), target + ".tmp")
    os.replace(target + ".tmp", target)
