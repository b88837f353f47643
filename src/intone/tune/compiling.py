"""Decides whether compiling the training step pays within a run: seconds saved against seconds spent."""

import math
from dataclasses import dataclass

from intone.hardware import COMPILE_FIX
from intone.log import human_duration
from intone.records import Choice
from intone.tune.trials import Trials

NO_COMPILER = f"torch.compile needs a C++ compiler and the Python headers: {COMPILE_FIX}"


@dataclass(frozen=True)
class CompileFacts:
    """What compiling did to a training step: compiled step time over eager step time, and what it cost once."""

    ratio: float
    compile_s: float
    is_measured: bool = False


# a d4 step in bf16 went from 380 to 210 ms; cold compiles 8-25 s on two cores (reference training.md 4.3)
CPU_GUESS = CompileFacts(ratio=0.55, compile_s=25)
# step time -40 %, cold compile 30-90 s for d12-d24; an estimate of the same section
GPU_GUESS = CompileFacts(ratio=0.6, compile_s=60)
# one block compiled for all beside the whole model: depth 4, fp32, processor seconds on an EPYC 7003 (LOG.md)
BLOCK_COMPILE, BLOCK_RATIO = 0.49, 1.09
WARM_S = 6.0  # guess: a process that finds its compiled code in the cache
SPARE_FROM_CORES = 3  # so many cores compile beside a run that trains; on two, compiling comes before the first step
LATE = 1.5  # times the expected seconds of compiling, until the swap: others use the cores too; guess


def decide(
    compile_possible: bool,
    steps: int,
    eager_step_s: float,
    compiled_step_s: float | None,
    compile_s: float,
    *,
    ratio: float | None = None,
    obstacle: str = NO_COMPILER,
) -> Choice:
    """ "on" where the planned steps save more seconds than compiling costs, else "off".

    compiled_step_s None: predicted as ratio (compiled / eager step time, from an earlier run or a guess) times
    eager_step_s. obstacle is the reason given where compiling is not possible.
    """
    if not compile_possible:
        return Choice("off", obstacle, "default")
    is_predicted = compiled_step_s is None
    if compiled_step_s is None:
        compiled_step_s = eager_step_s * (CPU_GUESS.ratio if ratio is None else ratio)
    saved_per_step_s = eager_step_s - compiled_step_s
    measured = {"eager_step_s": eager_step_s, "compiled_step_s": compiled_step_s, "compile_s": compile_s}
    origin = "default" if is_predicted else "measured"
    word = "predicted" if is_predicted else "measured"
    speed = f"{eager_step_s / compiled_step_s:.2f}x per step {word}"
    if saved_per_step_s <= 0:
        beat = ({"value": "on", "why": f"{speed}, and {human_duration(compile_s)} to compile"},)
        return Choice("off", f"compiled steps are not faster ({speed})", origin, beat, measured)  # type: ignore[arg-type]
    saved_s = steps * saved_per_step_s
    sums = f"{steps:,} steps save {human_duration(saved_s)}, compiling costs {human_duration(compile_s)}"
    even = f"even at {compile_s / saved_per_step_s:,.0f} steps"
    value, other = ("on", "off") if saved_s > compile_s else ("off", "on")
    beat = ({"value": other, "why": f"{abs(saved_s - compile_s):,.0f} s slower over {steps:,} steps"},)
    return Choice(value, f"{sums}, {even} ({speed})", origin, beat, measured)  # type: ignore[arg-type]


def swap_step(steps: int, eager_step_s: float, expected: CompileFacts) -> int | None:
    """The step at which a run goes over to code that is compiled beside it; None where that pays no more.

    The swap itself costs a warm start of the compiler.
    """
    step = max(1, math.ceil(LATE * expected.compile_s / eager_step_s))
    saved_s = (steps - step) * eager_step_s * (1 - expected.ratio)
    return step if saved_s > WARM_S else None


def expect(trials: Trials, key: dict[str, object], device: str, *, by_block: bool = False) -> CompileFacts:
    """What compiling did the last time under this key on this machine, else the guess for the device.

    by_block: one block for all; before that was measured here, from the whole model's numbers.
    """
    kept = trials.find("compile", key | ({"by_block": True} if by_block else {}))
    if kept is not None and kept.measured is not None:
        return CompileFacts(kept.measured["ratio"], kept.measured["compile_s"], is_measured=True)
    if not by_block:
        return GPU_GUESS if device == "cuda" else CPU_GUESS
    whole = expect(trials, key, device)
    return CompileFacts(min(1.0, BLOCK_RATIO * whole.ratio), BLOCK_COMPILE * whole.compile_s)


def by_block_pays(trials: Trials, key: dict[str, object], device: str, steps: int, eager_step_s: float) -> bool:
    """Whether so many steps end sooner with one block compiled for all: it compiles faster, its steps are slower."""
    if device != "cpu":
        return False  # nobody has measured it there
    facts = [expect(trials, key, device, by_block=by_block) for by_block in (False, True)]
    whole_s, block_s = (entry.compile_s + steps * entry.ratio * eager_step_s for entry in facts)
    return block_s < whole_s


def remember(
    trials: Trials, key: dict[str, object], *, eager_step_s: float, compiled_step_s: float, compile_s: float,
    by_block: bool = False,
) -> None:  # fmt: skip
    """Keeps what a run has seen, for expect(). Call it after a compiled run whose eager step was timed too."""
    ratio = compiled_step_s / eager_step_s
    measured = {
        "ratio": ratio,
        "compile_s": compile_s,
        "eager_step_s": eager_step_s,
        "compiled_step_s": compiled_step_s,
    }
    trials.record(
        "compile", key | ({"by_block": True} if by_block else {}),
        Choice(ratio, f"compiled steps took {ratio:.2f} of eager ones", "measured", measured=measured),
    )  # fmt: skip
