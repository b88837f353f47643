"""Builds the C++ kernels on the machine they run on and loads them; says why where they cannot be had.

Plain C functions on raw pointers, loaded with ctypes: no headers of Python or PyTorch, so building takes seconds and
the file serves every Python and PyTorch. It is kept in INTONE_HOME/native/<key>/. There are four sets of kernels, one
library each: training in bfloat16 for processors with AVX-512's instructions for it, training in float32 for those
with AVX2 (files that end in _avx2.cpp), and generation, also for AVX2 (generate.cpp), whose products with few rows
have their own library where there is AVX-512 (linear.cpp). A processor that has the first runs the others too.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from intone.errors import UserError, unknown_name
from intone.paths import FolderLock, native_folder
from intone.system import processor

Variant = Literal["avx512_bf16", "avx2", "generate", "linear"]

SOURCES = Path(__file__).parent
PRODUCTS, PRODUCTS_OF = "INTONE_PRODUCTS", ("own", "library")  # see has_own_products()
GPU_DRIVER = Path("/dev/nvidiactl")
FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC", "-std=c++17", "-w")
BUILD_TIMEOUT_S = 300.0  # a build takes 4 s on a quiet core (guess: sixty times that on a loaded one)


@dataclass(frozen=True)
class Kind:
    """What one set of kernels is written with."""

    features: tuple[str, ...]  # of the processor, as the kernel spells them
    flags: tuple[str, ...]  # for the compiler
    dtype: str | None  # that training computes in; None: not for training


# all processors since Intel's Haswell and AMD's Zen; not -march=native, so that any processor tests the same code
AVX2 = ("avx2", "fma", "f16c")
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c", "-mtune=native")

# all processors since Intel's Cooper Lake and AMD's Zen 4, except Intel's for laptops
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")

KINDS: dict[Variant, Kind] = {
    "avx512_bf16": Kind(AVX512, ("-march=native",), "bf16"),
    "avx2": Kind(AVX2, AVX2_FLAGS, "fp32"),
    # libraries of their own, so that generation does not wait for the kernels of training to be built. What is fast in
    # generate.cpp is written out: -O3 makes steps no faster, and its build takes half as long again
    "linear": Kind(AVX512, ("-march=native",), None),
    "generate": Kind(AVX2, (*AVX2_FLAGS, "-O2", "-fno-tree-vectorize"), None),
}

BUILDING = {variant: threading.Lock() for variant in KINDS}


def variant_for(dtype: str) -> Variant | None:
    """The kernels that compute in this dtype; None: there are none."""
    return next((variant for variant, kind in KINDS.items() if kind.dtype == dtype), None)


def obstacle(variant: Variant = "avx512_bf16") -> str | None:
    """Why these kernels cannot be built or used here; None: nothing is known to be in the way."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"our CPU kernels are written for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    kind = KINDS[variant]
    flags = processor()[1] or set()
    missing = [name for name in kind.features if name not in flags]
    if missing:
        what = f" in {kind.dtype}" if kind.dtype else ""
        return f"our CPU kernels{what} need {', '.join(missing)}, which this processor does not have"
    if compiler() is None:
        return "our CPU kernels need g++, which was not found: install it (Debian: apt-get install g++)"
    return None


@functools.cache
def has_own_products() -> bool:
    """Whether training's float32 products run on ours (product_avx2.cpp): as PRODUCTS in the environment says, which
    plans set by what was measured (tune/products.py); without it by the processor's name. Raises UserError.
    """
    asked = os.environ.get(PRODUCTS)
    if asked is not None and asked not in PRODUCTS_OF:
        raise unknown_name(PRODUCTS, asked, PRODUCTS_OF)
    return has_own_by_name() if asked is None else asked == "own"


def has_own_by_name() -> bool:
    """Whether nothing but the processor's name speaks for our products: passes of training gained by them in every
    shape that was looked at on AMD's (LOG.md); elsewhere nothing was measured."""
    return "AMD" in (processor()[0] or "")


def compiler() -> str | None:
    """g++, or what $CXX names if that is one; clang would bring a second OpenMP with its own threads."""
    named = os.environ.get("CXX")
    if named and "clang" not in named and shutil.which(named):
        return named
    return shutil.which("g++")


@functools.cache
def library(variant: Variant = "avx512_bf16") -> ctypes.CDLL:
    """These kernels, built if they are not there yet. Raises UserError with the reason where they cannot be had.

    Import torch first: its OpenMP is then the one that the kernels use, with the same threads.
    """
    return ctypes.CDLL(str(built(variant)))


def built(variant: Variant) -> Path:
    """The file with these kernels, made if it is not there yet; waits for whoever makes it. Raises UserError."""
    reason = obstacle(variant)
    if reason is not None:
        raise UserError(reason, fix="use --kernels torch")
    command = compiler()
    assert command is not None, "obstacle() looked"
    sources = sources_of(variant)
    words = [command, *FLAGS, *KINDS[variant].flags]
    path = native_folder() / build_key(words, sources) / "kernels.so"
    with BUILDING[variant]:  # another thread of this process is waited for without a word
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FolderLock(path.parent / "lock", what="the folder of our CPU kernels", wait=True):
                if not path.exists():
                    build(words, sources, path)
    return path


def build_ahead(*variants: Variant) -> None:
    """Begins to make those of these kernels that can be had here and are not there yet; library() waits for them.

    Needs no torch: a program that is about to import it, and to load a model, calls this first. Returns at once.
    """

    def make(variant: Variant) -> None:
        with contextlib.suppress(UserError, OSError):  # library() meets the same and says it
            built(variant)

    for variant in variants:
        if obstacle(variant) is None:
            threading.Thread(target=make, args=(variant,), name=f"build-{variant}", daemon=True).start()


def build_to_generate(device: str) -> None:
    """build_ahead() of what generation on this device needs; auto: a CPU, unless the driver of a GPU is there."""
    if device == "cpu" or (device == "auto" and not GPU_DRIVER.exists()):
        build_ahead("generate", "linear")


def sources_of(variant: Variant) -> list[Path]:
    """The C++ files of these kernels."""
    return [path for path in sorted(SOURCES.glob("*.cpp")) if _variant_of(path) == variant]


def _variant_of(source: Path) -> Variant:
    if source.stem == "linear":
        return "linear"
    if source.stem.startswith("generate"):
        return "generate"
    return "avx2" if source.stem.endswith("_avx2") else "avx512_bf16"


def build_key(words: list[str], sources: list[Path]) -> str:
    """What the result of a build depends on: sources, compiler and its flags (words), and processor."""
    version = subprocess.run([words[0], "--version"], capture_output=True, text=True, check=False).stdout
    name, flags = processor()
    digest = hashlib.sha256("\n".join([version, *words[1:], str(name), *sorted(flags or ())]).encode())
    for source in [*sources, *sorted(SOURCES.glob("*.h"))]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def build(words: list[str], sources: list[Path], path: Path) -> None:
    """Compiles into a temporary file next to path and renames it. Raises UserError with the compiler's words."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        command = [*words, *map(str, sources), "-o", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise UserError(f"our CPU kernels could not be built: {first}", fix="use --kernels torch")
        os.replace(name, path)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"our CPU kernels were not built within {BUILD_TIMEOUT_S:g} s", fix="use --kernels torch"
        ) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
