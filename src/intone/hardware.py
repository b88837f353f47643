"""Facts about this machine with their sources, measured once and kept; and what workers need in their environment.

A fact that nobody could tell is None and printed "unknown". Torch runs in a child process only.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone import system
from intone.child import ChildFailed, ask_child
from intone.errors import Damaged, UserError
from intone.log import human_bytes, say, three_digits
from intone.paths import FolderLock, machine_folder, read_json, write_json
from intone.records import utc_now

Source = Literal["driver", "table", "measured"]
FORMAT = 1
MEASURE_TIMEOUT_S = 120  # CUDA start on a cold machine takes 4-6 s (training.md 3.4); the rest is a hung driver
BUSY_CORES = 0.5  # others' use above which timings are doubtful and waiting threads should not spin (training.md 4.2)
COMPILE_FIX = "apt install g++ python3-dev"

# driver's name -> dense bf16 (before Ampere fp16) FLOP/s and memory bytes/s, from the makers' data sheets;
# only exact names: a laptop's or a sliced GPU of nearly the same name is another one
PEAKS = {
    "NVIDIA B200": (2250e12, 8.0e12),
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H100 PCIe": (756e12, 2.0e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": (312e12, 1.935e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 1.555e12),
    "NVIDIA L40S": (362e12, 0.864e12),
    "NVIDIA L4": (121e12, 0.3e12),
    "NVIDIA A10G": (70e12, 0.6e12),
    "NVIDIA GeForce RTX 5090": (209.5e12, 1.792e12),
    "NVIDIA GeForce RTX 4090": (165.2e12, 1.008e12),
    "NVIDIA GeForce RTX 3090": (71e12, 0.936e12),
    "Tesla V100-SXM2-32GB": (125e12, 0.9e12),
    "Tesla V100-SXM2-16GB": (125e12, 0.9e12),
    "Tesla T4": (65e12, 0.32e12),
}


def fact(source: Source, label: str, unit: str = "", missing: str = "unknown") -> Any:
    """A field of Facts: where its value comes from, what people read, its unit, the word for None."""
    return dataclasses.field(default=None, metadata=dict(source=source, label=label, unit=unit, missing=missing))


@dataclass(frozen=True)
class Facts:
    """One machine as this process may use it; sizes and limits are those of its control group."""

    fingerprint: str
    system: str | None = fact("driver", "system")
    python_version: str | None = fact("driver", "Python")
    torch_version: str | None = fact("driver", "torch", missing="not installed")
    triton_version: str | None = fact("driver", "triton", missing="not installed")
    libc: str | None = fact("driver", "C library")
    cpu_name: str | None = fact("driver", "processor")
    cores_logical: int = fact("driver", "hardware threads usable")
    cores_physical: int = fact("driver", "cores usable")
    busy_cores: float | None = fact("driver", "cores kept busy by others now", "cores")
    has_avx2: bool | None = fact("driver", "AVX2")
    has_avx512: bool | None = fact("driver", "AVX-512")
    has_avx512_bf16: bool | None = fact("driver", "AVX-512 bf16")
    has_amx_bf16: bool | None = fact("driver", "AMX bf16")
    memory_bytes: int | None = fact("driver", "memory", "bytes")
    memory_available_bytes: int | None = fact("driver", "memory available now", "bytes")
    cxx: str | None = fact("driver", "C++ compiler", missing="not found")
    cc: str | None = fact("driver", "C compiler", missing="not found")
    python_header: str | None = fact("driver", "Python headers", missing="not found")
    device: str | None = fact("driver", "device")
    gpu_name: str | None = fact("driver", "GPU")
    num_gpus: int | None = fact("driver", "GPUs")
    gpu_memory_bytes: int | None = fact("driver", "GPU memory", "bytes")
    gpu_memory_free_bytes: int | None = fact("driver", "GPU memory free now", "bytes")
    gpu_sms: int | None = fact("driver", "GPU multiprocessors")
    gpu_capability: str | None = fact("driver", "GPU capability")
    peak_flops_per_s: float | None = fact("table", "peak 16-bit products", "FLOP/s")
    peak_bytes_per_s: float | None = fact("table", "peak memory bandwidth", "bytes/s")
    fp32_small_flops_per_s: float | None = fact("measured", "fp32 products, small", "FLOP/s")
    fp32_flops_per_s: float | None = fact("measured", "fp32 products, large", "FLOP/s")
    bf16_small_flops_per_s: float | None = fact("measured", "bf16 products, small", "FLOP/s")
    bf16_flops_per_s: float | None = fact("measured", "bf16 products, large", "FLOP/s")
    fp16_small_flops_per_s: float | None = fact("measured", "fp16 products, small", "FLOP/s")
    fp16_flops_per_s: float | None = fact("measured", "fp16 products, large", "FLOP/s")
    copy_bytes_per_s: float | None = fact("measured", "copy bandwidth", "bytes/s")
    measured_at: str | None = fact("measured", "measured at", missing="never")
    measured_busy_cores: float | None = fact("measured", "cores kept busy by others then", "cores")

    @property
    def folder(self) -> Path:
        """INTONE_HOME/machine/<fingerprint>: facts, trials, caches, locks."""
        return machine_folder(self.fingerprint)

    @property
    def fastest_flops_per_s(self) -> float | None:
        """The rate of large matrix products in the fastest dtype; None where nothing was measured."""
        rates = (self.fp32_flops_per_s, self.bf16_flops_per_s, self.fp16_flops_per_s)
        return max((rate for rate in rates if rate), default=None)

    def as_json(self) -> dict[str, dict[str, Any]]:
        """{name: {value, source, unit}}, without what this machine does not have (GPU rows on a CPU)."""
        return {
            field.name: {
                "value": getattr(self, field.name),
                "source": field.metadata["source"],
                "unit": field.metadata["unit"],
            }
            for field in shown_fields(self)
        }

    def rows(self) -> list[list[str]]:
        """[label, value with its unit, source] for people."""
        return [
            [field.metadata["label"], printed(getattr(self, field.name), field.metadata), field.metadata["source"]]
            for field in shown_fields(self)
        ]


def shown_fields(facts: Facts) -> list[dataclasses.Field[Any]]:
    """The fields that say something here: no GPU's where no GPU is, no fp16 rate on a CPU."""
    hidden = (() if facts.gpu_name else ("gpu_", "num_gpus")) + (("fp16_",) if facts.device == "cpu" else ())
    return [field for field in dataclasses.fields(facts) if field.metadata and not field.name.startswith(hidden)]


