"""Generation on command: the prompts of a job folder again and again, a block of requests at a time, timed."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from intone.blocks import Exchange, whole_number
from intone.engine.engine import Engine
from intone.engine.job import open_engine
from intone.engine.requests import Request
from intone.paths import read_json
from intone.records import Outcome

COMMAND = ("requests", "restart")
WARM_S = 1.0  # of warming up behind the first texts; without a cache 32 texts of 200 tokens took a minute


def live_generation(folder: Path, exchange: Exchange) -> Outcome:
    """The generate job in folder, block by block on command -> how it ended.

    A block answers all its requests together: {requests, seconds, tokens (new ones, of all samples), prompt_tokens,
    first_request}. Requests go through the job's prompts in turn, however the blocks are cut; with
    "restart": true from the first one again. Raises UserError.
    """
    config = read_json(folder / "config.json")
    engine, requests = open_engine(config)
    with engine:
        first_s, warm_s = warmed(engine, requests)
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "prompts": len(requests)}
        exchange.ready(first_s, warm_s, {"dtype": config.get("dtype", "fp32"), **facts})
        turn, number = itertools.cycle(requests), 0
        for block in exchange.blocks(COMMAND):
            if block.get("restart"):
                turn, number = itertools.cycle(requests), 0
            count = whole_number(block, "requests", len(requests))
            exchange.answer({"first_request": number, **timed(engine, list(itertools.islice(turn, count)))})
            number += count
    return Outcome("done")


def warmed(engine: Engine, requests: Sequence[Request]) -> tuple[float, float]:
    """(seconds of the first texts that run at once, compiling included; seconds of the warming up behind them).

    Warming up goes over all prompts once, and over them again; a slow generation is cut short after WARM_S.
    """
    size: int = engine.settings["num_slots"][0]
    groups = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
    first_s = timed(engine, groups[0])["seconds"]
    warm_s = 0.0
    for group in [*groups[1:], *groups]:
        warm_s += timed(engine, group)["seconds"]
        if warm_s > WARM_S:
            break
    return first_s, warm_s


def timed(engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
    """Generates -> the part of a block's answer that was measured. Raises RuntimeError where a request failed."""
    begin_s = time.perf_counter()
    answers = engine.generate(requests)
    seconds = time.perf_counter() - begin_s  # the tokens are here: the device has nothing left to do
    completions = [completion for samples in answers for completion in samples]
    for completion in completions:
        if completion.reason == "error":
            raise RuntimeError(completion.error)
    return {
        "requests": len(requests),
        "seconds": seconds,
        "tokens": sum(completion.usage.completion_tokens for completion in completions),
        "prompt_tokens": sum(samples[0].usage.prompt_tokens for samples in answers),
    }
