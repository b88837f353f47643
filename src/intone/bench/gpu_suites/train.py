"""Base training on a GPU: our step by micro-batch, and in turns with nanochat's on the same rows, shapes and tokens."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.synthetic import synthetic_documents, synthetic_tokenizer
from intone.config import ModelConfig, OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.loader import Rows
from intone.data.shards import TokenSet, ensure_token_set
from intone.errors import UserError
from intone.evals.intervals import ratio
from intone.hardware import PEAKS
from intone.log import human_bytes, human_count, say
from intone.model.cost import train_flops_per_token
from intone.paths import write_json
from intone.prove.live import LineChild, LiveFailed, Ready, WorkerChild
from intone.records import Choice, Choices, Segment, write_choices
from intone.tune.trial import attention_for

DRIVER = Path(__file__).parents[1] / "foreign" / "nanochat_train.py"
REVISION = "nanochat 92d63d4"
# what its users choose: the windows it ships with, which without FlashAttention 3 become masks; or full attention
WAYS = {"a": "SSSL", "b": "L"}
DOCUMENT_TOKENS = 800  # mean length, about that of web pages in pre-training sets (guess)
DATA_STEPS = 8  # of unique text; further steps repeat it, which costs neither side anything
WARM = 3  # steps of nanochat before its first block; our worker does as many
STEPS = 2000  # of the schedules: none is ever reached
# the two start and learn alike but not equally; a broken step shows far beyond this share (guess)
LOSS_TOLERANCE = 0.1
PARAMETER_TOLERANCE = 0.01


@dataclass(frozen=True)
class Size:
    """What is trained: shapes, rows of a step, and the micro-batch of the comparison."""

    depth: int
    context: int
    vocab_size: int
    head_width: int
    rows_per_step: int
    micro_rows: int
    sweep: tuple[int, ...]  # further micro-batches of our side alone
    block_steps: int
    seconds: float  # about how long a comparison takes: compiling and the rounds
    rounds: int
    compiled: bool = True

    def model(self, way: str) -> ModelConfig:
        """The model with nanochat's heads and the windows of a way."""
        config = model_config(
            "modern", depth=self.depth, vocab_size=self.vocab_size, context=self.context, head_width=self.head_width
        )
        return replace(config, window_pattern=WAYS[way])


# 524,288 tokens a step: nanochat's at depth 12
D12 = Size(12, 2048, 32_768, 128, 256, 32, (16, 64), 2, 160.0, 5)
D24 = Size(24, 2048, 32_768, 128, 256, 16, (), 1, 180.0, 4)
TINY = Size(1, 64, 300, 32, 4, 2, (4,), 1, 1.0, 5, compiled=False)


def train(bench: Bench) -> None:
    """Rows train.dN.vs_nanochat_WAY, train.dN.peak_gib.vs_nanochat, train.dN.mfu_bf16, and our own rates.

    Both train on the same rows, each row as one text: nanochat does not keep a row's documents apart. Doing so, as we
    do by default, makes our step faster and its learning another.
    """
    sizes = [TINY] if bench.is_tiny else [D12, D24]
    if bench.nanochat is None:
        bench.lacks("the comparison with nanochat: give --nanochat CHECKOUT, and --nanochat-python where it needs one")
    for size in sizes:
        for way in WAYS:
            if bench.nanochat is not None:
                compare(bench, size, way)
        sweep(bench, size)


# --- our side alone -------------------------------------------------------------------------------------------------


def sweep(bench: Bench, size: Size) -> None:
    """Tokens per second and peak memory of our step by micro-batch, eager and compiled; MFU of the best."""
    plans = [(rows, size.compiled) for rows in (size.micro_rows, *size.sweep)] + [(size.micro_rows, False)]
    plans = list(dict.fromkeys(plans))
    names = [plan_name(size, rows, compiled) for rows, compiled in plans]
    wanted = [f"{name}.{what}" for name in names for what in ("tokens_per_s", "peak_gib")]
    if not bench.may(f"our step at depth {size.depth}, {len(plans)} plans", *wanted, seconds=50.0 * len(plans)):
        return
    folder = write_job(bench, size, "a", "sweep")
    rates = []
    with bench.quiet(), WorkerChild(folder, bench.environment, name="intone") as child:
        ready(child)
        for (rows, compiled), name in zip(plans, names, strict=True):
            attention = attention_for(bench.device, compiled)
            # compiles, and settles
            child.block(steps=1, plan={"device_batch": rows, "compiled": compiled, "attention": attention})
            answers = [child.block(steps=size.block_steps) for _ in range(5)]
            rates.append(write_rates(bench, name, answers))
    if not bench.has(f"train.d{size.depth}.mfu_bf16"):
        write_mfu(bench, size, max(rates, key=statistics.median))


def plan_name(size: Size, rows: int, compiled: bool) -> str:
    """The beginning of a plan's ids."""
    return f"train.d{size.depth}.b{rows}.{'compiled' if compiled else 'eager'}"


