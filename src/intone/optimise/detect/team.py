"""Detectors of processes that train together: needless or open exchanges, one that is slow"""

import statistics

from intone.optimise.detect.finding import Bottleneck, bound_of
from intone.optimise.signals import Signals


def exchange_again(signals: Signals) -> Bottleneck | None:
    """D19: gradients are exchanged after every micro-batch, where once per optimizer step is enough."""
    count = signals.exchanges_per_step
    if count is None or count <= 1.0:
        return None
    evidence = [f"gradients are exchanged {count:.3g} times per optimizer step (needed: 1)"]
    if signals.micro_steps is not None:
        evidence.append(f"{signals.micro_steps:.3g} backward passes per optimizer step")
    share = signals.exchange_share
    if share is not None:
        evidence.append(f"the exchange takes {share:.1%} of a step")
    return Bottleneck(
        "D19", "gradients exchanged too often", tuple(evidence), "more than one per step", "rule",
        bound_of(share * (1 - 1 / count)) if share else None, "exchanges_per_step",
    )  # fmt: skip


def exchange_share(signals: Signals) -> Bottleneck | None:
    """D20: processes wait for their exchange, which nothing overlaps."""
    share = signals.exchange_share
    if share is None or share <= 0.1:
        return None
    evidence = (
        f"without exchanging gradients steps of {signals.num_processes} processes take {1 - share:.1%} of their time"
        " (threshold 90%)",
    )
    return Bottleneck(
        "D20", "waiting for the exchange of gradients", evidence, "10% of a step", "PyTorch profiler's old rule",
        bound_of(share), "exchange_share",
    )  # fmt: skip


def straggler(signals: Signals) -> Bottleneck | None:
    """D21: one process takes longer for its own work than the others, which wait for it."""
    times = signals.rank_step_s
    if len(times) < 2:
        return None
    slowest = max(times)
    ratio = slowest / statistics.median(times)
    if ratio <= 1.1:
        return None
    evidence = (
        f"process {times.index(slowest)} of {len(times)} takes {ratio:.2f} times as long for its own work as the"
        " middle one (threshold 1.1)",
    )
    return Bottleneck(
        "D21", "one process is slower than the others", evidence, "1.1 times the middle one", "guess of the catalogue",
        ratio, "rank_step_s",
    )  # fmt: skip