def printed(value: Any, metadata: Mapping[str, Any]) -> str:
    """A fact's value for people: with its unit, yes or no, or the word for a missing one."""
    if value is None:
        return str(metadata["missing"])
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = metadata["unit"]
    if unit == "bytes":
        return human_bytes(value)
    if unit == "FLOP/s":
        size, prefix = (1e12, "T") if value >= 1e12 else (1e9, "G")
        return f"{three_digits(value / size)} {prefix}FLOP/s"
    if unit == "bytes/s":
        return f"{three_digits(value / 1e9)} GB/s"
    return f"{value:.1f} {unit}" if isinstance(value, float) else f"{value} {unit}".strip()


def version(package: str) -> str | None:
    """The installed version of a package, found without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_fingerprint(
    cpu_name: str | None, cores: tuple[int, int], memory_bytes: int | None, gpus: tuple[str, ...], torch: str | None
) -> str:
    """16 hex digits, the same as long as nothing changed that measurements here depend on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus else None
    gib = None if memory_bytes is None else round(memory_bytes / 2**30)
    what = [FORMAT, platform.machine(), cpu_name, cores, gib, gpus, visible, torch]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def read_system() -> Facts:
    """What can be told without torch, in milliseconds; the rest is None."""
    limits = system.group_limits()
    cores = system.count_cores(system.allowed_cpus(), limits.cpus)
    memory_bytes, available_bytes = system.memory(limits=limits)
    cpu_name, flags = system.processor()
    gpus = system.gpu_names()

    def has(flag: str) -> bool | None:
        return None if flags is None else flag in flags

    torch = version("torch")
    return Facts(
        fingerprint=machine_fingerprint(cpu_name, cores, memory_bytes, gpus, torch),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python_version=platform.python_version(),
        torch_version=torch,
        triton_version=version("triton"),
        libc=" ".join(platform.libc_ver()).strip() or None,
        cpu_name=cpu_name,
        cores_logical=cores[0],
        cores_physical=cores[1],
        busy_cores=system.busy_cores(),
        has_avx2=has("avx2"),
        has_avx512=has("avx512f"),
        has_avx512_bf16=has("avx512_bf16"),
        has_amx_bf16=has("amx_bf16"),
        memory_bytes=memory_bytes,
        memory_available_bytes=available_bytes,
        cxx=system.cxx_compiler(),
        cc=system.c_compiler(),
        python_header=system.python_header(),
        gpu_name=gpus[0] if gpus else None,
        num_gpus=len(gpus) or None,
    )


