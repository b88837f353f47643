"""The gate on sampling: first tokens of many samples follow the model's own probabilities, each drawn by itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intone.engine.requests import Request
from intone.prove.gates.decode import Generate
from intone.prove.gates.result import Gate, GateResult, NotJudged, Threshold, not_judged

NAME = "independent samples"
COST_S = 1.0  # a few hundred first tokens of a small model, measured on two cores; orders the gates only
NUM_REQUESTS = 24
NUM_SAMPLES = 24  # per request: 576 first tokens in all, enough to see each draw used twice
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
AIMED_PEAKED = 0.1  # chance that two right samples are equal which the temperature is chosen for; guess
MAX_PEAKED = 0.3  # chance that two right samples are equal above which a copied token shows too little; guess
MIN_EXPECTED = 5.0  # per class of the chi-square test, the usual rule (Cochran 1954)
CHANCE = 1e-4  # false alarms that are accepted in each of the two tests; guess
LARGEST_Z = 6.0  # for the count of equal pairs, whose tail is longer than the normal one's (3.7 at CHANCE); guess
SEED = 20_011  # of the first request


@dataclass(frozen=True)
class FirstTokens:
    """First tokens of samples: one list per request of n samples, with the probabilities they should follow.

    cold: first tokens of n greedy samples of one request.
    """

    probabilities: np.ndarray  # (V,) float64
    tokens: tuple[tuple[int, ...], ...]
    cold: tuple[int, ...]
    temperature: float


def gather(generate: Generate, model: Any, *, prompt: Sequence[int] | None = None) -> FirstTokens:
    """NUM_REQUESTS requests of NUM_SAMPLES samples each, at a temperature that leaves a choice, and greedy ones.

    Raises NotJudged where a request failed.
    """
    vocab = model.config.vocab_size
    prompt = list(prompt) if prompt else np.random.default_rng(0).integers(0, vocab, 5).tolist()
    logits = plain_logits(model, prompt)
    for temperature in TEMPERATURES:
        probabilities = softmax(logits / temperature)
        if (probabilities**2).sum() <= AIMED_PEAKED:
            break
    hot = [
        Request(prompt, max_tokens=1, temperature=temperature, n=NUM_SAMPLES, seed=SEED + i, tools=False)
        for i in range(NUM_REQUESTS)
    ]
    cold = Request(prompt, max_tokens=1, temperature=0.0, n=3, tools=False)
    answers = generate([*hot, cold])
    failed = [sample.error for samples in answers for sample in samples if sample.reason == "error"]
    if failed:
        raise NotJudged(f"{len(failed)} samples failed: {failed[0]}", "make the engine answer first")
    firsts = [tuple(sample.ids[0] for sample in samples) for samples in answers]
    return FirstTokens(probabilities, tuple(firsts[:-1]), firsts[-1], temperature)


@torch.inference_mode()
def plain_logits(model: Any, prompt: list[int]) -> np.ndarray:
    """The plain model's logits (V,) float64 after the prompt."""
    device = next(model.parameters()).device
    return model.logits(torch.tensor([prompt], device=device))[0, -1].double().cpu().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def judge(found: FirstTokens) -> GateResult:
    """Chi-square of all first tokens against the probabilities, and equal pairs inside requests against chance."""
    threshold = Threshold(
        f"chi-square against the softmax with p of at least {CHANCE:g}; equal pairs inside a request at most "
        f"{LARGEST_Z:g} standard deviations above chance; greedy samples equal", "false alarms of 1 in 10,000; guess",
    )  # fmt: skip
    peaked = float((found.probabilities**2).sum())
    num_samples = sum(len(tokens) for tokens in found.tokens)
    if peaked > MAX_PEAKED or num_samples < 50 or max(map(len, found.tokens), default=0) < 2:
        reason = f"{num_samples} samples, two of which are equal with a chance of {peaked:.0%}, show too little"
        return not_judged(NAME, reason, "use another prompt or model, or more samples")
    z = equal_pairs_z(found)
    p, num_classes = chi_square(found)
    evidence = {
        "samples": num_samples, "requests": len(found.tokens), "temperature": found.temperature,
        "equal_pairs_z": z, "chi_square_p": p, "classes": num_classes, "chance_of_equal_pair": peaked,
        "distinct": [len(set(tokens)) for tokens in found.tokens],
    }  # fmt: skip
    fix = "draw each sample's token from its own logits with its own random number"
    if len(set(found.cold)) > 1:
        reason = f"greedy samples of one prompt begin with {len(set(found.cold))} different tokens"
        return GateResult(NAME, False, reason, threshold, evidence, fix="greedy must take the likeliest token")
    if z > LARGEST_Z:
        reason = f"samples of one request begin alike: equal pairs are {z:.0f} standard deviations above chance"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    if p < CHANCE:
        reason = f"{num_samples} first tokens do not follow the model's probabilities: chi-square p {p:.1e}"
        return GateResult(NAME, False, reason, threshold, evidence, fix=fix)
    reason = f"{num_samples} first tokens follow the softmax (p {p:.2f}), equal pairs {z:+.1f} standard deviations"
    return GateResult(NAME, True, reason, threshold, evidence)


