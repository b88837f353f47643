"""How well our training and nanochat's predict new text: after the same minutes of steps, and after the same tokens."""

import contextlib
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from intone import recipe
from intone.bench.rows import new_row
from intone.bench.train_losses import CHECK_ROWS, SAME_FUNCTION, TIMEOUT_S
from intone.bench.train_nanochat import Checkout, NanochatChild, Way, best_way, describe, readable
from intone.bench.train_ours import Kept, bench_home, export_rows, plan_flags, prepare, read_job, run_job, write_job
from intone.bench.train_settings import BenchTrainSettings, command_line
from intone.bench.train_speed import SUFFIX, WARM_STEPS, our_plan
from intone.bench.train_weights import score
from intone.config import TrainJob
from intone.errors import UserError
from intone.evals.intervals import NUM_RESAMPLES, Interval
from intone.hardware import Facts, load_facts, quiet
from intone.log import human_count, human_duration, say, table
from intone.prove.live import LineChild, WorkerChild
from intone.records import Choices, ResultRow

TIMED_ROWS = {dtype: f"cpu.train.bpb_10min.minus_nanochat{suffix}" for dtype, suffix in SUFFIX.items()}
TOKEN_ROW = "cpu.train.bpb_equal_tokens.minus_nanochat"
# tokens per step that nanochat's own script for a CPU asks for (runs/runcpu.sh at 92d63d4); its rule gives 131,072 at
# depth 4, with which ten minutes are some fifty steps
CPU_SCRIPT_BATCH_TOKENS = 16_384
SHIPPED_ROWS = 32  # base_train's default rows per pass
BLOCK_S = 20.0  # between two lines of progress, and of the blocks that speeds are taken from
MAX_BLOCK_STEPS = 400  # of those: our job has 1,000
LATE = 0.05  # of the planned minutes: a run that is off by more says so
BF16_EPSILON = 0.02  # relative, of nats in nanochat's bf16 against ours in fp32 for the same weights (guess)
SEED = 42  # nanochat's own; the second pair of runs has the next one


@dataclass(frozen=True)
class Run:
    """One finished training: what it did, and nats and bytes of every validation row."""

    side: str
    plan: str
    batch_tokens: int
    steps: int
    training_s: float  # of its steps; compiling is left out
    nats: list[float]
    num_bytes: list[int]

    @property
    def bpb(self) -> float:
        return sum(self.nats) / math.log(2) / sum(self.num_bytes)


@dataclass(frozen=True)
class Pace:
    """nanochat with one batch: its fastest way, and how many steps it gets."""

    batch_tokens: int
    way: Way
    steps: int


