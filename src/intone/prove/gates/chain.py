"""Which gates a change must pass, put together for two trainings and for an engine; run them with result.run_gates."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from intone.hardware import Facts
from intone.prove.gates import decode, memory, physical, recipe, replay, resume, sampling, sealed, training
from intone.prove.gates.decode import Generate
from intone.prove.gates.parity import Kind
from intone.prove.gates.result import Gate
from intone.prove.trial import Side, trial

# the first step allocates, the second has the optimizer's moments too; a save and an evaluation follow it, whose peak
# the third step's row shows
PEAK_STEPS = 3
PEAK_EVAL_ROWS = 32  # two batches of an evaluation: more rows need no more memory


def training_gates(
    baseline: Side, candidate: Side, scratch: Path, facts: Facts, *, declared: Collection[str] = (),
    kind: Kind | None = None, seeds: Sequence[int] = (1, 2, 3, 4, 5), steps: int = training.TRAJECTORY_STEPS,
    tokens_per_s: float | None = None, resumes: bool = True,
) -> list[Gate[Any]]:  # fmt: skip
    """The gates on a change to a training job; both sides' folders are only read, trials run below scratch.

    declared: fields of the recipe that the change means to touch. kind: of the parity of losses, by default the one
    that fits the plans. tokens_per_s: a measured rate of the candidate, where there is one. resumes False leaves out
    the two trainings of the gate on resuming. The harness and the inputs are sealed by this call.
    """
    before = sealed.seal([*sealed.harness(), *sealed.inputs_of(baseline.folder), *sealed.inputs_of(candidate.folder)])
    gates: list[Gate[Any]] = [
        recipe.gate(baseline.folder, candidate.folder, declared=declared),
        memory_gate(candidate, scratch, facts),
        fresh_gate(candidate, scratch),
        training.gate(baseline, candidate, scratch, declared=declared, kind=kind, numbers=seeds, steps=steps),
    ]
    if tokens_per_s is not None:
        gates.append(rate_gate(candidate, facts, tokens_per_s))
    if resumes:
        gates.append(resume.gate(candidate, scratch))
    return [*gates, sealed.gate(before)]


def generation_gates(
    generate: Generate, model: Any, *, dtype: torch.dtype | None = None, context: int | None = None
) -> list[Gate[Any]]:
    """The gates on an engine: its greedy tokens and its sampling, against the plain model that it serves."""
    return [decode.gate(generate, model, dtype=dtype, context=context), sampling.gate(generate, model)]


def memory_gate(candidate: Side, scratch: Path, facts: Facts) -> Gate[memory.Memory]:
    """The peak of the candidate's first steps, a save and an evaluation on this machine."""

    def gather() -> memory.Memory:
        job = training.job_of(candidate)
        changes: dict[str, Any] = {
            "steps": PEAK_STEPS, "keep": 1, "val": job.val, "eval_every": PEAK_STEPS - 1,
            "eval_tokens": min(job.eval_tokens, PEAK_EVAL_ROWS * job.context),
        }  # fmt: skip
        with trial(candidate, scratch, **changes) as found:
            return memory.of_trial(found, facts)

    return Gate(memory.NAME, training.TRIAL_COST_S, gather, memory.judge)


def fresh_gate(candidate: Side, scratch: Path) -> Gate[list[replay.Written]]:
    """The candidate's first steps with two seeds: other rows and other weights must show other losses."""

    def gather() -> list[replay.Written]:
        first = training.job_of(candidate).seed
        runs = []
        for seed in (first, first + 1):
            began_at_s = time.time()
            with trial(candidate, scratch, steps=replay.MIN_EQUAL, seed=seed) as found:
                runs.append(replay.read_written(
                    f"the run with seed {seed}", found.folder, found.losses, fresh_key=(seed,), began_at_s=began_at_s,
                    num_steps=replay.MIN_EQUAL,
                ))  # fmt: skip
        return runs

    return Gate(replay.NAME, 2 * training.TRIAL_COST_S, gather, replay.judge)


def rate_gate(candidate: Side, facts: Facts, tokens_per_s: float) -> Gate[tuple[physical.Work, physical.Bound]]:
    """The candidate's measured rate of training against what this machine can do."""

    def gather() -> tuple[physical.Work, physical.Bound]:
        dtype, job = training.first_segment(candidate)[0].dtype, training.job_of(candidate)
        learned = recipe.first_rows(job).targets >= 0
        share = float(learned.mean())
        work = physical.training_work(job.model, tokens_per_s, dtype=dtype, supervised_share=share)
        return work, physical.bound_of(facts, dtype)

    return Gate(physical.NAME, 0.0, gather, lambda found: physical.judge(*found))
