"""Gathers what the gates on losses judge: short trainings of both sides, and gradients from the same weights."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from intone.config import TrainJob
from intone.model.checkpoint import WEIGHTS, list_checkpoints, optimizer_file
from intone.model.gpt import GPT
from intone.model.optim import parameter_groups
from intone.paths import read_json
from intone.prove.gates import parity, seeds
from intone.prove.gates.parity import MIN_ELEMENTS, TENSOR_SHARE, GradientError, Losses
from intone.prove.gates.result import Gate, GateResult, NotJudged
from intone.prove.trial import Side, Trial, trial
from intone.recipe import TRIAL_SCHEDULE
from intone.records import Segment, read_choices
from intone.train.schedule import scale_at

TRAJECTORY_STEPS = 12  # the ten that the judgement needs, and two; 12 d4 steps take 20 s on two cores [measured]
Gradients = dict[str, np.ndarray]  # by parameter, float64
TRIAL_COST_S = 5.0  # a worker's start and a few steps of a small model, measured on two cores; orders the gates only


def losses_of(found: Trial) -> Losses:
    """A trial as the judgements take it, with the checksums of its last save."""
    sums = {name: None for name in (WEIGHTS, optimizer_file(0))}
    saves = list_checkpoints(found.folder)
    if saves:
        files = read_json(saves[-1] / "manifest.json")["files"]
        sums = {name: files[name]["sha256"] for name in sums}
    outcome = found.outcome
    return Losses(found.losses, outcome.outcome, outcome.message, sums[WEIGHTS], sums[optimizer_file(0)])


# --- bitwise ----------------------------------------------------------------------------------------------------


def gather_bitwise(baseline: Side, candidate: Side, scratch: Path, *, steps: int) -> tuple[Losses, Losses]:
    """Both sides trained for these steps, with the plan and schedule of their folders."""
    pair = []
    for side in (baseline, candidate):
        with trial(side, scratch, steps=steps, keep=1, deterministic=True) as found:
            pair.append(losses_of(found))
    return pair[0], pair[1]


# --- tolerance --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A baseline in eager fp32: its losses, and the gradients of one step from the weights that it came to.

    after: settings of a job that takes such a step: from these weights, on rows that the reference has not seen. At
    the start of a training most gradients are zero. gradients None: the baseline itself did not train.
    """

    losses: Losses
    steps: int
    after: Mapping[str, Any]
    gradients: Gradients | None
    own: GradientError | None  # of the baseline in its own dtype, None where that is fp32


@contextlib.contextmanager
def reference(baseline: Side, scratch: Path, *, steps: int = TRAJECTORY_STEPS) -> Iterator[Reference]:
    """Trains the reference; its folder stays until the end of the with block, since candidates start from it.

    Rates are those of tune's trials, at which right code of any dtype stays together (LOG.md).
    """
    segments = plain(baseline)
    with trial(baseline, scratch, segments=segments, steps=steps, schedule=TRIAL_SCHEDULE, keep=1) as found:
        after = {"init_from": str(found.folder), "keep_optimizer": False, "seed": job_of(baseline).seed + 1}
        right = own = None
        if found.outcome.outcome == "done":
            right = gradients(baseline, scratch, segments, **after)
            if first_segment(baseline)[0].dtype != "fp32":
                own = gradient_error(gradients(baseline, scratch, first_segment(baseline), **after), right)
        yield Reference(losses_of(found), steps, after, right, own)


def against(right: Reference, candidate: Side, scratch: Path) -> Losses:
    """The candidate's trajectory, and how far its gradients are from the reference's."""
    error = gradient_error(gradients(candidate, scratch, first_segment(candidate), **right.after), right.gradients)
    with trial(candidate, scratch, steps=right.steps, schedule=TRIAL_SCHEDULE) as found:
        return dataclasses.replace(losses_of(found), gradient=error)


def judge_against(right: Reference, candidate: Losses, *, dtype: str) -> GateResult:
    """The candidate's numbers against the reference's."""
    return parity.judge_tolerance(candidate, right.losses, dtype=dtype, own=right.own)


def gather_tolerance(
    baseline: Side, candidate: Side, scratch: Path, *, steps: int = TRAJECTORY_STEPS
) -> tuple[Reference, Losses]:
    """4 short trainings, 5 where the baseline is not fp32."""
    with reference(baseline, scratch, steps=steps) as right:
        # where the reference did not train, its own losses say so to the judgement
        return right, against(right, candidate, scratch) if right.gradients is not None else right.losses


def job_of(side: Side) -> TrainJob:
    return TrainJob.from_json(read_json(side.folder / "config.json"))


def first_segment(side: Side) -> tuple[Segment, ...]:
    """How the side computes its first steps, as a plan of its own."""
    return (read_choices(side.folder).segments[0],)


def plain(side: Side) -> tuple[Segment, ...]:
    """The side's first segment as the reference computes it: fp32, eager, PyTorch's fused attention."""
    first = first_segment(side)[0]
    return (dataclasses.replace(
        first, dtype="fp32", compiled=False, attention="sdpa", kernels="torch", reason="reference"
    ),)  # fmt: skip


def gradients(side: Side, scratch: Path, segments: tuple[Segment, ...], **changes: Any) -> Gradients | None:
    """The gradients of one optimizer step as the real worker computes them; None where it did not end well.

    Nothing in the worker is changed for it: after the first step an optimizer's first moments are the gradients
    times 1 - beta.
    """
    with trial(side, scratch, segments=segments, steps=1, keep=1, **changes) as found:
        return saved_gradients(found)


