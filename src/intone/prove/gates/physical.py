"""The gate on physics: a rate above what the machine can reach was not measured, whatever the clock says."""

from dataclasses import dataclass
from typing import Any

from intone.config import ModelConfig
from intone.hardware import Facts
from intone.log import three_digits
from intone.model.cost import num_parameters
from intone.prove.gates.result import GateResult, Threshold, not_judged

NAME = "physical bound"
# a measured rate is no law: it was taken in 0.1 s, perhaps beside others, on one shape. 4-5 % between processes and
# up to 2x from a busy to a quiet minute were seen (LOG.md); guess
MEASURED_SLACK = 2.0
NEAR = 0.9  # share of the bound from which a rate is worth a second look; guess
# weights below this may stay in a cache, whose bandwidth is not known: larger than the last-level caches of common
# processors and GPUs (50 MB on an H200, 32 to 256 MB on servers)
CACHED_BYTES = 512 * 2**20
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class Work:
    """What a measured rate needs at least, per second; bytes_per_s None: nothing is known to be read from memory."""

    flops_per_s: float
    bytes_per_s: float | None
    dtype: str
    what: str  # the measured rate, for people


@dataclass(frozen=True)
class Bound:
    """What the machine can do at most, None: unknown; the words say where each number is from."""

    flops_per_s: float | None
    flops_source: str
    bytes_per_s: float | None
    bytes_source: str


def training_work(
    config: ModelConfig, tokens_per_s: float, *, dtype: str, supervised_share: float = 1.0
) -> Work:
    """The least work behind a training rate: forward and backward products, 6 per parameter and token.

    Attention is left out, since documents in a packed row may be short, and so is the head where nothing is learned:
    right code may save both. A padded position counts as a token only if tokens_per_s counts it.
    """
    counts = num_parameters(config)
    per_token = 6 * (counts["matrices"] + counts["head"] * supervised_share)
    return Work(per_token * tokens_per_s, None, dtype, f"{three_digits(tokens_per_s)} tokens/s of training")


def decode_work(config: ModelConfig, tokens_per_s: float, *, rows: int, dtype: str) -> Work:
    """The least work behind a decoding rate with rows texts at once: products per token, weights read per step.

    dtype: that of the packed weights. Reading the keys and values is left out.
    """
    counts = num_parameters(config)
    products = counts["matrices"] + counts["head"]
    weight_bytes = products * DTYPE_BYTES[dtype]
    read = None if weight_bytes < CACHED_BYTES else weight_bytes * tokens_per_s / rows
    rate = f"{three_digits(tokens_per_s)} tokens/s of decoding, {rows} rows at once"
    return Work(2.0 * products * tokens_per_s, read, dtype, rate)


def bound_of(facts: Facts, dtype: str) -> Bound:
    """What this machine can do at most in a dtype: a data sheet where there is one, else what was measured, with slack.

    A 16-bit data-sheet peak bounds fp32 too, and half of it 8-bit work.
    """
    narrow = 2.0 if dtype in ("fp8", "int8") else 1.0
    flops: float | None
    if facts.peak_flops_per_s is not None:
        flops, flops_source = narrow * facts.peak_flops_per_s, "data sheet"
    else:
        rate = max_known(facts, dtype)
        flops = None if rate is None else MEASURED_SLACK * narrow * rate
        flops_source = f"{MEASURED_SLACK:g} times what was measured here"
    if facts.peak_bytes_per_s is not None:
        return Bound(flops, flops_source, facts.peak_bytes_per_s, "data sheet")
    copied = facts.copy_bytes_per_s
    return Bound(flops, flops_source, None if copied is None else MEASURED_SLACK * copied,
                 f"{MEASURED_SLACK:g} times what was measured here")  # fmt: skip


def max_known(facts: Facts, dtype: str) -> float | None:
    """The highest rate of products that was measured for a dtype; 8-bit ones are bounded by 16-bit ones."""
    if dtype not in DTYPE_BYTES:
        return None
    name = dtype if DTYPE_BYTES[dtype] > 1 else "bf16"
    rates = (getattr(facts, f"{name}_flops_per_s"), getattr(facts, f"{name}_small_flops_per_s"))
    return max((rate for rate in rates if rate), default=None)


def judge(work: Work, bound: Bound) -> GateResult:
    """Rejected above either bound; near one the reason says so."""
    threshold = Threshold(
        "products and bytes per second at most what the machine can do",
        f"FLOP/s: {bound.flops_source}; bytes/s: {bound.bytes_source}; {MEASURED_SLACK:g} is a guess",
    )
    evidence: dict[str, Any] = {
        "flops_per_s": work.flops_per_s, "bound_flops_per_s": bound.flops_per_s,
        "bytes_per_s": work.bytes_per_s, "bound_bytes_per_s": bound.bytes_per_s, "dtype": work.dtype,
    }  # fmt: skip
    shares: dict[str, float] = {}
    for unit, needed, most in (
        ("FLOP/s", work.flops_per_s, bound.flops_per_s), ("bytes/s", work.bytes_per_s, bound.bytes_per_s),
    ):  # fmt: skip
        if needed is not None and most:
            shares[unit] = needed / most
            if not needed <= most:
                reason = (
                    f"{work.what} needs {three_digits(needed / 1e9)} G{unit} at least, this machine does "
                    f"{three_digits(most / 1e9)} at most: work was left out, or not timed"
                )
                fix = "count what is computed, and wait for the device at both ends of the timing"
                return GateResult(NAME, False, reason, threshold, evidence | {"share": shares[unit]}, fix=fix)
    if "FLOP/s" not in shares:
        return not_judged(NAME, f"no peak rate is known here for {work.dtype}", "run `intone tune --facts`")
    highest = max(shares, key=shares.__getitem__)
    evidence["share"] = shares[highest]
    flag = ", near it: look twice" if shares[highest] > NEAR else ""
    reason = f"{work.what} is {shares[highest]:.1%} of the bound in {highest}{flag}"
    return GateResult(NAME, True, reason, threshold, evidence)