@dataclass(frozen=True)
class Contest:
    """Both sides of a case, and where its finished runs are kept."""

    settings: BenchTrainSettings
    checkout: Checkout
    facts: Facts
    kept: Kept
    job: TrainJob
    choices: Choices
    dtype: str  # of nanochat

    def ours(self, number: int, steps: int) -> Run:
        """Our run of pair number, from 1, by our own recipe; goes on from its newest save where it was cut."""
        name = f"intone {number}"
        job = replace(self.seeded(number), steps=steps, keep=1, samples=(), eval_every=None)

        def train() -> dict[str, object]:
            folder = self.kept.folder / f"job-{number}"
            if not (folder / "config.json").exists():
                write_job(folder, job, self.choices)
            seconds = [row["step_s"] for row in run_job(folder, self.choices)]
            sums = score(export_rows(job, 1, self.settings.val_tokens), job_folder=folder)
            # the first step compiles; a usual one stands for it
            training_s = sum(seconds[1:]) + statistics.median(seconds)
            batch_tokens = job.rows_per_step * job.context
            return asdict(
                Run(name, our_plan(self.choices), batch_tokens, steps, training_s, sums["nats"], sums["bytes"])
            )

        return Run(**self.kept.get(name, train))

    def theirs(self, number: int, pace: Pace) -> Run:
        """nanochat's run of pair number with its own rates and schedules over these steps."""
        name = f"nanochat {number}, {pace.batch_tokens:,} tokens per step"
        return Run(**self.kept.get(name, lambda: asdict(self.train_theirs(name, number, pace))))

    def train_theirs(self, name: str, number: int, pace: Pace) -> Run:
        job = self.seeded(number)
        rows = export_rows(job, pace.steps * pace.batch_tokens // job.context, self.settings.val_tokens)
        child = NanochatChild(
            self.checkout, job.model, rows, pace.way, self.facts, dtype=self.dtype, batch_tokens=pace.batch_tokens,
            steps=pace.steps, warm=1, seed=SEED + number - 1,
        )  # fmt: skip
        weights = self.kept.folder / f"{number}-{pace.batch_tokens}.npz"
        weights.parent.mkdir(parents=True, exist_ok=True)
        with child, readable(child):
            child.wait_ready()
            training_s = train_to_end(child, name, pace.steps)
            child.ask("weights", path=str(weights))
            said = child.ask("evaluate", rows=CHECK_ROWS)
        sums = score(rows, model=job.model, weights=weights)
        weights.unlink()
        check_score(sum(sums["nats"][:CHECK_ROWS]), said["nats"], self.dtype)
        plan = f"{self.dtype}, {describe(pace.way)}"
        return Run(name, plan, pace.batch_tokens, pace.steps, training_s, sums["nats"], sums["bytes"])

    def seeded(self, number: int) -> TrainJob:
        """Our job of a pair: its own start and order of rows, which nanochat gets too."""
        return replace(self.job, seed=self.job.seed + number - 1)


def timed_case(settings: BenchTrainSettings, checkout: Checkout) -> list[ResultRow]:
    """Bits per byte after minutes of training steps, ours minus nanochat's, in the order A B B A.

    Ours is planned as `intone train --minutes` plans it. The steps of both follow from speeds that were measured in
    turns just before, so that each schedule ends with its minutes. nanochat runs with every batch it may choose from,
    and the best counts; in bf16 where it is among --their-dtypes, else in fp32, which is faster on processors without
    products in bf16.
    """
    facts, dtype = load_facts(), timed_dtype(settings)
    job, choices = read_job(prepare(plan_flags(settings, depth=settings.depth, minutes=settings.minutes)))
    contest = Contest(settings, checkout, facts, Kept("bpb10", settings, checkout.revision), job, choices, dtype)
    batches = their_batches(settings, job)
    rows = export_rows(job, 4 * max(batches) // job.context, settings.val_tokens)
    ways = {
        batch: best_way(checkout, job.model, rows, facts, dtype=dtype, batch_tokens=batch, sizes=settings.their_rows)
        for batch in batches
    }
    with quiet(facts.folder):
        step_s = contest.kept.get("speeds", lambda: measure_speeds(contest, ways))
        steps = {name: max(1, round(60 * settings.minutes / seconds)) for name, seconds in step_s.items()}
        paces = [Pace(batch, way, steps[f"nanochat {batch}"]) for batch, way in ways.items()]
        first = contest.ours(1, steps["intone"])
        tried = [contest.theirs(1, pace) for pace in paces]
        best = min(tried, key=lambda run: run.bpb)
        pace = paces[tried.index(best)]
        pairs = [(first, best)]
        for number in range(2, settings.run_pairs + 1):
            before = contest.theirs(number, pace) if number % 2 == 0 else None
            ours = contest.ours(number, steps["intone"])
            pairs.append((ours, before or contest.theirs(number, pace)))
    for run in (run for pair in pairs for run in pair):
        if abs(run.training_s / (60 * settings.minutes) - 1) > LATE:
            say(f"{run.side}: its steps took {human_duration(run.training_s)} instead of {settings.minutes:g} minutes")
    return [quality_row(contest, TIMED_ROWS[dtype], "bpb10", pairs, tried)]


def timed_dtype(settings: BenchTrainSettings) -> str:
    """The number format of nanochat in bpb10."""
    return "bf16" if "bf16" in settings.their_dtypes else settings.their_dtypes[0]


def token_case(settings: BenchTrainSettings, checkout: Checkout) -> list[ResultRow]:
    """Bits per byte after the same tokens, ours minus nanochat's best; time plays no part."""
    os.nice(settings.nice)
    ours_batch = max(settings.context, recipe.auto_batch_tokens(settings.tokens))
    flags = plan_flags(
        settings, depth=settings.depth, batch_tokens=ours_batch, steps=max(1, settings.tokens // ours_batch)
    )
    job, choices = read_job(prepare(flags))
    kept = Kept("tokens", settings, checkout.revision)
    facts, dtype = load_facts(), settings.their_dtypes[0]
    contest = Contest(settings, checkout, facts, kept, job, choices, dtype)
    paces = []
    for batch in their_batches(settings, job):
        size = next(size for size in range(SHIPPED_ROWS, 0, -1) if batch // job.context % size == 0)
        paces.append(Pace(batch, Way(size, facts.cores_physical), max(1, settings.tokens // batch)))
    ours = contest.ours(1, max(1, settings.tokens // ours_batch))
    tried = [contest.theirs(1, pace) for pace in paces]
    pairs = [(ours, min(tried, key=lambda run: run.bpb))]
    return [quality_row(contest, TOKEN_ROW, "tokens", pairs, tried)]


def their_batches(settings: BenchTrainSettings, job: TrainJob) -> list[int]:
    """Tokens per step that nanochat may choose from. Raises UserError for one that is no number of whole rows."""
    asked = settings.their_batch_tokens or (CPU_SCRIPT_BATCH_TOKENS, job.rows_per_step * job.context)
    for batch in asked:
        if batch < job.context or batch % job.context:
            raise UserError(
                f"{batch:,} tokens per step are no multiple of the context {job.context:,}",
                value=batch,
                fix=f"for example --their-batch-tokens {32 * job.context}",
            )
    return sorted(set(asked))


def measure_speeds(contest: Contest, ways: dict[int, Way]) -> dict[str, float]:
    """Seconds per step of ours and of nanochat with each batch, blocks of some seconds in the order A B C C B A."""
    job, settings = contest.job, contest.settings
    rows = export_rows(job, 4 * max(ways) // job.context, settings.val_tokens)
    with contextlib.ExitStack() as stack:
        # more steps than the blocks below can ask for
        folder = write_job(bench_home() / "live" / "bpb10", replace(job, steps=1000, keep=0), contest.choices)
        ours = WorkerChild(folder, contest.choices.environment, name="intone")
        children: dict[str, LineChild] = {"intone": stack.enter_context(ours)}
        guesses = {"intone": guess_step_s(ours)}
        for batch, way in ways.items():
            name = f"nanochat {batch}"
            child = NanochatChild(
                contest.checkout, job.model, rows, way, contest.facts, dtype=contest.dtype, batch_tokens=batch,
                warm=WARM_STEPS, repeat=True,
            )  # fmt: skip
            children[name] = stack.enter_context(child)
            guesses[name] = guess_step_s(child)
        sizes = {name: min(MAX_BLOCK_STEPS, max(1, round(BLOCK_S / guess))) for name, guess in guesses.items()}
        seconds = dict.fromkeys(children, 0.0)
        for name in [*children, *reversed(children)]:
            with readable(children[name]):
                seconds[name] += children[name].block(steps=sizes[name], timeout_s=TIMEOUT_S)["seconds"]
    step_s = {name: seconds[name] / (2 * sizes[name]) for name in children}
    say(", ".join(f"{name}: {value:.3f} s per step" for name, value in step_s.items()))
    return step_s


def guess_step_s(child: LineChild) -> float:
    """Seconds of one step of a child that gets ready first: enough to choose the length of a block."""
    with readable(child):
        child.wait_ready()
        seconds: float = child.block(steps=1, timeout_s=TIMEOUT_S)["seconds"]
    return seconds


def train_to_end(child: NanochatChild, name: str, steps: int) -> float:
    """Runs the steps behind the first, with a line of progress now and then -> seconds of all steps."""
    done, spent_s, size = 1, 0.0, 1
    while done < steps:
        block = child.block(steps=min(size, steps - done))
        done, spent_s = done + block["steps"], spent_s + block["seconds"]
        step_s = spent_s / (done - 1)
        size = max(1, round(BLOCK_S / step_s))
        loss = "not finite" if block["losses"][-1] is None else f"{block['losses'][-1]:.3f}"
        left = human_duration((steps - done) * step_s)
        say(f"{name}   step {done:,}/{steps:,}   loss {loss}   {human_count(block['tokens'] / block['seconds'])} tok/s"
            f"   left {left}")  # fmt: skip
    return spent_s * steps / (steps - 1) if steps > 1 else 0.0


def check_score(ours: float, said: float, dtype: str) -> None:
    """Raises UserError where nanochat's own forward pass says something else about its weights than our evaluator."""
    apart = abs(ours / said - 1)
    if not apart <= (SAME_FUNCTION if dtype == "fp32" else BF16_EPSILON):
        raise UserError(
            f"nanochat's weights: {ours:.2f} nats in our evaluator, {said:.2f} in its own forward pass", value=apart
        )


def difference(pairs: Sequence[tuple[Run, Run]]) -> Interval:
    """Mean over pairs of ours minus theirs in bits per byte.

    The interval resamples validation rows, the same ones for all runs, and holds every single pair's difference.
    """
    num_bytes = np.array(pairs[0][0].num_bytes, np.float64)
    if any(run.num_bytes != pairs[0][0].num_bytes for pair in pairs for run in pair):
        raise UserError("the runs were scored on different validation rows", fix="measure again with --fresh")
    apart = np.array([np.subtract(ours.nats, theirs.nats) for ours, theirs in pairs]) / math.log(2)
    single = apart.sum(axis=1) / num_bytes.sum()
    mean = apart.mean(axis=0)
    chosen = np.random.default_rng(0).integers(0, len(num_bytes), (NUM_RESAMPLES, len(num_bytes)))
    resampled = mean[chosen].sum(axis=1) / num_bytes[chosen].sum(axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(single.mean()), min(float(low), *single.tolist()), max(float(high), *single.tolist()))


def quality_row(
    contest: Contest, row_id: str, case: str, pairs: Sequence[tuple[Run, Run]], tried: Sequence[Run]
) -> ResultRow:
    """The row of a case, and the table of all its runs on stdout; tried: nanochat's runs, one for each batch."""
    counted = [run for pair in pairs for run in pair]
    lines = [
        [
            run.side, run.plan, human_count(run.batch_tokens), f"{run.steps:,}",
            human_count(run.steps * run.batch_tokens), human_duration(run.training_s), f"{run.bpb:.4f}",
            "yes" if run in counted else "no, another batch is better",
        ]
        for run in [*counted, *(run for run in tried if run not in counted)]
    ]  # fmt: skip
    print(table(lines, header=["run", "plan", "batch", "steps", "tokens", "training", "bpb", "counted"], left=2))
    best = pairs[0][1]
    plan = f"{best.plan}, {best.batch_tokens:,} tokens per step"
    return new_row(
        row_id, difference(pairs), "bits per byte", n=len(pairs),
        baseline=f"nanochat {contest.checkout.revision}, {plan}: {best.bpb:.4f}",
        command=command_line(contest.settings, case),
    )  # fmt: skip
