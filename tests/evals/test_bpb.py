import math

import numpy as np
import pytest
import torch

from intone.config import model_config
from intone.data.loader import Batch
from intone.errors import UserError
from intone.evals import bpb
from intone.evals.bpb import bits_per_byte
from intone.model.gpt import GPT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = model_config("modern", depth=1, vocab_size=61, context=19)
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def random_batch(num_rows, seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 61, (num_rows, 19)).astype(np.int32)
    targets = generator.integers(-1, 61, (num_rows, 19)).astype(np.int32)
    documents = np.sort(generator.integers(0, 3, (num_rows, 19)), axis=1).astype(np.int32)
    return Batch(ids, targets, documents)


TOKEN_BYTES = np.array([*np.arange(52) % 7 + 1, *[0] * 9], dtype=np.int32)


def by_hand(model, batches):
    nats, num_bytes = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = model.logits(torch.from_numpy(batch.ids), documents=torch.from_numpy(batch.documents))
        logprobs = logits.double().log_softmax(-1)
        for row, place in zip(*np.nonzero(batch.targets >= 0), strict=True):
            target = batch.targets[row, place]
            if TOKEN_BYTES[target]:
                nats -= float(logprobs[row, place, target])
                num_bytes += int(TOKEN_BYTES[target])
    return nats / math.log(2) / num_bytes, num_bytes


def test_bits_per_byte_equal_the_definition_token_by_token(model, monkeypatch):
    batches = [random_batch(5, 1), random_batch(2, 2)]
    expected, num_bytes = by_hand(model, batches)
    for logits_per_pass in (1 << 25, 19 * 61 * 2):  # whole batches, and two rows at a time
        monkeypatch.setitem(bpb.LOGITS_PER_PASS, "cpu", logits_per_pass)
        got = bits_per_byte(model, iter(batches), TOKEN_BYTES, device=CPU, dtype=torch.float32)
        assert got["value"] == pytest.approx(expected, abs=1e-6)
        assert got["num_bytes"] == num_bytes
        assert got["low"] < got["value"] < got["high"]


def test_rows_of_padding_change_nothing(model):
    batch = random_batch(4, 3)
    empty = Batch(batch.ids * 0, np.full_like(batch.targets, -1), batch.documents)
    plain, padded = (
        bits_per_byte(model, batches, TOKEN_BYTES, device=CPU, dtype=torch.float32)
        for batches in ([batch], [batch, empty])
    )
    assert padded == plain


def test_the_models_own_dtype_is_put_back(model):
    bits_per_byte(model, [random_batch(3, 4)], TOKEN_BYTES, device=CPU, dtype=torch.bfloat16)
    assert model.compute_dtype == torch.float32


def test_text_without_a_byte_is_refused(model):
    batch = random_batch(2, 5)
    special = Batch(batch.ids, np.full_like(batch.targets, 60), batch.documents)
    for batches in ([], [special]):
        with pytest.raises(UserError, match="validation text is empty"):
            bits_per_byte(model, batches, TOKEN_BYTES, device=CPU, dtype=torch.float32)