def saved_gradients(found: Trial) -> Gradients | None:
    """The gradients of a trial of one step that was saved; None where it did not end well."""
    saves = list_checkpoints(found.folder)
    if found.outcome.outcome != "done" or not saves:
        return None
    moments = load_file(saves[-1] / optimizer_file(0))
    return from_moments(TrainJob.from_json(read_json(found.folder / "config.json")), moments)


def from_moments(job: TrainJob, moments: dict[str, np.ndarray]) -> Gradients:
    """Gradients by parameter out of the optimizer's state after the first step of a job, float64."""
    momentum = scale_at(job.schedule, 0, job.steps).momentum
    with torch.device("meta"):
        groups = parameter_groups(GPT(job.model), job.optim)
    found = {}
    for group in groups:
        for i, name in enumerate(group.names):
            prefix = f"{group.names[0]}:{group.kind}:"
            if group.kind == "muon":
                found[name] = moments[prefix + "momentum"][i].astype(np.float64) / (1 - momentum)
            else:
                found[name] = moments[f"{prefix}first.{i}"].astype(np.float64) / (1 - group.betas[0])
    return found


def gradient_error(found: Gradients | None, right: Gradients | None) -> GradientError | None:
    """The distance of gradients from the right ones; None where one side has none. nan counts as infinitely far."""
    if found is None or right is None:
        return None
    norms = {name: float(np.linalg.norm(value)) for name, value in right.items()}
    whole = math.hypot(*norms.values())
    errors = {name: float(np.linalg.norm(found[name] - value)) for name, value in right.items()}
    large = [name for name, norm in norms.items() if norm >= TENSOR_SHARE * whole and right[name].size >= MIN_ELEMENTS]
    if not whole or not large:
        raise NotJudged("all gradients of the reference are zero", "compare on rows in which something is learned")
    worst = max(large, key=lambda name: beyond(errors[name] / norms[name]))
    found_norm = math.hypot(*(float(np.linalg.norm(value)) for value in found.values()))
    return GradientError(
        gradient=beyond(math.hypot(*errors.values()) / whole),
        norm=beyond(abs(found_norm / whole - 1)),
        tensor=beyond(errors[worst] / norms[worst]),
        worst=worst,
    )


def beyond(value: float) -> float:
    return value if math.isfinite(value) else math.inf


# --- statistical ------------------------------------------------------------------------------------------------


def gather_seeds(
    baseline: Side, candidate: Side, scratch: Path, *, numbers: Sequence[int], steps: int | None = None
) -> seeds.SeedPairs:
    """Both sides trained once per seed; where a loss ends is the mean of its last tenth of steps, one at least.

    steps None: those of the folders. Raises NotJudged where a training does not end well or is not finite at its end.
    """
    ends: list[list[float]] = [[], []]
    for number in numbers:
        for side, found_ends in zip((baseline, candidate), ends, strict=True):
            changes: dict[str, Any] = {"seed": number} | ({} if steps is None else {"steps": steps})
            with trial(side, scratch, **changes) as found:
                last = found.losses[-max(1, len(found.losses) // 10) :]
                if found.outcome.outcome != "done" or not last or None in last:
                    message = found.outcome.message or "the loss is not finite at the end"
                    raise NotJudged(f"seed {number} gave no final loss: {message}", "find out why before comparing")
                found_ends.append(math.fsum(loss for loss in last if loss is not None) / len(last))
    return seeds.SeedPairs(tuple(numbers), tuple(ends[0]), tuple(ends[1]))


# --- the gate ---------------------------------------------------------------------------------------------------


def gate(
    baseline: Side, candidate: Side, scratch: Path, *, declared: Collection[str] = (), kind: parity.Kind | None = None,
    numbers: Sequence[int] = (1, 2, 3, 4, 5), margin: float = seeds.MARGIN, steps: int = TRAJECTORY_STEPS,
) -> Gate[Any]:  # fmt: skip
    """The gate on losses for two sides, of the kind that fits the change unless one is asked for.

    declared: what the change of the recipe touches. numbers: the seeds of the statistical kind, which trains whole
    jobs and allows the margin; steps: of the other two kinds.
    """
    chosen: str = (
        kind
        or parity.kind_of_change(
            read_choices(baseline.folder), read_choices(candidate.folder), is_recipe_change=bool(declared)
        )[0]
    )
    dtype = first_segment(candidate)[0].dtype
    kinds: dict[str, tuple[float, Callable[[], Any], Callable[[Any], GateResult]]] = {
        "bitwise": (
            2 * TRIAL_COST_S,
            lambda: gather_bitwise(baseline, candidate, scratch, steps=steps),
            lambda found: parity.judge_bitwise(*found),
        ),
        "tolerance": (
            5 * TRIAL_COST_S,
            lambda: gather_tolerance(baseline, candidate, scratch, steps=steps),
            lambda found: judge_against(*found, dtype=dtype),
        ),
        "statistical": (
            2 * len(numbers) * TRIAL_COST_S,
            lambda: gather_seeds(baseline, candidate, scratch, numbers=numbers),
            lambda found: seeds.judge(found, margin=margin, allow_better=True),
        ),
    }
    return Gate(parity.NAME, *kinds[chosen])
