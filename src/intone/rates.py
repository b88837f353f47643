"""Measures what this machine reaches: matrix products per dtype and copying, in about a second.

Runs as a child process (`python -m intone.rates`) that hardware.py asks; only there is torch imported.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPU_SIZES = (384, 1024)  # a tiny model's width, and one where the rate has levelled off on 2-core CPUs [measured]
GPU_SIZES = (2048, 8192)  # guess: about a d12 width x 2, and one that fills any GPU
BLOCK_S = 0.1  # per dtype and size: 4 dtypes x sizes and two copies stay within a second or two
CPU_COPY_BYTES = 128 * 2**20  # four times a 32 MiB last-level cache, so that memory is measured
GPU_COPY_BYTES = 2**30


def median_s(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Median seconds of one call, over at least one and at most as many calls as fit in BLOCK_S, after a warm-up.

    wait blocks until the device has finished.
    """
    work()
    wait()
    times: list[float] = []
    while not times or (sum(times) < BLOCK_S and len(times) < 1000):
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def waiter(device: "torch.device") -> Callable[[], None]:
    """What blocks until a device has finished its queue."""
    import torch

    if device.type == "cuda":
        return torch.cuda.synchronize
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def product_rate(size: int, dtype: "torch.dtype", device: "torch.device") -> float | None:
    """FLOP/s of a (size, size) x (size, size) product; None where the device cannot do it in this dtype."""
    import torch

    try:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        return 2 * size**3 / median_s(lambda: torch.mm(a, b, out=out), waiter(device))
    except (RuntimeError, TypeError):  # not supported, or out of memory: this rate stays unknown
        return None


def copy_rate(num_bytes: int, device: "torch.device") -> float | None:
    """Bytes per second that a copy inside the device's memory moves, reads and writes counted."""
    import torch

    try:
        source = torch.ones(num_bytes // 4, device=device)
        target = torch.empty_like(source)
        return 2 * num_bytes / median_s(lambda: target.copy_(source), waiter(device))
    except RuntimeError:  # out of memory
        return None


def best_device() -> "torch.device":
    """The device that torch can compute on here: cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def gpu_facts() -> dict[str, Any]:
    """What torch.cuda says about the first visible device."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu_name": properties.name,
        "num_gpus": torch.cuda.device_count(),
        "gpu_memory_bytes": properties.total_memory,
        "gpu_sms": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
    }


def measure(threads: int) -> dict[str, Any]:
    """The facts that need torch: device kind, GPU facts, rates. threads: how many to compute with on a CPU."""
    import torch

    torch.set_num_threads(threads)
    device = best_device()
    on_cpu = device.type == "cpu"
    small, large = CPU_SIZES if on_cpu else GPU_SIZES
    facts: dict[str, Any] = {"device": device.type}
    if device.type == "cuda":
        facts |= gpu_facts()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16} | ({} if on_cpu else {"fp16": torch.float16})
    for name, dtype in dtypes.items():
        facts[f"{name}_small_flops_per_s"] = product_rate(small, dtype, device)
        facts[f"{name}_flops_per_s"] = product_rate(large, dtype, device)
    facts["copy_bytes_per_s"] = copy_rate(CPU_COPY_BYTES if on_cpu else GPU_COPY_BYTES, device)
    return facts


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
