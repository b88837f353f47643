"""The child of tune/engine.py: an engine with random weights whose sizes take turns, on texts that come and go

`python -m intone.tune.engine_probe` reads a question from stdin as JSON and prints what it saw of every value.
"""

import dataclasses
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intone.config import ModelConfig
from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer
from intone.engine.budget import SPARE_PAGES, pages_per_text, settle_cache
from intone.engine.choose import ALONE_TOKENS, kind_of
from intone.engine.collector import spare_loaded
from intone.engine.engine import Engine
from intone.engine.kv import page_groups
from intone.engine.load import DTYPES
from intone.engine.requests import Completion, Request
from intone.model.cost import num_parameters
from intone.model.gpt import GPT
from intone.prove.gates.decode import TOLERANCE
from intone.tune.engine import WORTH, faster_by
from intone.tune.probe import MIN_ROUNDS, timed_rounds

# in products, the head among them: few enough for ten seconds on two cores, more bytes than a core's own caches hold
PROBE_PARAMETERS = 3_000_000
LEAST_BLOCKS = 2
SCALE = 0.02  # standard deviation of weights, as in bench/infer_side.py: none of them is zero
BEGIN = 64  # tokens that a growing text has already, a whole page: 128 texts of them are computed once, in a second
PROMPT = 256  # tokens of a prompt where prompts are timed; guess: a question with what belongs to it
TOGETHER = 8  # texts that grow side by side where lengths are compared; guess
MOST_TOKENS = 16  # new ones of a text in one block

Texts = list[tuple[list[int], list[float | None]]]  # ids and log-probabilities


@dataclass(frozen=True)
class Load:
    """What a question is tried on. groups(value, size, logprobs) -> requests that run together, group after group.

    opens: options of Engine. least, most: sizes of a block. before: run once, so that what follows finds their keys.
    counts_prompts: whether tokens are those of prompts.
    """

    opens: dict[str, Any]
    groups: Any
    least: int
    most: int
    before: Sequence[Request] = ()
    counts_prompts: bool = False


