"""Time to the first token, time per token and what the machine reaches, by the number of texts and their length."""

import resource
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intone.bench.infer_settings import BenchInferSettings
from intone.bench.infer_side import open_engine, timed
from intone.config import ModelConfig
from intone.engine.engine import Engine
from intone.hardware import Facts, load_facts
from intone.log import human_bytes, say, table
from intone.model.cost import num_parameters
from intone.paths import write_json
from intone.report.charts import Axis, Line, line_chart

TEXTS = (1, 4, 16, 64)
LENGTHS = (32, 256, 1024)
MOST_TOKENS = {"cpu": 8192, "cuda": 1 << 20}  # of all prompts of a point: more would take minutes on two cores
NEW_TOKENS = 16
REPEATS = 3
COUNTED = (
    "MBU counts what a step must read: matrices as stored once, the keys and values that its windows see, and the rows "
    "of its tables that its tokens need, over the measured copy bandwidth; embedding tables as a whole are not read. "
    "MFU counts 2 operations per number in a matrix and token and 4 per channel of a seen key."
)


@dataclass(frozen=True)
class Point:
    """One number of texts of one length. first_s: until all have their first token; step_s: per token of each text."""

    num_texts: int
    prompt_tokens: int
    first_s: float
    step_s: float
    tokens_per_s: float
    prompt_tokens_per_s: float
    step_bytes: int
    mbu: float | None
    mfu: float | None
    peak_bytes: int


def grid(settings: BenchInferSettings, folder: Path) -> tuple[str, dict[str, Any]]:
    """The table as text, and all of it as JSON; writes infer.svg and infer.json to folder."""
    facts = load_facts()
    engine, model = open_engine(
        {**asdict(settings), "preset": "modern", "slots": max(TEXTS), "export": None}
    )  # fmt: skip
    config: ModelConfig = model.config
    points = []
    with engine:
        stored = str(engine.settings["weights"][0])
        lengths = [length for length in LENGTHS if length + NEW_TOKENS <= config.context]
        timed(engine, [[1, 2, 3]], 2)
        for length in lengths:
            for num_texts in TEXTS:
                if num_texts * length > MOST_TOKENS[settings.device]:
                    continue
                points.append(measured(engine, config, num_texts, length, stored, settings, facts))
                say(f"{num_texts} texts of {length}: {points[-1].tokens_per_s:,.0f} tokens/s")
    text = "\n".join([points_table(points, stored), COUNTED])
    found = {
        "points": [asdict(point) for point in points],
        "counted": COUNTED,
        "weights": stored,
        "dtype": settings.dtype,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "infer.json", {"format": 1, **found})
    (folder / "infer.svg").write_text(plot(points, stored), encoding="utf-8")
    return f"{text}\nplot and numbers are in {folder}/infer.svg and infer.json", found


def measured(
    engine: Engine, config: ModelConfig, num_texts: int, length: int, stored: str, settings: BenchInferSettings,
    facts: Facts,
) -> Point:  # fmt: skip
    """Prompts are new in every repeat; the second time they are found in the cache, so only steps are timed."""
    firsts, steps = [], []
    for repeat in range(REPEATS):
        rng = np.random.default_rng([num_texts, length, repeat])
        prompts = rng.integers(0, config.vocab_size - 9, (num_texts, length)).tolist()
        firsts.append(timed(engine, prompts, 1)["seconds"])
        steps.append(timed(engine, prompts, NEW_TOKENS)["seconds"] / NEW_TOKENS)
    first_s, step_s = statistics.median(firsts), statistics.median(steps)
    num_bytes = step_bytes(config, num_texts, length + NEW_TOKENS // 2, stored, settings.dtype)
    flops = num_texts * token_flops(config, length + NEW_TOKENS // 2)
    rate = {"fp32": facts.fp32_flops_per_s, "bf16": facts.bf16_flops_per_s}[settings.dtype]
    if settings.device == "cpu":
        rate = max((value for value in (facts.fp32_flops_per_s, facts.bf16_flops_per_s) if value), default=None)
    bandwidth = facts.copy_bytes_per_s
    return Point(
        num_texts, length, first_s, step_s, num_texts / step_s, num_texts * length / first_s, num_bytes,
        num_bytes / step_s / bandwidth if bandwidth else None, flops / step_s / rate if rate else None,
        peak_bytes(settings.device),
    )  # fmt: skip


def step_bytes(config: ModelConfig, num_texts: int, seen: int, stored: str, dtype: str) -> int:
    """Bytes that a step of num_texts texts must read, each with seen tokens behind it."""
    size = {"fp32": 4, "bf16": 2, "int8": 1}[stored]
    number = {"fp32": 4, "bf16": 2}[dtype]
    counts = num_parameters(config)
    matrices = (counts["matrices"] + counts["head"]) * size
    kv_width = config.num_kv_heads * config.head_width
    keys = sum(2 * kv_width * min(seen, config.window(block)) for block in range(config.depth))
    tables = sum(config.has_value_embedding(block) for block in range(config.depth)) * kv_width
    return matrices + num_texts * number * (keys + tables + (1 + config.smear) * config.width)


def token_flops(config: ModelConfig, seen: int) -> int:
    """Operations of one token: products, and attention over what it sees."""
    counts = num_parameters(config)
    width = config.num_heads * config.head_width
    attention = sum(4 * width * min(seen, config.window(block)) for block in range(config.depth))
    return 2 * (counts["matrices"] + counts["head"]) + attention


def peak_bytes(device: str) -> int:
    """The most that this process had so far: on the GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def points_table(points: list[Point], stored: str) -> str:
    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{100 * value:.0f}%"

    rows = [
        [
            str(p.num_texts), f"{p.prompt_tokens:,}", f"{1e3 * p.first_s:,.1f} ms", f"{1e3 * p.step_s:,.2f} ms",
            f"{p.tokens_per_s:,.0f}", f"{p.prompt_tokens_per_s:,.0f}", human_bytes(p.step_bytes), share(p.mbu),
            share(p.mfu), human_bytes(p.peak_bytes),
        ]
        for p in points
    ]  # fmt: skip
    header = ["texts", "context", "TTFT", "TPOT", "tok/s", "prompt tok/s", f"step ({stored})", "MBU", "MFU", "peak"]
    return table(rows, header=header)


def plot(points: list[Point], stored: str) -> str:
    """Tokens per second by the number of texts, one line per length; a file of its own."""
    lengths = sorted({point.prompt_tokens for point in points})
    lines = [
        Line(
            [(p.num_texts, p.tokens_per_s) for p in points if p.prompt_tokens == length],
            colour,
            name=f"{length:,} tokens",
        )
        for colour, length in enumerate(lengths)
    ]
    words = f"tokens per second by the number of texts written at once, {stored} weights"
    return line_chart(
        lines, x=Axis("texts at once", is_log=True), y=Axis("tokens/s", low=0), width=640, description=words
    )
