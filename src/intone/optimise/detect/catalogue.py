"""The list of detectors in the order of the catalogue, and running them all."""

from collections.abc import Callable

from intone.optimise.detect import generation, team, training
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.signals import Signals

Detector = Callable[[Signals], Bottleneck | None]

DETECTORS: dict[str, Detector] = {
    "D1": training.under_batched,
    "D2": training.dispatch_bound,
    "D3": training.not_compiled,
    "D4": training.compiling_share,
    "D5": training.host_sync,
    "D6": training.data_stall,
    "D7": training.copies,
    "D8": generation.no_cache,
    "D9": generation.decode_alone,
    "D10": generation.cache_waste,
    "D11": generation.prefix_again,
    "D12": training.allocator,
    "D13": training.logits_memory,
    "D14": training.slow_dtype,
    "D15": training.odd_sizes,
    "D16": training.padding,
    "D17": training.slow_attention,
    "D18": training.optimizer_share,
    "D19": team.exchange_again,
    "D20": team.exchange_share,
    "D21": team.straggler,
    "D22": generation.copied_samples,
    "D23": generation.silent_losses,
    "D24": training.off_step,
    "D25": training.recomputed,
    "D26": training.threads,
    "D27": generation.untrustworthy,
    "D28": training.constants,
}


def detect(signals: Signals) -> list[Bottleneck]:
    """All findings: faults first, then by what mending them could be worth, unbounded ones last."""
    found = [entry for detector in DETECTORS.values() if (entry := detector(signals)) is not None]
    return sorted(found, key=lambda entry: (not entry.is_fault, -(entry.bound or 0.0), entry.detector))
