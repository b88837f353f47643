"""Tiny models for the engine's tests: one of random weights, and one that follows a script."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from intone.config import model_config
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.attend import PagedAttention, Piece, Scratch
from intone.engine.decoder import Batch, GPTDecoder, wide_dtype
from intone.engine.kv import Cache, PageStore, page_groups
from intone.model.gpt import GPT

CONTEXT = 45
WINDOW = 7


def build_random_model(
    preset="modern", *, dtype=torch.float64, seed=0, heads_per_key=1, depth=3, vocab_size=61, context=CONTEXT,
    scale=0.1, window=WINDOW,
):  # fmt: skip
    """A tiny model in which every weight is random: no part of the function is silent."""
    config = model_config(preset, depth=depth, vocab_size=vocab_size, context=context, head_width=32)
    config = dataclasses.replace(
        config,
        num_kv_heads=config.num_heads // heads_per_key,
        short_window=window if preset == "modern" else None,
    )
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.compute_dtype = dtype
    return model.to(dtype)


class Texts:
    """Texts fed through a decoder and a paged cache, without an engine.

    scattered: pages are never side by side. wide: what keys are widened to; another dtype than the model's forces
    every read through the buffer.
    """

    def __init__(
        self, model, *, dtype=None, num_pages=64, batches_rows=False, scattered=False, remembers=True,
        whole_pages=False, deterministic=False,
    ):  # fmt: skip
        self.config, device = model.config, torch.device("cpu")
        dtype = dtype or model.compute_dtype
        self.decoder = GPTDecoder.of(model, device=device, dtype=dtype, deterministic=deterministic)
        groups = page_groups(self.config, self.config.context)
        store = PageStore(self.config, groups, [num_pages] * len(groups), dtype=dtype, device=device)
        self.cache = Cache(
            store, [num_pages] * len(groups), most_pages=[num_pages] * len(groups), remembers=remembers,
            whole_pages=whole_pages,
        )  # fmt: skip
        if scattered:
            for pool in self.cache.pools:
                pool._free = [*range(0, num_pages, 2), *range(1, num_pages, 2)]
        self.scratch = Scratch(self.config.num_kv_heads, self.config.head_width, wide_dtype(dtype), device)
        self.batches_rows = batches_rows
        if batches_rows:
            for block in store.blocks:
                block.zero_()  # as the store itself does on the devices that read so
        self.tokens = {}

    def open(self, tokens):
        """A new text -> its table; what of tokens is known already counts as fed."""
        table = self.cache.open(tokens)
        self.tokens[table] = list(tokens[: table.length])
        return table

    def fork(self, table):
        other = self.cache.fork(table)
        self.tokens[other] = list(self.tokens[table])
        return other

    def close(self, table):
        self.cache.remember_end(table, lambda a, b: self.tokens[table][a:b])
        self.cache.close(table)

    def feed(self, new, *, trusts=True):
        """new {table: ids} in one pass -> {table: logits (len, V)}, finite where they are to be trusted."""
        order = sorted(new, key=lambda table: len(new[table]) > 1)
        ids, previous, positions, pieces = [], [], [], []
        for table in order:
            fed, start = [int(token) for token in new[table]], table.length
            assert self.cache.reserve(table, len(fed))
            origin = len(ids) if start == 0 and len(fed) > 1 else None
            pieces.append(Piece(table, start, len(fed), origin))
            previous += [self.tokens[table][-1] if start else -1, *fed[:-1]]
            positions += range(start, start + len(fed))
            ids += fed
            self.tokens[table] += fed
        config = self.config
        attention = PagedAttention(
            self.cache.store, pieces, scratch=self.scratch, scale=config.qk_scale**2 * config.head_width**-0.5,
            batches_rows=self.batches_rows,
        )  # fmt: skip
        parts = (torch.tensor(part) for part in (ids, previous, positions, range(len(ids))))
        logits = self.decoder.logits(Batch(*parts, attention))
        for table in order:
            self.cache.advance(table, len(new[table]), lambda a, b, table=table: self.tokens[table][a:b])
            if trusts:
                self.cache.trust(table)
        return dict(zip(order, logits.split([len(new[table]) for table in order]), strict=True))


class ScriptedModel:
    """A decoder that says script[i] as the i-th new token after a prompt of prompt_length tokens, whatever it is fed.

    before_pass(number) runs before every forward pass and may block or raise. A text in which nan_token was fed in
    the same pass gets NaN logits. ids_seen: what was fed in each pass, in order.
    """

    def __init__(self, script, *, prompt_length, context=64, vocab_size=265):
        self.config = model_config("classic", depth=1, vocab_size=vocab_size, context=context, head_width=64)
        self.dtype = torch.float32
        self.script = list(script)
        self.prompt_length = prompt_length
        self.before_pass: Callable[[int], None] = lambda number: None
        self.nan_token = None
        self.num_passes = 0
        self.ids_seen = []

    def logits(self, batch):
        self.before_pass(self.num_passes)
        self.num_passes += 1
        self.ids_seen.append(batch.ids.tolist())
        place = batch.positions[batch.wanted] + 1 - self.prompt_length
        wanted = torch.tensor([*self.script, *[0] * self.config.context])[place.clamp(min=0)]
        logits = torch.nn.functional.one_hot(wanted, self.config.vocab_size).float() * 50
        for row, end in enumerate(batch.wanted.tolist()):
            begin = end
            while begin and batch.positions[begin] == batch.positions[begin - 1] + 1:
                begin -= 1
            if self.nan_token in batch.ids[begin : end + 1].tolist():
                logits[row] = torch.nan
        return logits


@pytest.fixture(scope="session")
def random_model():
    return build_random_model


@pytest.fixture(scope="session")
def texts_of():
    return Texts


@pytest.fixture(scope="session")
def scripted_model():
    return ScriptedModel


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Ids 0-255 are bytes, then the nine special tokens: 265 entries."""
    return Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Products this small gain nothing from a second thread, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
