"""The gate on generation: cached, batched decoding gives the tokens of the plain model, and samples are independent."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intone.config import ModelConfig
from intone.engine.requests import Completion, Request
from intone.prove.gates.result import Gate, GateResult, NotJudged, Threshold, not_judged

NAME = "cached decode"
COST_S = 2.0  # a dozen texts through a small model twice, measured on two cores; orders the gates only
PAGE_TOKENS = 64  # of the paged cache (reference/inference.md section 7)
NEW_TOKENS = 24  # enough to cross a boundary from either side of it
MAX_TEXTS = 16
# how far a log-probability may be from the plain model's, nats
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
ORIGIN = (
    "measured: cached passes differ from whole ones by up to 1e-5 nats in fp32 and 0.066 in bf16, on random models and "
    "on a trained one of depth 4 (LOG.md, 'How far right code is from fp32'); float64, fp16: guess"
)
# share of steps whose two likeliest tokens are nearer than that, above which the model tells too little: an untrained
# one says the same of every token whatever the cache holds; guess
MAX_TIES = 0.5

Generate = Callable[[Sequence[Request]], list[list[Completion]]]  # Engine.generate, or whatever stands in for it


@dataclass(frozen=True)
class Text:
    """One greedy continuation against the plain model, which reads the same text without a cache.

    behind: per new token, nats by which it is less likely to the plain model than that model's likeliest: 0 where
    both choose alike. lead: nats between the plain model's two likeliest. error: |log-probability - the plain
    model's| of the token.
    """

    prompt_tokens: int
    behind: tuple[float, ...]
    lead: tuple[float, ...]
    error: tuple[float, ...]
    reason: str  # how the sample ended


# --- greedy texts -----------------------------------------------------------------------------------------------


def prompt_lengths(config: ModelConfig, *, context: int, new_tokens: int = NEW_TOKENS) -> list[int]:
    """Lengths that bring the new tokens across every boundary a cache may have: pages, windows, the context's end.

    Odd and unequal, most with the boundary inside the new tokens, some exactly on it; at most MAX_TEXTS.
    """
    longest = context - 1
    edges = {PAGE_TOKENS, 2 * PAGE_TOKENS, *(config.window(block) for block in range(config.depth))}
    wanted = [1, 2, 7, context - new_tokens, longest]
    for edge in sorted(edges):
        wanted += [edge - new_tokens // 2, edge, edge - 1, edge + 1]
    fitting = dict.fromkeys(length for length in wanted if 1 <= length <= longest)
    return list(fitting)[:MAX_TEXTS]


def gather_texts(
    generate: Generate, model: Any, *, context: int | None = None, new_tokens: int = NEW_TOKENS, seed: int = 0
) -> list[Text]:
    """Greedy continuations of random prompts, all asked for at once, held against the plain model token by token.

    generate: the engine's. model: the plain model, which computes each whole text at once, without a cache; where
    every token of a text is its likeliest given those before it, its own generation would be the same text.
    Raises NotJudged where a request failed.
    """
    config = model.config
    context = config.context if context is None else context
    generator = np.random.default_rng(seed)
    lengths = prompt_lengths(config, context=context, new_tokens=new_tokens)
    prompts = [generator.integers(0, config.vocab_size, length).tolist() for length in lengths]
    requests = [Request(p, max_tokens=min(new_tokens, context - len(p)), temperature=0.0, tools=False) for p in prompts]
    answers = generate(requests)
    return [compared(model, prompt, samples[0]) for prompt, samples in zip(prompts, answers, strict=True)]


@torch.inference_mode()
def compared(model: Any, prompt: list[int], completion: Completion, *, excluded: Collection[int] = ()) -> Text:
    """One completion beside the plain model's view of it; excluded: tokens that it was not allowed to draw."""
    if completion.reason in ("error", "cancelled"):
        raise NotJudged(f"a request ended with {completion.reason}: {completion.error}", "make the engine answer first")
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *completion.ids]], device=device)
    logits = model.logits(ids)[0, len(prompt) - 1 : -1].double().cpu()
    logits[:, list(excluded)] = -math.inf
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(2).values
    chosen = logprobs.gather(-1, ids[0, len(prompt) :, None].cpu())[:, 0]
    said = torch.tensor([math.nan if p is None else p for p in completion.logprobs], dtype=torch.float64)
    return Text(
        len(prompt),
        tuple((best[:, 0] - chosen).tolist()),
        tuple((best[:, 0] - best[:, 1]).tolist()),
        tuple((said - chosen).abs().tolist()),
        completion.reason,
    )


def judge_texts(texts: Sequence[Text], *, dtype: torch.dtype) -> GateResult:
    """Every token is the plain model's likeliest, or as likely within rounding, and log-probabilities agree."""
    tolerance = TOLERANCE[dtype]
    threshold = Threshold(
        f"every greedy token is the plain model's likeliest, ties within {tolerance:g} nats aside, and "
        f"log-probabilities agree within {tolerance:g} nats ({str(dtype).removeprefix('torch.')})", ORIGIN,
    )  # fmt: skip
    num_tokens = sum(len(text.behind) for text in texts)
    if not num_tokens or min(len(text.behind) for text in texts) == 0:
        return not_judged(NAME, "a text has no new token", "give prompts that leave room in the context")
    ties = sum(lead <= tolerance for text in texts for lead in text.lead)
    evidence: dict[str, Any] = {
        "texts": len(texts), "tokens": num_tokens, "ties": ties,
        "prompt_tokens": [text.prompt_tokens for text in texts],
        "other_tokens": sum(behind > 0 for text in texts for behind in text.behind),
        "largest_behind_nats": max(behind for text in texts for behind in text.behind),
        "largest_error_nats": max((error for text in texts for error in text.error), key=nan_is_most),
    }  # fmt: skip
    fix = "run with the cache off, and look at what is stored, masked and rotated at that position"
    for text in texts:
        for place, (behind, error) in enumerate(zip(text.behind, text.error, strict=True)):
            if not behind <= tolerance:
                what = f"is {behind:.3g} nats less likely than the plain model's choice"
            elif not error <= tolerance:
                what = f"has a log-probability {error:.3g} nats off the plain model's"
            else:
                continue
            position = text.prompt_tokens + place
            evidence |= {"first_wrong_position": position, "first_wrong_prompt": text.prompt_tokens}
            reason = f"token {place + 1} after a prompt of {text.prompt_tokens} (position {position}) {what}"
            return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if ties > MAX_TIES * num_tokens:
        reason = f"{ties} of {num_tokens} choices are ties: this model's logits are too equal to show a fault"
        return GateResult(NAME, None, reason, threshold, evidence, fix="use a trained model, or wider random weights")
    agree = f"{num_tokens} tokens of {len(texts)} texts are the plain model's"
    return GateResult(NAME, True, f"{agree}, {ties} ties, errors up to {evidence['largest_error_nats']:.1e} nats",
                      threshold, evidence)  # fmt: skip


def nan_is_most(value: float) -> float:
    return math.inf if math.isnan(value) else value


def gate(
    generate: Generate, model: Any, *, dtype: torch.dtype | None = None, context: int | None = None
) -> Gate[list[Text]]:
    """The gate on an engine's greedy texts. dtype: the engine's, by default the model's compute_dtype."""
    return Gate(
        NAME,
        COST_S,
        lambda: gather_texts(generate, model, context=context),
        lambda texts: judge_texts(texts, dtype=model.compute_dtype if dtype is None else dtype),
    )
