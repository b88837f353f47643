"""`intone bench train`: our training against nanochat's on the same rows, model and tokens per step, in turns.

First use on a machine: some minutes for the tokenizer, the plan of our side and nanochat's best micro-batch; kept.
The speed rows of targets.json, about 12 minutes at depth 6 and 6 at depth 4:
  python -m intone.bench.train --nanochat PATH --cases d4 d6 --data TRAIN.parquet... --val VAL.parquet
While tuning our side, three pairs and no fp32 check:
  python -m intone.bench.train --nanochat PATH --cases d6 --dtypes bf16 --pairs 4 --steps 3 --no-fp32 --data ...
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from intone.bench.rows import code_revision, machine_facts, row_path
from intone.bench.train_nanochat import (
    REVISION,
    Checkout,
    NanochatChild,
    Way,
    best_way,
    check_matched,
    describe,
    find_checkout,
)
from intone.bench.train_ours import bench_home, export_rows, matched, prepare, read_job, write_job
from intone.bench.train_weights import save_start, score
from intone.config import TrainJob
from intone.errors import EXIT_BAD_INPUT, UserError
from intone.evals.intervals import ratio
from intone.hardware import Facts, load_facts, quiet
from intone.log import human_bytes, human_duration, say, table, three_digits
from intone.model.cost import num_parameters, train_flops_per_token
from intone.paths import read_json, write_json
from intone.prepare import short_hash
from intone.prove.live import LineChild, LiveFailed, WorkerChild
from intone.records import Choices, ResultRow, append_result, utc_now
from intone.tune.trials import code_fingerprint

LOSS_STEP = 50  # where losses are compared: the mean of the five steps up to it
NUM_LOSSES = 5
SAME_LOSS = 0.01  # relative, against nanochat in fp32 (targets.json)
SAME_FP32 = 0.02  # relative, of our plan against our own fp32 (CONTRACTS)
SAME_FUNCTION = 1e-4  # relative, of the nats of one set of weights in both codes, fp32
CHECK_ROWS = 32
VAL_TOKENS = 262_144


@dataclass(frozen=True)
class Settings:
    """What is compared, on which text, and how long."""

    checkout: Checkout
    data: tuple[str, ...]
    val: tuple[str, ...]
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    context: int = 512
    vocab_size: int = 8192
    batch_tokens: int = 16_384
    pairs: int = 10
    steps: int = 5  # per block
    their_rows: tuple[int, ...] = (8, 16, 32)
    ours: tuple[str, ...] = ()  # more flags for `intone train`, for example --compile off
    fp32: bool = True
    out: Path = row_path("train")


@dataclass
class Side:
    """One live child and what its blocks said."""

    name: str
    child: LineChild
    first_s: float
    dtype: str
    plan: str
    blocks: list[dict[str, Any]]

    @property
    def tokens_per_s(self) -> float:
        return sum(block["tokens"] for block in self.blocks) / sum(block["seconds"] for block in self.blocks)

    def run(self, steps: int) -> None:
        """One more block. Raises UserError where the child fails."""
        try:
            self.blocks.append(self.child.block(steps=steps))
        except LiveFailed as failure:
            raise UserError(failure.outcome.message, value=self.name, fix=failure.outcome.fix) from failure

    def loss_at(self, step: int) -> float | None:
        """Mean loss of the NUM_LOSSES steps up to this one; None where one is missing or not finite."""
        by_step = {
            block["first_step"] + number: loss
            for block in self.blocks
            for number, loss in enumerate(block["losses"], 1)
        }
        losses = [by_step.get(step - i) for i in range(NUM_LOSSES)]
        return None if None in losses else float(np.mean(losses))  # type: ignore[arg-type]


def speed_rows(settings: Settings, case: str) -> list[ResultRow]:
    """The rows of one depth, and a table on stdout. Raises UserError where the two sides are not the same training."""
    facts = load_facts()
    plan = plan_flags(settings, int(case[1:]))
    job, choices = read_job(prepare(plan))
    num_steps = 8 + settings.steps * settings.pairs
    rows = export_rows(job, num_steps * job.rows_per_step, VAL_TOKENS)
    ways = {
        dtype: best_way(
            settings.checkout, job.model, rows, facts, dtype=dtype, batch_tokens=settings.batch_tokens,
            sizes=settings.their_rows,
        )
        for dtype in settings.dtypes
    }  # fmt: skip
    start, theirs = common_start(settings, job, rows, ways[settings.dtypes[0]], facts)
    print(table(check_matched(job.model, num_parameters(job.model), theirs),
                header=["parameters", "intone", "nanochat", "apart"]))  # fmt: skip
    same = matched(job, theirs, start)
    with quiet(facts.folder), contextlib.ExitStack() as stack:
        sides = [our_side(stack, bench_home() / "live" / case, same, choices)]
        for dtype, way in ways.items():
            child = NanochatChild(
                settings.checkout, job.model, rows, way, facts, dtype=dtype, batch_tokens=settings.batch_tokens
            )
            stack.enter_context(child)
            ready = child.start()
            sides.append(Side(f"nanochat {dtype}", child, ready.first_s, dtype, describe(way), []))
        take_turns(sides, settings)
        if "fp32" in ways:
            check_function(sides[1 + list(ways).index("fp32")].child, job, rows)  # type: ignore[arg-type]
    ours_fp32 = fp32_loss(same, choices) if settings.fp32 else None
    print(sides_table(sides, job, facts))
    check_losses(sides, ours_fp32)
    return [
        ratio_row(f"cpu.train.{case}.vs_nanochat{'' if side.dtype == 'fp32' else '_' + side.dtype}", sides[0], side,
                  settings, case)
        for side in sides[1:]
    ]  # fmt: skip


def plan_flags(settings: Settings, depth: int) -> list[str]:
    """The flags of `intone train` that fix what is compared; everything else it settles itself.

    20 minutes: what the plan may assume about the length of the run that is measured a few steps of.
    """
    numbers = {
        "depth": depth, "context": settings.context, "vocab-size": settings.vocab_size,
        "batch-tokens": settings.batch_tokens, "minutes": 20,
    }  # fmt: skip
    words = ["--preset", "modern"]
    for name, value in numbers.items():
        words += [f"--{name}", str(value)]
    words += ["--data", *settings.data]
    if settings.val:
        words += ["--val", *settings.val]
    return [*words, *settings.ours]


def common_start(settings: Settings, job: TrainJob, rows: Path, way: Way, facts: Facts) -> tuple[Path, dict[str, Any]]:
    """(job folder whose save is nanochat's random start, the driver's facts), made once."""
    key = [settings.checkout.revision, job.model.as_json(), job.tokenizer_hash, settings.batch_tokens,
           code_fingerprint("bench", "model/checkpoint.py", "model/gpt.py")]  # fmt: skip
    folder = bench_home() / "start" / short_hash(key)
    path = folder / "facts.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        child = NanochatChild(
            settings.checkout, job.model, rows, way, facts, dtype="fp32", batch_tokens=settings.batch_tokens, warm=0
        )
        with child:
            theirs = dict(child.start().facts)
            child.ask("weights", path=str(folder / "start.npz"))
        save_start(job.model, folder / "start.npz", folder, job.tokenizer_hash)
        write_json(path, theirs)
    return folder, read_json(path)


def our_side(stack: contextlib.ExitStack, folder: Path, job: TrainJob, choices: Choices) -> Side:
    """Our worker, ready."""
    child = stack.enter_context(WorkerChild(write_job(folder, job, choices), choices.environment, name="intone"))
    try:
        ready = child.wait_ready()
    except LiveFailed as failure:
        raise UserError(failure.outcome.message, value=str(folder), fix=failure.outcome.fix) from failure
    segment = choices.segments[0]
    plan = f"{segment.device_batch} rows, {segment.threads} threads, {'compiled' if segment.compiled else 'eager'}"
    return Side("intone", child, ready.first_s, segment.dtype, f"{plan}, attention {segment.attention}", [])


def take_turns(sides: Sequence[Side], settings: Settings) -> None:
    """Blocks in the order A B C C B A until every side has its pairs; one line of progress a round."""
    begin_s = time.monotonic()
    rounds = -(-settings.pairs // 2)
    for number in range(1, rounds + 1):
        for side in [*sides, *reversed(sides)]:
            side.run(settings.steps)
        left_s = (time.monotonic() - begin_s) / number * (rounds - number)
        rates = ", ".join(f"{side.name} {side.tokens_per_s:,.0f}" for side in sides)
        say(f"round {number}/{rounds}   tokens/s: {rates}   left {human_duration(left_s)}")


def check_function(child: NanochatChild, job: TrainJob, rows: Path) -> None:
    """Raises UserError unless nanochat's trained weights give the same nats in our code as in its own."""
    said = child.ask("evaluate", rows=CHECK_ROWS)
    path = bench_home() / "check.npz"
    child.ask("weights", path=str(path))
    ours = score(rows, model=job.model, weights=path, num_rows=CHECK_ROWS)
    path.unlink()
    apart = abs(sum(ours["nats"]) - said["nats"]) / said["nats"]
    say(f"nanochat's weights in our code: {sum(ours['nats']):.3f} nats, in its own {said['nats']:.3f}")
    if apart > SAME_FUNCTION or sum(ours["bytes"]) != said["bytes"]:
        raise UserError(f"the two models compute different functions: nats differ by {100 * apart:.3f}%", value=apart)


