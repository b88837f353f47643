"""Runs one probe target in a process of its own: reads the question from stdin, prints what it saw as one JSON line.

A target is a function without arguments that returns what can be probed, any part of it:
{"generate": f(prompt, rows, max_tokens, temperature, seed) -> one list of new tokens per row, "prompt": [tokens],
"context": longest text, "batches": f(first, count, rank, ranks) -> list of (inputs, targets), "ranks": 2,
"ignored": label of what is not learned, "pad": token, "step": f(inputs, targets) -> one step of training, done when
it returns}.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from intone.optimise.scan.probes import judge

HOT_ROWS, REQUESTS = 16, 6
POSITIONS = (16, 32, 64, 128, 256, 512, 1024)
TOKENS = 8  # timed at each position
REPEATS = 3
NUM_BATCHES, STEP = 4, 3


def main() -> None:
    """The child's whole life."""
    question = json.load(sys.stdin)
    sys.path[:0] = question["search"]
    looks = look_at(find_target(question["target"])(), float(question["seconds"]))
    print(json.dumps({"looks": [look.as_json() for look in looks]}), flush=True)


def find_target(words: str) -> Callable[[], Mapping[str, Any]]:
    """The function that module:function names."""
    module, _, name = words.partition(":")
    found = getattr(importlib.import_module(module), name)
    assert callable(found), f"{words} is no function"
    return found


def look_at(parts: Mapping[str, Any], seconds: float) -> list[judge.Look]:
    """What every probe says that has what it needs; an error of one is its own unclear outcome."""
    deadline = time.monotonic() + seconds * 0.8  # the rest is for starting and ending
    looks: list[judge.Look] = []
    if "generate" in parts:
        generate, prompt = parts["generate"], list(parts.get("prompt", [1, 2, 3, 4]))
        looks += _tried("B01", lambda: first_tokens(generate, prompt))
        looks += _tried("B02", lambda: row_streams(generate, prompt))
        looks += _tried("B03", lambda: latency(generate, prompt, int(parts.get("context", 256)), deadline))
    if "batches" in parts:
        looks += _batches(parts)
    return looks


def _tried(rule: str, probe: Callable[[], judge.Look]) -> list[judge.Look]:
    try:
        return [probe()]
    except Exception as error:
        return [judge.Look(rule, "unclear", f"the probed code raised {type(error).__name__}: {error}")]


def first_tokens(generate: Any, prompt: list[int]) -> judge.Look:
    """Several requests of several rows, warm; at a higher temperature where the model is too sure; and one greedy."""
    cold = [row[0] for row in generate(prompt, 4, 1, 0.0, 0)]
    look = judge.Look("B01", "unclear", "not run")
    for temperature in (1.0, 4.0, 16.0):
        hot = [[row[0] for row in generate(prompt, HOT_ROWS, 1, temperature, 100 + n)] for n in range(REQUESTS)]
        look = judge.judge_first_tokens(hot, cold)
        if look.outcome != "unclear":
            break
    return look


def row_streams(generate: Any, prompt: list[int]) -> judge.Look:
    """Row 0 of one row and of four, with one seed."""
    return judge.judge_row_streams(generate(prompt, 1, 12, 1.0, 7)[0], generate(prompt, 4, 12, 1.0, 7)[0])


def latency(generate: Any, prompt: list[int], context: int, deadline: float) -> judge.Look:
    """Seconds per token behind texts of growing length: what 8 more tokens cost beyond one."""
    times: list[tuple[int, float]] = []
    positions = [position for position in POSITIONS if position + TOKENS + 2 <= context]
    if len(positions) < 2:
        return judge.Look("B03", "unclear", f"texts of {context} tokens are too short to see growth")
    generate(_long(prompt, positions[-1]), 1, 2, 0.0, 0)  # warm-up
    for _ in range(REPEATS):
        for position in positions:
            text = _long(prompt, position)
            one, many = _seconds(generate, text, 1), _seconds(generate, text, 1 + TOKENS)
            times.append((position, max(many - one, 0.0) / TOKENS))
            if time.monotonic() > deadline and len({at for at, _ in times}) > 1:
                return judge.judge_latency(times)
    return judge.judge_latency(times)


def _long(prompt: list[int], length: int) -> list[int]:
    return (prompt * (length // len(prompt) + 1))[:length]


def _seconds(generate: Any, text: list[int], tokens: int) -> float:
    began = time.perf_counter()
    generate(text, 1, tokens, 0.0, 0)
    return time.perf_counter() - began


def _batches(parts: Mapping[str, Any]) -> list[judge.Look]:
    ranks, ignored, pad = int(parts.get("ranks", 2)), int(parts.get("ignored", -1)), parts.get("pad")

    def read(first: int, count: int, rank: int = 0, of: int = 1) -> list[tuple[Any, Any]]:
        return [(_lists(inputs), _lists(targets)) for inputs, targets in parts["batches"](first, count, rank, of)]

    def inputs(first: int, count: int, rank: int = 0, of: int = 1) -> list[Any]:
        return [batch[0] for batch in read(first, count, rank, of)]

    looks = _tried("B04", lambda: judge.judge_duplicates(inputs(0, NUM_BATCHES)))
    looks += _tried("B05", lambda: judge.judge_ranks([inputs(0, NUM_BATCHES, rank, ranks) for rank in range(ranks)]))
    looks += _tried(
        "B06", lambda: judge.judge_resume(read(0, STEP + NUM_BATCHES)[STEP:], read(STEP, NUM_BATCHES), STEP)
    )
    looks += _tried("B07", lambda: judge.judge_mask([batch[1] for batch in read(0, NUM_BATCHES)], ignored))
    if "step" in parts:
        looks += _tried("B09", lambda: throughput(parts["step"], parts["batches"](0, NUM_BATCHES, 0, 1), ignored, pad))
    if pad is not None:
        looks += _tried("B08", lambda: judge.judge_padding(inputs(0, NUM_BATCHES), int(pad)))
    return looks


def throughput(step: Any, batches: Any, ignored: int, pad: Any) -> judge.Look:
    """Seconds of steps on the first batches, after one that is not timed."""
    batches = list(batches)
    step(*batches[0])  # warm-up
    began = time.perf_counter()
    for inputs, targets in batches:
        step(inputs, targets)
    seconds = time.perf_counter() - began
    rows = [(_lists(inputs), _lists(targets)) for inputs, targets in batches]
    return judge.judge_throughput(rows, seconds, ignored, None if pad is None else int(pad))


def _lists(value: Any) -> Any:
    """Tensors and arrays as lists, by their own method."""
    return value.tolist() if hasattr(value, "tolist") else [list(row) for row in value]


if __name__ == "__main__":
    main()
