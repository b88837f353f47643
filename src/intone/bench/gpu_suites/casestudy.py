"""The case study on a GPU, with its model of 178,520,064 parameters: SFT, generation, base training, and busy share"""

import statistics
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from intone.bench.casestudy_infer import Texts, inference_table
from intone.bench.casestudy_rows import EVERYTHING, START, Table, table_text, values_of
from intone.bench.casestudy_train import Kit, measured_job, train_table, ways_of
from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.synthetic import synthetic_documents, synthetic_talks, synthetic_tokenizer
from intone.config import ModelConfig, OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.chat import SPECIALS
from intone.data.shards import write_token_set
from intone.data.tokenizer import Tokenizer
from intone.hardware import compile_obstacle, load_facts
from intone.log import say
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.records import Choice, Choices, Segment
from intone.resolving import Resolved
from intone.tune.settle import settle_device_batch
from intone.tune.trial import attention_for

TALK_TOKENS = 430  # estimate of the mean length in the study's SFT data (its mixture averages 400 to 450)
BUSY_S, SAMPLE_MS = 6.0, 200
# fresh processes of each side, rounds in each, seconds of a block: a GPU's processes differ little, its time is dear
PROCESSES, ROUNDS, BLOCK_S = 2, 3, 1.0
KEYS = (START, "auto_batch", EVERYTHING)  # of training: a change taken out would compile once more
HEAD_STD = 0.02  # of the random head: a zero one, as a model starts with, would make all tokens equal


@dataclass(frozen=True)
class Shape:
    """What is measured."""

    config: ModelConfig
    rows_per_step: int
    talk_tokens: int
    num_talks: int
    texts: int
    prompt_tokens: int
    new_tokens: int
    compiled: bool
    quick: bool


def shape_of(bench: Bench) -> Shape:
    """The study's own model and steps; tiny ones where only the code is tried."""
    if bench.is_tiny:
        config = model_config("classic", depth=1, vocab_size=300, context=64, head_width=32, num_kv_heads=1)
        return Shape(config, 8, 20, 200, 3, 5, 6, compiled=False, quick=True)
    config = model_config("classic", depth=12, vocab_size=65_536, context=2048, head_width=128, num_kv_heads=3)
    return Shape(config, 32, TALK_TOKENS, 4_000, 93, 50, 200, compiled=True, quick=False)


def casestudy(bench: Bench) -> None:
    """Rows casestudy.sft, casestudy.inference with those of their parts, and casestudy.gpu_busy."""
    shape = shape_of(bench)
    kit = make_kit(bench, shape)
    if bench.may("SFT from the start to everything", "casestudy.sft", seconds=340):
        keep(bench, stage_table(kit, "sft", shape))
    if bench.may("generation from one row without a cache to everything", "casestudy.inference", seconds=90):
        processes, rounds = (None, None) if shape.quick else (PROCESSES, ROUNDS)
        texts = make_texts(bench, shape, kit)
        keep(bench, inference_table(texts, quick=shape.quick, replicates=processes, rounds=rounds))
    if bench.device != "cuda":
        say("the busy share needs a GPU")
    elif bench.may("the share of time in which the GPU is busy in SFT", "casestudy.gpu_busy", seconds=60):
        busy(bench, kit)


def casestudy_base(bench: Bench) -> None:
    """Rows casestudy.base and those of its parts."""
    shape = shape_of(bench)
    if bench.may("base training from the start to everything", "casestudy.base", seconds=340):
        keep(bench, stage_table(make_kit(bench, shape), "base", shape))


def stage_table(kit: Kit, stage: str, shape: Shape) -> Table:
    """A stage's table, as quick as it can be where only the code is tried."""
    if shape.quick:
        return train_table(kit, stage, quick=True, keys=KEYS)
    return train_table(kit, stage, quick=False, replicates=PROCESSES, rounds=ROUNDS, block_s=BLOCK_S, keys=KEYS)


def keep(bench: Bench, table: Table) -> None:
    """Says a table and hands over its rows; of tiny shapes, whose few rounds make no row, the total all the same."""
    for line in table_text(table).splitlines():
        say(line)
    values = values_of(table)
    for value in values:
        interval = value.interval
        bench.row(value.name, interval.value, value.unit, low=interval.low, high=interval.high, n=value.n,
                  baseline=value.baseline)  # fmt: skip
    total = table.lines.get(EVERYTHING)
    if not values and bench.is_tiny and total is not None and total.ratio is not None and total.ratio.ratio is not None:
        bench.row(f"casestudy.{table.part}", total.ratio.ratio, "x", n=table.num_rounds)


# --- what is measured -----------------------------------------------------------------------------------------------


