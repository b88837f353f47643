"""Drawing the next token of many rows at once, each from its own stream of random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intone.engine.requests import Request

# below this the likeliest token has all the probability that float32 can express; 0 itself means the same
GREEDY_TEMPERATURE = 1e-5
# sums over a vocabulary are made in blocks: a draw then reads block sums and one block. Running sums over all of
# 16 x 32,768 weights in float64 took 6.3 ms, sums of blocks 0.2 ms (one core of an EPYC 9004, torch 2.13)
BLOCK = 256
# likeliest tokens looked at first where only top_p limits a row, and how much further each next look goes (guess)
FIRST_COLUMNS = 128
MORE_COLUMNS = 8
# likeliest tokens looked at where the device decides by itself; rows that need more are few (guess)
MOST_COLUMNS = 1024

# the finaliser and increment of SplitMix64: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT = (np.uint64(30), np.uint64(27), np.uint64(31))


def streams(seeds: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The state (B,) uint64 of one stream of random numbers per (seed, sample): two (B,) integer arrays."""
    state = np.zeros(seeds.shape, dtype=np.uint64)
    for part in (seeds, samples):
        state = _absorbed(state, part)
    return state


def uniforms(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per stream and position: (B,) uint64 and (B,) integers -> (B,) float64.

    A counter-based hash, so a number depends on nothing but its address: not on what ran before or beside it.
    """
    return (_absorbed(states, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _absorbed(state: np.ndarray, part: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (state ^ part.astype(np.uint64)) + _INCREMENT
        x = (x ^ (x >> _SHIFT[0])) * _MULTIPLY[0]
        x = (x ^ (x >> _SHIFT[1])) * _MULTIPLY[1]
        return x ^ (x >> _SHIFT[2])


@dataclass(frozen=True)
class Settings:
    """How each of B rows is drawn: numpy arrays (B,), on the host so that no decision waits for the device.

    temperature below GREEDY_TEMPERATURE takes the argmax; top_k V (or more), top_p 1 and min_p 0 keep every token.
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray

    def at(self, rows: np.ndarray) -> "Settings":
        """The settings of some rows."""
        return Settings(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows])

    @property
    def is_greedy(self) -> np.ndarray:
        return np.asarray(self.temperature < GREEDY_TEMPERATURE)


def settings_of(requests: Sequence[Request], vocab_size: int) -> Settings:
    """How the rows of requests are drawn."""
    return Settings(
        temperature=np.array([request.temperature for request in requests]),
        top_k=np.array([min(request.top_k or vocab_size, vocab_size) for request in requests]),
        top_p=np.array([request.top_p for request in requests]),
        min_p=np.array([request.min_p for request in requests]),
    )


def choose(logits: Tensor, settings: Settings, uniform: np.ndarray) -> Tensor:
    """The next id of every row: logits (B, V), uniform (B,) float64 in [0, 1) -> (B,) int64.

    A token is kept if it is among the top_k largest, then inside the share top_p of what these have together, then
    at least min_p times as likely as the likeliest; tokens as large as the last one kept are kept too, so nothing
    depends on a sort's order. The id is the inverse of the kept tokens' cumulated probability in vocabulary order.
    A row's id depends on that row alone: rows of one kind are drawn together, by sums that neighbours do not enter.
    Rows that are not usable() give an arbitrary id.
    """
    greedy = settings.is_greedy
    limited = ~greedy & ((settings.top_k < logits.shape[-1]) | (settings.top_p < 1))
    kinds = ((greedy, _draw_largest), (limited, _draw_ranked), (~greedy & ~limited, _draw_any))
    for member, draw in kinds:
        if member.all():
            return draw(logits, settings, uniform)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for member, draw in kinds:
        rows = np.flatnonzero(member)
        if len(rows):
            index = torch.from_numpy(rows).to(logits.device)
            ids[index] = draw(logits[index], settings.at(rows), uniform[rows])
    return ids


