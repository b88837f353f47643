"""The worker's "evaluate" job: bits per byte and starter skills of a finished stage, in a process of its own."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import torch

from intone.config import check_keys
from intone.data import starter
from intone.data.loader import validation_rows
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.engine.collector import spare_loaded
from intone.engine.engine import Engine
from intone.engine.job import OPTIONS
from intone.engine.load import load_newest
from intone.engine.native_decoder import Weights
from intone.errors import UserError
from intone.evals.bpb import bits_per_byte
from intone.evals.eight_bits import keep, measure_loss
from intone.evals.skills import evaluate_skills
from intone.log import human_duration, say
from intone.model.checkpoint import step_folder, weights_hash
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.pulse import beat, beating
from intone.records import Outcome

MAX_ANSWER_TOKENS = 160  # the longest held-out answer (ten weekdays counted) has about 90

Task = Literal["bpb", "starter"]
NEEDED = {"from": str, "tokenizer": str, "dtype": str, "tasks": tuple[Task, ...], "context": int, "val_tokens": int}
OTHER = {
    "format": int, "job": str, "device": str, "threads": int | None, "val": str | None, "num_items": int | None,
    "seed": int, "weights": Weights, "engine": dict[str, Any],
}  # fmt: skip


def evaluate_job(folder: Path, config: dict[str, Any]) -> Outcome:
    """Measures what config["tasks"] names (bpb, starter) -> eval.json in folder.

    config: from (job folder of a training), tokenizer (folder), device (none named: cpu), dtype, threads, tasks, val
    (folder of a token set or None), val_tokens, context, num_items (per skill, at most what there is), seed of the
    items, weights (of the engine that answers; int8 with bpb: what 8 bits cost is measured too, and kept beside the
    saves), engine (other options of it).
    Raises UserError for a config that asks for something else.
    """
    check_keys(config, "evaluate job", needed=NEEDED, other=OTHER)
    check_keys(config.get("engine", {}), "engine", needed={}, other=OPTIONS)
    if "bpb" in config["tasks"] and not config.get("val"):
        raise UserError("evaluate job setting 'val' is missing, which task bpb needs", value="val")
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    device = torch.device(config.get("device", "cpu"))
    if device.type == "cpu":  # a GPU has no such way for all operations
        torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, without importing the compiler
    job_folder = Path(config["from"])
    model, step = load_newest(job_folder, dtype=config["dtype"], device=device)
    tokenizer = Tokenizer.load(Path(config["tokenizer"]))
    result: dict[str, Any] = {"format": 1}
    if "bpb" in config["tasks"]:
        result["bpb"] = measure_bpb(folder, model, tokenizer, config)
        if config.get("weights") == "int8":
            checkpoint = weights_hash(step_folder(job_folder, step))
            result["eight_bits"] = measure_eight_bits(folder, model, tokenizer, config, checkpoint)
    if "starter" in config["tasks"]:
        result["starter"] = measure_starter(folder, model, tokenizer, config)
    write_json(folder / "eval.json", result)
    return Outcome("done", None)


def measure_bpb(folder: Path, model: GPT, tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """Bits per byte with its interval on the fixed rows of the validation set."""
    begin_s = time.monotonic()
    rows = beating(folder, validation_rows(TokenSet.open(Path(config["val"])), config["context"], config["val_tokens"]))
    result = bits_per_byte(
        model, rows, tokenizer.token_bytes, device=model.head.weight.device, dtype=model.compute_dtype
    )
    say(f"bits per byte {result['value']:.4f} ({human_duration(time.monotonic() - begin_s)})")
    return dict(result)


def measure_eight_bits(
    folder: Path, model: GPT, tokenizer: Tokenizer, config: dict[str, Any], checkpoint: str
) -> dict[str, Any]:
    """What 8-bit weights cost on the same rows; kept for whoever loads this save."""
    rows = beating(folder, validation_rows(TokenSet.open(Path(config["val"])), config["context"], config["val_tokens"]))
    loss = measure_loss(model, tokenizer, rows, dtype=config["dtype"], checkpoint=checkpoint)
    keep(Path(config["from"]), loss)
    say(f"8-bit weights cost {loss.value:+.5f} bits per byte [{loss.low:+.5f}, {loss.high:+.5f}]")
    return dataclasses.asdict(loss)


def measure_starter(folder: Path, model: GPT, tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """Held-out starter skills: greedy answers, exact match, Wilson intervals, and the wrong answers' first few."""
    begin_s = time.monotonic()
    num_items = config.get("num_items") or 200
    items = {skill: starter.eval_items(skill, config.get("seed", 0), num_items) for skill in starter.SKILLS}
    engine = Engine(model, tokenizer, weights=config.get("weights", "auto"), **config.get("engine", {}))
    spare_loaded()
    try:
        result = evaluate_skills(engine, items, MAX_ANSWER_TOKENS, on_answer=lambda: beat(folder))
    finally:
        engine.close()
    seconds = time.monotonic() - begin_s
    total = sum(len(group) for group in items.values())
    say(f"starter skills {100 * result['mean']:.1f}% over {total:,} held-out questions ({human_duration(seconds)})")
    return dict(result)
