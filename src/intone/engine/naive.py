"""Generation as it is without an engine: no cache, one row, every token computed again for every new one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intone.engine import sample


@dataclass(frozen=True)
class NaiveResult:
    """New ids, and how many tokens went through the model to get them."""

    ids: list[int]
    num_token_forwards: int


@torch.inference_mode()
def generate_naive(
    model: Any, prompt: list[int], *, max_tokens: int, temperature: float = 0.0, top_k: int | None = None,
    seed: int = 0, number: int = 0, stop_ids: frozenset[int] = frozenset(), excluded: frozenset[int] = frozenset(),
) -> NaiveResult:  # fmt: skip
    """Continues prompt by max_tokens ids, or fewer where a stop id comes (it is the last then).

    excluded: ids that are never drawn. The engine's reference in tests and the slow side of the case study: for equal
    logits it draws the same tokens as the engine's sample of this number with the same seed. 50 tokens and 200 new ones
    cost 50 + 51 + ... + 249 = 29,900 forwards. The prompt and the answer must fit into the context: not checked.
    """
    device = next(model.parameters()).device
    vocab = model.config.vocab_size
    ids, num_forwards = list(prompt), 0
    stream = sample.streams(np.array([seed], dtype=np.uint64), np.array([number], dtype=np.uint64))
    settings = sample.Settings(
        temperature=np.array([temperature]),
        top_k=np.array([min(top_k or vocab, vocab)]),
        top_p=np.array([1.0]),
        min_p=np.array([0.0]),
    )
    while len(ids) < len(prompt) + max_tokens:
        # scan: ok[S10] the engine's reference: it has no memory on purpose
        logits = model.logits(torch.tensor([ids], device=device))[:, -1]
        logits[:, sorted(excluded)] = -torch.inf
        num_forwards += len(ids)
        # scan: ok[S31] the reference again: one text, one token at a time
        ids.append(int(sample.choose(logits, settings, sample.uniforms(stream, np.array([len(ids)])))))
        if ids[-1] in stop_ids:
            break
    return NaiveResult(ids[len(prompt) :], num_forwards)
