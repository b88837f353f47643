"""Chooses the form of head and loss for eager code: all logits of a pass at once, or in pieces with their gradient"""

import statistics
from collections.abc import Callable, Mapping, Sequence

from intone.child import ChildFailed
from intone.config import ModelConfig
from intone.hardware import Facts
from intone.log import human_duration
from intone.prove.gates.parity import trajectory_gate
from intone.records import Choice
from intone.tune.precision import GATE_STEPS, NoTrial
from intone.tune.probe import Case, speedup, time_cases
from intone.tune.settle import TimeCases, shape_key
from intone.tune.trial import TrialRunner
from intone.tune.trials import Trials

PIECES = (1, 4, 16)  # 1: all at once; 4 to 8 cost the least where pieces were compiled (training.md 2.4)
WORTH = 1.05  # pieces must be this much faster: a process of its own differs by as much (CONTRACTS)
COST_S = 4.0  # of a comparison: the start of its child and probe.BUDGET_S
SAVES = 0.02  # share of a run that the answer saves; guess


def settle_head(
    facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str, threads: int, compiled: bool, kernels: str,
    runner: TrialRunner, run_s: float | None, time_steps: TimeCases = time_cases,
) -> Choice:  # fmt: skip
    """In how many pieces a pass computes its logits; 1: at once.

    run_s: expected seconds of training, within which the comparison must pay; None: compare in any case.
    """
    if kernels == "native":
        return Choice(1, "our kernels compute logits in pieces by themselves", "default")
    if compiled:
        return Choice(1, "compiled code fuses the passes over the logits by itself", "default")
    if facts.device == "mps":
        return Choice(1, "all logits at once, by rule: nothing was measured on MPS", "default")
    key = shape_key(facts, config) | {"dtype": dtype, "threads": threads}
    if run_s is not None and SAVES * run_s < COST_S and trials.find("head", key) is None:
        why = f"a comparison takes {COST_S:.0f} s, more than it is likely to save in {human_duration(round(run_s))}"
        return Choice(1, f"by rule: {why}", "default")

    def decide() -> Choice:
        try:
            cases = [Case(threads, dtype, head_pieces=number) for number in PIECES]
            times = dict(zip(PIECES, time_steps(config, cases, facts), strict=True))
        except ChildFailed as error:
            return Choice(1, f"the training step could not be timed: {error}", "default")
        return pick(times, lambda number: gate(runner, dtype, number))

    return trials.settle("head", key, decide)


def pick(times: Mapping[int, Sequence[float]], gate: Callable[[int], Choice]) -> Choice:
    """The choice from seconds per step, rounds paired; gate(pieces) is asked for the fastest that is worth it."""
    gains = {number: speedup(times[1], times[number]) for number in times if number != 1}
    measured = {"step_s": {str(number): statistics.median(entries) for number, entries in times.items()},
                "rounds": len(times[1])}  # fmt: skip
    best = max(gains, key=gains.__getitem__)
    beat = [{"value": number, "why": f"{gain:.2f}x as fast as all logits at once"} for number, gain in gains.items()]
    if gains[best] <= WORTH:
        reason = f"no number of pieces is {WORTH:.2f}x as fast as all logits at once"
        return Choice(1, reason, "measured", tuple(beat), measured)
    verdict = gate(best)
    if not verdict.value:
        reason = f"{best} pieces are faster, but {verdict.reason}"
        return Choice(1, reason, verdict.origin, tuple(beat), measured)
    beat = [entry for entry in beat if entry["value"] != best]
    beat.append({"value": 1, "why": f"{best} pieces are {gains[best]:.2f}x as fast"})
    reason = f"{gains[best]:.2f}x as fast as all logits at once; {verdict.reason}"
    return Choice(best, reason, "measured", tuple(beat), measured)


def gate(runner: TrialRunner, dtype: str, pieces: int) -> Choice:
    """Whether the model trains with its loss in pieces as it does in eager fp32 with all logits at once."""
    try:
        reference = runner.run("fp32", compiled=False, num_steps=GATE_STEPS)
        tried = runner.run(dtype, compiled=False, num_steps=GATE_STEPS, head_pieces=pieces)
    except NoTrial as error:
        return Choice(False, f"they could not be checked against fp32: {error}", "default")
    accepted, why = trajectory_gate(tried.losses, reference.losses)
    return Choice(accepted, f"pieces {'accepted' if accepted else 'rejected'}: {why}", "measured")
