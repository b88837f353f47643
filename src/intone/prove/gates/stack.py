"""The gate on sums of changes: the whole stack was measured, and taking any one change out of it makes it slower."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intone.evals.intervals import Interval
from intone.prove.gates.result import GateResult, Threshold, not_judged

NAME = "whole stack"
SMALLEST = 0.01  # a gain below 1 % is none (DESIGN, Prove)
THRESHOLD = Threshold(
    "the total is a measured ratio of the whole stack to the start, and each change taken out alone makes the stack "
    f"slower; a difference below {SMALLEST:.0%} is none",
    "rule: factors are never multiplied (the case study's 3.17 = 1.90 x 1.67)",
)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """Measured ratios of times, above 1: the second is faster. An Interval is the ratio with its 95 % ends.

    total: start against the whole stack, None where that was not measured. without: for every change, the stack
    without it against the whole stack. alone: for every change, start against start with it, where measured.
    claimed: the total that is to be printed, None: that of total.
    """

    total: Interval | None
    without: Mapping[str, Interval | None]
    alone: Mapping[str, float] = field(default_factory=dict)
    claimed: float | None = None


def judge(stack: Stack) -> GateResult:
    """Rejected for a total that was not measured, and for a change without a gain of its own; names both."""
    product = math.prod(stack.alone.values()) if stack.alone else None
    evidence: dict[str, Any] = {
        "total": ends(stack.total), "claimed": stack.claimed, "product_of_factors": product, "alone": dict(stack.alone),
        "without": {name: ends(found) for name, found in stack.without.items()},
    }  # fmt: skip
    if stack.total is None:
        reason = "the whole stack was not measured"
        if stack.claimed is not None and is_product(stack.claimed, product):
            reason += f": {stack.claimed:.2f}x is the product of its parts"
        fix = "measure the start against all changes together"
        return GateResult(NAME, False, reason, THRESHOLD, evidence, fix=fix)
    problem = wrong_claim(stack, stack.total, product)
    if problem:
        return GateResult(NAME, False, problem, THRESHOLD, evidence, fix="print the measured total with its interval")
    if not stack.without:
        return not_judged(NAME, "no change was taken out of the stack", "measure the stack without each of its changes")
    missing = [name for name, found in stack.without.items() if found is None]
    idle = [name for name, found in stack.without.items() if found and found.high <= 1 + SMALLEST]
    unclear = [name for name, found in stack.without.items() if found and found.low <= 1 and name not in idle]
    evidence |= {"no_own_gain": idle, "unclear": unclear, "not_measured": missing}
    if idle:
        found = stack.without[idle[0]]
        assert found is not None, "idle changes were measured"
        others = f", nor has {', '.join(idle[1:])}" if idle[1:] else ""
        reason = f"{idle[0]} has no gain of its own within the stack, {shown(found)} without it{others}"
        return GateResult(NAME, False, reason, THRESHOLD, evidence, fix=f"drop {', '.join(idle)}, and measure again")
    if missing or unclear:
        reason = f"that {', '.join([*missing, *unclear])} gains anything within the stack is not shown"
        fix = "measure the stack without it, in more pairs"
        return GateResult(NAME, None, reason, THRESHOLD, evidence, fix=fix)
    reason = f"measured together: {shown(stack.total)}; each of {len(stack.without)} changes has a gain of its own"
    return GateResult(NAME, True, reason, THRESHOLD, evidence)


def wrong_claim(stack: Stack, total: Interval, product: float | None) -> str | None:
    """Why the claimed total is not the measured one; None where it is, or nothing was claimed."""
    if stack.claimed is None or total.low <= stack.claimed <= total.high:
        return None
    source = ", the product of its parts," if is_product(stack.claimed, product) else ""
    return f"the claimed {stack.claimed:.2f}x{source} is outside what was measured, {shown(total)}"


def is_product(claimed: float, product: float | None) -> bool:
    """Whether a claim is the factors multiplied, up to the rounding of each to two decimals."""
    return product is not None and abs(claimed / product - 1) < 0.01


def ends(interval: Interval | None) -> list[float] | None:
    """[value, low, high] for JSON."""
    return None if interval is None else [interval.value, interval.low, interval.high]


def shown(interval: Interval) -> str:
    return f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
