"""How fast the engine writes by the number of its rows, and how long the GPU waits meanwhile."""

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.synthetic import synthetic_tokenizer
from intone.config import ModelConfig, model_config
from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import UserError
from intone.evals.intervals import ratio
from intone.log import say
from intone.model.gpt import GPT

ROWS = {False: (64, 1, 256, 8), True: (3, 1)}  # by is_tiny; in the order of value
NEW_TOKENS = {False: 256, True: 6}
PROMPT_TOKENS = {False: 64, True: 5}
REPEATS = 5
IDLE_ROWS = {False: 64, True: 3}  # of the idle share


def decode(bench: Bench) -> None:
    """Rows decode.d12.bB.tokens_per_s and .vs_eager, and on a GPU infer.idle_share. Weights are random: speed does not
    ask."""
    device = torch.device(bench.device)
    config = model_config("modern", depth=2, vocab_size=300, context=64)
    if not bench.is_tiny:
        config = model_config("modern", depth=12, vocab_size=32_768, context=2048)
    tokenizer = synthetic_tokenizer(config.vocab_size)
    model = random_model(config, tokenizer, device)
    with bench.quiet():
        for rows in ROWS[bench.is_tiny]:
            name = f"decode.d{config.depth}.b{rows}.tokens_per_s"
            wants_idle = rows == IDLE_ROWS[bench.is_tiny] and device.type == "cuda"
            names = [name, versus(name), *(["infer.idle_share"] if wants_idle else [])]
            if bench.may(f"{rows} rows", *names, seconds=40.0):
                one_batch(bench, model, tokenizer, rows, name, measure_idle=wants_idle)
    if device.type != "cuda":
        say("the idle share needs a GPU")


def random_model(config: ModelConfig, tokenizer: Tokenizer, device: torch.device) -> GPT:
    """A model with random weights that never ends a text by itself."""
    model = GPT(config)
    model.init_weights(seed=0)
    with torch.no_grad():
        # a logit of zero is never the largest of many around zero: no special token, so no early end
        for name in SPECIALS:
            model.head.weight[tokenizer.special(name)] = 0.0
    model.to(device).eval().requires_grad_(False)
    model.compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return model


def one_batch(
    bench: Bench, model: GPT, tokenizer: Tokenizer, rows: int, name: str, *, measure_idle: bool
) -> None:
    """Times whole generations of so many rows, prompts included, and writes their rows: captured steps and steps that
    the host launches, in turns. On a CPU the former are their plain calls: the code runs, the ratio means nothing."""
    requests = make_requests(model.config.vocab_size, rows, PROMPT_TOKENS[bench.is_tiny], NEW_TOKENS[bench.is_tiny])
    options: dict[str, Any] = {"num_slots": rows, "num_guesses": 0}
    if bench.device == "cpu":
        options["kernels"] = "torch"  # our kernels for CPUs have steps of their own
    with (
        Engine(model, tokenizer, steps="captured", **options) as engine,
        Engine(model, tokenizer, steps="eager", **options) as eager,
    ):
        # allocations, first launches and captures
        texts, others = ([answer.ids for (answer,) in side.generate(requests)] for side in (engine, eager))
        num_equal = sum(text == other for text, other in zip(texts, others, strict=True))
        times, eager_times = list[float](), list[float]()
        for _ in range(REPEATS):
            times.append(timed_generation(engine, requests))
            eager_times.append(timed_generation(eager, requests))
        how, why = engine.settings["steps"]
        if how != "captured":
            raise UserError(f"steps were not captured: {why}", value=how)
        found = ratio(np.array(eager_times), np.array(times))
        bench.row(
            versus(name), found.value, "x", low=found.low, high=found.high, n=REPEATS,
            baseline=f"steps that the host launches one by one; {num_equal} of {rows} greedy texts are equal",
        )  # fmt: skip
        num_tokens = rows * NEW_TOKENS[bench.is_tiny]
        rates = sorted(num_tokens / seconds for seconds in times)
        # the ends of five values hold their median with 94 %
        bench.row(name, statistics.median(rates), "tokens/s", low=rates[0], high=rates[-1], n=REPEATS)
        if measure_idle:
            idle_row(bench, engine, requests, times, depth=model.config.depth)


def versus(name: str) -> str:
    """The row of captured steps over eager ones, beside that of their speed."""
    return name.replace(".tokens_per_s", ".vs_eager")


def make_requests(vocab_size: int, rows: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    """Greedy requests with random prompts of ordinary tokens."""
    ordinary = vocab_size - len(SPECIALS)
    prompts = np.random.default_rng(0).integers(0, ordinary, (rows, prompt_tokens))
    return [Request(prompt.tolist(), max_tokens=new_tokens, temperature=0.0, tools=False) for prompt in prompts]


def timed_generation(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds until all requests are answered in full. Raises UserError where a text is shorter than asked for."""
    begin_s = time.perf_counter()
    answers = engine.generate(requests)
    seconds = time.perf_counter() - begin_s
    lengths = {len(completion.ids) for (completion,) in answers}
    if lengths != {requests[0].max_tokens}:
        raise UserError(f"texts of {sorted(lengths)} tokens instead of {requests[0].max_tokens}", value=sorted(lengths))
    return seconds


def idle_row(
    bench: Bench, engine: Engine, requests: Sequence[Request], times: Sequence[float], *, depth: int
) -> None:
    """The share of a generation in which no kernel runs.

    The kernels' time comes from a profile, which slows the host but not them; the whole time from generations without
    one. So the share is that of the engine as it is used, prompts included.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        timed_generation(engine, requests)
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    busy_s = covered(spans) / 1e6
    shares = sorted(max(0.0, 1 - busy_s / seconds) for seconds in times)
    bench.row("infer.idle_share", statistics.median(shares), "share", low=shares[0], high=shares[-1], n=len(times),
              baseline=f"{len(requests)} rows, depth {depth}")  # fmt: skip


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans: what ran at the same time counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