def fp32_loss(job: TrainJob, choices: Choices) -> float | None:
    """Our loss at LOSS_STEP in eager fp32 with the same start and rates; kept while job and code are the same."""
    key = short_hash([job.as_json(), code_fingerprint("model", "train", "data")])
    path = bench_home() / "fp32" / f"{key}.json"
    if not path.exists():
        say(f"our own {LOSS_STEP} steps in fp32, for their losses")
        segment = replace(choices.segments[0], dtype="fp32", compiled=False, attention="sdpa", reason="fp32 check")
        with contextlib.ExitStack() as stack:
            side = our_side(stack, bench_home() / "live" / "fp32", job, replace(choices, segments=(segment,)))
            side.run(LOSS_STEP)
        write_json(path, {"loss": side.loss_at(LOSS_STEP)})
    loss: float | None = read_json(path)["loss"]
    return loss


def check_losses(sides: Sequence[Side], ours_fp32: float | None) -> None:
    """Raises UserError where our side did not learn as nanochat in fp32 and as our own fp32 did."""
    ours = sides[0].loss_at(LOSS_STEP)
    others = {"nanochat in fp32": (side.loss_at(LOSS_STEP) for side in sides[1:] if side.dtype == "fp32")}
    theirs = next(iter(others["nanochat in fp32"]), None)
    for name, loss, bound in (("nanochat in fp32", theirs, SAME_LOSS), ("our own fp32", ours_fp32, SAME_FP32)):
        if ours is None or loss is None:
            say(f"the loss at step {LOSS_STEP} was not compared with {name}")
            continue
        apart = ours / loss - 1
        print(f"loss at step {LOSS_STEP}: {ours:.4f}, {name} {loss:.4f}: {100 * apart:+.2f}%")
        if abs(apart) > bound:
            raise UserError(
                f"our loss at step {LOSS_STEP} is {100 * apart:+.2f}% away from {name}: more than {100 * bound:g}% is "
                "another training, no row is written",
                value=apart,
            )