# what the child tells; kept in facts.json
KEPT_NUMBERS = (
    *(f"{name}{size}_flops_per_s" for name in ("fp32", "bf16", "fp16") for size in ("_small", "")),
    "copy_bytes_per_s", "measured_busy_cores", "num_gpus", "gpu_memory_bytes", "gpu_sms",
)  # fmt: skip
KEPT_WORDS = ("device", "gpu_name", "gpu_capability", "measured_at")


def read_kept(path: Path) -> dict[str, Any] | None:
    """The measured facts kept at path; None where there are none. A file that cannot be trusted is removed."""
    if not path.exists():
        return None
    try:
        return check_kept(read_json(path))
    except Damaged as error:
        say(f"{path} cannot be used ({error.message}): measuring again")
        path.unlink(missing_ok=True)
        return None


def check_kept(content: Any) -> dict[str, Any]:
    """The measured facts out of a facts file. Raises Damaged for any that no measurement could have given."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Damaged(f"not a facts file of format {FORMAT}")
    entries = content.get("facts")
    kept: dict[str, Any] = {}
    for name in (*KEPT_NUMBERS, *KEPT_WORDS):
        entry = entries.get(name, {"value": None}) if isinstance(entries, dict) else None
        if not isinstance(entry, dict):
            raise Damaged(f"{name} is {entry!r}", value=name)
        value = kept[name] = entry.get("value")
        is_number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        if value is not None and not (is_number if name in KEPT_NUMBERS else isinstance(value, str)):
            raise Damaged(f"{name} is {value!r}", value=name)
    if kept["device"] not in ("cpu", "cuda", "mps"):
        raise Damaged(f"device is {kept['device']!r}", value=kept["device"])
    return kept


def measure_rates(facts: Facts) -> dict[str, Any]:
    """Asks the child that imports torch. Raises ChildFailed."""
    variables = {name: item.value for name, item in environment(facts).items()}
    return ask_child("intone.rates", {"threads": facts.cores_physical}, timeout_s=MEASURE_TIMEOUT_S,
                     environment=variables)  # fmt: skip


def load_facts(*, again: bool = False, measure: Callable[[Facts], dict[str, Any]] = measure_rates) -> Facts:
    """All facts: the measured ones from INTONE_HOME/machine/<fingerprint>/facts.json, or measured now and kept there.

    again measures in any case. Facts that were measured while others kept the machine busy are measured again once
    it is quiet. Where measuring fails its facts are None, the reason is said on stderr, and nothing is kept.
    Free memory, load and the like are always those of now.
    """
    now = read_system()
    path = now.folder / "facts.json"

    def usable() -> dict[str, Any] | None:
        kept = None if again else read_kept(path)
        was_busy = kept is not None and (kept.get("measured_busy_cores") or 0) > BUSY_CORES
        return None if was_busy and (now.busy_cores or 0) <= BUSY_CORES else kept

    kept = usable()
    if kept is not None:
        return completed(now, kept)
    with quiet(now.folder):
        kept = usable()  # somebody else may have measured while we waited
        if kept is None:
            try:
                busy = system.busy_cores()  # sampled here: before, it may have been the one we waited for
                kept = measure(now)
            except ChildFailed as error:
                say(f"measuring this machine failed ({error}): its rates are unknown")
                return now
            kept |= {"measured_at": utc_now(), "measured_busy_cores": busy}
            facts = completed(now, kept)
            write_json(path, {"format": FORMAT, "fingerprint": now.fingerprint, "facts": facts.as_json()})
            return facts
    return completed(now, kept)


def known_facts() -> Facts:
    """What is known without measuring: today's facts and those that were measured here before."""
    now = read_system()
    kept = read_kept(now.folder / "facts.json")
    return now if kept is None else completed(now, kept)


