"""What the operating system says about this machine: cores, memory, limits, processor features, compiler.

Everything is read from files and the environment; nothing here needs torch or takes longer than milliseconds.
Functions that read /proc and /sys take root, so that tests can show them any machine.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
NO_LIMIT_BYTES = 1 << 60  # version 1 control groups write a number near 2^63 where nothing is limited


@dataclass(frozen=True)
class GroupLimits:
    """The tightest limits of the control groups around this process; None where nothing is limited."""

    cpus: float | None  # processor time per wall-clock time
    memory_bytes: int | None
    memory_left_bytes: int | None  # limit minus what is in use and cannot be reclaimed


def read_text(path: Path) -> str | None:
    """The file's text, or None where it is missing or unreadable: a fact that this system does not give."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The file's one whole number; None where there is no file or no number ("max")."""
    text = read_text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def group_folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the control groups around this process, innermost first, each with its version, 1 or 2.

    A container often names a path of its host that is not visible inside; the levels above it still are.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            bases = [(mounts, 2), (mounts / "unified", 2)]
        elif controller in controllers.split(","):
            bases = [(mounts / name, 1) for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for base, version in bases:
            for depth in range(len(parts), -1, -1):
                folder = base.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder, version


def quota_cpus(folder: Path, version: int) -> float | None:
    """Processors' worth of time that one control group may use, None: no quota."""
    if version == 2:
        words = (read_text(folder / "cpu.max") or "").split()
        if len(words) != 2 or words[0] == "max":
            return None
        return int(words[0]) / int(words[1])
    quota_us, period_us = read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def memory_limit(folder: Path, version: int) -> tuple[int, int] | None:
    """(limit, left) in bytes of one control group, None: no limit. File pages not in use count as left."""
    limit = read_int(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
    if limit is None or limit >= NO_LIMIT_BYTES:
        return None
    used = read_int(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
    reclaimable_name = "inactive_file" if version == 2 else "total_inactive_file"
    for line in (read_text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == reclaimable_name:
            used -= int(value)
    return limit, max(0, limit - max(0, used))


def group_limits(root: Path = ROOT) -> GroupLimits:
    """The tightest processor and memory limits over all control groups around this process."""
    quotas = [quota for folder, version in group_folders(root, "cpu") if (quota := quota_cpus(folder, version))]
    limits = [limit for folder, version in group_folders(root, "memory") if (limit := memory_limit(folder, version))]
    return GroupLimits(
        cpus=min(quotas, default=None),
        memory_bytes=min((limit for limit, _ in limits), default=None),
        memory_left_bytes=min((left for _, left in limits), default=None),
    )


def allowed_cpus() -> set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def count_cores(cpus: set[int], quota: float | None, root: Path = ROOT) -> tuple[int, int]:
    """(hardware threads, physical cores) that may be used at once, each at least 1.

    A quota is rounded down: threads that wait for each other must all be running. Where the system
    does not tell which threads share a core, every thread counts as one.
    """
    places = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = read_int(topology / "physical_package_id"), read_int(topology / "core_id")
        places.add((package, core) if core is not None else ("cpu", cpu))
    most = max(1, int(quota)) if quota else len(cpus)
    return max(1, min(len(cpus), most)), max(1, min(len(places), most))


def memory(root: Path = ROOT, limits: GroupLimits | None = None) -> tuple[int | None, int | None]:
    """(total, available) bytes for this process, within its control groups; None: unknown."""
    limits = limits or group_limits(root)
    found: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name in ("MemTotal", "MemAvailable") and words:
            found[name] = int(words[0]) * 1024
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    if total is None and root == ROOT and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    totals = [value for value in (total, limits.memory_bytes) if value is not None]
    left = [value for value in (available, limits.memory_left_bytes) if value is not None]
    return min(totals, default=None), min(left, default=None)


def processor(root: Path = ROOT) -> tuple[str | None, set[str] | None]:
    """(name, feature flags as the kernel spells them) of the first processor; None: unknown."""
    text = read_text(root / "proc/cpuinfo")
    if text is None:
        return platform.processor() or None, None
    name, flags = None, None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and name is None:
            name = value.strip()
        if key.strip() in ("flags", "Features") and flags is None:
            flags = set(value.split())
    return name or platform.processor() or None, flags


def busy_ticks(cpus: set[int], root: Path) -> int | None:
    """Ticks that these processors were busy since boot, whoever used them."""
    total = 0
    lines = [line.split() for line in (read_text(root / "proc/stat") or "").splitlines() if line.startswith("cpu")]
    wanted = {f"cpu{cpu}" for cpu in cpus}
    counted = [[int(value) for value in words[1:]] for words in lines if words and words[0] in wanted]
    if not counted:
        return None
    for ticks in counted:
        total += sum(ticks[:8]) - ticks[3] - (ticks[4] if len(ticks) > 4 else 0)  # idle and waiting for a disk
    return total


def busy_cores(interval_s: float = 0.1, root: Path = ROOT) -> float | None:
    """Processors kept busy by others, right now, among those that we may use; takes interval_s. None: unknown."""
    cpus = allowed_cpus()
    before, own_before, start = busy_ticks(cpus, root), time.process_time(), time.perf_counter()
    if before is None:
        return None
    time.sleep(interval_s)
    after, own_s = busy_ticks(cpus, root), time.process_time() - own_before
    if after is None:
        return None
    busy_s = (after - before) / os.sysconf("SC_CLK_TCK")
    return max(0.0, (busy_s - own_s) / (time.perf_counter() - start))


def gpu_names(root: Path = ROOT) -> tuple[str, ...]:
    """Graphics processors that the driver lists, visible to torch or not; empty where there are none."""
    names = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in (read_text(folder) or "").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    if not names and root == ROOT:
        names = [line.partition(": ")[2].partition(" (UUID")[0] for line in ask_nvidia("-L")]
    if not names and (root / "sys/module/amdgpu").is_dir() and (root / "dev/kfd").exists():
        names = [f"AMD {card.parent.name}" for card in sorted((root / "sys/class/drm").glob("card?/device"))]
    return tuple(names)


def ask_nvidia(*arguments: str) -> list[str]:
    """The lines nvidia-smi prints; none where it is missing, fails or does not answer in 5 s."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def gpu_free_bytes() -> int | None:
    """Free memory of the fullest visible NVIDIA GPU, as its driver says; None: unknown."""
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    chosen = ["-i", ",".join(visible)] if visible else []
    free = []
    for line in ask_nvidia("--query-gpu=memory.free", "--format=csv,noheader,nounits", *chosen):
        with contextlib.suppress(ValueError):
            free.append(int(line) * 2**20)
    return min(free, default=None)


def cxx_compiler() -> str | None:
    """The C++ compiler that torch.compile will call: $CXX, else g++ (clang++ on macOS); None: not found."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def c_compiler() -> str | None:
    """The C compiler that Triton will call: $CC, else gcc or clang; None: not found."""
    asked = os.environ.get("CC")
    return shutil.which(asked) if asked else shutil.which("gcc") or shutil.which("clang")


def python_header() -> str | None:
    """Python.h of the running interpreter, which compiled code includes; None: not installed."""
    path = Path(sysconfig.get_path("include")) / "Python.h"
    return str(path) if path.is_file() else None
