"""The child that times an engine: every value has its times, and texts that differ are seen."""

import time

import pytest
import torch

from intone.config import model_config
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.model.native.build import obstacle
from intone.tune.engine import QUESTIONS, Seen, asked_child
from intone.tune.engine_probe import PROBE_PARAMETERS, apart, measure, products, small_shape, too_large

CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path):
    """The folder of a byte tokenizer."""
    Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN).save(tmp_path / "words")
    return tmp_path / "words"


def asked(words, questions, context=48, **options):
    config = model_config("modern", depth=1, vocab_size=265, context=context)
    answer = measure(
        config.as_json(), str(words), "cpu", "fp32", "auto",
        [{"name": name, "values": values} for name, values in questions.items()], 0.02, **options,
    )  # fmt: skip
    return {name: Seen(**found) for name, found in answer.items()}


def test_every_value_of_every_question_is_timed_on_the_same_texts(words):
    found = asked(words, {"num_slots": [3, 1, 7], "prompt_tokens": [128, 64]})
    for name, number in (("num_slots", 3), ("prompt_tokens", 2)):
        seen = found[name]
        assert len(seen.seconds) == number and all(len(times) >= 3 and min(times) > 0 for times in seen.seconds)
        assert seen.apart[0] == 0 and all(difference <= seen.allowed for difference in seen.apart)
        assert list(seen.refused) == [None] * number
        assert (seen.again is None) == (len(seen.again_s) == 0) and seen.again != 0


def test_lengths_of_captured_steps_are_compared_too(words):
    found = asked(words, {"buckets": [[8, 16], [12]]}, context=24, steps="captured", kernels="torch")
    seen = found["buckets"]
    assert all(len(times) >= 3 for times in seen.seconds)
    assert max(seen.apart) <= seen.allowed


def test_texts_are_compared_as_far_as_they_begin_alike():
    rule = [([5, 6, 7], [-1.0, -2.0, -3.0])]
    assert apart([([5, 6, 7], [-1.0, -2.5, -3.0])], rule) == 0.5
    assert apart([([5, 9, 7], [-1.0, -2.1, -9.0])], rule) == pytest.approx(0.1)  # what follows is another text
    assert apart([], rule) is None


def test_what_would_not_fit_in_memory_is_refused(monkeypatch):
    config = model_config("modern", depth=4, vocab_size=265, context=2048)
    monkeypatch.setattr("intone.engine.budget.memory", lambda: (2**30, 2**29))
    assert too_large(config, 4, CPU, torch.float32) is None
    assert "would be cut" in too_large(config, 4096, CPU, torch.float32)


def test_a_large_model_is_timed_with_fewer_of_its_blocks():
    large = model_config("modern", depth=20, vocab_size=1000, context=512)
    small = small_shape(large)
    assert small.depth < 20 and small.width == large.width
    assert small.depth == 2 or products(small) <= PROBE_PARAMETERS
    tiny = model_config("modern", depth=3, vocab_size=1000, context=512)
    assert small_shape(tiny) == tiny


@pytest.mark.long
@pytest.mark.skipif(obstacle("generate") is not None, reason=f"no kernels here: {obstacle('generate')}")
def test_a_process_of_its_own_answers_in_seconds(words, home):
    config = model_config("modern", depth=4, vocab_size=265, context=512)
    seconds = []
    for _ in range(2):  # the first builds the kernels where nobody has
        begin_s = time.monotonic()
        found = asked_child(config, words, "cpu", "fp32", "auto")
        seconds.append(time.monotonic() - begin_s)
    assert min(seconds) < 30  # 10 to 17 beside others (LOG.md)
    assert set(found) == {question.name for question in QUESTIONS if "cpu" in question.values}
