"""The gate on resuming: stopped after some steps and started again, a training ends in the same bits as undisturbed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from intone.model.checkpoint import STATE, WEIGHTS, discard_after, list_checkpoints, optimizer_file, saved_step
from intone.paths import read_json
from intone.prove.gates.parity import MACHINE_OUTCOMES
from intone.prove.gates.result import Gate, GateResult, Threshold, not_judged
from intone.prove.gates.training import TRIAL_COST_S
from intone.prove.trial import Side, trial
from intone.records import Outcome, read_log

NAME = "bitwise resume"
STEPS, CUT = 7, 4  # odd, and more steps behind the cut than one: a batch that is repeated or left out shows at once
THRESHOLD = Threshold(
    "every step once, losses after the restart, last weights, moments and state equal bit for bit to the undisturbed "
    "run's", "rule: the state of a run is its save (DESIGN, Training); on CUDA under --deterministic",
)  # fmt: skip
STATE_OF_THE_CLOCK = ("elapsed_s",)  # what may differ between two runs of the same numbers


@dataclass(frozen=True)
class Ended:
    """A training at its end: (step, tokens, loss) of every log row, checksums of the save's tensors, its state."""

    outcome: Outcome
    rows: tuple[tuple[int, int, float | None], ...]
    tensors: Mapping[str, str]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Resumed:
    """The undisturbed run and the one that went on from the save after cut steps, in a new process."""

    whole: Ended
    parted: Ended
    cut: int


def gather(side: Side, scratch: Path, *, steps: int = STEPS, cut: int = CUT) -> Resumed:
    """Trains steps with a save after cut; then throws away what came after it and runs the job again.

    That is what is left on disk where a run is killed after the save: two processes, no timing involved.
    """
    assert 0 < cut < steps < 2 * cut, f"a cut at {cut} of {steps} steps leaves other saves behind it"
    changes: dict[str, Any] = dict(steps=steps, eval_every=cut, keep=2, deterministic=True)
    with trial(side, scratch, **changes) as found:
        whole = ended(found.folder, found.outcome)
        if found.outcome.outcome != "done":
            return Resumed(whole, whole, cut)
        discard_after(found.folder, cut)
        left = [saved_step(save) for save in list_checkpoints(found.folder)]
        assert left == [cut], f"saves of steps {left} are left, not that of step {cut}"
        (found.folder / "outcome.json").unlink(missing_ok=True)
        return Resumed(whole, ended(found.folder, side.run(found.folder)), cut)


def ended(folder: Path, outcome: Outcome) -> Ended:
    """Reads how a job folder stands."""
    rows = tuple((row["step"], row["tokens"], row["loss"]) for row in read_log(folder / "log.jsonl", "step"))
    tensors: dict[str, str] = {}
    state: dict[str, Any] = {}
    for save in list_checkpoints(folder)[-1:]:
        for name in (WEIGHTS, optimizer_file(0)):
            tensors |= {key: digest(value) for key, value in load_file(save / name).items()}
        state = {key: value for key, value in read_json(save / STATE).items() if key not in STATE_OF_THE_CLOCK}
    return Ended(outcome, rows, tensors, state)


def digest(value: np.ndarray) -> str:
    """16 hex digits over type, shape and bits of an array."""
    return hashlib.sha256(f"{value.dtype.str}{value.shape}".encode() + value.tobytes()).hexdigest()[:16]


def judge(found: Resumed) -> GateResult:
    """Names the first row or tensor that differs."""
    whole, parted, cut = found.whole, found.parted, found.cut
    evidence = {"steps": len(whole.rows), "cut": cut, "rows": parted.rows, "tensors": len(whole.tensors)}
    fix = "save and restore everything that the next step reads: weights, moments, step count, place in the rows"
    if whole.outcome.outcome != "done":
        reason = f"the undisturbed run ended with {whole.outcome.outcome}: {whole.outcome.message}"
        return not_judged(NAME, reason, "make the job train to its end first")
    if parted.outcome.outcome in MACHINE_OUTCOMES:
        reason = f"the resumed run was {parted.outcome.outcome.replace('_', ' ')}: {parted.outcome.message}"
        return not_judged(NAME, reason, "run the gate again with enough memory, disk and time")
    problem = first_difference(found)
    if problem is not None:
        return GateResult(NAME, False, problem, THRESHOLD, evidence, fix=fix)
    if not whole.tensors:
        return not_judged(NAME, "there is no save to compare", "let the job save: keep must be at least 1")
    equal = f"losses and {len(whole.tensors)} saved tensors are equal"
    reason = f"stopped after {cut} of {len(whole.rows)} steps and resumed: {equal}"
    return GateResult(NAME, True, reason, THRESHOLD, evidence)


def first_difference(found: Resumed) -> str | None:
    """What is not as in the undisturbed run, in words; None where nothing is."""
    whole, parted, cut = found.whole, found.parted, found.cut
    if parted.outcome.outcome != "done":
        return f"the resumed run ended with {parted.outcome.outcome}: {parted.outcome.message}"
    for right, got in zip(whole.rows, parted.rows, strict=False):
        if right == got:
            continue
        if right[0] != got[0]:
            return f"the log has step {got[0]} where step {right[0]} belongs"
        what = "tokens" if right[1] != got[1] else "loss"
        index = 1 if what == "tokens" else 2
        where = "the first after the restart" if right[0] == cut + 1 else f"{right[0] - cut} after the restart"
        return f"{what} {got[index]!r} at step {right[0]}, {where}, is {right[index]!r} in the undisturbed run"
    if len(whole.rows) != len(parted.rows):
        return f"{len(parted.rows)} steps are logged, {len(whole.rows)} in the undisturbed run"
    names = sorted(set(whole.tensors) | set(parted.tensors))
    unequal = [name for name in names if whole.tensors.get(name) != parted.tensors.get(name)]
    if unequal:
        return f"losses are equal, but {len(unequal)} of {len(names)} saved tensors are not, first {unequal[0]}"
    keys = sorted(set(whole.state) | set(parted.state))
    for key in keys:
        if whole.state.get(key) != parted.state.get(key):
            return f"{key} is {parted.state.get(key)!r} in the save, {whole.state.get(key)!r} in the undisturbed run's"
    return None


def gate(side: Side, scratch: Path, *, steps: int = STEPS, cut: int = CUT) -> Gate[Resumed]:
    """The gate on one side's job."""
    return Gate(NAME, 2 * TRIAL_COST_S, lambda: gather(side, scratch, steps=steps, cut=cut), judge)
