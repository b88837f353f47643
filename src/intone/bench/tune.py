"""`intone bench tune`: the micro-batch that is found against all others, the seconds of finding it, and its memory"""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from intone.bench.gpu_suites.synthetic import synthetic_documents, synthetic_tokenizer
from intone.bench.rows import new_row, row_path
from intone.bench.settings import BenchTuneSettings
from intone.config import TrainJob, model_config
from intone.data.shards import ensure_token_set
from intone.evals.intervals import Interval, ratio
from intone.hardware import Facts, environment, load_facts, quiet
from intone.log import human_bytes, human_duration, say, table
from intone.model.cost import train_flops_per_token
from intone.model.native.build import obstacle, variant_for
from intone.paths import home
from intone.prepare import short_hash
from intone.recipe import RUN_OPTIM, TRIAL_SCHEDULE
from intone.records import Answer, ResultRow, Segment, append_result
from intone.resolving import Resolved
from intone.tune.batch import Method, candidates, passes_of
from intone.tune.curve import curve_text
from intone.tune.found import Found
from intone.tune.settle_batch import BatchQuestion, as_choice, batch_key, search, settle_batch
from intone.tune.trial import attention_for
from intone.tune.trials import Trials

COMMAND = "intone bench tune"
VOCAB = 4096
STEP_TOKENS = 8192  # of an optimizer step: 32 rows of 256 tokens, 8 of 1,024
REPLICATES = 2  # fresh children for the exhaustive sweep
ROUNDS = 4  # of every size in each of them
FIXED_S = 40.0  # guess: of a case, whatever its size: starts of five children, and the searches' probes
SWEEP = "the best size of an exhaustive sweep"


@dataclass(frozen=True)
class Case:
    """One model and row length, what was found for it, and what the sweep says about every size."""

    depth: int
    context: int
    found: dict[Method, Found]
    hit_s: float
    measured_bytes: int | None  # growth of a fresh worker at the choice
    step_s: Mapping[int, Sequence[float]]  # by size: seconds of a step in every round
    seconds: float  # that the case took

    @property
    def name(self) -> str:
        return f"d{self.depth}.t{self.context}"

    def best(self) -> int:
        return min(self.step_s, key=lambda rows: statistics.median(self.step_s[rows]))

    def quality(self, method: Method = "line") -> Interval:
        """Rate of the choice over that of the best size of the sweep; rounds are paired."""
        best, chosen = (np.array(self.step_s[rows]) for rows in (self.best(), self.found[method].rows))
        return ratio(best, chosen)

    def memory_error(self) -> float | None:
        """How far off the search's word on its choice is: measured there, or by the sizes around it."""
        return self._off(self.found["line"].predicted_bytes)

    def line_error(self) -> float | None:
        """How far off the line was before the choice was measured; None where its first probes were the choice."""
        return self._off(self.found["line"].line_bytes)

    def _off(self, predicted: int | None) -> float | None:
        return None if predicted is None or not self.measured_bytes else abs(predicted / self.measured_bytes - 1)


