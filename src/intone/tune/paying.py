"""Decides whether a search for the micro-batch pays within a run, from what searches here cost and saved"""

from dataclasses import dataclass
from typing import Any

from intone.hardware import Facts
from intone.log import human_duration
from intone.records import Choice, Segment
from intone.tune.batch import SEARCH_S
from intone.tune.found import Found
from intone.tune.trials import Trials

# share of a run that a searched micro-batch saves over the rule's, before this machine has seen a search. On a CPU
# throughput is nearly flat where the rule looks (LOG.md); the case study won more than half on a GPU. Guesses
SAVES = {"cpu": 0.02, "cuda": 0.3, "mps": 0.0}
LEAST_SAVING = 0.002  # guess: where the last search found nothing, another shape may; only very long runs look again
START_S = 5.0  # guess: a worker from its start to its first answer, where no trial has shown it


@dataclass(frozen=True)
class Expected:
    """What a search is expected to cost, and the share of a run that its answer would save."""

    cost_s: float
    saving: float
    is_measured: bool

    def pays(self, run_s: float) -> bool:
        return self.saving * run_s > self.cost_s

    def why_not(self, run_s: float) -> str:
        """The reason of a choice by rule."""
        known = "as the last one here did" if self.is_measured else "guessed"
        return (
            f"by rule: a search would take {human_duration(round(self.cost_s))} and save {self.saving:.1%} of "
            f"{human_duration(round(run_s))} of training, {human_duration(round(self.saving * run_s))} ({known})"
        )


def expected(trials: Trials, key: dict[str, Any], device: str, *, start_s: float | None) -> Expected:
    """What the last search under this key cost and saved, else guesses. start_s: a worker's start, where one was seen.

    A search costs the start of its child and the time for its probes.
    """
    kept = trials.find("batch_search", key)
    if kept is not None and kept.measured is not None:
        return Expected(kept.measured["cost_s"], max(kept.measured["saving"], LEAST_SAVING), True)
    return Expected((START_S if start_s is None else start_s) + SEARCH_S, SAVES.get(device, 0.0), False)


def remember(trials: Trials, key: dict[str, Any], found: Found, rule_rows: int) -> None:
    """Keeps what a search cost and saved, for expected()."""
    saving = saved(found, rule_rows)
    if saving is None:
        return
    measured = {"cost_s": found.seconds, "saving": saving, "rows": found.rows, "rule_rows": rule_rows}
    reason = f"{found.rows} rows instead of {rule_rows} save {saving:.1%} of a step"
    trials.record("batch_search", key, Choice(saving, reason, "measured", measured=measured))


def saved(found: Found, rule_rows: int) -> float | None:
    """Share of a step that the choice saves over the rule's size, 0 or more; None where that is not on the curve."""
    ruled = next((size.step_s for size in found.curve if size.rows == rule_rows and size.step_s), None)
    chosen = next((size.step_s for size in found.curve if size.rows == found.rows and size.step_s), None)
    return None if ruled is None or chosen is None else max(0.0, 1 - chosen / ruled)


def search_key(facts: Facts, segment: Segment, device: str) -> dict[str, Any]:
    """What the gain of a search depends on; not on the exact shape, so that another depth still predicts."""
    return {
        "device": device, "gpu": facts.gpu_name, "dtype": segment.dtype, "kernels": segment.kernels,
        "compiled": segment.compiled,
    }  # fmt: skip
