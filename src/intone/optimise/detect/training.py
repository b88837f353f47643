"""Detectors of slow training: too few rows at once, dispatch overhead, compiling, waiting, copies, memory, padding."""

from intone.log import human_bytes, human_duration
from intone.optimise.detect.finding import Bottleneck, bound_of
from intone.optimise.signals import Signals

PERCENT = "{:.1%}"


def under_batched(signals: Signals) -> Bottleneck | None:
    """D1: more rows at once would be faster, and there is memory for them."""
    gain, used = signals.elasticity, ratio(signals.peak_bytes, signals.memory_bytes)
    words, now = "twice the rows", signals.device_batch
    if signals.ladder and now is not None:
        more = {int(rows): found for rows, found in signals.ladder.items() if int(rows) > now}
        rows = max(more, key=lambda count: more[count], default=None)
        if rows is not None and (gain is None or more[rows] > gain):
            gain, words = more[rows], f"{rows} rows"
    if signals.kind != "train" or gain is None or gain <= 1.05 or (used is not None and used >= 0.7):
        return None
    evidence = [f"with {words} at once {gain:.2f} times the tokens/s"]
    if now is not None:
        evidence.append(f"{now} rows at once now")
    if signals.micro_steps is not None:
        evidence.append(f"{signals.micro_steps:.3g} backward passes per optimizer step")
    if used is not None:
        evidence.append(f"{used:.0%} of the memory used")
    return Bottleneck(
        "D1", "too few rows at once", tuple(evidence), "more than 1.05 times, below 70% of the memory",
        "guess of the catalogue, tried on planted batches", None, "elasticity",
    )  # fmt: skip


def dispatch_bound(signals: Signals) -> Bottleneck | None:
    """D2: the program spends its time between operators, in Python or in launching."""
    idle = signals.idle_share
    if idle is None or idle <= 0.15:
        return None
    evidence = [f"no operator ran for {idle:.1%} of the time"]
    if signals.ops_per_step is not None:
        evidence.append(f"{signals.ops_per_step:,.0f} operators per step")
    if signals.median_op_s is not None:
        evidence.append(f"half of them shorter than {human_duration(signals.median_op_s)}")
    return Bottleneck(
        "D2", "dispatch overhead between operators", tuple(evidence), "idle above 15%", "TraceLens",
        bound_of(idle), "idle_share",
    )  # fmt: skip


def not_compiled(signals: Signals) -> Bottleneck | None:
    """D3: code is compiled again and again, falls into pieces, or is not compiled where that was measured to pay."""
    evidence = []
    bound = None
    if signals.recompiles:
        evidence.append(f"compiled again {signals.recompiles} times after the warm-up (allowed: 0)")
    if signals.graphs is not None and signals.graphs > 1 and signals.compiled:
        evidence.append(f"a forward pass falls into {signals.graphs} compiled pieces (wanted: 1)")
    gain = signals.compiled_gain
    if not signals.compiled and gain is not None and gain > 1.05:
        evidence.append(f"compiled steps were measured at {gain:.2f} times the speed (threshold 1.05)")
        bound = gain
    fused = signals.kernels_gain
    if not signals.compiled and fused is not None and fused > 1.05:
        evidence.append(f"steps on fused CPU kernels were measured at {fused:.2f} times the speed (threshold 1.05)")
        bound = max(bound or 0.0, fused)
    if not evidence:
        return None
    signal = "recompiles" if signals.recompiles else "kernels_gain" if bound == fused else "compiled_gain"
    return Bottleneck(
        "D3", "not compiled, or compiled again and again", tuple(evidence), "any compiling after the warm-up; 5%",
        "torch.compile troubleshooting", bound, signal,
    )  # fmt: skip


def compiling_share(signals: Signals) -> Bottleneck | None:
    """D4: compiling takes a large part of the run that it is to make faster."""
    if not signals.compiled or signals.compile_s is None or not signals.planned_s:
        return None
    share = signals.compile_s / signals.planned_s
    if share <= 0.1:
        return None
    evidence = (
        f"compiling took {human_duration(signals.compile_s)} of a run of {human_duration(signals.planned_s)}"
        f" ({share:.0%}, threshold 10%)",
    )
    return Bottleneck(
        "D4", "compiling that does not pay", evidence, "10% of the run", "guess of the catalogue", bound_of(share),
        "compile_s",
    )  # fmt: skip


