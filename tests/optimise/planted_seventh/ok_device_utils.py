"""Device and precision helpers shared by the training and inference scripts."""
from __future__ import annotations

import contextlib
import logging
import os
from typing import Any, Iterable, Mapping

import torch
from torch import nn

log = logging.getLogger(__name__)

AMP_DTYPES = {"cuda": torch.bfloat16, "cpu": torch.bfloat16, "mps": torch.float16}


def pick_device(spec: str = "auto") -> torch.device:
    if spec != "auto":
        return torch.device(spec)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_cuda(x: torch.Tensor | torch.device) -> bool:
    device = x.device if isinstance(x, torch.Tensor) else x
    return device.type == "cuda"


def same_device(a: torch.device, b: str | torch.device) -> bool:
    return a == torch.device(b)


def autocast_for(device: torch.device):
    if device.type in ("cuda", "mps"):
        return torch.autocast(device.type, dtype=AMP_DTYPES[device.type])
    return contextlib.nullcontext()


def move(batch: Any, device: torch.device) -> Any:
    """Recursive copy; asynchronous only where the source is page-locked and the target a GPU."""
    if isinstance(batch, torch.Tensor):
        fast = device.type == "cuda" and batch.device.type == "cpu" and batch.is_pinned()
        return batch.to(device, non_blocking=fast)
    if isinstance(batch, Mapping):
        return {k: move(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(v, device) for v in batch)
    return batch


def loader_kwargs(device: torch.device, workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
    }


def maybe_compile(net: nn.Module, device: torch.device) -> nn.Module:
    """Fixed shapes are the rule in our scripts, so the defaults of torch.compile do."""
    if str(device).startswith("cuda"):
        return torch.compile(net)
    return net


@contextlib.contextmanager
def evaluating(net: nn.Module):
    """Evaluation mode without gradients; every submodule gets its own former mode back."""
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield net
    finally:
        for m, mode in modes.items():
            m.training = mode


def load_weights(net: nn.Module, path: str, device: torch.device) -> None:
    state = torch.load(path, map_location=device, weights_only=True)
    missing, unexpected = net.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise RuntimeError(f"{path}: missing {missing[:5]}, unexpected {unexpected[:5]}")


def save_weights(net: nn.Module, path: str) -> None:
    tmp = f"{path}.{os.getpid()}.tmp"
    torch.save({k: v.cpu() for k, v in net.state_dict().items()}, tmp)
    os.replace(tmp, path)


def mean_metric(net: nn.Module, batches: Iterable[Any], metric, device: torch.device) -> float:
    """Mean of `metric(net, batch)`; the sum stays on the device until the end."""
    total, n = torch.zeros((), device=device), 0
    with evaluating(net), autocast_for(device):
        for batch in batches:
            total += metric(net, move(batch, device))
            n += 1
    if n == 0:
        raise ValueError("no batches to evaluate")
    return (total / n).item()


def seed_everything(seed: int, rank: int = 0) -> torch.Generator:
    """Once at start-up: the global generators differ by rank, the returned one serves the data order."""
    torch.manual_seed(seed + 7919 * rank)
    log.info("seed %d for rank %d", seed + 7919 * rank, rank)
    return torch.Generator().manual_seed(seed)
