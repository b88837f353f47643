"""Watches the machine while something is measured: what other programs, the host and the clock did to it.

A round in which one of them interfered says little about the two sides; measure.py sets it aside and says why. Where
that leaves too few, the worst that interfered bounds what it can have done to a rate (most_lost).
"""

import contextlib
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intone.peak import process_tree
from intone.system import ROOT, allowed_cpus, ask_nvidia, group_folders, read_int, read_text

# limits, all guesses: each alone moves a block by about as much as two processes of one program differ (4-5 %)
OTHERS_CORES = 0.15  # used by others, of few cores
OTHERS_SHARE = 0.05  # the same of many
STEAL_SHARE = 0.02  # taken by the host
WAIT_SHARE = 0.05  # of the time spent waiting for memory, or for the group's quota of processor time
CLOCK_SHARE = 0.07  # between the slowest and the fastest look at the clock in a round; 4 % seen on a busy machine
# of a block: whoever shares a processor with more than nine others measures nothing (guess)
MOST_LOST = 0.9
CALIBRATION_BYTES = bytes(1 << 20)
CALIBRATION_S = 0.004
# NVML's reasons for a lower clock that are not our own load: slowdown, thermal (driver, hardware), power brake
GPU_THROTTLED = 0x08 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True)
class Signals:
    """The machine at one moment; counters run since boot. None: this system does not tell."""

    at_s: float
    used_s: float | None  # processor time of everybody on our processors, without what the host took
    stolen_s: float | None  # processor time that the host gave to others
    own_s: float  # processor time of this process and the measured ones
    throttled: int | None  # times that the processor was slowed down by its heat
    quota_wait_s: float | None  # stopped because the control group's processor time was used up
    memory_wait_s: float | None  # somebody waited for memory (pressure stall information)
    mhz: float | None  # of the fastest of our processors
    calibration_s: float  # of a fixed piece of work, the fastest of several
    gpu_mhz: float | None = None
    gpu_throttled: bool | None = None


@dataclass(frozen=True)
class Disturbance:
    """One thing that interfered with a round, and how much."""

    kind: str
    words: str
    size: float  # times its limit


