"""Where measured rows are kept, and the facts that every row carries: machine and code revision."""

import os
import subprocess
from pathlib import Path
from typing import Any

import intone
from intone.evals.intervals import Interval
from intone.hardware import load_facts
from intone.records import ResultRow, utc_now

ROOT = Path(__file__).resolve().parents[3]
FACTS = (
    "cpu_name",
    "cores_physical",
    "has_avx512_bf16",
    "has_amx_bf16",
    "memory_bytes",
    "gpu_name",
    "torch_version",
    "python_version",
    "fp32_flops_per_s",
    "bf16_flops_per_s",
)


def row_path(suite: str) -> Path:
    """bench/results/SUITE.jsonl of this checkout."""
    return ROOT / "bench" / "results" / f"{suite}.jsonl"


def machine_facts() -> dict[str, Any]:
    """The facts of this machine that explain a number."""
    facts = load_facts()
    return {name: getattr(facts, name) for name in FACTS if getattr(facts, name) is not None}


def code_revision() -> str:
    """INTONE_CODE where it is set, else the git revision with "+" where files differ from it, else the version.

    The variable is for copies of a checkout, whose history says nothing about them.
    """
    if name := os.environ.get("INTONE_CODE"):
        return name
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"intone {intone.__version__}"


def revision_of(path: Path) -> str:
    """The newest commit that changed something under a path of this checkout; outside of one as `code_revision`."""
    try:
        return _git("log", "-1", "--format=%h", "--", str(path))
    except (OSError, subprocess.CalledProcessError):
        return code_revision()


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def new_row(name: str, result: Interval, unit: str, *, n: int, baseline: str | None, command: str) -> ResultRow:
    """A measured number with this machine, this code and this moment."""
    return ResultRow(
        id=name, value=result.value, unit=unit, low=result.low, high=result.high, n=n, baseline=baseline,
        machine=machine_facts(), command=command, code=code_revision(), date=utc_now(),
    )  # fmt: skip