def measure(
    config: dict[str, Any], tokenizer: str, device: str, dtype: str, weights: str, questions: Sequence[dict[str, Any]],
    budget_s: float, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The answer: Seen of tune/engine.py as JSON, by question. options: more of Engine."""
    whole = ModelConfig.from_json(config)
    words = Tokenizer.load(Path(tokenizer))
    model = random_model(small_shape(whole), words).to(device)
    model.compute_dtype = DTYPES[dtype]
    seen = {}
    for question in questions:
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in question["values"]]
        load = load_of(question["name"], values, model.config)
        with Engine(model, words, weights=weights, **load.opens, **options) as engine:  # type: ignore[arg-type]
            spare_loaded()
            refused: list[str | None] = [None] * len(values)
            if question["name"] == "num_slots":
                refused = [too_large(whole, rows, torch.device(device), DTYPES[dtype]) for rows in values]
                refused[0] = None  # what the rule says is what an engine opens with, full or not
            allowed = TOLERANCE[DTYPES[dtype]]
            seen[question["name"]] = compared(engine, question["name"], values, load, refused, allowed, budget_s)
    return seen


def compared(
    engine: Engine, name: str, values: Sequence[Any], load: Load, refused: Sequence[str | None], allowed: float,
    budget_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Seen of a question; values that are refused are not tried. What seems worth it is measured a second time."""
    places = [place for place, why in enumerate(refused) if why is None]
    units: dict[int, int] = {}

    def block(place: int, size: int, *, logprobs: bool = False) -> tuple[float, list[Completion]]:
        engine.limit(**{name: values[place]})
        groups = load.groups(values[place], size, logprobs)
        begin_s = time.perf_counter()
        done = [completion for group in groups for completion in finished(engine, group)]
        return time.perf_counter() - begin_s, done

    def run(place: int, size: int) -> float:
        seconds, done = block(place, size)
        units[place] = sum(entry.usage.prompt_tokens if load.counts_prompts else len(entry.ids) for entry in done)
        return seconds

    finished(engine, load.before)
    first = {place: block(place, load.least, logprobs=True) for place in places}
    texts: dict[int, Texts] = {
        place: [(entry.ids, entry.logprobs) for entry in done] for place, (_, done) in first.items()
    }
    round_s = sum(seconds for seconds, _ in first.values())
    size = max(load.least, min(load.most, int(load.least * budget_s / (MIN_ROUNDS * round_s))))

    def timed(tried: Sequence[int]) -> dict[int, list[float]]:
        """Seconds per token by place."""
        found = timed_rounds(tried, lambda place: run(place, size), budget_s)
        return {place: [seconds / units[place] for seconds in times] for place, times in zip(tried, found, strict=True)}

    times = timed(places)
    differences = {place: apart(texts[place], texts[0]) for place in places}
    right = [place for place in places[1:] if (nats := differences[place]) is not None and nats <= allowed]
    best = max(right, key=lambda place: faster_by(times[0], times[place]), default=0)
    again = timed([0, best]) if best and faster_by(times[0], times[best]) > WORTH else {}
    every = range(len(values))
    return {
        "seconds": [times.get(place, []) for place in every], "apart": [differences.get(place) for place in every],
        "refused": list(refused), "allowed": allowed, "again": best if again else None, "again_s": list(again.values()),
    }  # fmt: skip


def finished(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """The texts. Raises RuntimeError where one failed."""
    completions = [samples[0] for samples in engine.generate(requests)]
    for completion in completions:
        if completion.reason == "error":
            raise RuntimeError(completion.error)
    return completions


def apart(texts: Texts, others: Texts) -> float | None:
    """The largest difference of log-probabilities in nats; of every text up to the first token that differs.

    That token's is still of the same beginning, and the likeliest token's log-probability is continuous in the logits.
    None: nothing could be compared.
    """
    differences = []
    for (ids, logprobs), (other_ids, other_logprobs) in zip(texts, others, strict=False):
        for token, other, logprob, other_logprob in zip(ids, other_ids, logprobs, other_logprobs, strict=False):
            if logprob is not None and other_logprob is not None:
                differences.append(abs(logprob - other_logprob))
            if token != other:
                break
    return max(differences, default=None)


# --- loads ----------------------------------------------------------------------------------------------------------


def load_of(name: str, values: Sequence[Any], config: ModelConfig) -> Load:
    """Texts on which the values of a question differ."""
    draw = random.Random(0)
    room = max(1, min(MOST_TOKENS, config.context // 4))
    length = max(1, min(PROMPT, config.context // 2))

    def ids(count: int) -> list[int]:
        return [draw.randrange(256) for _ in range(count)]

    def request(prompt: list[int], new_tokens: int, logprobs: bool) -> Request:
        return Request(prompt, max_tokens=new_tokens, temperature=0.0, tools=False, logprobs=logprobs)

    if name == "num_slots":
        # no two texts share keys; later blocks feed the last token of each
        texts = [ids(1 + min(BEGIN, length)) for _ in range(max(values))]

        def rows(value: int, size: int, logprobs: bool) -> list[list[Request]]:
            return [[request(text, size, logprobs) for text in texts[:value]]]

        # texts that end with their first token: none grows meanwhile, and prompts are fed in whole steps
        return Load({"num_slots": max(values)}, rows, min(2, room), room, [request(text, 1, False) for text in texts])
    if name == "prompt_tokens":
        known = [ids(length) for _ in range(4)]
        full = -(-max(values) // length)  # prompts that fill a step of any of the values

        def prompts(_: int, size: int, logprobs: bool) -> list[list[Request]]:
            if logprobs:
                return [[request(prompt, 1, True) for prompt in known]]
            return [[request(ids(length), 1, False) for _ in range(full * size)]]

        opens = {"prompt_tokens": max(values), "num_slots": full, "share_prefixes": False}
        return Load(opens, prompts, 1, MOST_TOKENS, counts_prompts=True)
    assert name == "buckets", f"no load for {name}"
    lengths = sorted({max(1, config.context // 16), length, config.context // 2, config.context - room - 1})
    begins = [ids(count) for count in lengths]

    def grown(_: Any, size: int, logprobs: bool) -> list[list[Request]]:
        return [[request([*begin, place], size, logprobs) for place in range(TOGETHER)] for begin in begins]

    return Load({"num_slots": TOGETHER}, grown, min(2, room), room)


def too_large(config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why so many texts of the whole context cannot be kept at once; None: they can."""
    groups, step_tokens = page_groups(config, config.context), ALONE_TOKENS[kind_of(device)]
    size = settle_cache(
        config, groups, context=config.context, num_slots=rows, step_tokens=step_tokens, dtype=dtype, device=device,
        cache_bytes=None,
    )  # fmt: skip
    wanted = [pages_per_text(group, context=config.context, step_tokens=step_tokens) for group in groups]
    fits = all(pages >= rows * count + SPARE_PAGES for pages, count in zip(size.num_pages, wanted, strict=True))
    return None if fits else f"their cache would be cut: {size.reason}"


# --- the model ------------------------------------------------------------------------------------------------------


def small_shape(config: ModelConfig) -> ModelConfig:
    """The model with fewer blocks where it is large: blocks are alike, and rows change what each costs alike."""
    while config.depth > LEAST_BLOCKS and products(config) > PROBE_PARAMETERS:
        config = dataclasses.replace(config, depth=config.depth - 1)
    return config


def products(config: ModelConfig) -> int:
    """Parameters that a token is multiplied with."""
    counts = num_parameters(config)
    return counts["matrices"] + counts["head"]


def random_model(config: ModelConfig, tokenizer: Tokenizer) -> GPT:
    """Weights none of which is zero, and texts that end by their limit alone."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, SCALE, generator=generator)
            else:
                parameter.fill_(0.1)
        if config.residual_scalars:
            model.residual_scale.fill_(1.0)
        # a logit of zero is never the largest of many around zero
        model.head.weight[[tokenizer.special(name) for name in SPECIALS]] = 0.0
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