def slow_attention(signals: Signals) -> Bottleneck | None:
    """D17: another way to compute attention was measured to be faster."""
    if signals.attention_gain is None or signals.attention_gain[1] <= 1.05:
        return None
    name, gain = signals.attention_gain
    evidence = (f"attention by {name} was measured at {gain:.2f} times the speed of a step (threshold 1.05)",)
    return Bottleneck(
        "D17", "a slow way to compute attention", evidence, "5%, in turns", "rule", gain, "attention_gain"
    )


def off_step(signals: Signals) -> Bottleneck | None:
    """D24: a run spends much of its time between steps: evaluations, saves, starting."""
    share = signals.off_step_share
    if share is None or share <= 0.05:
        return None
    evidence = (f"{share:.1%} of the run's time lies between steps, in evaluations and saves (threshold 5%)",)
    return Bottleneck(
        "D24", "time between steps", evidence, "5% of the run", "guess of the catalogue", bound_of(share),
        "off_step_share",
    )  # fmt: skip


def copies(signals: Signals) -> Bottleneck | None:
    """D7: batches are copied to the device while it waits."""
    share = signals.parts.get("copy")
    if share is None or share <= 0.02:
        return None
    evidence = (f"copying batches to the device takes {share:.1%} of a step (threshold 2%)",)
    return Bottleneck(
        "D7", "copies that nothing overlaps", evidence, "2% of a step", "guess of the catalogue", bound_of(share),
        "parts.copy",
    )  # fmt: skip


def host_sync(signals: Signals) -> Bottleneck | None:
    """D5: the program waits for the device more than once per step."""
    count = signals.syncs_per_step
    if count is None or count <= 1.0:
        return None
    share = signals.parts.get("sync", 0.0)
    evidence = [f"{count:.3g} waits per step (item, tolist, cpu, numpy, print; at most 1)", f"{share:.1%} of the time"]
    return Bottleneck(
        "D5", "the host waits for the device", tuple(evidence), "more than one per step", "rule",
        bound_of(share) if share else None, "syncs_per_step", signals.sync_place,
    )  # fmt: skip


def data_stall(signals: Signals) -> Bottleneck | None:
    """D6: the next batch is not ready when it is needed."""
    share = signals.parts.get("data")
    replay = signals.replay
    seen = share is not None and share > 0.05
    confirmed = replay is not None and replay < 0.95
    if not seen and not confirmed:
        return None
    if seen and replay is not None and not confirmed:
        return None  # using one batch again made nothing faster: the time goes elsewhere
    evidence = []
    if share is not None:
        evidence.append(f"{share:.1%} of the time goes into getting batches (threshold 5%)")
    if replay is not None:
        evidence.append(f"with one batch used again a step takes {replay:.2f} of its time")
    best = max(bound_of(share or 0.0), 1.0 / replay if replay else 1.0)
    return Bottleneck(
        "D6", "waiting for data", tuple(evidence), "5% of a step", "PyTorch profiler's old rule", best, "parts.data",
        hottest(signals, "data"),
    )  # fmt: skip


def allocator(signals: Signals) -> Bottleneck | None:
    """D12: memory is in pieces too small to use, or had to be given back and taken again."""
    gap = None
    if signals.reserved_bytes and signals.allocated_bytes is not None:
        gap = 1.0 - signals.allocated_bytes / signals.reserved_bytes
    if not signals.alloc_retries and (gap is None or gap <= 0.15):
        return None
    evidence = []
    if signals.alloc_retries:
        evidence.append(f"{signals.alloc_retries} allocations succeeded only after freeing the cache (allowed: 0)")
    if gap is not None:
        evidence.append(f"{gap:.0%} of the reserved memory is not in use (threshold 15%)")
    return Bottleneck(
        "D12", "fragmented device memory", tuple(evidence), "any retry, or a gap of 15%", "Composer", None,
        "alloc_retries",
    )  # fmt: skip


def logits_memory(signals: Signals) -> Bottleneck | None:
    """D13: the logits and what is computed from them fill a large part of the memory."""
    share = ratio(signals.logits_bytes, signals.peak_bytes)
    if share is None or share <= 0.2:
        return None
    evidence = (
        f"logits of one micro-batch are {human_bytes(signals.logits_bytes or 0)}, {share:.0%} of the peak of"
        f" {human_bytes(signals.peak_bytes or 0)} (threshold 20%)",
    )
    return Bottleneck(
        "D13", "logits held whole", evidence, "20% of the peak", "guess of the catalogue", None, "logits_bytes"
    )