class Watch:
    """Reads the signals around blocks of the given processes; they may have started others."""

    def __init__(self, pids: Iterable[int], *, has_gpu: bool = False, root: Path = ROOT) -> None:
        self._pids = tuple(pids)
        self._has_gpu = has_gpu
        self._root = root
        self._cpus = allowed_cpus()
        self._quota_folder = next((folder for folder, version in group_folders(root, "cpu") if version == 2), None)

    @property
    def num_cpus(self) -> int:
        return len(self._cpus)

    def look(self) -> Signals:
        """The machine now; takes about 5 ms, with a GPU 50."""
        calibration_s = calibrate()
        used_s, stolen_s = self._processor_time()
        gpu_mhz, gpu_throttled = gpu_clock() if self._has_gpu else (None, None)
        return Signals(
            at_s=time.perf_counter(),
            used_s=used_s,
            stolen_s=stolen_s,
            own_s=sum(map(self._process_s, {os.getpid(), *self._trees()})),
            throttled=self._throttled(),
            quota_wait_s=self._quota_wait(),
            memory_wait_s=self._memory_wait(),
            mhz=self._mhz(),
            calibration_s=calibration_s,
            gpu_mhz=gpu_mhz,
            gpu_throttled=gpu_throttled,
        )

    def _trees(self) -> set[int]:
        return {below for pid in self._pids for below in process_tree(pid)}

    def _processor_time(self) -> tuple[float | None, float | None]:
        """(used, stolen) seconds of our processors since boot (proc_stat(5))."""
        ticks = os.sysconf("SC_CLK_TCK")
        wanted = {f"cpu{cpu}" for cpu in self._cpus}
        used = stolen = 0.0
        found = False
        for line in (read_text(self._root / "proc/stat") or "").splitlines():
            name, *words = line.split() or [""]
            if name not in wanted:
                continue
            found = True
            user, nice, kernel, _idle, _iowait, irq, softirq, steal = map(int, (words + ["0"] * 8)[:8])
            used += user + nice + kernel + irq + softirq
            stolen += steal
        return (used / ticks, stolen / ticks) if found else (None, None)

    def _process_s(self, pid: int) -> float:
        """Processor time of a process and of its children that have ended; 0 where it has ended itself."""
        words = (read_text(self._root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK") if len(words) > 14 else 0.0

    def _throttled(self) -> int | None:
        counts = [
            read_int(self._root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count")
            for cpu in self._cpus
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _quota_wait(self) -> float | None:
        text = read_text(self._quota_folder / "cpu.stat") if self._quota_folder else None
        return _after("throttled_usec ", text)

    def _memory_wait(self) -> float | None:
        return _after("total=", (read_text(self._root / "proc/pressure/memory") or "").partition("\n")[0])

    def _mhz(self) -> float | None:
        folder = self._root / "sys/devices/system/cpu"
        clocks = [read_int(folder / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in self._cpus]
        known = [clock / 1000 for clock in clocks if clock is not None]
        return max(known) if known else None


def _after(label: str, text: str | None) -> float | None:
    """Seconds from the microseconds behind a label."""
    found = (text or "").partition(label)[2].split()
    return int(found[0]) / 1e6 if found else None


def calibrate() -> float:
    """Seconds of a fixed piece of work in one core's first cache levels: what the clock does, without its name."""
    best_s, end_s = float("inf"), time.perf_counter() + CALIBRATION_S
    while time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        hashlib.sha256(CALIBRATION_BYTES).digest()
        best_s = min(best_s, time.perf_counter() - begin_s)
    return best_s


def gpu_clock() -> tuple[float | None, bool | None]:
    """(MHz, throttled) of the first visible NVIDIA GPU; None: unknown."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    chosen = ["-i", visible] if visible else []
    lines = ask_nvidia("--query-gpu=clocks.sm,clocks_throttle_reasons.active", "--format=csv,noheader,nounits", *chosen)
    mhz: float | None = None
    throttled: bool | None = None
    first, _, second = (lines[0] if lines else "").partition(",")
    with contextlib.suppress(ValueError):
        mhz = float(first)
    with contextlib.suppress(ValueError):
        throttled = bool(int(second.strip(), 16) & GPU_THROTTLED)
    return mhz, throttled


# --- what they mean -------------------------------------------------------------------------------------------------


def disturbances(
    blocks: Sequence[tuple[Signals, Signals]], num_cpus: int, sides: Sequence[str] | None = None
) -> list[Disturbance]:
    """What interfered with a round, from the signals before and after each of its blocks.

    sides: whose blocks they are, None: of one and the same. A GPU lowers its clock by itself where a program gives it
    much to do, and says so; that belongs to the program. Only clocks of blocks of the same side are compared.
    """
    found: list[Disturbance] = []

    def check(kind: str, value: float | None, limit: float, words: str) -> None:
        if value is not None and value > limit:
            found.append(Disturbance(kind, words, value / limit))

    elapsed_s = sum(after.at_s - before.at_s for before, after in blocks)

    def grown(name: str) -> float | None:
        """How much a counter grew within the blocks."""
        pairs = [(getattr(before, name), getattr(after, name)) for before, after in blocks]
        return None if any(None in pair for pair in pairs) else sum(b - a for a, b in pairs)

    used_s, own_s, stolen_s = grown("used_s"), grown("own_s"), grown("stolen_s")
    if used_s is not None and own_s is not None:
        others = max(0.0, used_s - own_s) / elapsed_s
        limit = max(OTHERS_CORES, OTHERS_SHARE * num_cpus)
        check("load", others, limit, f"other programs used {others:.1f} of {num_cpus} cores")
    if stolen_s is not None:
        share = stolen_s / (elapsed_s * num_cpus)
        check("steal", share, STEAL_SHARE, f"the host took {100 * share:.0f}% of the processor time for others")
    check("heat", grown("throttled"), 0.5, "the processor slowed down because of its heat")
    for kind, name, words in (
        ("quota", "quota_wait_s", "this container's share of processor time was used up"),
        ("memory", "memory_wait_s", "memory was short"),
    ):
        waited_s = grown(name)
        check(kind, None if waited_s is None else waited_s / elapsed_s, WAIT_SHARE, words)
    looks = [look for pair in blocks for look in pair]
    clock = spread([look.calibration_s for look in looks])
    check("clock", clock, CLOCK_SHARE, f"the processor's speed moved by {100 * clock:.0f}%")
    if all(look.mhz is not None for look in looks):
        clock = spread([look.mhz or 0.0 for look in looks])
        check("clock", clock, CLOCK_SHARE, f"the processor's clock moved by {100 * clock:.0f}%")
    names = sides or [""] * len(blocks)
    clocks = [gpu_spread([pair for pair, name in zip(blocks, names, strict=True) if name == side]) for side in names]
    known = [clock for clock in clocks if clock is not None]
    clock = max(known, default=0.0)
    check("GPU clock", clock, CLOCK_SHARE, f"the GPU's clock moved by {100 * clock:.0f}%")
    if len(known) < len(clocks):
        is_slow = any(after.gpu_throttled for _, after in blocks)
        check("GPU heat", float(is_slow), 0.5, "the GPU slowed down by heat or power")
    return found


def most_lost(blocks: Sequence[tuple[Signals, Signals]], others: Sequence[tuple[Signals, Signals]]) -> float | None:
    """By how much, as a logarithm, the rate of these blocks can be too low beside that of others measured between them.

    Every second of a processor that the host or other programs took, or that was waited for, counts as one in which
    all threads stood still; and the processor may have been at its slowest here, at its fastest there. None: it was
    slowed down by heat, which no signal bounds. A GPU's clock is compared within each side, as by disturbances().
    """
    elapsed_s = lost_s = 0.0
    for before, after in blocks:
        elapsed_s += after.at_s - before.at_s
        lost_s += _grown(before.stolen_s, after.stolen_s)
        lost_s += max(0.0, _grown(before.used_s, after.used_s) - (after.own_s - before.own_s))
        lost_s += _grown(before.quota_wait_s, after.quota_wait_s) + _grown(before.memory_wait_s, after.memory_wait_s)
    looks = [look for pair in (*blocks, *others) for look in pair]
    if _grown(looks[0].throttled, looks[-1].throttled):
        return None
    clock = spread([look.calibration_s for look in looks])
    gpu = [gpu_spread(blocks), gpu_spread(others)]
    if None in gpu and any(look.gpu_throttled for look in looks):
        return None
    clock = max([clock, *(moved for moved in gpu if moved is not None)])
    return math.log1p(clock) - math.log1p(-min(lost_s / elapsed_s, MOST_LOST))


def gpu_spread(blocks: Sequence[tuple[Signals, Signals]]) -> float | None:
    """How much the GPU's clock moved between the ends of one side's blocks: between blocks it rests. None: unknown."""
    clocks = [after.gpu_mhz for _, after in blocks]
    return None if None in clocks else spread([clock for clock in clocks if clock is not None])


def _grown(before: float | None, after: float | None) -> float:
    """How much a counter grew; 0 where this system does not tell."""
    return 0.0 if before is None or after is None else after - before


def spread(values: Sequence[float]) -> float:
    """How much larger the largest is than the smallest, as a share; 0 where one is 0."""
    return max(values) / min(values) - 1 if min(values) > 0 else 0.0


def summary(rounds: Sequence[Sequence[Disturbance]]) -> str:
    """The most frequent disturbance at its worst: other programs used 1.0 of 2 cores in 7 of 9 rounds.

    Empty where nothing interfered.
    """
    kinds = Counter(kind for round_ in rounds for kind in {entry.kind for entry in round_})
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    worst = max((entry for round_ in rounds for entry in round_ if entry.kind == kind), key=lambda entry: entry.size)
    return f"{worst.words} in {count} of {len(rounds)} rounds"
