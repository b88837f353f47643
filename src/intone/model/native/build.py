"""Builds the C++ kernels on the machine they run on and loads them; says why where they cannot be had.

Plain C functions on raw pointers, loaded with ctypes: no headers of Python or PyTorch, so building takes seconds and
the file serves every Python and PyTorch. It is kept in INTONE_HOME/machine/<fingerprint>/native/<key>/.
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
from pathlib import Path

from intone.errors import UserError
from intone.paths import FolderLock, home
from intone.system import processor

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17", "-w")
# what the code is written with; all processors since Intel's Cooper Lake and AMD's Zen 4
FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")
BUILD_TIMEOUT_S = 300.0  # a build takes 4 s on a quiet core (guess: sixty times that on a loaded one)


def obstacle() -> str | None:
    """Why the kernels cannot be built or used here; None: nothing is known to be in the way."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"our CPU kernels are written for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    flags = processor()[1] or set()
    missing = [name for name in FEATURES if name not in flags]
    if missing:
        return f"our CPU kernels need {', '.join(missing)}, which this processor does not have"
    if compiler() is None:
        return "our CPU kernels need g++, which was not found: install it (Debian: apt-get install g++)"
    return None


def compiler() -> str | None:
    """g++, or what $CXX names if that is one; clang would bring a second OpenMP with its own threads."""
    named = os.environ.get("CXX")
    if named and "clang" not in named and shutil.which(named):
        return named
    return shutil.which("g++")


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, built if they are not there yet. Raises UserError with the reason where they cannot be had.

    Import torch first: its OpenMP is then the one that the kernels use, with the same threads.
    """
    reason = obstacle()
    if reason is not None:
        raise UserError(reason, fix="use --kernels torch")
    command = compiler()
    assert command is not None, "obstacle() looked"
    sources = sorted(SOURCES.glob("*.cpp"))
    path = home() / "native" / build_key(command, sources) / "kernels.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FolderLock(path.parent / "lock", what="the folder of our CPU kernels", wait=True):
            if not path.exists():
                build(command, sources, path)
    return ctypes.CDLL(str(path))


def build_key(command: str, sources: list[Path]) -> str:
    """What the result of a build depends on: sources, flags, compiler and processor."""
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    name, flags = processor()
    digest = hashlib.sha256("\n".join([version, *FLAGS, str(name), *sorted(flags or ())]).encode())
    for source in [*sources, *sorted(SOURCES.glob("*.h"))]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def build(command: str, sources: list[Path], path: Path) -> None:
    """Compiles into a temporary file next to path and renames it. Raises UserError with the compiler's words."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        words = [command, *FLAGS, *map(str, sources), "-o", name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
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
