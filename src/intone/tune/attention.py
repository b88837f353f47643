"""Chooses how eager code computes attention, by timing steps; compiled code and our kernels have theirs by rule"""

import statistics
from collections.abc import Callable, Sequence

from intone.child import ChildFailed
from intone.config import ModelConfig
from intone.hardware import Facts
from intone.log import human_duration
from intone.prove.gates.parity import trajectory_gate
from intone.records import Choice
from intone.tune.precision import GATE_STEPS, NoTrial
from intone.tune.probe import Case, speedup, time_cases
from intone.tune.settle import TimeCases, shape_key
from intone.tune.trial import TrialRunner, attention_for
from intone.tune.trials import Trials

WORTH = 1.05  # plain products must be this much faster: they hold the scores of a pass in memory, the kernel does not
COST_S = 4.0  # of a comparison: the start of its child and probe.BUDGET_S
SAVES = 0.02  # share of a run that the answer saves; guess: eager the two were equal at 256 tokens (LOG.md)


def settle_attention(
    facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str, threads: int, compiled: bool, kernels: str,
    runner: TrialRunner, run_s: float | None, time_steps: TimeCases = time_cases,
) -> Choice:  # fmt: skip
    """sdpa, PyTorch's fused kernel, or products, plain matrix products with a mask; native where our kernels run.

    run_s: expected seconds of training, within which the comparison must pay; None: compare in any case.
    """
    device = facts.device or "cpu"
    rule = attention_for(device, compiled, kernels)
    if kernels == "native":
        return Choice(rule, "our kernels bring their own", "default")
    if device == "mps":
        return Choice(rule, "the fused kernel, by rule: nothing was measured on MPS", "default")
    if compiled:
        return Choice(rule, "by rule for compiled code (LOG.md): timing both would compile twice", "default")

    key = shape_key(facts, config) | {"dtype": dtype, "threads": threads}
    if run_s is not None and SAVES * run_s < COST_S and trials.find("attention", key) is None:
        why = f"a comparison takes {COST_S:.0f} s, more than it is likely to save in {human_duration(round(run_s))}"
        return Choice(rule, f"by rule: {why}", "default")

    def decide() -> Choice:
        try:
            times = time_steps(config, [Case(threads, dtype, name) for name in ("sdpa", "products")], facts)
        except ChildFailed as error:
            return Choice(rule, f"the training step could not be timed: {error}", "default")
        return compared(times, lambda: gate(runner, dtype))

    return trials.settle("attention", key, decide)


def compared(times: Sequence[Sequence[float]], gate: Callable[[], Choice]) -> Choice:
    """The choice from seconds per step of sdpa and of products, rounds paired; gate() is asked where products win."""
    sdpa, products = times
    gain = speedup(sdpa, products)
    measured = {"step_s": {"sdpa": statistics.median(sdpa), "products": statistics.median(products)},
                "rounds": len(sdpa)}  # fmt: skip
    if gain <= WORTH:
        beat = ({"value": "products", "why": f"{gain:.2f}x as fast, and it holds the scores in memory"},)
        reason = f"plain products are not {WORTH:.2f}x as fast as the fused kernel here ({gain:.2f}x)"
        return Choice("sdpa", reason, "measured", beat, measured)
    verdict = gate()
    if not verdict.value:
        beat = ({"value": "products", "why": f"{gain:.2f}x as fast, but {verdict.reason}"},)
        return Choice("sdpa", f"plain products are faster, but {verdict.reason}", verdict.origin, beat, measured)
    beat = ({"value": "sdpa", "why": f"products are {gain:.2f}x as fast"},)
    return Choice("products", f"{gain:.2f}x as fast as the fused kernel; {verdict.reason}", "measured", beat, measured)


def gate(runner: TrialRunner, dtype: str) -> Choice:
    """Whether the model trains with plain products as it does in eager fp32 with the fused kernel."""
    try:
        reference = runner.run("fp32", compiled=False, num_steps=GATE_STEPS)
        tried = runner.run(dtype, compiled=False, num_steps=GATE_STEPS, attention="products")
    except NoTrial as error:
        return Choice(False, f"they could not be checked against fp32: {error}", "default")
    accepted, why = trajectory_gate(tried.losses, reference.losses)
    return Choice(accepted, f"products {'accepted' if accepted else 'rejected'}: {why}", "measured")
