"""Tokens per second of our training and nanochat's: same model, start, rows and rates, in turns in live processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intone.bench.rows import new_row
from intone.bench.train_losses import (
    LOSS_STEP,
    Match,
    check_losses,
    in_fp32,
    match,
    our_loss,
    parameter_kinds,
    their_loss,
)
from intone.bench.train_nanochat import Checkout, NanochatChild, Way, best_way, describe
from intone.bench.train_ours import bench_home, export_rows, plan_flags, prepare, read_job, write_job
from intone.bench.train_settings import BenchTrainSettings, command_line
from intone.errors import UserError
from intone.evals.intervals import Interval
from intone.hardware import Facts, load_facts
from intone.log import human_bytes, table
from intone.model.cost import train_flops_per_token
from intone.prove.live import LineChild, WorkerChild
from intone.prove.measure import Measured, Side, measure_rounds
from intone.prove.verdict import Comparison
from intone.records import Choices, ResultRow

SUFFIX = {"fp32": "", "bf16": "_bf16"}  # of a row's id, by nanochat's number format
WARM_STEPS = 2  # of nanochat, before its first block; our workers do three
PLAN_MINUTES = 20  # length of a run that our side is planned for: long enough that compiling pays where it ever does
# a pair is then 8 s of each side or more: two seconds differ by up to 15 % on a shared machine (CONTRACTS)
BLOCK_S = 4.0
NUM_STEPS = LOSS_STEP + 8  # whose rows nanochat gets; where only time counts it may repeat them


@dataclass(frozen=True)
class Other:
    """nanochat in one number format: its fastest way here, and its loss where the two trainings are compared."""

    dtype: str
    way: Way
    loss: float | None

    @property
    def name(self) -> str:
        return f"nanochat {self.dtype}"


def speed_case(settings: BenchTrainSettings, checkout: Checkout, case: str, depth: int) -> list[ResultRow]:
    """The rows of one depth, one per number format of nanochat; tables on stdout.

    Raises UserError where the two sides are not the same training, or one of them fails.
    """
    facts, fresh = load_facts(), settings.fresh
    flags = plan_flags(settings, depth=depth, batch_tokens=settings.batch_tokens, minutes=PLAN_MINUTES)
    job, choices = read_job(prepare(flags))
    rows = export_rows(job, NUM_STEPS * job.rows_per_step, settings.val_tokens)
    same = match(
        checkout, job, rows, facts, batch_tokens=settings.batch_tokens, scalar_rates=settings.scalar_rates, fresh=fresh
    )
    kinds = [
        [kind, f"{a:,}", f"{b:,}", f"{100 * abs(a - b) / b:.2f}%"] for kind, a, b in parameter_kinds(job, same.nanochat)
    ]
    print(table(kinds, header=["parameters", "intone", "nanochat", "apart"]))
    others = [other_side(settings, checkout, same, rows, facts, dtype) for dtype in settings.their_dtypes]
    loss = our_loss(same.job, choices, fresh=fresh)
    ours_fp32 = our_loss(same.job, in_fp32(choices), fresh=fresh) if settings.fp32_check else None
    lines = check_losses(loss, next((o.loss for o in others if o.dtype == "fp32"), None), ours_fp32)

    def start_theirs(other: Other) -> Callable[[], LineChild]:
        return lambda: NanochatChild(
            checkout, job.model, rows, other.way, facts, dtype=other.dtype, batch_tokens=settings.batch_tokens,
            warm=WARM_STEPS, repeat=True, scalar_rates=settings.scalar_rates,
        )  # fmt: skip

    sides = [Side("intone", our_worker(same, choices, case))]
    sides += [Side(other.name, start_theirs(other)) for other in others]
    measured = measure_rounds(sides, quick=settings.quick, max_pairs=settings.pairs, block_s=BLOCK_S)
    losses = [loss, *(other.loss for other in others)]
    plans = [our_plan(choices), *(f"{other.dtype}, {describe(other.way)}" for other in others)]
    dtypes = [choices.segments[0].dtype, *(other.dtype for other in others)]
    print(sides_table(measured, plans, dtypes, losses, facts, train_flops_per_token(job.model, job.context)))
    print("\n".join(lines))
    if measured.unsteady:
        print(f"the machine was unsteady: {measured.unsteady}")
    return [
        speed_row(settings, case, other, comparison, checkout, measured)
        for other, comparison in zip(others, measured.comparisons, strict=True)
    ]


def other_side(
    settings: BenchTrainSettings, checkout: Checkout, same: Match, rows: Path, facts: Facts, dtype: str
) -> Other:
    """nanochat in one number format, with what is kept of it."""
    way = best_way(
        checkout, same.job.model, rows, facts, dtype=dtype, batch_tokens=settings.batch_tokens,
        sizes=settings.their_rows, fresh=settings.fresh,
    )  # fmt: skip
    loss = their_loss(
        checkout, same.job, rows, way, facts, dtype=dtype, batch_tokens=settings.batch_tokens,
        scalar_rates=settings.scalar_rates, fresh=settings.fresh,
    )  # fmt: skip
    return Other(dtype, way, loss)


def our_worker(same: Match, choices: Choices, case: str) -> Callable[[], LineChild]:
    """Starts our worker in blocks, each time in a clean folder."""

    def start() -> LineChild:
        folder = write_job(bench_home() / "live" / case, same.job, choices)
        return WorkerChild(folder, choices.environment, name="intone")

    return start


def our_plan(choices: Choices) -> str:
    """How our step is computed, in words."""
    segment = choices.segments[0]
    how = "compiled" if segment.compiled else "our kernels" if segment.kernels == "native" else "eager"
    return f"{segment.dtype}, {segment.device_batch} rows, {segment.threads} threads, {how}, {segment.attention}"


def sides_table(
    measured: Measured, plans: list[str], dtypes: list[str], losses: list[float | None], facts: Facts, flops: int
) -> str:
    """What every side reached. flops: per token, in nanochat's convention for all."""
    rates = {"fp32": facts.fp32_flops_per_s, "bf16": facts.bf16_flops_per_s, "fp16": facts.fp16_flops_per_s}
    rows = []
    for side, plan, dtype, loss in zip(measured.sides, plans, dtypes, losses, strict=True):
        if side is None:
            continue
        rate = rates[dtype]
        rows.append([
            side.name, plan, f"{side.rate:,.0f}", f"{side.low:,.0f}-{side.high:,.0f}",
            f"{100 * side.rate * flops / rate:.1f}%" if rate else "unknown", human_bytes(side.peak_bytes),
            f"{side.first_s:.1f} s", "unknown" if loss is None else f"{loss:.4f}",
        ])  # fmt: skip
    header = ["side", "plan", "tokens/s", "range", "MFU", "peak", "first step", f"loss at {LOSS_STEP}"]
    return table(rows, header=header, left=2)


def speed_row(
    settings: BenchTrainSettings, case: str, other: Other, found: Comparison, checkout: Checkout, measured: Measured
) -> ResultRow:
    """Tokens per second of ours over nanochat's. Raises UserError where the machine or a side did not allow one."""
    if found.ratio is None or found.low is None or found.high is None or found.verdict == "rejected":
        fix = "measure when nothing else runs on this machine" if measured.unsteady else None
        raise UserError(f"{other.name} could not be compared: {found.reason}", value=other.name, fix=fix)
    # the comparison asks how much faster nanochat is; the row asks it the other way round
    interval = Interval(1 / found.ratio, 1 / found.high, 1 / found.low)
    side = next(side for side in measured.sides if side is not None and side.name == other.name)
    plan = f"{other.dtype}, {describe(other.way)}"
    if settings.scalar_rates != 1:
        plan += f", scalar rates times {settings.scalar_rates:g} on both sides"
    return new_row(
        f"cpu.train.{case}.vs_nanochat{SUFFIX[other.dtype]}", interval, "ratio of tokens/s", n=found.num_pairs,
        baseline=f"nanochat {checkout.revision}, {plan}: {side.rate:,.0f} tokens/s",
        command=command_line(settings, case),
    )  # fmt: skip
