"""The gates for somebody else's program: its losses or its tokens step by step, and honest times"""

import statistics
from collections.abc import Mapping, Sequence

from intone.prove.gates import timing
from intone.prove.gates.result import GateResult, Threshold, not_judged
from intone.prove.measure import Measured

LOSSES = "losses"
# rounding in fp32 that differs from step to step, grown over some dozen steps (LOG.md: how far right code is from fp32)
RELATIVE = 2e-3
NUM_COMPARED = 16  # first steps of a process: later ones are further from each other by rounding alone
SPREADS = 3.0  # times the program's own spread between two runs of itself; guess
THRESHOLD = Threshold(
    f"over the first {NUM_COMPARED} measured steps, or of all where no measured one is common, the losses differ by at"
    f" most {RELATIVE:.1%}, or by {SPREADS:g} times what the program differs from itself",
    "measured on our own training in fp32; the factor is a guess",
)


def losses_of(measured: Measured, side: str) -> list[dict[int, float]]:
    """Per fresh process of a side: {step: loss, the mean over its backward passes}."""
    replicates: dict[int, dict[int, list[float]]] = {}
    for entry in measured.rounds:
        for block in entry.of(side):
            values = [value for value in block.answer.get("losses") or [] if isinstance(value, int | float)]
            steps = int(block.answer.get("steps") or 0)
            first = int(block.answer.get("first_step") or 0)
            each = len(values) // steps if steps else 0
            for number in range(steps if each else 0):
                chunk = values[number * each : (number + 1) * each]
                replicates.setdefault(block.replicate, {}).setdefault(first + number, []).extend(chunk)
    return [{step: statistics.fmean(found) for step, found in one.items()} for one in replicates.values()]


def early_losses_of(measured: Measured, side: str) -> list[dict[int, float]]:
    """The same of each process's first steps, of which many pass before the first block."""
    replicates: dict[int, dict[int, list[float]]] = {}
    for entry in measured.rounds:
        for block in entry.of(side)[:1]:
            found: dict[int, list[float]] = {}
            for step, loss in block.answer.get("early") or []:
                found.setdefault(int(step), []).append(loss)
            replicates.setdefault(block.replicate, found)
    return [{step: statistics.fmean(losses) for step, losses in one.items()} for one in replicates.values()]


def judge_training(measured: Measured, baseline: str, candidate: str) -> GateResult:
    """The gate on losses; where one side is so much faster that no measured step is common, on the first steps."""
    found = judge_losses(losses_of(measured, baseline), losses_of(measured, candidate))
    if found.passed is None:
        return judge_losses(early_losses_of(measured, baseline), early_losses_of(measured, candidate))
    return found


def judge_losses(baseline: Sequence[Mapping[int, float]], candidate: Sequence[Mapping[int, float]]) -> GateResult:
    """Whether the candidate trains as the baseline does, by the steps that processes of both have in common."""
    steps = sorted(set.intersection(*(set(one) for one in [*baseline, *candidate]))) if baseline and candidate else []
    steps = steps[:NUM_COMPARED]
    if not steps:
        return not_judged(LOSSES, "no losses were seen on both sides", "let the program call backward() on its loss")
    own = spread_of(baseline, steps)
    mean_a, mean_b = ([statistics.fmean(one[step] for one in side) for step in steps] for side in (baseline, candidate))
    scale = max(statistics.fmean(abs(value) for value in mean_a), 0.25)
    distance = statistics.fmean(abs(a - b) for a, b in zip(mean_a, mean_b, strict=True)) / scale
    allowed = max(RELATIVE, SPREADS * own / scale)
    evidence = {"steps": len(steps), "distance": distance, "allowed": allowed, "own_spread": own / scale,
                "baseline": mean_a, "candidate": mean_b}  # fmt: skip
    if not all(value == value and abs(value) != float("inf") for value in mean_b):
        return GateResult(LOSSES, False, "a loss is not finite", THRESHOLD, evidence, fix="take the change back")
    if distance > allowed:
        reason = f"the losses differ by {distance:.2%} over {len(steps)} steps, {allowed:.2%} is allowed"
        return GateResult(LOSSES, False, reason, THRESHOLD, evidence, fix="take the change back: it trains otherwise")
    return GateResult(LOSSES, True, f"the losses differ by {distance:.3%} over {len(steps)} steps", THRESHOLD, evidence)


def spread_of(processes: Sequence[Mapping[int, float]], steps: Sequence[int]) -> float:
    """How far two runs of one program are apart, in units of the loss; 0 where it repeats itself exactly."""
    if len(processes) < 2:
        return 0.0
    return statistics.fmean(max(one[step] for one in processes) - min(one[step] for one in processes) for step in steps)


# --- generation -----------------------------------------------------------------------------------------------------

TOKENS = "tokens"
EXACT = Threshold("the very same tokens, call by call", "rule: a change of how text is computed must not change text")


def texts_of(measured: Measured, side: str) -> list[dict[int, list[int]]]:
    """Per fresh process of a side: {call: newest token of every row}."""
    replicates: dict[int, dict[int, list[int]]] = {}
    for entry in measured.rounds:
        for block in entry.of(side):
            first = int(block.answer.get("first_step") or 0)
            for number, tokens in enumerate(block.answer.get("texts") or []):
                replicates.setdefault(block.replicate, {})[first + number] = [int(token) for token in tokens]
    return list(replicates.values())


def judge_tokens(
    baseline: Sequence[Mapping[int, list[int]]], candidate: Sequence[Mapping[int, list[int]]]
) -> GateResult:
    """Whether the candidate writes the baseline's tokens, by the calls that all processes of both have in common."""
    calls = sorted(set.intersection(*(set(one) for one in [*baseline, *candidate]))) if baseline and candidate else []
    if not calls:
        return not_judged(TOKENS, "no tokens were seen on both sides", "let the program call its model token by token")
    first = baseline[0]
    if any(one[call] != first[call] for one in baseline for call in calls):
        fix = "give the program a fixed seed, or temperature 0"
        return not_judged(TOKENS, "the program does not write the same text twice", fix)
    for one in candidate:
        for call in calls:
            if one[call] != first[call]:
                evidence = {"calls": len(calls), "first_other_call": call, "was": first[call], "is": one[call]}
                reason = f"call {call - calls[0] + 1} of {len(calls)} reads other tokens"
                fix = "take the change back: it writes otherwise"
                return GateResult(TOKENS, False, reason, EXACT, evidence, fix=fix)
    return GateResult(TOKENS, True, f"the tokens of {len(calls)} calls are the same", EXACT, {"calls": len(calls)})


# --- time -----------------------------------------------------------------------------------------------------------


def judge_times(measured: Measured, sides: Mapping[str, timing.Side]) -> GateResult:
    """The gate on times over every measured block. sides: name -> baseline or candidate."""
    blocks = [
        timing.Block(sides[block.side], block.seconds, block.after.at_s - block.before.at_s)
        for entry in measured.rounds for block in entry.blocks if block.side in sides
    ]  # fmt: skip
    return timing.judge(blocks)
