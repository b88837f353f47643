"""The gate on losses: bit for bit, within a tolerance of fp32, or over seeds, by the kind of the change."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from intone.prove.gates.result import GateResult, Threshold, not_judged
from intone.records import Choices, Segment

NAME = "loss parity"
Kind = Literal["bitwise", "tolerance", "statistical"]

MIN_STEPS = 10  # of a trajectory: compiled bf16 has looked right for the first few steps and then stood still
# below this share of the first loss, or this loss, a batch counts as memorised: rounding is large there against what is
# left (bf16 moves 0.03 nats per token by 0.2 % and 3 nats by 0.03 % [measured]); guesses
MEMORISED = 0.05
SMALL_LOSS = 0.25
# what decides about bits in a segment
COMPUTING = ("from_step", "dtype", "compiled", "attention", "kernels", "device_batch", "threads")
# outcomes of a trial that say something about the machine and nothing about the computation
MACHINE_OUTCOMES = ("killed", "stopped", "out_of_memory", "disk_full")


@dataclass(frozen=True)
class Limits:
    """How far a candidate may be from fp32 eager; relative differences."""

    first_loss: float  # of the first step, from the same weights
    step_loss: float  # of any step of the trajectory
    mean_loss: float  # of the trajectory on average
    gradient: float  # of all gradients of one step as one vector: |g - g32| / |g32|
    norm: float  # of them: | |g| / |g32| - 1 |
    tensor: float  # of the gradient of each large parameter, see TENSOR_SHARE and MIN_ELEMENTS


# parameters with a smaller share of the norm of all gradients, or fewer elements, are not looked at one by one: the
# gradients of a few scalars cancel out over the batch and are 9 % off in right bf16 code [measured]
TENSOR_SHARE = 1e-3
MIN_ELEMENTS = 256
ORIGIN = (
    "measured: about twice (bf16) and 25 times or more (fp32) what micro-batch, attention and compile move right code "
    "from fp32 eager, depths 1 to 4, trained and not, on a CPU (LOG.md, 'How far right code is from fp32'); fp16: guess"
)
LIMITS = {
    "fp32": Limits(1e-5, 4e-3, 1e-3, gradient=1e-4, norm=1e-4, tensor=3e-4),
    "bf16": Limits(3e-3, 2e-2, 5e-3, gradient=6e-2, norm=1.5e-2, tensor=2e-1),
    # guess: those of bf16, whose rounding is 8 times as coarse; overflows are skipped steps, not differences
    "fp16": Limits(3e-3, 2e-2, 5e-3, gradient=6e-2, norm=1.5e-2, tensor=2e-1),
}
# a baseline's own distance from fp32 times OWN_ERROR is allowed where it is more than the limit, up to OWN_MOST limits:
# a baseline that is wrong must not make its candidate right; guesses
OWN_ERROR, OWN_MOST = 1.5, 3.0
GRADIENT_WORDS = {
    "gradient": "the gradients are", "norm": "the norm of the gradients is", "tensor": "the gradient of one tensor is",
}  # fmt: skip


@dataclass(frozen=True)
class GradientError:
    """How far the gradients of one step are from fp32 eager's, from the same weights on the same rows."""

    gradient: float  # of all of them as one vector
    norm: float
    tensor: float  # of the worst large parameter
    worst: str  # its name


@dataclass(frozen=True)
class Losses:
    """What one short training showed. losses: nats per supervised token and step, None where not finite."""

    losses: tuple[float | None, ...]
    outcome: str = "done"
    message: str = ""
    weights: str | None = None  # checksum of the last save, where one was made
    moments: str | None = None
    gradient: GradientError | None = None

    @property
    def first_bad(self) -> int | None:
        """The first step whose loss is not finite, counted from 1; None where all are."""
        bad = (step for step, loss in enumerate(self.losses, 1) if loss is None or not math.isfinite(loss))
        return next(bad, None)


# --- which kind -------------------------------------------------------------------------------------------------


def kind_of_change(baseline: Choices, candidate: Choices, *, is_recipe_change: bool) -> tuple[Kind, str]:
    """(kind, why) for two plans: the same plan must give the same bits, another way to compute it the same numbers.

    A change of code under the same plan is judged bitwise too, unless its author asks for a tolerance.
    """
    if is_recipe_change:
        return "statistical", "the change is one of the recipe"
    a, b = (tuple(computing(segment) for segment in choices.segments) for choices in (baseline, candidate))
    if a == b:
        return "bitwise", "both sides follow the same plan"
    changed = [name for i, name in enumerate(COMPUTING) if [entry[i] for entry in a] != [entry[i] for entry in b]]
    return "tolerance", f"the plans differ in {', '.join(changed)}, which rounds differently"


