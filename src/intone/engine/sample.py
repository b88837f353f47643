"""Drawing the next token of many rows at once, each from its own stream of random numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# below this the likeliest token has all the probability that float32 can express; 0 itself means the same
GREEDY_TEMPERATURE = 1e-5

# the finaliser and increment of SplitMix64: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT = (np.uint64(30), np.uint64(27), np.uint64(31))


def uniforms(seeds: np.ndarray, samples: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per (seed, sample, position): three (B,) integer arrays -> (B,) float64.

    A counter-based hash, so a number depends on nothing but its address: not on what ran before or beside it.
    """
    state = np.zeros(seeds.shape, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (seeds, samples, positions):
            state = _mix((state ^ part.astype(np.uint64)) + _INCREMENT)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> _SHIFT[0])) * _MULTIPLY[0]
    x = (x ^ (x >> _SHIFT[1])) * _MULTIPLY[1]
    return x ^ (x >> _SHIFT[2])


def usable(logits: Tensor) -> Tensor:
    """logits (B, V) -> (B,) bool: False where a row has a NaN, a +inf, or nothing but -inf."""
    return logits.amax(-1).isfinite()


@dataclass(frozen=True)
class Settings:
    """How each of B rows is drawn: numpy arrays (B,), on the host so that no decision waits for the device.

    temperature below GREEDY_TEMPERATURE takes the argmax; top_k V (or more), top_p 1 and min_p 0 keep every token.
    uniform: float64 in [0, 1).
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    uniform: np.ndarray


def choose(logits: Tensor, settings: Settings) -> Tensor:
    """The next id of every row: logits (B, V) -> (B,) int64.

    The kept tokens are those at or above a threshold of probability, so ties do not depend on a sort's order, and
    the id is the inverse of their cumulated probability in vocabulary order: a row's id depends on that row alone.
    Rows that are not usable() give an arbitrary id.
    """
    greedy = settings.temperature < GREEDY_TEMPERATURE
    best = logits.argmax(-1)
    if greedy.all():
        return best
    wide = torch.float64 if logits.device.type != "mps" else torch.float32
    temperature = np.where(greedy, 1.0, settings.temperature)
    # one transfer for all settings; in float64, top_k's whole numbers stay exact
    columns = np.stack((temperature, settings.top_k, settings.top_p, settings.min_p, settings.uniform, greedy))
    on_device = torch.from_numpy(columns).to(wide).to(logits.device)[:, :, None]
    scale, top_k, top_p, min_p, uniform, is_greedy = on_device.unbind()
    weights = torch.exp((logits - logits.amax(-1, keepdim=True)) / scale.to(logits.dtype))  # the likeliest: 1
    threshold = min_p.to(weights.dtype)
    num_columns = _columns_needed(settings, logits.shape[-1])
    if num_columns:
        threshold = torch.maximum(threshold, _smallest_kept(weights, num_columns, top_k.long(), top_p))
    total = torch.where(weights >= threshold, weights, 0.0).cumsum(-1, dtype=wide)
    end = total[:, -1:]
    target = torch.minimum(uniform * end, torch.nextafter(end, torch.zeros_like(end)))
    # NaN rows have no place in the sums; the clamp keeps their arbitrary id a valid one
    drawn = torch.searchsorted(total, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return torch.where(is_greedy > 0, best[:, None], drawn)[:, 0]


def _columns_needed(settings: Settings, vocab: int) -> int:
    """How many of the largest probabilities the filters must see sorted; 0: none, no row filters by rank."""
    limited = settings.top_k < vocab
    if (~limited & (settings.top_p < 1)).any():
        return vocab
    return int(settings.top_k[limited].max()) if limited.any() else 0


def _smallest_kept(weights: Tensor, num_columns: int, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weight (B, 1) of the last token that top_k and top_p keep, 0 where neither limits the row."""
    ordered = weights.topk(num_columns).values
    limited = top_k < weights.shape[-1]
    rank = top_k.clamp(max=num_columns) - 1
    smallest = torch.where(limited, ordered.gather(-1, rank), 0.0)
    inside = torch.arange(num_columns, device=weights.device) <= rank
    share = torch.where(inside, ordered, 0.0).cumsum(-1, dtype=top_p.dtype)
    enough = share >= top_p * share[:, -1:]
    first = enough.to(torch.int8).argmax(-1, keepdim=True)
    nucleus = torch.where(top_p < 1, ordered.gather(-1, first), 0.0)
    return torch.maximum(smallest, nucleus)


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """The model's own log-probability of each row's id: logits (B, V), ids (B,) -> (B,) in nats."""
    return logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