def write_rates(bench: Bench, name: str, answers: list[dict[str, Any]]) -> list[float]:
    """Writes the rows of one plan from its blocks -> tokens per second, sorted. Ends: the lowest and the highest."""
    rates = sorted(answer["tokens"] / answer["seconds"] for answer in answers)
    bench.row(f"{name}.tokens_per_s", statistics.median(rates), "tokens/s", low=rates[0], high=rates[-1], n=len(rates))
    peak_bytes = max(answer["peak_bytes"] or 0 for answer in answers)
    if peak_bytes:
        bench.row(f"{name}.peak_gib", peak_bytes / 2**30, "GiB", n=len(answers))
    return rates


def write_mfu(bench: Bench, size: Size, rates: list[float]) -> None:
    """Operations in nanochat's count over the maker's number for this GPU; no row where that is not known."""
    peak, _ = PEAKS.get(bench.machine.get("gpu_name", ""), (None, None))
    if peak is None:
        say("MFU is unknown: no maker's number for this device")
        return
    flops = train_flops_per_token(size.model("a"), size.context)
    low, middle, high = (rate * flops / peak for rate in (rates[0], statistics.median(rates), rates[-1]))
    bench.row(f"train.d{size.depth}.mfu_bf16", middle, "share", low=low, high=high, n=len(rates),
              baseline=f"{peak / 1e12:g} TFLOP/s")  # fmt: skip


# --- beside nanochat ------------------------------------------------------------------------------------------------


def compare(bench: Bench, size: Size, way: str) -> None:
    """The rows of one size and one way to run nanochat; ours has the same windows, shapes, rows and tokens a step.

    Raises UserError where a side fails, where the two models differ, or where the losses part.
    """
    name = f"train.d{size.depth}.vs_nanochat_{way}"
    peak_name = f"train.d{size.depth}.peak_gib.vs_nanochat"
    what = f"depth {size.depth}, windows {WAYS[way]}, beside nanochat"
    if not bench.may(what, name, *([peak_name] if way == "a" else []), seconds=size.seconds):
        return
    folder = write_job(bench, size, way, f"compare-{size.depth}-{way}")
    rows = export_rows(bench, size)
    words = command(bench, size, way, rows)
    with (
        bench.quiet(),
        LineChild(words, variables(bench), name="nanochat") as theirs,
        WorkerChild(folder, bench.environment, name="intone") as ours,
    ):
        check_models(ready(ours), ready(theirs))  # they compile at the same time
        mine, other = in_turns(ours, theirs, size)
    check_losses(mine, other)
    ours_s, theirs_s = (
        np.array([answer["seconds"] for answer in side]).reshape(size.rounds, 2).sum(axis=1) for side in (mine, other)
    )
    found = ratio(theirs_s, ours_s)  # both did the same steps
    baseline = f"{REVISION}, windows {WAYS[way]}, {size.micro_rows} rows, one process a side, A B B A"
    bench.row(name, found.value, "x", low=found.low, high=found.high, n=size.rounds, baseline=baseline)
    if way == "a" and not bench.has(f"train.d{size.depth}.mfu_bf16"):
        write_mfu(bench, size, sorted(answer["tokens"] / answer["seconds"] for answer in mine))
    peaks = [max(answer["peak_bytes"] or 0 for answer in side) for side in (mine, other)]
    say(f"peaks: intone {human_bytes(peaks[0])}, nanochat {human_bytes(peaks[1])}")
    if way == "a" and all(peaks):
        bench.row(peak_name, peaks[0] / peaks[1], "share", n=2 * size.rounds, baseline=baseline)


def in_turns(ours: LineChild, theirs: LineChild, size: Size) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Blocks of both sides in the order A B B A, round after round -> the answers of each. Only one works at a time."""
    mine: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    for _ in range(size.rounds):
        for child, answers in ((ours, mine), (theirs, other), (theirs, other), (ours, mine)):
            answers.append(child.block(steps=size.block_steps))
        rates = [human_count(side[-1]["tokens"] / side[-1]["seconds"]) for side in (mine, other)]
        waited = mine[-1]["data_s"] / mine[-1]["seconds"]
        losses = f"losses {last_loss(mine)} and {last_loss(other)}"
        say(f"intone {rates[0]} tokens/s ({waited:.1%} waiting for rows), nanochat {rates[1]}, {losses}")
    return mine, other


def last_loss(answers: list[dict[str, Any]]) -> float | None:
    """The loss of the last step; None where it was not finite."""
    loss: float | None = answers[-1]["losses"][-1]
    return loss


def check_models(ours: Ready, theirs: Ready) -> None:
    """Raises UserError where the two models differ in their parameters by more than 1 %."""
    mine, other = ours.facts["parameters"], theirs.facts["parameters"]["total"]
    say(f"parameters: intone {mine:,}, nanochat {other:,}; first steps {ours.first_s:.0f} s and {theirs.first_s:.0f} s")
    if abs(mine / other - 1) > PARAMETER_TOLERANCE:
        raise UserError(f"{mine:,} parameters of ours are not comparable with {other:,} of nanochat's", value=mine)


def check_losses(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Raises UserError where ours has not learned as theirs after the same steps on the same rows."""
    ours, theirs = last_loss(mine), last_loss(other)
    if ours is None or theirs is None or ours > (1 + LOSS_TOLERANCE) * theirs:
        raise UserError(f"after the same steps our loss is {ours}, nanochat's {theirs}: not the same training")