def choose_on_device(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """choose() without a decision of the host: settings and uniform (B,) beside the logits (B, V).

    -> ids (B,) int64, and (B,) bool whether each is choose()'s: a row whose filters reach beyond the
    MOST_COLUMNS likeliest tokens is left to choose().
    """
    vocab = logits.shape[-1]
    columns = min(vocab, MOST_COLUMNS)
    top_k = top_k.clamp(max=vocab)
    is_greedy = temperature < GREEDY_TEMPERATURE
    is_ranked = ~is_greedy & ((top_k < vocab) | (top_p < 1))
    scale = torch.where(is_greedy, 1.0, temperature).to(logits.dtype)[:, None]
    rank, share, least, at = (part[:, None] for part in (top_k - 1, top_p, min_p, uniform))
    weights = (logits - logits.amax(-1, keepdim=True)).div_(scale).exp_()
    weights = weights.masked_fill(weights < least, 0.0)
    ranked, is_certain = _ranked(logits, scale, rank, share, least, at, _everything(logits, scale), columns)
    ids = torch.where(is_greedy, argmax(logits), torch.where(is_ranked, ranked, _inverse(weights, at)))
    # a top_k beyond the columns has no total here that its top_p could be a share of
    is_decided = is_certain[:, 0] & ((top_k == vocab) | (top_k < columns))
    return ids, ~is_ranked | is_decided | (columns == vocab)


def uniforms_on_device(states: Tensor, positions: Tensor) -> Tensor:
    """uniforms() on the device: (B,) int64 with the bits of the states, (B,) int64 -> (B,) float64.

    Products of int64 wrap as those of uint64 do; shifts right do not fill with zeros by themselves.
    """
    x = (states ^ positions) + _as_signed(_INCREMENT)
    for shift, factor in zip(_SHIFT, (*_MULTIPLY, None), strict=True):
        x = x ^ _shifted(x, int(shift))
        x = x if factor is None else x * _as_signed(factor)
    return _shifted(x, 11).to(torch.float64) * 2.0**-53


def _shifted(x: Tensor, count: int) -> Tensor:
    return (x >> count) & ((1 << (64 - count)) - 1)


def _as_signed(value: np.uint64) -> int:
    return int(value.astype(np.int64))


def argmax(logits: Tensor) -> Tensor:
    """The first of the largest of each row, (B, V) -> (B,): found by blocks, 10x faster than torch.argmax on a CPU."""
    num_rows, vocab = logits.shape
    if vocab % BLOCK or logits.device.type != "cpu":
        return logits.argmax(-1)
    blocks = logits.view(num_rows, -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(num_rows), best].argmax(-1)
    return best * BLOCK + inside


def usable(logits: Tensor) -> Tensor:
    """logits (B, V) -> (B,) bool: False where a row has a NaN, a +inf, or nothing but -inf."""
    return logits.amax(-1).isfinite()


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """The model's own log-probability of each row's id: logits (B, V), ids (B,) -> (B,) in nats."""
    highest = logits.amax(-1, keepdim=True)
    # by blocks: one sum over a long row would be split among threads differently for one row and for many
    total = _sums((logits - highest).exp_()).sum(-1).to(logits.dtype)
    return logits.gather(-1, ids[:, None])[:, 0] - highest[:, 0] - total.log()


def _draw_largest(logits: Tensor, settings: Settings, uniform: np.ndarray) -> Tensor:
    return argmax(logits)


def _draw_any(logits: Tensor, settings: Settings, uniform: np.ndarray) -> Tensor:
    """Rows that keep every token, or those of at least min_p."""
    scale, min_p, at = _on_device(logits, settings.temperature, settings.min_p, uniform)
    weights = (logits - logits.amax(-1, keepdim=True)).div_(scale).exp_()  # the likeliest: 1
    if settings.min_p.any():
        weights.masked_fill_(weights < min_p, 0.0)
    return _inverse(weights, at)


def _draw_ranked(logits: Tensor, settings: Settings, uniform: np.ndarray) -> Tensor:
    """Rows limited by top_k or top_p: only as many of the largest as their filters need are put in order."""
    vocab = logits.shape[-1]
    top_k = np.minimum(settings.top_k, vocab)
    scale, rank, top_p, min_p, at = _on_device(
        logits, settings.temperature, top_k - 1, settings.top_p, settings.min_p, uniform
    )
    unlimited = top_k == vocab
    everything = _everything(logits, scale) if unlimited.any() else None
    limited_columns = 0 if unlimited.all() else int(top_k[~unlimited].max()) + 1
    columns = min(vocab, max(limited_columns, FIRST_COLUMNS if unlimited.any() else 0))
    while True:
        found, is_certain = _ranked(logits, scale, rank, top_p, min_p, at, everything, columns)
        if columns == vocab or bool(is_certain.all()):
            return found
        columns = min(vocab, columns * MORE_COLUMNS)


def _ranked(
    logits: Tensor, scale: Tensor, rank: Tensor, top_p: Tensor, min_p: Tensor, at: Tensor, everything: Tensor | None,
    columns: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draws (B,) among the columns largest of each row, and (B, 1) bool whether these settle what is kept."""
    highest = logits.amax(-1, keepdim=True)
    ordered, ids = logits.topk(columns)
    weights = ((ordered - highest) / scale).exp_()
    smallest, is_certain = _smallest_kept(ordered, weights, rank, top_p, everything)
    weights.masked_fill_((ordered < smallest) | (weights < min_p), 0.0)
    # in vocabulary order, so that a row's draw is the same however many columns its neighbours needed
    ids, order = ids.sort(-1)
    place = _inverse(weights.gather(-1, order), at)
    return ids.gather(-1, place[:, None])[:, 0], is_certain


def _everything(logits: Tensor, scale: Tensor) -> Tensor:
    """The sum (B, 1) of all weights of each row, the likeliest token's being 1."""
    highest = logits.amax(-1, keepdim=True)
    return _sums((logits - highest).div_(scale).exp_()).sum(-1, keepdim=True)


def _smallest_kept(
    ordered: Tensor, weights: Tensor, rank: Tensor, top_p: Tensor, everything: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The smallest logit (B, 1) that top_k and top_p keep, and (B, 1) bool whether these columns settle it.

    ordered, weights (B, columns): the largest logits, falling. rank (B, 1): of the last token that top_k keeps.
    everything (B, 1): the sum of all weights of a row, for rows without a top_k. Settled means that all tokens as
    large as the smallest are among the columns.
    """
    columns = ordered.shape[-1]
    last = rank.long().clamp(max=columns - 1)
    share = weights.cumsum(-1, dtype=top_p.dtype)
    inside = rank < columns
    total = share.gather(-1, last)
    if everything is not None:
        total = torch.where(inside, total, everything)
    enough = (share >= top_p * total) & (top_p < 1)
    first = torch.where(enough.any(-1, keepdim=True), enough.to(torch.int8).argmax(-1, keepdim=True), columns - 1)
    nucleus = torch.minimum(first, last)
    smallest = ordered.gather(-1, nucleus)
    is_found = inside | enough.any(-1, keepdim=True)
    return smallest, is_found & (ordered[:, -1:] < smallest)


def _on_device(logits: Tensor, *columns: np.ndarray) -> tuple[Tensor, ...]:
    """Arrays (B,) as (B, 1) tensors beside the logits, in one transfer; float64 where the device has it.

    The first, a temperature, divides logits and comes in their dtype.
    """
    wide = torch.float64 if logits.device.type != "mps" else torch.float32
    stacked = torch.from_numpy(np.stack([column.astype(np.float64) for column in columns]))
    first, *rest = stacked.to(wide).to(logits.device)[:, :, None].unbind()
    return first.to(logits.dtype), *rest


def _sums(weights: Tensor) -> Tensor:
    """Sums of the weights' blocks, (B, V) -> (B, ceil(V / BLOCK)) in float64 where the device has it."""
    wide = torch.float64 if weights.device.type != "mps" else torch.float32
    rest = -weights.shape[-1] % BLOCK
    padded = F.pad(weights, (0, rest)) if rest else weights
    return padded.view(len(weights), -1, BLOCK).sum(-1, dtype=wide)


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Where the cumulated weights (B, V) pass uniform (B, 1) times their sum -> (B,) int64; never a weight of 0."""
    rest = -weights.shape[-1] % BLOCK
    padded = F.pad(weights, (0, rest)) if rest else weights
    blocks = padded.view(len(weights), -1, BLOCK)
    upto = _sums(padded).cumsum(-1)
    target = _below(uniform * upto[:, -1:], upto[:, -1:])
    # NaN rows have no place in the sums; the clamp keeps their arbitrary id a valid one
    block = torch.searchsorted(upto, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, upto.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(len(weights), device=weights.device), block[:, 0]].cumsum(-1, dtype=upto.dtype)
    # the block's own running sum may differ from its entry in upto by a rounding: stay inside it
    target = _below((target - before).clamp_(min=0.0), inner[:, -1:])
    place = torch.searchsorted(inner, target, right=True)
    return (block * BLOCK + place)[:, 0].clamp_(max=weights.shape[-1] - 1)


def _below(target: Tensor, end: Tensor) -> Tensor:
    """target, but less than end: at end itself the search would run past the last weight."""
    return torch.minimum(target, torch.nextafter(end, torch.zeros_like(end)))
