"""Tiny models for the model tests."""

import pytest
import torch

from intone.config import ModelConfig, model_config
from intone.model.gpt import GPT

CONTEXT = 45
SHORT_WINDOW = 7


def build_random_model(preset="modern", *, dtype=torch.float32, heads_per_key=1, seed=0, **changes):
    """A model of three blocks in which every weight is random, so that no part of the function is silent.

    changes: further fields of its ModelConfig. In float64 the rotary tables are exact too.
    """
    shape = {"width": 96, "num_heads": 3, "num_kv_heads": 3 // heads_per_key, "head_width": 32}
    if preset == "modern":
        shape["short_window"] = SHORT_WINDOW
    usual = model_config(preset, depth=3, vocab_size=61, context=CONTEXT).as_json()
    model = GPT(ModelConfig(**{**usual, **shape, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.to(dtype).compute_dtype = dtype
    if dtype == torch.float64:
        channel = torch.arange(0, 32, 2, dtype=dtype) / 32
        angle = torch.outer(torch.arange(CONTEXT, dtype=dtype), model.config.rope_base**-channel)
        model.cos, model.sin = angle.cos(), angle.sin()
    return model


def sample_ids(rows, length, *, vocab_size=61, seed=0):
    """Random ids (rows, length) int32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator, dtype=torch.int32)


@pytest.fixture(scope="session")
def random_model():
    return build_random_model


@pytest.fixture(scope="session")
def ids_of():
    return sample_ids


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Products this small gain nothing from a second thread, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
