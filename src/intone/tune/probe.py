"""Times short training steps in a child process: threads, dtypes and the like, compared in turns.

The question goes out by time_cases; the child (`python -m intone.tune.probe`) answers it. Only the child imports torch.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intone.child import ask_child
from intone.config import ModelConfig
from intone.hardware import Facts, environment
from intone.model.cost import train_flops_per_token

if TYPE_CHECKING:
    import torch
    from torch import nn

TIMEOUT_S = 60
STEP_S = 0.15  # aimed length of one probe step at the measured rate of products; real steps take 2-3 times that
BUDGET_S = 2.0  # of timed steps; further rounds are made while they fit
MIN_ROUNDS = 3
MAX_ROUNDS = 9
PROBE_DEPTH = 2  # blocks are alike: two show what all cost, and the head is there once anyway
PROBE_CONTEXT = 512


@dataclass(frozen=True)
class Case:
    """One way to compute the step."""

    threads: int
    dtype: str  # fp32, bf16 or fp16
    attention: str = "sdpa"  # backend of model/attention.py; without a meaning where our kernels run
    kernels: str = "torch"  # or native
    head_pieces: int = 1  # see records.Segment


def probe_shape(config: ModelConfig, facts: Facts) -> tuple[ModelConfig, int]:
    """(config, rows) of a step that takes about STEP_S here: the model's widths with two blocks and few tokens.

    Where no rate is known, 1,024 tokens.
    """
    context = min(config.context, PROBE_CONTEXT)
    small = dataclasses.replace(config, depth=min(config.depth, PROBE_DEPTH), context=context)
    rate = facts.fp32_flops_per_s
    tokens = 1024 if rate is None else int(STEP_S * rate / train_flops_per_token(small, context))
    tokens = min(max(tokens, 64), 8192 if facts.device == "cpu" else 65536)
    if tokens < context:
        return dataclasses.replace(small, context=tokens), 1
    return small, tokens // context


def time_cases(
    config: ModelConfig, cases: Sequence[Case], facts: Facts, *, timeout_s: float = TIMEOUT_S,
    variables: Mapping[str, str] | None = None, budget_s: float = BUDGET_S,
) -> list[list[float]]:  # fmt: skip
    """Seconds per training step: one list per case, one entry per round, rounds interleaved.

    Entry i of every list was measured within the same second or so: compare by speedup(). variables: the child's
    environment, by default that of a worker. budget_s: of timed steps. Raises ChildFailed.
    """
    small, rows = probe_shape(config, facts)
    question = {
        "config": small.as_json(),
        "rows": rows,
        "device": facts.device or "cpu",
        "cases": [dataclasses.asdict(case) for case in cases],
        "budget_s": budget_s,
    }
    if variables is None:
        most = max(case.threads for case in cases)
        variables = {name: item.value for name, item in environment(facts, threads=most).items()}
    answer = ask_child("intone.tune.probe", question, timeout_s=timeout_s, environment=variables)
    return [[float(step_s) for step_s in times] for times in answer["step_s"]]


def speedup(slow_s: Sequence[float], fast_s: Sequence[float]) -> float:
    """How many times faster the second is: the median over rounds of paired ratios, so that drift cancels."""
    return statistics.median(slow / fast for slow, fast in zip(slow_s, fast_s, strict=True))


def one_step(model: "nn.Module", ids: "torch.Tensor", optimizer: "torch.optim.Optimizer") -> None:
    """Forward, backward and update on ids (B, T + 1) int64."""
    loss_sum, num_supervised = model(ids[:, :-1], ids[:, 1:])
    (loss_sum / num_supervised).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure(
    config: dict[str, Any], rows: int, device: str, cases: list[dict[str, Any]], budget_s: float = BUDGET_S
) -> dict[str, Any]:
    """The child's side of time_cases."""
    import torch

    from intone.model.gpt import GPT
    from intone.rates import waiter

    shape = ModelConfig.from_json(config)
    model = GPT(shape)
    model.init_weights(0)
    model.to(device)
    ids = torch.randint(shape.vocab_size, (rows, shape.context + 1), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    wait = waiter(torch.device(device))

    def run(case: dict[str, Any]) -> float:
        torch.set_num_threads(case["threads"])
        model.compute_dtype = dtypes[case["dtype"]]
        model.kernels, model.head_pieces = case["kernels"], case["head_pieces"]
        if case["kernels"] == "torch":
            model.attention_backend = case["attention"]
        start = time.perf_counter()
        one_step(model, ids, optimizer)
        wait()
        return time.perf_counter() - start

    return {"step_s": timed_rounds(cases, run, budget_s)}


def timed_rounds(
    cases: Sequence[Any], run: Callable[[Any], float], budget_s: float = BUDGET_S
) -> list[list[float]]:  # fmt: skip
    """Seconds of run(case), one list per case: a warm-up each, then rounds in alternating order.

    At least MIN_ROUNDS, at most MAX_ROUNDS, in between as many as fit in budget_s.
    """
    for case in cases:
        run(case)
    times: list[list[float]] = [[] for _ in cases]
    spent_s = 0.0
    for number in range(MAX_ROUNDS):
        order = list(range(len(cases)))
        for i in reversed(order) if number % 2 else order:
            times[i].append(run(cases[i]))
            spent_s += times[i][-1]
        if number + 1 >= MIN_ROUNDS and spent_s * (number + 2) / (number + 1) > budget_s:
            break
    return times


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
