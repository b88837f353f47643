"""How much memory this process needed at its worst moment since the last reset."""

import contextlib
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Starts the peak anew: CUDA's counter, and on Linux the kernel's VmHWM where it allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak resident size (proc(5))


def peak_bytes(device: torch.device) -> int | None:
    """Bytes at the worst moment: allocated on the CUDA device, else resident (VmHWM); None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
