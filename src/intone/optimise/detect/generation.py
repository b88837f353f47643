"""Detectors of slow generation: no cache, one row at a time, wasted cache memory, prompts computed twice."""

from intone.optimise.detect.finding import Bottleneck
from intone.optimise.signals import Signals

# of a token's time (guess): twice at ten times the position is missed where a token's fixed costs are large
GROWTH = 1.5


def no_cache(signals: Signals) -> Bottleneck | None:
    """D8: a token takes the longer the later it comes, more than attention over more keys explains."""
    growth, positions = signals.late_over_early, signals.positions
    if growth is None or positions is None or growth <= GROWTH:
        return None
    early, late = positions
    # without a cache every token computes its whole text again, with one only itself: the growth alone does not say how
    # much that is, for what every token takes apart from its text hides it
    bound = float(late)
    evidence = (
        f"a token at position {late:,} takes {growth:.2f} times as long as one at {early:,}"
        f" (threshold {GROWTH:g}, with a cache about 1)",
    )
    return Bottleneck(
        "D8", "no key-value cache", evidence, "half as long again", "time against position, from outside", bound,
        "late_over_early",
    )  # fmt: skip


def decode_alone(signals: Signals) -> Bottleneck | None:
    """D9: decoding reads all weights for one row, where many rows would take about as long."""
    if signals.slots_ladder:
        return few_answers(signals)
    gain, rows = signals.batch_gain, signals.batch_gain_rows
    if signals.kind != "generate" or gain is None or rows is None or rows < 2 or gain >= rows * 0.7:
        return None
    evidence = [f"a step of {rows} rows takes {gain:.2f} times as long as one of a single row"]
    if signals.read_share is not None:
        if signals.read_share >= 0.4 and gain > rows / 2:
            return None
        evidence.append(f"{signals.read_share:.0%} of the bandwidth is used for what must be read (threshold 40%)")
    return Bottleneck(
        "D9", "one text at a time", tuple(evidence), "below 70% of the rows' number", "guess of the catalogue",
        rows / gain, "batch_gain",
    )  # fmt: skip


def few_answers(signals: Signals) -> Bottleneck | None:
    """D9 of a stage that learns from its own answers: more of them written at once were measured to be faster."""
    gains = {int(count): gain for count, gain in signals.slots_ladder.items()}
    best = max(gains, key=lambda count: gains[count])
    used = signals.peak_bytes / signals.memory_bytes if signals.peak_bytes and signals.memory_bytes else None
    if best == signals.num_slots or gains[best] <= 1.05 or (used is not None and used >= 0.7):
        return None
    evidence = [
        f"with {best} answers written at once steps were measured at {gains[best]:.2f} times the speed",
        f"{signals.num_slots} at once now",
    ]
    if "answers" in signals.parts:
        evidence.append(f"writing answers takes {signals.parts['answers']:.1%} of a step")
    return Bottleneck(
        "D9", "too few answers written at once", tuple(evidence), "more than 1.05 times, below 70% of the memory",
        "as D1", gains[best], "slots_ladder",
    )  # fmt: skip


def cache_waste(signals: Signals) -> Bottleneck | None:
    """D10: most of the memory of the cache holds nothing."""
    share = signals.kv_used_share
    if share is None or share >= 0.6:
        return None
    evidence = (f"{share:.0%} of the cache's bytes are in use (threshold 60%)",)
    return Bottleneck("D10", "cache memory unused", evidence, "60%", "guess of the catalogue", None, "kv_used_share")


def prefix_again(signals: Signals) -> Bottleneck | None:
    """D11: the same beginning of texts is computed more than once."""
    again = signals.prefill_ratio
    if again is None or again <= 1.1:
        return None
    evidence = (f"{again:.2f} prompt tokens computed for each distinct one (threshold 1.1)",)
    return Bottleneck(
        "D11", "prompts computed again", evidence, "1.1 times", "guess of the catalogue", None, "prefill_ratio"
    )


def copied_samples(signals: Signals) -> Bottleneck | None:
    """D22: samples that should be independent begin alike, or training rows are there twice."""
    evidence = []
    found, wanted = signals.distinct_first, signals.expected_distinct
    if found is not None and wanted is not None and signals.num_samples and found == 1 and wanted > 2:
        evidence.append(
            f"{signals.num_samples} samples of one prompt begin with the same token; independent draws"
            f" would show {wanted:.1f} different ones"
        )
    rows = signals.rows_looked_at
    if signals.duplicate_rows and rows:
        evidence.append(f"{signals.duplicate_rows} of {rows} training rows are equal to another one")
    if not evidence:
        return None
    signal = "distinct_first" if found == 1 else "duplicate_rows"
    return Bottleneck(
        "D22", "copied samples", tuple(evidence), "any beyond chance", "behaviour", None, signal, is_fault=True
    )


def silent_losses(signals: Signals) -> Bottleneck | None:
    """D23: rows that teach nothing, losses that are no numbers, another number of tokens per step than planned."""
    evidence = []
    if signals.masked_rows:
        evidence.append(f"{signals.masked_rows} of {signals.rows_looked_at} rows have nothing to learn")
    if signals.nonfinite_losses:
        evidence.append(f"{signals.nonfinite_losses} losses are not finite")
    seen, planned = signals.tokens_per_step, signals.planned_tokens_per_step
    if seen is not None and planned and abs(seen / planned - 1) > 0.01:
        evidence.append(f"{seen:,.0f} tokens per step where {planned:,.0f} are planned")
    if not evidence:
        return None
    signal = "nonfinite_losses" if signals.nonfinite_losses else "masked_rows"
    return Bottleneck(
        "D23", "losses that hide a fault", tuple(evidence), "any", "behaviour", None, signal, is_fault=True
    )


def untrustworthy(signals: Signals) -> Bottleneck | None:
    """D27: the machine was not steady enough to say anything."""
    if signals.drift is None or abs(signals.drift) <= 0.03:
        return None
    spread = signals.step_spread
    if spread is not None and abs(signals.drift) <= 2 * spread:
        return None  # steps differ by as much from one to the next: no drift can be told
    evidence = (f"the last third of the steps took {1 + signals.drift:.3f} of the first third's time (threshold 3%)",)
    return Bottleneck(
        "D27", "the machine drifted", evidence, "3%", "NVIDIA clock events; own A/A rounds", None, "drift",
    )  # fmt: skip
