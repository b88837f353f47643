"""How fast the engine writes by the number of its rows, and how long the GPU waits meanwhile."""

import contextlib
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.decode_kernels import filled_model, kernel_table, kernels_run, tune_products
from intone.bench.gpu_suites.infer import COPY_BYTES_PER_S
from intone.bench.gpu_suites.synthetic import synthetic_tokenizer
from intone.bench.infer_grid import step_bytes
from intone.config import ModelConfig, model_config
from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer
from intone.engine.collector import spare_loaded
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import UserError
from intone.evals.intervals import ratio
from intone.log import say
from intone.model.gpt import GPT

# depth and rows, by is_tiny; in the order of value
CASES = {False: ((12, 64), (12, 1), (24, 1), (12, 256), (12, 8)), True: ((2, 3), (2, 1))}
NEW_TOKENS = {False: 256, True: 6}
PROMPT_TOKENS = {False: 64, True: 5}
REPEATS = 5
EAGER_DEPTH = 12  # deeper, steps that the host launches would take most of the suite's time
EAGER_REPEATS = 3  # of steps that the host launches: each takes ten times as long
IDLE_CASE = {False: (12, 64), True: (2, 3)}  # of the idle share
CASE_S = 20.0  # guess


def decode(bench: Bench) -> None:
    """Rows decode.dN.bB.tokens_per_s, .vs_eager and, where the step kernels run, .vs_torch; on a GPU infer.idle_share
    and decode.products.rule_over_best. Weights are random: speed does not ask."""
    device = torch.device(bench.device)
    models: dict[int, tuple[GPT, Tokenizer]] = {}
    with bench.quiet():
        has_kernels = kernels_run(bench)
        for depth, rows in CASES[bench.is_tiny]:
            name = f"decode.d{depth}.b{rows}.tokens_per_s"
            wants_idle = (depth, rows) == IDLE_CASE[bench.is_tiny] and device.type == "cuda"
            has_eager = depth <= EAGER_DEPTH
            others = [*(["eager"] if has_eager else []), *(["torch"] if has_kernels else [])]
            names = [name, *(versus(name, side) for side in others), *(["infer.idle_share"] if wants_idle else [])]
            if not bench.may(f"depth {depth}, {rows} rows", *names, seconds=CASE_S):
                continue
            if depth not in models:
                models = {depth: make_model(depth, device, is_tiny=bench.is_tiny)}
            measured = partial(
                one_batch, bench, *models[depth], rows, name, measure_idle=wants_idle, has_eager=has_eager
            )
            try:
                measured(has_kernels=has_kernels)
            except UserError as error:
                if not has_kernels:
                    raise
                say(f"THE STEP KERNELS FAIL, the rest is PyTorch's: {error}")
                has_kernels = False
                measured(has_kernels=False)
        if has_kernels and bench.may("cuts of products", "decode.products.rule_over_best", seconds=CASE_S):
            tune_products(bench)
    if device.type != "cuda":
        say("the idle share needs a GPU")


def make_model(depth: int, device: torch.device, *, is_tiny: bool) -> tuple[GPT, Tokenizer]:
    """A model with random weights that never ends a text by itself, and a tokenizer for it."""
    vocab_size, context = (300, 64) if is_tiny else (32_768, 2048)
    config = model_config("modern", depth=depth, vocab_size=vocab_size, context=context)
    tokenizer = synthetic_tokenizer(vocab_size)
    model = filled_model(config, device)
    # a logit of zero is never the largest of many around zero: no special token, so no early end
    for name in SPECIALS:
        model.head.weight[tokenizer.special(name)] = 0.0
    model.compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return model, tokenizer


