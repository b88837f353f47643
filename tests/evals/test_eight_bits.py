"""What 8-bit weights cost: measured on the same texts, kept for one save, and a choice only where it is small."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from intone.config import model_config
from intone.data.loader import Batch
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.evals import eight_bits
from intone.evals.eight_bits import Loss, known_loss, measure_loss, settle_weights, texts_of
from intone.model.gpt import GPT
from intone.model.native import build

needs_kernels = pytest.mark.skipif(
    build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}"
)
LOSS = Loss("abc", "fp32", eight_bits.products_here(), 0.0004, 0.0001, 0.0007, 1.2, 9000, "2026-01-01T00:00:00+00:00")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    made = GPT(model_config("modern", depth=2, vocab_size=265, context=33, head_width=32))
    made.init_weights(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return made.eval().requires_grad_(False)


def batch():
    """Two rows: texts of 20 and 13 tokens, and one of 9 with an unlearned middle before padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (2, 33)).astype(np.int32)
    documents = np.stack([np.repeat([0, 1], [20, 13]), np.repeat([0, 1], [9, 24])]).astype(np.int32)
    targets = np.full((2, 33), -1, dtype=np.int32)
    for row, ends in ((0, (20, 33)), (1, (9,))):
        for begin, end in zip((0, *ends), ends, strict=False):
            targets[row, begin : end - 1] = ids[row, begin + 1 : end]
    targets[1, 3:5] = -1
    return Batch(ids, targets, documents)


def test_texts_are_cut_out_of_their_rows_without_padding():
    found = list(texts_of([batch()]))
    assert [len(ids) for ids, _ in found] == [20, 13, 9]
    assert [int(learned.sum()) for _, learned in found] == [19, 12, 6]
    assert found[1][0].tolist() == batch().ids[0, 20:].tolist()


@needs_kernels
def test_the_loss_is_the_difference_of_two_scores_of_the_same_bytes(model):
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    loss = measure_loss(model, tokenizer, [batch()], dtype="fp32", checkpoint="abc")
    assert loss.num_bytes == 19 + 12 + 6 and loss.low <= loss.value <= loss.high
    nats = 0.0
    for ids, learned in texts_of([batch()]):
        logits = model.logits(torch.tensor([ids.tolist()]))[0].log_softmax(-1)
        nats -= float(logits[range(len(ids) - 1), ids[1:]][torch.from_numpy(learned)].sum())
    assert loss.without == pytest.approx(nats / math.log(2) / 37, abs=1e-5)
    assert 1e-6 < abs(loss.value) < 0.05  # the two differ, and by rounding only


def test_what_was_measured_counts_for_its_save_its_format_and_its_kernels_only(tmp_path):
    assert known_loss(tmp_path, checkpoint="abc", dtype="fp32") is None
    eight_bits.keep(tmp_path, LOSS)
    assert known_loss(tmp_path, checkpoint="abc", dtype="fp32") == LOSS
    assert known_loss(tmp_path, checkpoint="abd", dtype="fp32") is None
    assert known_loss(tmp_path, checkpoint="abc", dtype="bf16") is None
    eight_bits.keep(tmp_path, dataclasses.replace(LOSS, products="abacus"))
    assert known_loss(tmp_path, checkpoint="abc", dtype="fp32") is None
    for damaged in ("{", "[]", json.dumps({"format": 2}), json.dumps({"format": 1, "checkpoint": "abc"})):
        (tmp_path / eight_bits.FILE).write_text(damaged)
        assert known_loss(tmp_path, checkpoint="abc", dtype="fp32") is None


@needs_kernels
def test_eight_bits_are_chosen_where_they_were_shown_to_cost_little_and_never_against_a_wish(model):
    def settled(asked, loss, device=CPU, dtype=torch.float32):
        return settle_weights(asked, loss, model.config, device=device, dtype=dtype)

    weights, reason = settled("auto", LOSS)
    assert weights == "int8" and "+0.0004 bits per byte [+0.0001, +0.0007] on 9,000 bytes" in reason
    weights, reason = settled("auto", dataclasses.replace(LOSS, high=0.0021))
    assert weights == "auto" and "more than 0.002" in reason
    assert settled("auto", None) == ("auto", None)
    assert settled("fp32", LOSS) == ("fp32", None)
    # kernels that read 8 bits are for CPUs and these formats
    assert settled("auto", LOSS, device=torch.device("meta")) == ("auto", None)
    assert settled("auto", LOSS, dtype=torch.float64) == ("auto", None)
