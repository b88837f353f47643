"""Chooses how workers get memory from the C library, by timing steps: settings that must stand before they start"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.child import ChildFailed
from intone.config import ModelConfig
from intone.hardware import Facts, environment
from intone.log import human_duration
from intone.records import Choice
from intone.tune.probe import Case, time_cases
from intone.tune.settle import shape_key
from intone.tune.trials import Trials

# (config, cases, facts, variables) -> seconds per step, one list per case
TimeUnder = Callable[[ModelConfig, Sequence[Case], Facts, Mapping[str, str]], list[list[float]]]

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc 2.35 and later: asks for huge pages by madvise
WORTH = 1.05  # must be faster by this: processes differ by 4-5 % (CONTRACTS), and heap is what was tried most
REPLICATES = 2  # processes per candidate, in the order A B C C B A
COST_S = 10.0  # of a comparison
SAVES = 0.01  # share of a run that the answer saves; guess
BUDGET_S = 0.7  # of timed steps in each: six processes stay below ten seconds


def settle_allocator(
    facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str, threads: int, kernels: str,
    run_s: float | None, already: Mapping[str, str], time_steps: TimeUnder | None = None,
) -> Choice:  # fmt: skip
    """heap, huge or system; variables_of() says what each sets. already: this process's variables.

    heap: freed tensors stay with the process; huge: the same on huge pages; system: what the C library does by itself.
    run_s: expected seconds of training, within which the comparison must pay; None: compare in any case.
    """
    if not (facts.libc or "").startswith("glibc"):
        return Choice("system", f"no settings are known for {facts.libc or 'this C library'}", "default")
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in already):
        return Choice("heap", "where the person has set something, that stays, and nothing is compared", "default")
    if facts.device != "cpu":
        return Choice("heap", "steps on the GPU do not wait for the C library", "default")
    names = candidates(huge_pages())
    key = shape_key(facts, config) | {"dtype": dtype, "threads": threads, "kernels": kernels, "names": names}
    kept = trials.find("allocator", key)
    if kept is None and run_s is not None and SAVES * run_s < COST_S:
        why = f"a comparison takes {COST_S:.0f} s, more than it is likely to save in {human_duration(round(run_s))}"
        return Choice("heap", f"by rule: {why}", "default")
    time_under = time_steps or timed

    def decide() -> Choice:
        case = Case(threads, dtype, "native" if kernels == "native" else "sdpa", kernels)
        times: dict[str, list[float]] = {name: [] for name in names}
        try:
            for number in range(REPLICATES):
                for name in names if number % 2 == 0 else tuple(reversed(names)):
                    variables = variables_of(name, facts, threads)
                    times[name] += time_under(config, [case], facts, variables)[0]
        except ChildFailed as error:
            return Choice("heap", f"the training step could not be timed: {error}", "default")
        return pick(times)

    return trials.settle("allocator", key, decide)


def candidates(pages: str | None) -> tuple[str, ...]:
    """What is worth timing: huge pages only where the kernel gives them to who asks."""
    return ("heap", "huge", "system") if pages == "madvise" else ("heap", "system")


def huge_pages() -> str | None:
    """always, madvise or never, as the kernel is set; None where it does not say."""
    try:
        words = HUGE_PAGES.read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def variables_of(name: str, facts: Facts, threads: int, already: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a worker under one of the candidates."""
    known = {} if already is None else already
    variables = {key: item.value for key, item in environment(facts, threads=threads, already=known).items()}
    if name == "system":
        return {key: value for key, value in variables.items() if not key.startswith("MALLOC_")}
    return variables | HUGE if name == "huge" else variables


def timed(
    config: ModelConfig, cases: Sequence[Case], facts: Facts, variables: Mapping[str, str]
) -> list[list[float]]:
    """time_cases in a child with these variables."""
    return time_cases(config, cases, facts, variables=variables, budget_s=BUDGET_S)


def pick(times: Mapping[str, Sequence[float]]) -> Choice:
    """heap, unless another one's median step over all processes is 5 % faster."""
    step_s = {name: statistics.median(entries) for name, entries in times.items()}
    gains = {name: step_s["heap"] / seconds for name, seconds in step_s.items()}
    best = max(gains, key=gains.__getitem__)
    value = best if gains[best] > WORTH else "heap"
    shown = ", ".join(f"{name}: {seconds * 1000:.0f} ms" for name, seconds in step_s.items())
    beat = tuple(
        {"value": name, "why": f"{gains[name] / gains[value]:.2f}x as fast"} for name in times if name != value
    )
    why = "the fastest training step" if value == best else f"nothing is {WORTH - 1:.0%} faster than it"
    measured: dict[str, Any] = {"step_s": step_s, "processes": REPLICATES, "rounds": len(times["heap"])}
    return Choice(value, f"{why} ({shown}; {REPLICATES} processes each)", "measured", beat, measured)
