"""Chooses between PyTorch's operations and our CPU kernels for the training step: the faster one that trains alike"""

from typing import TYPE_CHECKING

from intone.config import ModelConfig
from intone.errors import UserError
from intone.hardware import Facts
from intone.model.native import build
from intone.model.native.shapes import shape_obstacle
from intone.prove.gates.parity import trajectory_gate
from intone.records import Choice, choice
from intone.resolving import Resolved
from intone.tune.precision import GATE_STEPS, NoTrial
from intone.tune.settle import shape_key
from intone.tune.trials import Trials

if TYPE_CHECKING:
    from intone.tune.trial import TrialRunner

WORTH = 1.02  # our kernels must be this much faster to be worth a build; guess


def settle_kernels(
    asked: Resolved, compile_asked: Resolved, facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str,
    runner: "TrialRunner",
) -> Choice:  # fmt: skip
    """ "native" where our kernels can run, are faster here, and give the losses of fp32; else "torch".

    Raises UserError where they were asked for and cannot run.
    """
    obstacle = kernels_obstacle(facts, config, dtype, compile_asked.value)
    if asked.value == "native" and obstacle is not None:
        raise UserError(f"cannot use our kernels: {obstacle}", value="native", fix="use --kernels auto")
    if asked.value != "auto":
        return choice(asked)
    if obstacle is not None:
        return Choice("torch", obstacle, "default")
    key = shape_key(facts, config) | {"dtype": dtype}
    return trials.settle("kernels", key, lambda: compared(runner, dtype))


def kernels_obstacle(facts: Facts, config: ModelConfig, dtype: str, compile_asked: str) -> str | None:
    """Why our kernels cannot compute this model's training here; None: nothing is known to be in the way."""
    if facts.device != "cpu":
        return f"our kernels are for CPUs, this runs on {facts.device}"
    variant = build.variant_for(dtype)
    if variant is None:
        return f"our kernels compute in bf16 or fp32, this runs in {dtype}"
    if compile_asked == "on":
        return "compiling was asked for, and compiled code has its own kernels"
    return shape_obstacle(config) or build.obstacle(variant)


def compared(runner: "TrialRunner", dtype: str) -> Choice:
    """Both ways over the same steps of the real worker: losses against fp32 first, then seconds per step."""
    try:
        reference = runner.run("fp32", compiled=False, num_steps=GATE_STEPS)
        plain = runner.run(dtype, compiled=False, num_steps=GATE_STEPS)
        ours = runner.run(dtype, compiled=False, num_steps=GATE_STEPS, kernels="native")
    except NoTrial as error:
        return Choice("torch", f"our kernels could not be tried: {error}", "default")
    accepted, why = trajectory_gate(ours.losses, reference.losses)
    gain = plain.step_s / ours.step_s
    measured = {"step_s": {"torch": plain.step_s, "native": ours.step_s}}
    if not accepted:
        beat = ({"value": "native", "why": why},)
        return Choice("torch", f"our kernels were rejected: {why}", "measured", beat, measured)
    if gain < WORTH:
        beat = ({"value": "native", "why": f"{gain:.2f}x as fast"},)
        return Choice("torch", f"our kernels are not faster here ({gain:.2f}x)", "measured", beat, measured)
    beat = ({"value": "torch", "why": f"our kernels are {gain:.2f}x as fast per step"},)
    return Choice("native", f"{gain:.2f}x as fast per step as PyTorch's operations; {why}", "measured", beat, measured)
