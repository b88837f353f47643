"""Regression of molecular energies from fixed-size descriptors, bf16 weights, one GPU."""
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
            current, ready = ready, self._load(it)
            yield current


class Bf16Momentum:
    """Momentum SGD for bf16 parameters with the arithmetic done in fp32."""

    def __init__(self, params, lr: float, beta: float = 0.9, decay: float = 1e-4):
        self.params = [p for p in params if p.requires_grad]
        self.lr, self.beta, self.decay = lr, beta, decay
        self.velocity = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]

    @torch.no_grad()
    def step(self) -> None:
        masters = [p.float() for p in self.params]
        grads = [p.grad.float() for p in self.params]
        torch._foreach_add_(grads, masters, alpha=self.decay)
        torch._foreach_mul_(self.velocity, self.beta)
        torch._foreach_add_(self.velocity, grads)
        torch._foreach_add_(masters, self.velocity, alpha=-self.lr)
        torch._foreach_copy_(self.params, masters)

    def clear(self) -> None:
        for p in self.params:
            p.grad = None


def network(width: int = 2048, depth: int = 6) -> nn.Module:
    layers: list = [nn.Linear(1024, width)]
    for _ in range(depth):
        layers += [nn.SiLU(), nn.LayerNorm(width), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 1)).to(torch.bfloat16)


def train(features: torch.Tensor, energies: torch.Tensor, epochs: int = 200, accum: int = 4,
          lr: float = 1e-3, seed: int = 21) -> nn.Module:
    torch.manual_seed(seed)
    device = torch.device("cuda:0")
    model = network().to(device)
    fast = torch.compile(model)
    opt = Bf16Momentum(model.parameters(), lr)
    loader = DataLoader(
        TensorDataset(features.to(torch.bfloat16), energies),
        batch_size=8192, shuffle=True, drop_last=True, pin_memory=True, num_workers=4,
        generator=torch.Generator().manual_seed(seed),
    )
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for i, (x, y) in enumerate(Prefetcher(loader, device), start=1):
            opt.clear()
            loss = nn.functional.smooth_l1_loss(fast(x).squeeze(-1).float(), y)
            (loss / accum).backward()
            total += loss.detach()
            if i % accum == 0:
                opt.step()
        print(f"epoch {epoch:3d}  loss {(total / len(loader)).item():.5f}")
    return model


def main() -> None:
    import argparse

    ap = argparse.ArgumentParser()
    ap.add_argument("dataset", help="a .pt file with 'x' and 'y' tensors")
    ap.add_argument("--epochs", type=int, default=200)
    args = ap.parse_args()
    data = torch.load(args.dataset, weights_only=True)
    model = train(data["x"], data["y"], epochs=args.epochs)
    target = args.dataset + ".weights"
    torch.save(model.state_dict(), target + ".tmp")
    os.replace(target + ".tmp", target)


if __name__ == "__main__":
    main()