def make_kit(bench: Bench, shape: Shape) -> Kit:
    """Jobs on synthetic text and conversations, and the plan that suits this device by rule."""
    facts, config = load_facts(), shape.config
    tokenizer, place = make_data(bench, shape)
    dtype = "bf16" if bench.device == "cuda" else "fp32"
    compiled = shape.compiled and compile_obstacle(facts) is None
    batch = settle_device_batch(
        Resolved("auto", "default", ""), facts, config, rows_per_step=shape.rows_per_step, dtype=dtype,
        compiled=compiled,
    )  # fmt: skip
    say(f"{batch.value} rows at a time: {batch.reason}")
    segment = Segment(
        0, device_batch=batch.value, compiled=compiled, dtype=dtype,  # type: ignore[arg-type]
        attention=attention_for(bench.device, compiled), reason="bench",
        threads=None if bench.device == "cuda" else 1,
    )  # fmt: skip
    choices = Choices({"device": Choice(bench.device, "--device", "flag")}, (segment,), {}, dict(bench.environment))
    jobs = {stage: measured_job(job_of(shape, stage, tokenizer, place), None) for stage in ("base", "sft")}
    no_compile = None if compiled else compile_obstacle(facts) or "shapes are tiny"
    return Kit(jobs, choices, bench.scratch, no_compile)


def make_data(bench: Bench, shape: Shape) -> tuple[Tokenizer, Path]:
    """The tokenizer, and a folder with it and the token sets base and sft, made once."""
    config, place = shape.config, bench.scratch / "casestudy"
    tokenizer = synthetic_tokenizer(config.vocab_size)
    if not place.exists():
        tokenizer.save(place / "tokenizer")
        num_tokens = shape.num_talks * shape.talk_tokens
        text = synthetic_documents(tokenizer, num_tokens, mean_tokens=min(1024, config.context), seed=0)
        write_token_set(place / "base", text, tokenizer, kind="documents")
        talks = synthetic_talks(tokenizer, shape.num_talks, mean_tokens=shape.talk_tokens, seed=1)
        write_token_set(place / "sft", talks, tokenizer, kind="conversations")
    return tokenizer, place


def job_of(shape: Shape, stage: str, tokenizer: Tokenizer, place: Path) -> TrainJob:
    return TrainJob(
        stage=stage, model=shape.config, tokenizer=str(place / "tokenizer"), tokenizer_hash=tokenizer.hash,
        data=(str(place / stage),), val=None, context=shape.config.context, steps=1,
        rows_per_step=shape.rows_per_step, optim=OptimConfig(), schedule=ScheduleConfig(), seed=1, keep=0,
    )  # fmt: skip


def make_texts(bench: Bench, shape: Shape, kit: Kit) -> Texts:
    """Prompts, and a save with random weights: speed does not ask what they say."""
    tokenizer, place = make_data(bench, shape)
    weights = place / "weights"
    model = GPT(shape.config)
    model.init_weights(seed=0)
    with torch.no_grad():
        model.head.weight.normal_(std=HEAD_STD, generator=torch.Generator().manual_seed(1))
    save_checkpoint(
        weights, 1, model=shape.config, weights=model.state_dict(), optimizer={}, state={},
        tokenizer_hash=tokenizer.hash,
    )  # fmt: skip
    return Texts(
        weights=weights, tokenizer=place / "tokenizer", dtype=kit.segment.dtype, device=bench.device,
        threads=kit.segment.threads, ordinary=shape.config.vocab_size - len(SPECIALS), rows=shape.texts,
        prompt_tokens=shape.prompt_tokens, new_tokens=shape.new_tokens, environment=bench.environment,
        scratch=bench.scratch,
    )  # fmt: skip


# --- busy share -----------------------------------------------------------------------------------------------------


def busy(bench: Bench, kit: Kit) -> None:
    """Row casestudy.gpu_busy: what the driver calls utilisation, as published, of tuned SFT; the start's is said."""
    heard: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    with bench.quiet():
        for way in ways_of(kit, "sft", (START, EVERYTHING), heard):
            if way.side is None:
                continue
            with way.side.start() as child:
                child.wait_ready()
                seconds = child.block(steps=2)["seconds"]
                with Utilisation() as used:
                    child.block(steps=max(2, round(2 * BUSY_S / seconds)))
                found[way.key] = used.shares
            say(f"{way.words}: a kernel runs {100 * statistics.fmean(used.shares or [0.0]):.0f}% of the time")
    shares = found.get(EVERYTHING, [])
    if len(shares) < 5:
        say("nvidia-smi gave too few looks at the GPU")
        return
    before = f"start: {statistics.fmean(found[START]):.2f}" if found.get(START) else None
    low, high = statistics.quantiles(shares, n=20)[0], statistics.quantiles(shares, n=20)[-1]
    value = statistics.fmean(shares)
    bench.row("casestudy.gpu_busy", value, "share", low=min(low, value), high=max(high, value), n=len(shares),
              baseline=before)  # fmt: skip


class Utilisation:
    """Looks at the GPU five times a second inside the with block; shares: time with a kernel, 0 to 1, ends left out."""

    COMMAND: Sequence[str] = (
        "nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_MS}",
    )  # fmt: skip

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._lines: list[str] = []

    def __enter__(self) -> "Utilisation":
        self._process = subprocess.Popen(self.COMMAND, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None, "it has a pipe"
        self._lines.extend(self._process.stdout)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        values = [float(line) / 100 for line in map(str.strip, self._lines) if line.isdecimal()]
        self.shares = values[3:-2]  # the driver averages over up to a second: the ends see idle time
