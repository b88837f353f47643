"""Chooses the dtype that trains fastest here, and lets it in only if its losses follow those of fp32.

Compiled bf16 has trained wrongly on a CPU where eager bf16 was right: so the gate looks at a trajectory of losses
of the real model, not at one step's gradients (reference: docs/decisions).
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from intone.child import ChildFailed
from intone.hardware import Facts
from intone.prove.gates.parity import trajectory_gate
from intone.records import Choice
from intone.tune.probe import speedup

RunSteps = Callable[[str, bool, int], list[float]]  # (dtype, compiled, num_steps) -> loss of each step, same batch
Gate = Callable[[str], Choice]  # dtype -> a choice whose value says whether it trains like fp32

GATE_STEPS = 12
WORTH = 1.05  # a narrower dtype must be this much faster to be worth its rounding


class NoTrial(Exception):
    """A trial gave no losses for a reason that says nothing about the candidate (killed, out of memory)."""


def candidates(facts: Facts) -> tuple[str, ...]:
    """The dtypes worth timing: fp32, and bf16, or fp16 with loss scaling on GPUs before Ampere."""
    if facts.device == "cuda" and facts.gpu_capability and float(facts.gpu_capability) < 8.0:
        return ("fp32", "fp16")
    return ("fp32", "bf16")


def rates(facts: Facts) -> dict[str, float | None]:
    """The measured FLOP/s of large products in every dtype."""
    return {"fp32": facts.fp32_flops_per_s, "bf16": facts.bf16_flops_per_s, "fp16": facts.fp16_flops_per_s}


def loses(name: str, rates: Mapping[str, float | None]) -> bool:
    """Whether plain products say already that this dtype is not worth timing beside fp32."""
    rate, plain = rates.get(name), rates.get("fp32")
    return name != "fp32" and rate is not None and plain is not None and rate < plain * WORTH


def guess(facts: Facts) -> str:
    """The dtype that training will most likely have, by the rates of products alone: for what is settled before it.

    A processor without instructions for bf16 computes it a hundred times slower than fp32: steps in it say nothing
    there about threads, and take minutes.
    """
    return next(name for name in reversed(candidates(facts)) if not loses(name, rates(facts)))


def run_gate(dtype: str, *, compiled: bool, run_steps: RunSteps, num_steps: int = GATE_STEPS) -> Choice:
    """Whether the model trains in this dtype, compiled or not, as it does in eager fp32: value True or False.

    Origin "default" and value False where a trial gave no losses: that is not a finding about the dtype.
    """
    what = f"{'compiled' if compiled else 'eager'} {dtype}"
    try:
        reference = run_steps("fp32", False, num_steps)
        losses = run_steps(dtype, compiled, num_steps)
    except NoTrial as error:
        return Choice(False, f"{what} could not be checked against fp32: {error}", "default")
    ok, why = trajectory_gate(losses, reference)
    measured = {"losses": finite(losses), "losses_fp32": finite(reference)}
    return Choice(ok, f"{what} {'accepted' if ok else 'rejected'}: {why}", "measured", measured=measured)


def finite(losses: Sequence[float]) -> list[float | None]:
    """Losses as JSON can hold them: None where one is not finite."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def choose(
    names: Sequence[str],
    *,
    rates: Mapping[str, float | None],
    time_steps: Callable[[Sequence[str]], Mapping[str, Sequence[float]]],
    gate: Gate,
) -> Choice:
    """The fastest of names, fp32 among them, that passes the gate; fp32 where nothing is more than 5 % faster.

    rates: FLOP/s of plain products; a dtype that loses there is not timed. time_steps: seconds per training step,
    one list per dtype with entry i of all from the same round; may raise ChildFailed.
    """
    beat = []
    timed = ["fp32"]
    for name in names:
        if loses(name, rates):
            ratio = (rates[name] or 0.0) / (rates["fp32"] or 1.0)
            beat.append({"value": name, "why": f"its products run at {ratio:.2f}x the rate of fp32 here"})
        elif name != "fp32":
            timed.append(name)
    if len(timed) == 1:
        return Choice("fp32", "no narrower dtype is faster here", "measured", tuple(beat), {"flops_per_s": dict(rates)})
    try:
        times = time_steps(timed)
    except ChildFailed as error:
        return Choice("fp32", f"the training step could not be timed: {error}", "default", tuple(beat))
    gains = {name: speedup(times["fp32"], times[name]) for name in timed}
    measured = {"step_s": {name: statistics.median(times[name]) for name in timed}, "rounds": len(times["fp32"])}
    origin = "measured"
    for name in sorted(timed, key=gains.__getitem__, reverse=True):
        if name == "fp32" or gains[name] <= WORTH:
            continue
        verdict = gate(name)
        if verdict.value:
            beat.append({"value": "fp32", "why": f"{name} steps are {gains[name]:.2f}x as fast"})
            reason = f"{gains[name]:.2f}x as fast as fp32 in a training step; {verdict.reason}"
            return Choice(name, reason, "measured", tuple(beat), measured)
        origin = "default" if verdict.origin == "default" else origin
        beat.append({"value": name, "why": f"{gains[name]:.2f}x as fast as fp32, but {verdict.reason}"})
    for name in timed[1:]:
        if gains[name] <= WORTH:
            beat.append({"value": name, "why": f"{gains[name]:.2f}x as fast as fp32 in a training step"})
    reason = "no narrower dtype is both faster and right here"
    return Choice("fp32", reason, origin, tuple(beat), measured)  # type: ignore[arg-type]