def slow_dtype(signals: Signals) -> Bottleneck | None:
    """D14: matrix products run in a dtype that this device is slow in."""
    gain, best = signals.best_dtype_gain, signals.best_dtype
    if gain is None or best is None or gain <= 1.1:
        return None
    slow = sum(share for dtype, share in signals.matmul_dtypes.items() if dtype != best)
    if slow <= 0.1:
        return None
    products = signals.parts.get("forward", 0.0) + signals.parts.get("backward", 0.0) or 1.0
    evidence = (
        f"{slow:.0%} of the time of matrix products is not in {best} (threshold 10%)",
        f"{best} products were measured at {gain:.2f} times the rate here",
    )
    return Bottleneck(
        "D14", f"products not in {best}", evidence, "10% of the time of products", "guess of the catalogue",
        bound_of(slow * products * (1 - 1 / gain)), "matmul_dtypes",
    )  # fmt: skip


def odd_sizes(signals: Signals) -> Bottleneck | None:
    """D15: a matrix product has sizes that the device is slow at: with more to compute it is faster."""
    if signals.odd_product is None or signals.odd_product[2] <= 1.05:
        return None
    sizes, share, gain = signals.odd_product
    evidence = (
        f"the product {sizes}, takes {gain:.2f} times as long as the larger one (threshold 1.05)",
        f"it takes {share:.1%} of a step",
    )
    return Bottleneck(
        "D15", "sizes that do not fit the device", evidence, "a padded twin 5% faster", "rule",
        bound_of(share * (1 - 1 / gain)), "odd_product",
    )  # fmt: skip


def padding(signals: Signals) -> Bottleneck | None:
    """D16: positions are computed that hold nothing."""
    share = signals.pad_share
    if share is None or share <= 0.1:
        return None
    evidence = [f"{share:.1%} of the positions are padding (threshold 10%)"]
    if signals.num_shapes is not None and signals.num_shapes > 1:
        evidence.append(f"{signals.num_shapes} different shapes of batches")
    return Bottleneck(
        "D16", "padded rows", tuple(evidence), "10% of the positions", "guess of the catalogue", bound_of(share),
        "pad_share",
    )  # fmt: skip


def optimizer_share(signals: Signals) -> Bottleneck | None:
    """D18: the update takes a large part of a step."""
    share = signals.parts.get("optimizer")
    if share is None or share <= 0.1:
        return None
    evidence = [f"the optimizer takes {share:.1%} of a step (threshold 10%)"]
    if signals.optimizer_fused_gain is not None:
        evidence.append(f"a fused one was measured at {signals.optimizer_fused_gain:.2f} times its speed")
    return Bottleneck(
        "D18", "a slow optimizer", tuple(evidence), "10% of a step", "guess of the catalogue", bound_of(share),
        "parts.optimizer", hottest(signals, "optimizer"),
    )  # fmt: skip


def recomputed(signals: Signals) -> Bottleneck | None:
    """D25: activations are computed again on the way back, and there is memory to keep them."""
    gain, more = signals.kept_gain, signals.kept_bytes
    if gain is None or more is None or gain <= 1.05 or signals.peak_bytes is None:
        return None
    used = ratio(signals.peak_bytes + more, signals.memory_bytes)
    if used is None or used >= 0.7:
        return None
    evidence = (
        f"passes that keep all activations were measured at {gain:.2f} times the speed (threshold 1.05)",
        f"they keep {human_bytes(more)} more: {used:.0%} of the memory would be used (threshold 70%)",
    )
    return Bottleneck(
        "D25", "activations computed again in vain", evidence, "1.05 times, below 70% of the memory",
        "guess of the catalogue", gain, "kept_gain",
    )  # fmt: skip


def constants(signals: Signals) -> Bottleneck | None:
    """D28: every step computes the same masks, positions or tables."""
    share = signals.constant_share
    if share is None or share <= 0.02:
        return None
    evidence = (f"{share:.1%} of a step computes what the step before computed alike (threshold 2%)",)
    return Bottleneck(
        "D28", "constants computed in every step", evidence, "2% of a step", "guess of the catalogue", bound_of(share),
        "constant_share", signals.constant_place,
    )  # fmt: skip


def threads(signals: Signals) -> Bottleneck | None:
    """D26: another number of CPU threads was measured to be faster."""
    if signals.threads_gain is None or signals.threads_gain[1] <= 1.03:
        return None
    count, gain = signals.threads_gain
    evidence = (f"{count} threads were measured at {gain:.2f} times the speed of {signals.threads} (threshold 1.03)",)
    return Bottleneck("D26", "the wrong number of CPU threads", evidence, "3%, in turns", "rule", gain, "threads_gain")


def ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def hottest(signals: Signals, part: str) -> str | None:
    """path:line of the program's own code in which most time of a part went."""
    lines = [line for line in signals.lines if line.part == part]
    return f"{lines[0].path}:{lines[0].line}" if lines else None
