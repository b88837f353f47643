"""Tiny models for the engine's tests: one of random weights, and one that follows a script."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from intone.config import model_config
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.model.gpt import GPT

CONTEXT = 45
WINDOW = 7


def build_random_model(
    preset="modern", *, dtype=torch.float64, seed=0, heads_per_key=1, depth=3, vocab_size=61, context=CONTEXT, scale=0.1
):
    """A tiny model in which every weight is random: no part of the function is silent."""
    config = model_config(preset, depth=depth, vocab_size=vocab_size, context=context, head_width=32)
    config = dataclasses.replace(
        config,
        num_kv_heads=config.num_heads // heads_per_key,
        short_window=WINDOW if preset == "modern" else None,
    )
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.compute_dtype = dtype
    return model.to(dtype)


class ScriptedModel(nn.Module):
    """Says script[i] as the i-th new token after a prompt of prompt_length tokens, whatever it is fed.

    before_pass(number) runs before every forward pass and may block or raise. A row whose prompt was fed with
    nan_token gets NaN logits. ids_seen: what was fed, in order, padding too.
    """

    def __init__(self, script, *, prompt_length, context=64, vocab_size=265):
        super().__init__()
        self.config = model_config("classic", depth=1, vocab_size=vocab_size, context=context, head_width=64)
        self.compute_dtype = torch.float32
        self.script = list(script)
        self.prompt_length = prompt_length
        self.before_pass: Callable[[int], None] = lambda number: None
        self.nan_token = None
        self.num_passes = 0
        self.ids_seen = []

    def logits(self, ids, *, cache, last=None):
        self.before_pass(self.num_passes)
        self.num_passes += 1
        self.ids_seen.append(ids.tolist())
        place = cache.positions + 1 - self.prompt_length
        wanted = torch.tensor([*self.script, *[0] * self.config.context])[place.clamp(min=0)]
        logits = torch.nn.functional.one_hot(wanted, self.config.vocab_size).float() * 50
        if self.nan_token is not None:
            logits[(ids == self.nan_token).any(1)] = torch.nan
        if last is not None:
            logits = logits[torch.arange(len(ids)), last][:, None]
        cache.commit()
        return logits


@pytest.fixture(scope="session")
def random_model():
    return build_random_model


@pytest.fixture(scope="session")
def scripted_model():
    return ScriptedModel


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Ids 0-255 are bytes, then the nine special tokens: 265 entries."""
    return Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