def one_batch(
    bench: Bench, model: GPT, tokenizer: Tokenizer, rows: int, name: str, *, measure_idle: bool, has_kernels: bool,
    has_eager: bool,
) -> None:  # fmt: skip
    """Times whole generations of so many rows, prompts included, and writes their rows: captured steps, those that
    PyTorch computes where our kernels do it otherwise, and where has_eager steps that the host launches, in turns. On a
    CPU the former are their plain calls: the code runs, the ratio means nothing."""
    requests = make_requests(model.config.vocab_size, rows, PROMPT_TOKENS[bench.is_tiny], NEW_TOKENS[bench.is_tiny])
    options: dict[str, Any] = {"num_slots": rows, "num_guesses": 0}
    if bench.device == "cpu":
        options["kernels"] = "torch"  # our kernels for CPUs have steps of their own
    kernels = "triton" if has_kernels else "torch"
    sides: dict[str, dict[str, Any]] = {"captured": {"steps": "captured", "step_kernels": kernels}}
    sides |= {"torch": {"steps": "captured", "step_kernels": "torch"}} if has_kernels else {}
    sides |= {"eager": {"steps": "eager"}} if has_eager else {}
    with contextlib.ExitStack() as opened:
        engines = {
            side: opened.enter_context(Engine(model, tokenizer, **options, **asked)) for side, asked in sides.items()
        }
        # allocations, first launches and captures
        texts = {side: first_texts(engine, requests) for side, engine in engines.items()}
        spare_loaded()  # as every process of ours that generates
        times: dict[str, list[float]] = {side: [] for side in engines}
        for turn in range(REPEATS):
            for side, engine in engines.items():
                if side != "eager" or turn < EAGER_REPEATS:
                    times[side].append(timed_generation(engine, requests))
        for side, asked in sides.items():
            for setting, wanted in asked.items():
                value, why = engines[side].settings[setting]
                if value != wanted:
                    raise UserError(f"{setting} {wanted} became {value}: {why}", value=value)
        for side, words in (("eager", "steps that the host launches one by one"), ("torch", "captured, by PyTorch")):
            if side in times:
                count = len(times[side])
                found = ratio(np.array(times[side]), np.array(times["captured"][:count]))
                num_equal = sum(text == other for text, other in zip(texts["captured"], texts[side], strict=True))
                bench.row(versus(name, side), found.value, "x", low=found.low, high=found.high, n=count,
                          baseline=f"{words}; {num_equal} of {rows} greedy texts are equal")  # fmt: skip
        num_tokens = rows * NEW_TOKENS[bench.is_tiny]
        rates = sorted(num_tokens / seconds for seconds in times["captured"])
        # the ends of five values hold their median with 94 %
        bench.row(name, statistics.median(rates), "tokens/s", low=rates[0], high=rates[-1], n=REPEATS)
        say_steps(bench, model.config, rows, times)
        if bench.device == "cuda":
            profiled(bench, engines["captured"], requests, times["captured"], depth=model.config.depth,
                     measure_idle=measure_idle)  # fmt: skip


def first_texts(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The ids of every answer. Raises UserError with an engine's own words where it fails."""
    answers = [answer for (answer,) in engine.generate(requests)]
    errors = {answer.error for answer in answers if answer.reason == "error"}
    if errors:
        raise UserError(f"{dict(engine.settings)} fails: {errors}")
    return [answer.ids for answer in answers]


def say_steps(bench: Bench, config: ModelConfig, rows: int, times: Mapping[str, Sequence[float]]) -> None:
    """How long a step takes by side, prompts included, and what share of that its bytes need at 4.3 TB/s."""
    new_tokens, prompt_tokens = NEW_TOKENS[bench.is_tiny], PROMPT_TOKENS[bench.is_tiny]
    kind = "bf16" if bench.device == "cuda" else "fp32"
    size = step_bytes(config, rows, prompt_tokens + new_tokens // 2, kind, kind)
    for side, seconds in times.items():
        step_s = statistics.median(seconds) / new_tokens
        say(f"  {side}: {1e3 * step_s:.3f} ms a step; its {size / 1e6:,.0f} MB would take "
            f"{1e3 * size / COPY_BYTES_PER_S:.3f} ms: {size / COPY_BYTES_PER_S / step_s:.0%}")  # fmt: skip


def versus(name: str, side: str) -> str:
    """The row of captured steps over another side's, beside that of their speed."""
    return name.replace(".tokens_per_s", f".vs_{side}")


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


def profiled(
    bench: Bench, engine: Engine, requests: Sequence[Request], times: Sequence[float], *, depth: int,
    measure_idle: bool,
) -> None:  # fmt: skip
    """Says what each kernel takes of a step, and where asked writes the share of a generation in which none runs.

    The kernels' time comes from a profile, which slows the host but not them; the whole time from generations without
    one. So the share is that of the engine as it is used, prompts included.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        timed_generation(engine, requests)
        torch.cuda.synchronize()
    events = [
        event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    steps = NEW_TOKENS[bench.is_tiny]
    for line in kernel_table([event.name for event in events], [end - begin for begin, end in spans], steps):
        say(line)
    if measure_idle:
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