def ready(child: LineChild) -> Ready:
    """Waits until a child has done its first steps. Raises UserError with its own words where it fails."""
    try:
        return child.wait_ready()
    except LiveFailed as failure:
        raise UserError(failure.outcome.message, value=failure.outcome.outcome, fix=failure.outcome.fix) from failure


def command(bench: Bench, size: Size, way: str, rows: Path) -> list[str]:
    """The words that start nanochat's driver with the same shapes."""
    config = size.model(way)
    numbers = {
        "depth": config.depth, "context": config.context, "vocab-size": config.vocab_size,
        "aspect-ratio": config.width // config.depth, "head-width": config.head_width, "micro-rows": size.micro_rows,
        "batch-tokens": size.rows_per_step * config.context, "steps": STEPS, "warm": WARM,
    }  # fmt: skip
    assert bench.nanochat_python is not None and bench.nanochat is not None, "a comparison has a checkout"
    words = [bench.nanochat_python, str(DRIVER), "--nanochat", str(bench.nanochat), "--rows", str(rows)]
    words += ["--window-pattern", config.window_pattern, "--device", bench.device]
    return words + [word for name, number in numbers.items() for word in (f"--{name}", str(number))]


def variables(bench: Bench) -> dict[str, str]:
    """nanochat's environment: its own dtype rule (bf16 on this GPU), its compiled code beside ours, no network."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": bench.environment.get("TORCHINDUCTOR_CACHE_DIR", str(bench.scratch / "inductor")),
        "HF_HUB_OFFLINE": "1",
    }


# --- jobs and rows --------------------------------------------------------------------------------------------------


def write_job(bench: Bench, size: Size, way: str, name: str) -> Path:
    """Our side's job folder: nanochat's rates and schedules, its rows a step, and synthetic text."""
    folder = bench.scratch / name
    settings: Mapping[str, Choice] = {"device": Choice(bench.device, "--device", "flag")}
    segment = Segment(
        0, device_batch=size.micro_rows, compiled=size.compiled, dtype="bf16" if bench.device == "cuda" else "fp32",
        attention=attention_for(bench.device, size.compiled), reason="bench",
        threads=None if bench.device == "cuda" else 1,
    )  # fmt: skip
    write_choices(folder, Choices(settings, (segment,), {}, {}))
    write_json(folder / "config.json", make_job(bench, size, way).as_json())
    return folder


def make_job(bench: Bench, size: Size, way: str) -> TrainJob:
    """The recipe; its text is made on the first call."""
    tokenizer = synthetic_tokenizer(size.vocab_size)
    place = bench.scratch / f"text-{size.vocab_size}"
    tokenizer.save(place / "tokenizer")
    num_tokens = DATA_STEPS * size.rows_per_step * size.context
    mean = min(DOCUMENT_TOKENS, size.context)
    ensure_token_set(
        place / "set", tokenizer, kind="documents",
        documents=lambda _: synthetic_documents(tokenizer, num_tokens, mean_tokens=mean, seed=0),
    )  # fmt: skip
    schedule = ScheduleConfig(warmup_steps=39, momentum_to=0.97, momentum_steps=400)
    return TrainJob(
        stage="base", model=size.model(way), tokenizer=str(place / "tokenizer"), tokenizer_hash=tokenizer.hash,
        data=(str(place / "set"),), val=None, context=size.context, steps=STEPS, rows_per_step=size.rows_per_step,
        optim=OptimConfig(), schedule=schedule, seed=1, keep=0, one_text=True,
    )  # fmt: skip


def export_rows(bench: Bench, size: Size) -> Path:
    """The rows that our side trains on, in its order, as the arrays that nanochat's driver reads."""
    folder = bench.scratch / f"rows-{size.depth}"
    if (folder / "rows.json").exists():
        return folder
    job = make_job(bench, size, "a")
    rows = Rows([TokenSet.open(Path(name)) for name in job.data], job.context, job.seed)
    steps = WARM + 2 * size.rounds * size.block_steps
    batches = [rows.rows(step * size.rows_per_step, size.rows_per_step) for step in range(steps)]
    arrays = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "targets")}
    arrays |= {f"val_{name}": array[:1] for name, array in arrays.items()}
    arrays["token_bytes"] = np.ones(size.vocab_size, dtype=np.int32)
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    write_json(folder / "rows.json", {"format": 1, "num_rows": len(arrays["ids"])})
    return folder
