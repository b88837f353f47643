"""The worker's "generate" job: prompts of a job folder in, completions out, in a process of its own."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intone.config import check_keys
from intone.data.tokenizer import Tokenizer
from intone.engine.collector import spare_loaded
from intone.engine.engine import Engine
from intone.engine.load import load_model
from intone.engine.requests import Request
from intone.model.gpt import GPT
from intone.paths import append_line
from intone.pulse import beat
from intone.records import Outcome

NEEDED = {"from": str, "tokenizer": str, "prompts": tuple[Any, ...]}
OTHER = {
    "format": int, "job": str, "dtype": str, "device": str, "threads": int | None, "sampling": Mapping,
    "engine": Mapping,
}  # fmt: skip
# values are looked at by the engine and by each request
OPTIONS = {name: Any for name in inspect.signature(Engine).parameters if name not in ("model", "tokenizer")}
SAMPLING = {entry.name: Any for entry in dataclasses.fields(Request) if entry.name != "prompt"}


def generate_job(folder: Path, config: dict[str, Any]) -> Outcome:
    """Completes config["prompts"] (texts or lists of ids) with the model of config["from"] -> completions.jsonl.

    config: from (job folder of a training), tokenizer (folder), prompts, dtype (fp32 | bf16), device, threads, sampling
    (fields of Request), engine (options of Engine). One line per prompt: prompt, completions [{text, ids, reason}].
    """
    engine, requests = open_engine(config)
    (folder / "completions.jsonl").unlink(missing_ok=True)
    try:
        answers = engine.generate(requests, on_answer=lambda: beat(folder))
        for prompt, completions in zip(config["prompts"], answers, strict=True):
            found = [{"text": c.text, "ids": list(c.ids), "reason": c.reason} for c in completions]
            append_line(folder / "completions.jsonl", {"prompt": prompt, "completions": found})
    finally:
        engine.close()
    return Outcome("done", None)


def open_engine(config: dict[str, Any]) -> tuple[Engine, list[Request]]:
    """The engine and the requests of a generate job; the caller closes the engine. Raises UserError."""
    model, tokenizer, requests, options = open_model(config)
    engine = Engine(model, tokenizer, **options)
    spare_loaded()
    return engine, requests


def open_model(config: dict[str, Any]) -> tuple[GPT, Tokenizer, list[Request], dict[str, Any]]:
    """What a generate job works with: model, tokenizer, requests, and the options of its engine.

    Sets the threads of this process where config says so. Raises UserError for a key that is missing or unknown, and
    for a value of another kind.
    """
    check_keys(config, "generate job", needed=NEEDED, other=OTHER)
    sampling, options = config.get("sampling", {}), config.get("engine", {})
    check_keys(sampling, "sampling", needed={}, other=SAMPLING)
    check_keys(options, "engine", needed={}, other=OPTIONS)
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    device = torch.device(config.get("device", "cpu"))
    model = load_model(Path(config["from"]), dtype=config.get("dtype", "fp32"), device=device)
    tokenizer = Tokenizer.load(Path(config["tokenizer"]))
    requests = [Request(prompt=prompt, **sampling) for prompt in config["prompts"]]
    return model, tokenizer, requests, dict(options)