def bench_tune(settings: BenchTuneSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: every case with its searches and its sweep. Rows are on disk once a case is done, those of all at last,
    where no case was left out.

    A case that does not fit into the minutes by what the ones before it took is left out, and said.
    """
    out = Path(settings.out) if settings.out else row_path("tune")
    facts, command, begin_s = load_facts(), command_of(settings), time.monotonic()
    cases: list[Case] = []
    rows: list[ResultRow] = []
    for depth, context in sorted(itertools.product(settings.depths, settings.contexts)):
        left_s = 60 * settings.minutes - (time.monotonic() - begin_s)
        if cases and left_s < expected_s(cases[-1], depth, context):
            say(f"depth {depth}, {context} tokens a row is left out: {human_duration(max(0, round(left_s)))} are left")
            continue
        methods: tuple[Method, ...] = ("line", "bisect") if (depth, context) == compared(settings) else ("line",)
        if not cases:
            with question_for(facts, depth, context).probe() as warm:
                warm.start()  # builds and caches what a first start builds
        cases.append(measured_case(facts, question_for(facts, depth, context), methods))
        say(case_text(cases[-1]))
        rows += kept(out, case_rows(cases[-1], command))
    asked = len(settings.depths) * len(settings.contexts)
    if len(cases) == asked:
        rows += kept(out, overall_rows(cases, command))
    else:
        say(f"no rows of the whole: {len(cases)} of {asked} cases were measured; give it more --minutes")
    text = table([[row.id, f"{row.value:.4g}", row.unit, interval_text(row)] for row in rows],
                 header=["row", "value", "unit", "interval"], left=1)  # fmt: skip
    return Answer({"rows": [row.__dict__ for row in rows], "out": str(out)}, text, path=str(out))


def expected_s(before: Case, depth: int, context: int) -> float:
    """About how long a case takes, from one that was measured: a sweep's share of it grows with its arithmetic."""
    swept_s = max(0.0, before.seconds - FIXED_S)
    return FIXED_S + swept_s * work_of(depth, context) / work_of(before.depth, before.context)


def work_of(depth: int, context: int) -> float:
    """Floating-point operations of one round of a sweep: a step of every size."""
    config = model_config("modern", depth=depth, vocab_size=VOCAB, context=context)
    return len(candidates(STEP_TOKENS // context)) * STEP_TOKENS * train_flops_per_token(config, context)


def command_of(settings: BenchTuneSettings) -> str:
    """What makes these rows again, on any machine: the flags that differ from their defaults, without a path."""
    plain = BenchTuneSettings()
    words = [COMMAND]
    for name in ("depths", "contexts"):
        if getattr(settings, name) != getattr(plain, name):
            words += [f"--{name}", *map(str, getattr(settings, name))]
    return " ".join(words)


def kept(out: Path, rows: list[ResultRow]) -> list[ResultRow]:
    """The rows, which are on disk now."""
    for row in rows:
        append_result(out, row)
    return rows


def compared(settings: BenchTuneSettings) -> tuple[int, int]:
    """The case in which both methods search: the middle depth with the shortest rows."""
    return sorted(settings.depths)[len(settings.depths) // 2], min(settings.contexts)


def question_for(facts: Facts, depth: int, context: int) -> BatchQuestion:
    """A base training of this size on made-up text, in the dtype and on the kernels that are fastest here by rule."""
    folder = home() / "bench" / "tune"
    tokenizer = synthetic_tokenizer(VOCAB)
    tokens = short_hash([VOCAB, tokenizer.hash])
    tokenizer.save(folder / f"tokenizer-{tokens}")
    data = folder / f"text-{tokens}"
    ensure_token_set(
        data, tokenizer, kind="documents",
        documents=lambda _: synthetic_documents(tokenizer, 40 * STEP_TOKENS, mean_tokens=200, seed=0),
    )  # fmt: skip
    fp32, bf16 = facts.fp32_flops_per_s, facts.bf16_flops_per_s
    dtype = "bf16" if fp32 and bf16 and bf16 > 1.05 * fp32 else "fp32"
    variant = variant_for(dtype)
    kernels = "native" if facts.device == "cpu" and variant is not None and obstacle(variant) is None else "torch"
    device = facts.device or "cpu"
    job = TrainJob(
        stage="base", model=model_config("modern", depth=depth, vocab_size=VOCAB, context=context),
        tokenizer=str(folder / f"tokenizer-{tokens}"), tokenizer_hash=tokenizer.hash, data=(str(data),), val=None,
        context=context, steps=1, rows_per_step=STEP_TOKENS // context, optim=RUN_OPTIM, schedule=TRIAL_SCHEDULE,
        seed=1, keep=0,
    )  # fmt: skip
    threads = facts.cores_physical
    segment = Segment(
        0, 1, False, dtype, attention_for(device, False, kernels), "bench", threads=threads, kernels=kernels  # type: ignore[arg-type]
    )
    variables = {name: item.value for name, item in environment(facts, threads=threads).items()}
    return BatchQuestion(job, segment, device, 1, variables, folder / "trials")


def measured_case(facts: Facts, question: BatchQuestion, methods: Sequence[Method]) -> Case:
    """Searches, a hit, the memory of the choice in a fresh worker, and the exhaustive sweep."""
    begin_s = time.monotonic()
    depth, context = question.job.model.depth, question.job.context
    with quiet(facts.folder, f"bench tune d{depth} t{context}"):
        found = {method: search(question, facts, method, question.probe) for method in methods}
    asked = Resolved("auto", "default", COMMAND)
    hit_s = hit_seconds(asked, facts, Trials(facts), question, found["line"])
    with quiet(facts.folder, f"bench tune d{depth} t{context}"):
        growth = fresh_growth(question, found["line"].rows)
        step_s = sweep(question, {entry.rows for entry in found.values()})
    return Case(depth, context, found, hit_s, growth, step_s, time.monotonic() - begin_s)


def hit_seconds(asked: Resolved, facts: Facts, trials: Trials, question: BatchQuestion, found: Found) -> float:
    """Seconds of the second question: what was found is kept first, then asked for."""
    key = batch_key(facts, question, "line")
    trials.record("device_batch", key, as_choice(found, key))
    begin_s = time.monotonic()
    choice, _ = settle_batch(asked, facts, trials, question, run_s=None)
    seconds = time.monotonic() - begin_s
    if choice.origin != "cached":
        say(f"the kept answer was not believed, so that this is no hit: {choice.reason}")
    return seconds


def fresh_growth(question: BatchQuestion, rows: int) -> int | None:
    """Memory that steps of this size take in a worker that did nothing else."""
    passes = min(2, passes_of(question.rows_per_device, rows))
    with question.probe(first_rows=rows * passes, first_batch=rows) as worker:
        worker.start()
        return worker(rows, passes, 1).growth_bytes


def sweep(question: BatchQuestion, more: set[int]) -> dict[int, list[float]]:
    """Seconds of a step by size, in rounds there and back over all sizes, in fresh children.

    Whole steps: what a step does once (new gradients, weights whose layout changed) would count once for each of its
    passes if single passes were timed and multiplied, against the small sizes (LOG.md).
    """
    sizes = sorted({*candidates(question.rows_per_device), *more})
    step_s: dict[int, list[float]] = {rows: [] for rows in sizes}
    for _ in range(REPLICATES):
        with question.probe() as worker:
            for rows in sizes:
                worker(rows, 1, 1)  # what a size does once per process is not timed
            for number in range(ROUNDS):
                for rows in sizes if number % 2 == 0 else reversed(sizes):
                    passes = passes_of(question.rows_per_device, rows)
                    sample = worker(rows, passes, 1)
                    step_s[rows].append(passes * sample.pass_s + sample.update_s)
    return step_s


# --- rows -----------------------------------------------------------------------------------------------------------


def case_rows(case: Case, command: str) -> list[ResultRow]:
    """What one case shows: the choice, the search, the memory, and where both methods searched, the other one."""
    line, n = case.found["line"], REPLICATES * ROUNDS
    rows = [
        made(f"batch_quality.{case.name}", case.quality(), "share", n, SWEEP, command),
        made(f"batch_search_s.{case.name}", line.seconds, "s", 1, None, command),
        made(f"batch_hit_s.{case.name}", case.hit_s, "s", 1, None, command),
    ]
    for name, error in (("memory_error", case.memory_error()), ("line_memory_error", case.line_error())):
        if error is not None:
            rows.append(made(f"{name}.{case.name}", error, "share", 1, "growth of a fresh worker", command))
    if "bisect" in case.found:
        bisect = case.found["bisect"]
        quality = case.quality("bisect")
        speed = ratio(np.array(case.step_s[line.rows]), np.array(case.step_s[bisect.rows]))
        rows += [
            made("bisect.search_s", bisect.seconds, "s", 1, None, command),
            made("bisect.oom", float(bisect.num_out_of_memory), "count", 1, None, command),
            made("bisect.batch_quality", quality, "share", n, f"{SWEEP}, {case.name}", command),
            made("bisect.vs_line", speed, "x", n, f"tokens/s of the line's choice, {case.name}", command),
        ]
    return rows


def overall_rows(cases: Sequence[Case], command: str) -> list[ResultRow]:
    """What all cases say together: the worst of them stands for the whole."""
    worst = min(cases, key=lambda case: case.quality().value)
    baseline = f"{SWEEP}, worst of {len(cases)}: {worst.name}"
    num_oom = sum(case.found["line"].num_out_of_memory for case in cases)
    rows = [
        made("batch_quality", worst.quality(), "share", REPLICATES * ROUNDS, baseline, command),
        made("batch_search_s", max(case.found["line"].seconds for case in cases), "s", len(cases), None, command),
        made("batch_hit_s", max(case.hit_s for case in cases), "s", len(cases), None, command),
        made("search_oom", float(num_oom), "count", len(cases), None, command),
    ]
    errors = [error for case in cases if (error := case.memory_error()) is not None]
    if errors:
        rows.append(made("memory_error", max(errors), "share", len(errors), "growth of a fresh worker", command))
    return rows


def made(
    name: str, value: Interval | float, unit: str, n: int, baseline: str | None, command: str
) -> ResultRow:  # fmt: skip
    """One row; a number alone has no interval."""
    if isinstance(value, Interval):
        return new_row(f"cpu.tune.{name}", value, unit, n=n, baseline=baseline, command=command)
    row = new_row(f"cpu.tune.{name}", Interval(value, value, value), unit, n=n, baseline=baseline, command=command)
    return replace(row, low=None, high=None)


def interval_text(row: ResultRow) -> str:
    return "" if row.low is None else f"[{row.low:.4g}, {row.high:.4g}]"


def case_text(case: Case) -> str:
    """What one case says to people."""
    line = case.found["line"]
    best, quality = case.best(), case.quality()
    return (
        f"depth {case.depth}, {case.context} tokens a row\n{curve_text(line, STEP_TOKENS)}\n"
        f"sweep: best {best}, choice {line.rows} at {quality.value:.1%} [{quality.low:.1%}, {quality.high:.1%}]; "
        f"memory predicted {human_bytes(line.predicted_bytes)}, measured {human_bytes(case.measured_bytes)}; "
        f"kept answer {case.hit_s:.1f} s\n"
    )
