"""Chooses between our float32 products and the library's for training on our kernels, by timing both in turns

The question goes to a child (`python -m intone.tune.products`); only the child imports torch. The answer stands in the
environment of workers, so that all processes of a run compute alike.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intone.child import ChildFailed, ask_child
from intone.config import ModelConfig
from intone.errors import unknown_name
from intone.hardware import Facts, environment
from intone.log import human_duration
from intone.model.native.build import PRODUCTS, PRODUCTS_OF, has_own_by_name
from intone.records import Choice
from intone.resolving import Resolved
from intone.tune.kernels import kernels_obstacle
from intone.tune.probe import speedup, timed_rounds
from intone.tune.trials import Trials, code_fingerprint

SHAPES = ("forward", "gradient of x", "gradient of weights")  # of the MLP's first product; a step's others are alike
WORTH = 1.03  # the library must be this much faster: ours also spare a pass over memory (decision 013); guess
PRODUCT_S = 0.004  # aimed length of one product at the measured rate, within ROWS
ROWS = (256, 2048)
BUDGET_S = 0.25  # of timed products, after one of each: 0.2 to 0.45 s at widths of 128 to 1,024 by that rate
TIMEOUT_S = 120.0  # the kernels may have to be built first
COST_S = 3.0  # of a comparison: the start of its child
SAVES = 0.03  # share of a run that the answer saves; guess: a pass gained 6 to 14 % where ours were faster (LOG.md)

# of (facts, config, threads): seconds of our products and of the library's, one list per entry of SHAPES, rounds paired
Times = tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]
TimeProducts = Callable[[Facts, ModelConfig, int], Times]


def settle_products(
    asked: Resolved, compile_asked: Resolved, facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str,
    threads: int, run_s: float | None, already: Mapping[str, str] = os.environ,
    time_products: TimeProducts | None = None,
) -> Choice | None:  # fmt: skip
    """own or library; None where our kernels do not train in fp32 here, or were not asked for (asked: --kernels).

    run_s: expected seconds of training, within which the comparison must pay; None: compare in any case.
    Raises UserError where the person's environment names neither.
    """
    obstacle = kernels_obstacle(facts, config, dtype, compile_asked.value)
    if asked.value == "torch" or dtype != "fp32" or obstacle is not None:
        return None
    if PRODUCTS in already:
        if already[PRODUCTS] not in PRODUCTS_OF:
            raise unknown_name(PRODUCTS, already[PRODUCTS], PRODUCTS_OF)
        return Choice(already[PRODUCTS], f"{PRODUCTS} is set", "default")
    rule = "own" if has_own_by_name() else "library"
    key: dict[str, Any] = {"width": config.width, "mlp_ratio": config.mlp_ratio, "threads": threads}
    key |= {"rows": num_rows(facts, config), "code": code_fingerprint("model/native")}
    if run_s is not None and SAVES * run_s < COST_S and trials.find("products", key) is None:
        why = f"a comparison takes {COST_S:.0f} s, more than it is likely to save in {human_duration(round(run_s))}"
        return Choice(rule, f"by the processor's name: {why}", "default")

    def decide() -> Choice:
        try:
            return pick(*(time_products or timed)(facts, config, threads))
        except ChildFailed as error:
            return Choice(rule, f"by the processor's name: products could not be timed: {error}", "default")

    return trials.settle("products", key, decide)


def pick(own: Sequence[Sequence[float]], library: Sequence[Sequence[float]]) -> Choice:
    """The side whose products of all SHAPES together take less time, ours unless the library is 3 % faster."""
    sums = [[sum(round_s) for round_s in zip(*side, strict=True)] for side in (library, own)]
    gain = speedup(*sums)
    each = ", ".join(
        f"{name} {speedup(theirs, ours):.2f}x" for name, theirs, ours in zip(SHAPES, library, own, strict=True)
    )
    value, other = ("own", "library") if gain * WORTH > 1 else ("library", "own")
    reason = f"our products are {gain:.2f}x as fast as the library's ({each}; median of {len(sums[0])} rounds)"
    if value == "own" and gain < 1:
        reason += ", and spare a pass over memory"
    why = f"{gain if other == 'own' else 1 / gain:.2f}x as fast"
    measured: dict[str, Any] = {
        f"{side}_s": dict(zip(SHAPES, map(statistics.median, times), strict=True))
        for side, times in (("own", own), ("library", library))
    }
    return Choice(value, reason, "measured", ({"value": other, "why": why},), measured | {"rounds": len(sums[0])})


def num_rows(facts: Facts, config: ModelConfig) -> int:
    """Tokens of a product that takes about PRODUCT_S here, within ROWS; the fewest where no rate is known."""
    rows = PRODUCT_S * (facts.fp32_flops_per_s or 0.0) / (2 * config.width**2 * config.mlp_ratio)
    return min(max(int(rows) // 16 * 16, ROWS[0]), ROWS[1])


def timed(facts: Facts, config: ModelConfig, threads: int) -> Times:
    """Both sides in a child with the environment of a worker. Raises ChildFailed."""
    question = {"width": config.width, "hidden": config.mlp_ratio * config.width, "rows": num_rows(facts, config),
                "threads": threads}  # fmt: skip
    variables = {name: item.value for name, item in environment(facts, threads=threads).items()}
    answer = ask_child("intone.tune.products", question, timeout_s=TIMEOUT_S, environment=variables)
    return answer["own_s"], answer["library_s"]


def measure(width: int, hidden: int, rows: int, threads: int, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """The child's side of timed()."""
    import torch

    from intone.model.native.ops import own_product

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, width), (hidden, width), (rows, hidden))
    x, weight, d_out = (torch.randn(*size, generator=generator) for size in sizes)
    pairs = ((x, weight.t()), (d_out, weight), (d_out.t(), x))
    cases = [
        (side, a, b, torch.empty(a.shape[0], b.shape[1])) for a, b in pairs for side in (own_product, library_product)
    ]

    def run(case: Any) -> float:
        side, *operands = case
        start = time.perf_counter()
        side(*operands)
        return time.perf_counter() - start

    times = timed_rounds(cases, run, budget_s)
    return {"own_s": times[::2], "library_s": times[1::2]}


def library_product(a: Any, b: Any, out: Any) -> None:
    """out (M, N) = a (M, K) @ b (K, N), tensors, by torch.mm()."""
    import torch

    torch.mm(a, b, out=out)


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