def equal_pairs_z(found: FirstTokens) -> float:
    """Equal pairs inside the requests, in standard deviations from what independent draws give.

    The variance counts that pairs which share a sample are not independent of each other.
    """
    two, three = (float((found.probabilities**power).sum()) for power in (2, 3))
    count = expected = variance = 0.0
    for tokens in found.tokens:
        n = len(tokens)
        pairs = n * (n - 1) / 2
        times = np.unique(tokens, return_counts=True)[1]
        count += float((times * (times - 1) / 2).sum())
        expected += pairs * two
        variance += pairs * (two - two**2) + n * (n - 1) * (n - 2) * (three - two**2)
    return (count - expected) / math.sqrt(max(variance, 1e-12))


def chi_square(found: FirstTokens) -> tuple[float, int]:
    """(p, classes) of Pearson's test over classes of neighbouring tokens with about equal probability."""
    tokens = np.concatenate([np.array(part) for part in found.tokens])
    middle = np.cumsum(found.probabilities) - found.probabilities / 2
    num_classes = max(1, int(len(tokens) / (4 * MIN_EXPECTED)))
    class_of = np.minimum((middle * num_classes).astype(np.int64), num_classes - 1)
    expected = np.bincount(class_of, weights=found.probabilities, minlength=num_classes) * len(tokens)
    observed = np.bincount(class_of[tokens], minlength=num_classes).astype(np.float64)
    # a likely token fills its class and leaves its neighbours little: these are joined until they have enough
    groups = [(0.0, 0.0)]
    for pair in zip(observed, expected, strict=True):
        if groups[-1][1] >= MIN_EXPECTED:
            groups.append((0.0, 0.0))
        groups[-1] = (groups[-1][0] + float(pair[0]), groups[-1][1] + float(pair[1]))
    if len(groups) > 1 and groups[-1][1] < MIN_EXPECTED:
        last = groups.pop()
        groups[-1] = (groups[-1][0] + last[0], groups[-1][1] + last[1])
    if len(groups) < 2:
        return 1.0, len(groups)  # one class tells nothing; equal pairs still do
    statistic = sum((got - wanted) ** 2 / wanted for got, wanted in groups)
    return upper_tail(statistic, len(groups) - 1), len(groups)


def upper_tail(statistic: float, freedom: int) -> float:
    """P(chi-square with `freedom` degrees >= statistic), by the cube-root normal approximation.

    Within 20 % of the exact value down to 1e-4. Source: Wilson and Hilferty 1931.
    """
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def gate(generate: Generate, model: Any) -> Gate[FirstTokens]:
    """The gate on an engine's sampling."""
    return Gate(NAME, COST_S, lambda: gather(generate, model), judge)
