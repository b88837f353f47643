"""How much memory this process needed at its worst moment since the last reset."""

import contextlib
from pathlib import Path

import torch

from intone.system import memory


def reset_peak(device: torch.device) -> None:
    """Starts the peak anew: CUDA's counter, and on Linux the kernel's VmHWM where it allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak resident size (proc(5))


def resident_bytes(device: torch.device) -> int | None:
    """Bytes in use now: allocated on the CUDA device, else resident (VmRSS); None where unknown."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("VmRSS")


def reserved_bytes(device: torch.device) -> int | None:
    """The most that CUDA's caching allocator held since the last reset, gaps included; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process could have beside what it holds now, others' use counted; None where unknown."""
    if device.type == "cuda":
        held_but_unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held_but_unused
    return memory()[1]


def peak_bytes(device: torch.device) -> int | None:
    """Bytes at the worst moment: allocated on the CUDA device, else resident (VmHWM); None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int | None:
    """A size in /proc/self/status."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