def sides_table(sides: Sequence[Side], job: TrainJob, facts: Facts) -> str:
    """What every side reached, for people."""
    rates = {"fp32": facts.fp32_flops_per_s, "bf16": facts.bf16_flops_per_s, "fp16": facts.fp16_flops_per_s}
    rows = []
    for side in sides:
        rate = rates.get(side.dtype)
        flops = side.tokens_per_s * train_flops_per_token(job.model, job.context)
        loss = side.loss_at(LOSS_STEP)
        rows.append([
            side.name, f"{side.dtype}, {side.plan}", f"{side.tokens_per_s:,.0f}",
            f"{100 * flops / rate:.1f}%" if rate else "unknown",
            human_bytes(max((block["peak_bytes"] or 0 for block in side.blocks), default=None) or None),
            f"{side.first_s:.1f} s", "unknown" if loss is None else f"{loss:.4f}",
        ])  # fmt: skip
    header = ["side", "plan", "tokens/s", "MFU", "peak", "first step", f"loss at {LOSS_STEP}"]
    return table(rows, header=header, left=2)


def ratio_row(name: str, ours: Side, theirs: Side, settings: Settings, case: str) -> ResultRow:
    """Tokens per second of ours over theirs: pairs of neighbouring blocks of the same steps, resampled."""
    seconds = (np.array([block["seconds"] for block in side.blocks]) for side in (theirs, ours))
    result = ratio(*seconds)
    print(f"{name}: {three_digits(result.value)} [{three_digits(result.low)}, {three_digits(result.high)}]")
    return ResultRow(
        id=name, value=result.value, unit="ratio of tokens/s", low=result.low, high=result.high, n=len(ours.blocks),
        baseline=f"nanochat {settings.checkout.revision}, {theirs.dtype}, {theirs.plan}", machine=machine_facts(),
        command=f"python -m intone.bench.train --nanochat NANOCHAT --cases {case} --data TRAIN --val VAL",
        code=code_revision(), date=utc_now(),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the cases one after the other; each appends its rows when it is done."""
    parser = argparse.ArgumentParser(
        prog="python -m intone.bench.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanochat", required=True, help=f"a checkout of nanochat at {REVISION}")
    parser.add_argument("--nanochat-python", help="the Python that imports it; default: this one")
    parser.add_argument("--any-revision", action="store_true", help="measure against another nanochat")
    parser.add_argument("--cases", nargs="+", default=["d4", "d6"], help="depths: d4 d6")
    parser.add_argument("--data", nargs="+", default=["starter"])
    parser.add_argument("--val", nargs="+", default=[])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps per block")
    parser.add_argument(
        "--their-rows", nargs="+", type=int, default=[8, 16, 32], help="micro-batches to try for nanochat"
    )
    parser.add_argument("--no-fp32", action="store_true", help="leave out our own fp32 losses")
    parser.add_argument("--out", type=Path, default=row_path("train"))
    asked, ours = parser.parse_known_args(argv)
    try:
        checkout = find_checkout(asked.nanochat, asked.nanochat_python, any_revision=asked.any_revision)
        settings = Settings(
            checkout, tuple(asked.data), tuple(asked.val), dtypes=tuple(asked.dtypes), context=asked.context,
            vocab_size=asked.vocab_size, batch_tokens=asked.batch_tokens, pairs=asked.pairs, steps=asked.steps,
            their_rows=tuple(asked.their_rows), ours=tuple(ours), fp32=not asked.no_fp32,
            out=asked.out,
        )  # fmt: skip
        for case in asked.cases:
            for row in speed_rows(settings, case):
                append_result(settings.out, row)
    except UserError as error:
        say(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
