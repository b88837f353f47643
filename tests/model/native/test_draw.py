"""Tokens drawn by our kernels: those of the rules in engine/sample.py, whatever the size, the filters and the ties"""

import numpy as np
import pytest
import torch

from intone.engine.native_decoder import as_drawing
from intone.engine.sample import Settings, choose, streams, uniforms
from intone.model.native import build
from intone.model.native.steps import draw

pytestmark = pytest.mark.skipif(
    build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}"
)


def settings(num_rows, vocab, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    return Settings(*(np.full(num_rows, value) for value in (temperature, top_k or vocab, top_p, min_p)))


def noise(num_rows, seed):
    samples = np.arange(num_rows).astype(np.uint64)
    return uniforms(streams(np.full(num_rows, seed, dtype=np.uint64), samples), samples)


def drawn(logits, how, uniform):
    return draw(logits, as_drawing(how, uniform))[0].tolist()


# below, at and beyond blocks of 8, 64 and 256 columns; scales from nearly even to nearly certain
@pytest.mark.parametrize("vocab", [5, 61, 64, 265, 1000, 4097])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 1}, {"top_k": 4}, {"top_k": 50}, {"top_k": 600}, {"top_p": 0.3},
     {"top_p": 0.999}, {"min_p": 0.1}, {"temperature": 0.0},
     {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.05}],
    ids=str,
)  # fmt: skip
def test_tokens_are_those_of_the_reference(vocab, options):
    generator = torch.Generator().manual_seed(vocab)
    for place, scale in enumerate((0.02, 1.5, 9.0)):
        logits = torch.randn(40, vocab, generator=generator) * scale
        how, uniform = settings(40, vocab, **options), noise(40, vocab + place)
        how = Settings(how.temperature, np.minimum(how.top_k, vocab), how.top_p, how.min_p)
        # exponentials that differ in their last bits move a border by 1e-7: one draw in a million would differ
        assert drawn(logits, how, uniform) == choose(logits, how, uniform).tolist()


def test_ties_are_kept_together_and_excluded_tokens_never_come():
    logits = torch.full((500, 300), -5.0)
    logits[:, [3, 17, 240]] = 1.0
    assert set(drawn(logits, settings(500, 300, top_k=2), noise(500, 1))) == {3, 17, 240}
    logits = torch.full((2, 300), -torch.inf)
    logits[:, 270:274] = 0.0
    for options in ({}, {"top_k": 299}, {"top_p": 0.9999999}, {"top_k": 100, "min_p": 0.5}):
        ends = np.array([0.0, 1 - 2**-53])
        assert drawn(logits, settings(2, 300, **options), ends) == [270, 273], options


def test_rows_that_cannot_be_drawn_are_told_apart_and_give_an_id_that_exists():
    logits = torch.zeros(5, 100)
    logits[1, 3], logits[2, 4], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, :10] = -torch.inf
    for options in ({}, {"top_k": 7}, {"top_p": 0.5}, {"temperature": 0.0}):
        ids, largest = draw(logits, as_drawing(settings(5, 100, **options), noise(5, 2)))
        assert np.isfinite(largest).tolist() == [True, False, False, False, True]
        assert ((ids >= 0) & (ids < 100)).all()


def test_a_row_draws_the_same_beside_any_other_rows():
    logits = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0))
    how = Settings(
        temperature=np.array([0.0, 1.0, 0.7, 2.0, 1.0, 1e-9, 1.0, 1e-4, 1.0]),
        top_k=np.array([5000, 5000, 5, 9, 3000, 3, 5000, 50, 5000]),
        top_p=np.array([1.0, 0.9, 0.8, 1.0, 0.5, 1.0, 1.0, 1.0, 0.999]),
        min_p=np.array([0.0, 0.0, 0.0, 0.2, 0.1, 0.0, 0.3, 0.0, 0.0]),
    )
    uniform = noise(9, 3)
    together = drawn(logits, how, uniform)
    assert together == [drawn(logits[i : i + 1], how.at([i]), uniform[i : i + 1])[0] for i in range(9)]
