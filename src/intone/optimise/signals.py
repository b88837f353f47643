"""What was measured of a program at work: the one record that detectors read; what nobody measured is None."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Kind = Literal["train", "generate"]
# where the time of a step goes; "answers", "packing" (weights into the engine) and "judging" (and laying into rows) are
# those of a stage that learns from its own answers; "unexplained" is what no look fell into
PARTS = (
    "data", "answers", "packing", "judging", "copy", "forward", "backward", "optimizer", "sync", "own code",
    "unexplained",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of the program's own code that time was spent in, with everything it called."""

    path: str
    line: int
    function: str
    part: str  # one of PARTS
    share: float  # of the time of steady steps


@dataclass(frozen=True)
class Signals:
    """Measured facts of one program. Shares are 0..1 of the time of steady steps; seconds are medians."""

    kind: Kind = "train"
    device: str = "cpu"
    # --- speed
    step_s: float | None = None  # of one optimizer step, or of one decoding step
    step_spread: float | None = None  # half the distance of quartiles over the median
    drift: float | None = None  # last third of the steps over the first third, minus 1
    num_steps: int = 0  # steady ones that were looked at
    parts: Mapping[str, float] = field(default_factory=dict)  # PARTS -> share
    lines: tuple[Line, ...] = ()
    # --- batches
    device_batch: int | None = None  # rows that go through the model at once
    micro_steps: float | None = None  # backward passes per optimizer step
    elasticity: float | None = None  # tokens/s with twice the rows over tokens/s now
    ladder: Mapping[str, float] = field(default_factory=dict)  # rows at once -> tokens/s over those now, measured
    num_slots: int | None = None  # answers that a stage which learns from them writes at once
    slots_ladder: Mapping[str, float] = field(default_factory=dict)  # answers at once -> tokens/s over those now
    replay: float | None = None  # step time with one batch used again and again over step time now
    num_shapes: int | None = None  # different shapes of batches among the steady steps
    pad_share: float | None = None  # positions that hold neither text nor anything learned
    packed_gain: float | None = None  # supervised tokens/s packed over padded, measured
    # --- code on the device
    ops_per_step: float | None = None  # operators dispatched
    idle_share: float | None = None  # time in which no operator ran
    median_op_s: float | None = None
    compiled: bool | None = None
    compiled_gain: float | None = None  # steps/s compiled over now, measured
    compile_s: float | None = None  # of the first compiled step
    planned_s: float | None = None  # of the run that the compiling is part of
    attention_gain: tuple[str, float] | None = None  # (another way to compute attention, its steps/s over now)
    off_step_share: float | None = None  # of a run's time: between steps, in evaluations and saves
    kernels_gain: float | None = None  # steps/s on our own kernels over now, measured
    flop_share: float | None = None  # products per second over what the device was measured or is stated to do
    recompiles: int | None = None  # after warm-up
    graphs: int | None = None  # compiled pieces of one forward pass
    syncs_per_step: float | None = None  # item(), tolist() and the like
    sync_place: str | None = None  # path:line of the most frequent
    matmul_dtypes: Mapping[str, float] = field(default_factory=dict)  # dtype -> share of the time of products
    best_dtype: str | None = None  # the fastest that this device has, and
    best_dtype_gain: float | None = None  # its rate over that of the slow one, measured
    optimizer_fused_gain: float | None = None
    odd_product: tuple[str, float, float] | None = None  # (sizes, share of a step, time over that of a padded twin)
    constant_share: float | None = None  # of a step's time: computing what the step before computed alike
    constant_place: str | None = None  # path:line of most of it
    kept_gain: float | None = None  # passes/s without computing activations again over now, measured
    kept_bytes: int | None = None  # that activations take more then
    threads: int | None = None
    threads_gain: tuple[int, float] | None = None  # (another number of threads, its rate over the present one)
    # --- processes that train together
    num_processes: int | None = None
    exchanges_per_step: float | None = None  # backward passes whose gradients are exchanged, per optimizer step
    exchange_share: float | None = None  # of a step's time, that goes away without the exchange
    rank_step_s: tuple[float, ...] = ()  # by process: seconds of a step without the exchange
    # --- memory
    memory_kinds: Mapping[str, int] = field(default_factory=dict)  # at the peak: weights, gradients, ... in bytes
    peak_bytes: int | None = None
    memory_bytes: int | None = None  # of the device
    logits_bytes: int | None = None  # of one micro-batch, in the dtype it has
    reserved_bytes: int | None = None
    allocated_bytes: int | None = None
    alloc_retries: int | None = None
    # --- generation
    late_over_early: float | None = None  # time of a token at position 512 (or the last) over that at 64 (or the first)
    positions: tuple[int, int] | None = None  # those two
    batch_gain: float | None = None  # time of a step of many rows over that of one row
    batch_gain_rows: int | None = None
    read_share: float | None = None  # bytes that must be read over bytes that could have been (MBU)
    kv_used_share: float | None = None
    prefill_ratio: float | None = None  # tokens prefilled over distinct prefix tokens
    # --- samples and losses
    num_samples: int | None = None  # rows that began from one prompt at a temperature above 0
    distinct_first: int | None = None  # different first tokens among them
    expected_distinct: float | None = None  # of independent draws from the model's own distribution
    duplicate_rows: int | None = None  # equal rows among the training rows that were looked at
    rows_looked_at: int | None = None
    masked_rows: int | None = None  # rows in which nothing is learned
    nonfinite_losses: int | None = None
    tokens_per_step: float | None = None
    planned_tokens_per_step: float | None = None
    notes: tuple[str, ...] = ()  # what could not be measured, and why

    def __post_init__(self) -> None:
        assert all(name in PARTS for name in self.parts), f"unknown parts: {sorted(set(self.parts) - set(PARTS))}"

    def as_json(self) -> dict[str, Any]:
        """Every field that was measured."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, (), [])}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Signals":
        """The signals that as_json wrote; unknown keys raise."""
        known = {entry.name for entry in fields(Signals)}
        unknown = set(value) - known
        assert not unknown, f"unknown signals {sorted(unknown)}"
        made = dict(value)
        made["lines"] = tuple(Line(**line) for line in made.get("lines", ()))
        for name in ("threads_gain", "attention_gain", "odd_product", "rank_step_s", "positions", "notes"):
            if made.get(name) is not None:
                made[name] = tuple(made[name])
        return Signals(**made)