def computing(segment: Segment) -> tuple[Any, ...]:
    """The parts of a segment that decide which bits come out."""
    return tuple(getattr(segment, name) for name in COMPUTING)


# --- bitwise ----------------------------------------------------------------------------------------------------


def judge_bitwise(baseline: Losses, candidate: Losses) -> GateResult:
    """Every loss, and the last weights and moments where both sides saved them, are equal bit for bit."""
    threshold = Threshold(
        "every loss and the last weights and moments equal bit for bit",
        "rule: the same plan on the same device computes the same numbers (torchtitan's gate for passes)",
    )
    ended = judge_ends(baseline, candidate, threshold)
    if ended is not None:
        return ended
    steps = len(baseline.losses)
    evidence: dict[str, Any] = {"kind": "bitwise", "steps": steps, "losses": candidate.losses}
    fix = "find what rounds or draws differently; where that is meant, ask for the tolerance kind"
    pairs = zip(baseline.losses, candidate.losses, strict=True)
    at = next((step for step, (a, b) in enumerate(pairs, 1) if a != b), None)
    if at is not None:
        evidence["first_difference_step"] = at
        reason = f"loss {candidate.losses[at - 1]!r} at step {at}, the baseline's is {baseline.losses[at - 1]!r}"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    for name in ("weights", "moments"):
        sums = getattr(baseline, name), getattr(candidate, name)
        if None not in sums and sums[0] != sums[1]:
            reason = f"{steps} losses are equal, but the {name} after them are not"
            return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    compared = "losses, weights and moments" if baseline.weights and candidate.weights else "losses"
    return GateResult(NAME, True, f"{compared} of {steps} steps are bitwise equal", threshold, evidence)


def judge_ends(baseline: Losses, candidate: Losses, threshold: Threshold) -> GateResult | None:
    """A result where a trial did not end as it should, or has other or no losses; None where all is comparable."""
    for side, losses in (("baseline", baseline), ("candidate", candidate)):
        if losses.outcome in MACHINE_OUTCOMES:
            reason = f"the {side}'s trial was {losses.outcome.replace('_', ' ')}: {losses.message}"
            return not_judged(NAME, reason, "run the gates again with enough memory, disk and time")
    if baseline.outcome != "done" or baseline.first_bad or not baseline.losses:
        what = baseline.message or f"its loss at step {baseline.first_bad or 1} is missing or not finite"
        return not_judged(NAME, f"the baseline itself does not train: {what}", "compare with a baseline that trains")
    evidence = {"losses": candidate.losses, "losses_baseline": baseline.losses}
    fix = "the change broke training: undo it, or correct it and try again"
    if candidate.outcome != "done":
        reason = f"the candidate's trial ended with {candidate.outcome.replace('_', ' ')}: {candidate.message}"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if candidate.first_bad:
        reason = f"the candidate's loss at step {candidate.first_bad} is not finite"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if len(candidate.losses) != len(baseline.losses):
        reason = f"{len(candidate.losses)} steps against the baseline's {len(baseline.losses)}"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    return None


# --- tolerance --------------------------------------------------------------------------------------------------


def trajectory_gate(
    losses_candidate: Sequence[float], losses_reference: Sequence[float], *, dtype: str = "bf16"
) -> tuple[bool, str]:
    """(accepted, why) for the losses of a candidate against those of fp32 eager, same steps on the same batch.

    Accepted where every step and the mean stay within LIMITS[dtype], relative to the reference. Raises ValueError for
    fewer than 10 steps, different lengths, or a reference that is not finite.
    """
    num_steps = len(losses_reference)
    if len(losses_candidate) != num_steps or num_steps < MIN_STEPS:
        raise ValueError(f"{len(losses_candidate)} losses against {num_steps}, at least {MIN_STEPS} are needed")
    if not all(math.isfinite(loss) for loss in losses_reference):
        raise ValueError(f"the reference losses are not finite: {list(losses_reference)}")
    for step, loss in enumerate(losses_candidate, 1):
        if not math.isfinite(loss):
            return False, f"loss {loss} at step {step}"
    limits = LIMITS[dtype]
    differences = relative_differences(losses_candidate, losses_reference)
    worst = max(range(num_steps), key=differences.__getitem__)
    mean = statistics.fmean(differences)
    at_worst = f"{losses_candidate[worst]:.4g} against {losses_reference[worst]:.4g} at step {worst + 1}"
    if differences[worst] >= limits.step_loss:
        return False, f"loss {at_worst}: {differences[worst]:.2%} off fp32, allowed are {percent(limits.step_loss)}"
    if mean >= limits.mean_loss:
        allowed = percent(limits.mean_loss)
        return False, f"losses {mean:.2%} off fp32 on average over {num_steps} steps, allowed are {allowed}"
    return True, f"losses within {differences[worst]:.2%} of fp32 over {num_steps} steps"


