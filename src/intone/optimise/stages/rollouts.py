"""What is particular about a stage that learns from its own answers: what a look at it says, and answers at once"""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, Protocol

from intone.config import RolloutConfig
from intone.optimise.signals import Signals

WORTH = 1.02  # a rung of the ladder that adds less is the last one, as for rows
RUNG = 4  # times as many answers at once: writing one after the other takes long, and so few rungs are looked at
MOST_MEMORY = 0.7  # of the device's, as for rows (detector D1)
UNSEEN = "the profiler sees the training alone: answers are written in the engine's own thread"


class Gains(Protocol):
    """What times one setting against another: training.Swap."""

    @property
    def peak_bytes(self) -> int | None: ...

    def gain(self, *, base: Mapping[str, Any] | None = None, **plan: Any) -> float | None: ...


def of_writing(signals: Signals, found: Mapping[str, Any]) -> Signals:
    """The signals of a look without what means something else here.

    Time of the engine's thread would look idle. Rows are packed answers, of which two may well be equal, and a step
    has as many as there is something to learn from: the end of the last one is no padding that a setting could save.
    """
    return dataclasses.replace(
        signals, ops_per_step=None, idle_share=None, median_op_s=None, flop_share=None, pad_share=None,
        duplicate_rows=None, num_slots=found["num_slots"], notes=(*signals.notes, UNSEEN),
        tokens_per_step=statistics.fmean(found["written"]), planned_tokens_per_step=None,
    )  # fmt: skip


def slots_ladder(swap: Gains, config: RolloutConfig, now: int, memory_bytes: int | None) -> dict[str, float]:
    """Answers at once -> tokens/s over those now, each rung four times the one below, the last one all of a step.

    Until it brings nothing, or memory ends.
    """
    most, count = config.prompts * config.samples, now
    ladder: dict[str, float] = {}
    while count < most:
        more = min(RUNG * count, most)
        gain = swap.gain(base={"num_slots": count}, num_slots=more)
        if gain is None:
            break
        ladder[str(more)] = ladder.get(str(count), 1.0) * gain
        count = more
        full = swap.peak_bytes is not None and memory_bytes and swap.peak_bytes > MOST_MEMORY * memory_bytes
        if gain < WORTH or full:
            break
    return {str(now): 1.0, **ladder} if ladder else {}
