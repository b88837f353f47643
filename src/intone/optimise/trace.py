"""Reads a profile (Chrome trace of torch.profiler) into a few numbers: operators, idle time, dtypes of products."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# operators that are matrix products, by their names in the profile; bare numbers in "Input type" are c10 names
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "mkldnn::_linear_pointwise")
DTYPES = {
    "float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16", "signed char": "int8",
    "c10::Float8_e4m3fn": "fp8",
}  # fmt: skip
# which arguments of a product are its matrices (.., m, k) and (.., k, n)
MATRICES = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::bmm": (0, 1), "aten::baddbmm": (1, 2)}
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Profile:
    """A profiled stretch of time. Seconds; shares of its wall time."""

    wall_s: float
    idle_share: float
    num_ops: int
    median_op_s: float | None
    product_dtypes: dict[str, float]  # dtype -> share of the time of products
    has_device_work: bool
    product_flops: float  # of matrix products, by their shapes; attention and convolutions are not among them


def read_profile(path: Path) -> Profile | None:
    """The numbers of a trace; None where it holds no operator (a window that is no evidence)."""
    events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    ops = [event for event in events if event.get("cat") == "cpu_op" and "dur" in event]
    kernels = [event for event in events if event.get("cat") in DEVICE_WORK and "dur" in event]
    if not ops:
        return None
    busy = kernels or ops
    begin = min(event["ts"] for event in ops)
    end = max(event["ts"] + event["dur"] for event in [*ops, *kernels])
    wall = end - begin
    outer = outermost(ops)
    lengths = [event["dur"] / 1e6 for event in (kernels or outer)]
    return Profile(
        wall / 1e6, 1.0 - union([(event["ts"], event["ts"] + event["dur"]) for event in busy]) / wall if wall else 0.0,
        len(kernels or outer), statistics.median(lengths) if lengths else None, product_dtypes(ops), bool(kernels),
        product_flops(ops),
    )  # fmt: skip


def outermost(ops: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Operators that no other operator of the same thread holds."""
    found: list[dict[str, Any]] = []
    ends: dict[Any, float] = {}
    for event in sorted(ops, key=lambda event: (event["ts"], -event["dur"])):
        thread = event.get("tid")
        if event["ts"] >= ends.get(thread, float("-inf")):
            found.append(event)
            ends[thread] = event["ts"] + event["dur"]
    return found


def union(intervals: Sequence[tuple[float, float]]) -> float:
    """The length that intervals cover together."""
    covered, reach = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    return covered


def product_dtypes(ops: Sequence[dict[str, Any]]) -> dict[str, float]:
    """dtype -> share of the time that matrix products take."""
    spent: dict[str, float] = {}
    for event in ops:
        if event["name"] not in PRODUCTS:
            continue
        types = [DTYPES.get(name, name) for name in event.get("args", {}).get("Input type", []) if name in DTYPES]
        if types:
            spent[types[-1]] = spent.get(types[-1], 0.0) + event["dur"]
    whole = sum(spent.values())
    return {name: seconds / whole for name, seconds in sorted(spent.items())} if whole else {}


def product_flops(ops: Sequence[dict[str, Any]]) -> float:
    """Two for each multiplication in the matrix products, by the shapes that the profile tells."""
    total = 0.0
    for event in ops:
        places, shapes = MATRICES.get(event["name"]), event.get("args", {}).get("Input Dims", [])
        if places is not None and len(shapes) > places[1]:
            left, right = (shapes[place] for place in places)
            total += 2.0 * math.prod(left) * right[-1] if left and right else 0.0
    return total