def relative_differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """|loss - reference| / reference at every step, a memorised batch's small reference counted as larger."""
    floor = max(SMALL_LOSS, MEMORISED * abs(reference[0]))
    return [abs(loss - right) / max(abs(right), floor) for loss, right in zip(losses, reference, strict=True)]


def judge_tolerance(
    candidate: Losses, reference: Losses, *, dtype: str, own: GradientError | None = None
) -> GateResult:
    """The candidate's losses and gradients stay as close to fp32 eager's as right code of its dtype does.

    reference: fp32 eager. own: how far the baseline's gradients in its own dtype are, see OWN_ERROR.
    """
    limits = LIMITS[dtype]
    threshold = Threshold(
        f"{dtype} against fp32 eager: first loss within {limits.first_loss:.0e}, any of the trajectory within "
        f"{percent(limits.step_loss)} and {percent(limits.mean_loss)} on average; gradients within "
        f"{limits.gradient:.0e}, their norm {limits.norm:.0e}, any large tensor's {limits.tensor:.0e}", ORIGIN,
    )  # fmt: skip
    ended = judge_ends(reference, candidate, threshold)
    if ended is not None:
        return ended
    if len(reference.losses) < MIN_STEPS:
        reason = f"a trajectory of {len(reference.losses)} steps is too short"
        return not_judged(NAME, reason, f"use {MIN_STEPS} or more")
    if candidate.gradient is None:
        reason = "the candidate's gradients were not recorded"
        return not_judged(NAME, reason, "gather them with training.gather_tolerance")
    evidence = tolerance_evidence(candidate, reference)
    fix = "the change computes something else: undo it, or keep the part in fp32 that loses the digits"
    problem = gradient_problem(candidate.gradient, limits, own)
    if problem is not None:
        return GateResult(NAME, False, problem, threshold, evidence, fix=fix)
    if not evidence["first_loss_error"] <= limits.first_loss:
        reason = (
            f"the first loss is {candidate.losses[0]:.6g}, fp32's {reference.losses[0]:.6g}: "
            f"{evidence['first_loss_error']:.1e} off, allowed are {limits.first_loss:.0e}"
        )
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    accepted, why = trajectory_gate(finite(candidate), finite(reference), dtype=dtype)
    if not accepted:
        return GateResult(NAME, False, why, threshold, evidence, fix=fix)
    return GateResult(NAME, True, f"{why}, gradients within {evidence['gradient_error']:.1e}", threshold, evidence)


def gradient_problem(error: GradientError, limits: Limits, own: GradientError | None) -> str | None:
    """The first way in which gradients are too far from fp32's, in words; None where they are near enough."""
    for name, words in GRADIENT_WORDS.items():
        found, allowed = getattr(error, name), getattr(limits, name)
        if own is not None:
            allowed = max(allowed, min(OWN_ERROR * getattr(own, name), OWN_MOST * allowed))
        if not found <= allowed:
            place = f" (in {error.worst})" if name == "tensor" else ""
            return f"{words} {found:.2e} off fp32's{place}, allowed are {allowed:.1e}"
    return None


def tolerance_evidence(candidate: Losses, reference: Losses) -> dict[str, Any]:
    """The differences as numbers."""
    assert candidate.gradient is not None, "asked for by the caller"
    differences = relative_differences(finite(candidate), finite(reference))
    gradient = candidate.gradient
    return {
        "kind": "tolerance", "steps": len(differences), "first_loss_error": differences[0],
        "worst_loss_error": max(differences), "mean_loss_error": statistics.fmean(differences),
        "gradient_error": gradient.gradient, "norm_error": gradient.norm, "tensor_error": gradient.tensor,
        "worst_tensor": gradient.worst, "losses": candidate.losses, "losses_fp32": reference.losses,
    }  # fmt: skip


def finite(losses: Losses) -> list[float]:
    """The losses as numbers, nan where one was not finite."""
    return [math.nan if loss is None else loss for loss in losses.losses]


def percent(share: float) -> str:
    return f"{share * 100:g}%"