def completed(now: Facts, kept: dict[str, Any]) -> Facts:
    """Today's facts with the measured ones and what the tables say about the GPU."""
    facts = dataclasses.replace(now, **{name: value for name, value in kept.items() if value is not None})
    if facts.device != "cuda":
        return facts
    flops_per_s, bytes_per_s = PEAKS.get(facts.gpu_name or "", (None, None))
    return dataclasses.replace(
        facts, peak_flops_per_s=flops_per_s, peak_bytes_per_s=bytes_per_s, gpu_memory_free_bytes=system.gpu_free_bytes()
    )


def quiet(folder: Path, what: str = "a measurement") -> FolderLock:
    """Waits for the machine's measuring lock; close it, or use it in a with statement. Not re-entrant.

    Those who wait are told what holds it.
    """
    path = folder / "quiet.lock"
    try:
        lock = FolderLock(path, what="the measuring lock")
    except UserError as error:
        if error.value != str(path.parent):
            raise
        holder = (system.read_text(path) or "").strip() or "another measurement"
        say(f"waiting for {holder} to end: one thing at a time is measured on this machine")
        lock = FolderLock(path, wait=True)
    lock.note(f"{what} (process {os.getpid()}, since {utc_now()})")
    return lock


def compile_obstacle(facts: Facts) -> str | None:
    """Why torch.compile cannot work here, with the fix; None where it can."""
    if facts.torch_version is None:
        return "torch is not installed"
    missing = []
    if facts.device == "cuda":
        missing += [] if facts.triton_version else ["triton"]
        missing += [] if facts.cc else ["a C compiler"]
    missing += [] if facts.cxx else ["a C++ compiler"]
    missing += [] if facts.python_header else ["the Python headers (Python.h)"]
    if not missing:
        return None
    fix = "pip install triton" if missing == ["triton"] else COMPILE_FIX
    return f"torch.compile needs {' and '.join(missing)}: {fix}"


@dataclass(frozen=True)
class Variable:
    """An environment variable of a worker, and why it is set."""

    value: str
    reason: str


def environment(
    facts: Facts, *, threads: int | None = None, already: Mapping[str, str] = os.environ
) -> dict[str, Variable]:
    """What must be in the environment before a worker's process starts; too late for it to set itself.

    threads: the chosen number, by default all usable cores. Except for the number of threads, what the person has
    already set is left as it is.
    """
    variables = {}
    if (facts.libc or "").startswith("glibc"):
        keep = "tensors freed in one step are reused in the next instead of being returned and faulted in again"
        variables["MALLOC_MMAP_MAX_"] = Variable("0", keep)
        variables["MALLOC_TRIM_THRESHOLD_"] = Variable(str(16 * 2**30), keep)
        variables["MALLOC_TOP_PAD_"] = Variable(str(128 * 2**20), keep)
    if facts.busy_cores is not None and facts.busy_cores > BUSY_CORES:
        why = f"others keep {facts.busy_cores:.1f} cores busy: waiting threads sleep instead of spinning"
        variables["OMP_WAIT_POLICY"] = Variable("PASSIVE", why)
    cache = "compiled code is shared by all runs and trials on this machine"
    variables["TORCHINDUCTOR_CACHE_DIR"] = Variable(str(facts.folder / "inductor"), cache)
    variables = {name: variable for name, variable in variables.items() if name not in already}
    number = facts.cores_physical if threads is None else threads
    why = "all usable cores" if threads is None else "the chosen number of threads"
    return variables | {"OMP_NUM_THREADS": Variable(str(number), why)}
