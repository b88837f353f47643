"""How much an engine computes at once: by rule, as asked, and less for a while; texts stay what they are."""

import pytest
import torch

from intone.engine.choose import ALONE_TOKENS, MOST_SLOTS
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import UserError


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(vocab_size=265, depth=2, scale=0.2)  # float64: argmax has no near ties


def texts(engine, *, longest=9):
    requests = [Request([place, 7, 9] * (1 + place % longest), max_tokens=5, temperature=0) for place in range(9)]
    return [samples[0].ids for samples in engine.generate(requests)]


def test_sizes_are_the_rules_or_those_that_were_asked_for_and_say_which(model, byte_tokenizer):
    with Engine(model, byte_tokenizer) as engine:
        assert engine.settings["num_slots"][0] == MOST_SLOTS["cpu"] and "by rule" in engine.settings["num_slots"][1]
        assert engine.settings["prompt_tokens"][0] == ALONE_TOKENS["cpu"] and "buckets" not in engine.settings
    with Engine(model, byte_tokenizer, num_slots=3, prompt_tokens=64, steps="captured", buckets=[8, 16]) as engine:
        for name, value in (("num_slots", 3), ("prompt_tokens", 64), ("buckets", (8, 16))):
            assert engine.settings[name] == (value, "as asked")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_slots": 0}, "num_slots is 0"),
        ({"prompt_tokens": 63}, "prompt_tokens is 63, it must be at least 64"),
        ({"buckets": [16, 8], "steps": "captured"}, "each larger than the one before it"),
        ({"buckets": [8]}, "these are eager"),
    ],
)
def test_sizes_that_cannot_be_are_refused(model, byte_tokenizer, options, words):
    with pytest.raises(UserError, match=words):
        Engine(model, byte_tokenizer, **options)


def test_less_at_once_gives_the_same_texts_and_no_more_rows_run(model, byte_tokenizer):
    with Engine(model, byte_tokenizer, num_slots=8, prompt_tokens=128, share_prefixes=False) as engine:
        whole = texts(engine)
        most = engine.stats().num_steps
        engine.limit(num_slots=2, prompt_tokens=64)
        assert texts(engine) == whole
        assert engine.stats().num_steps - most > most  # nine texts in pairs take more steps
        engine.limit(num_slots=8)
        assert texts(engine) == whole
        with pytest.raises(UserError, match="opened with 8"):
            engine.limit(num_slots=9)
        with pytest.raises(UserError, match="opened with 128"):
            engine.limit(prompt_tokens=129)
        with pytest.raises(UserError, match="these are eager"):
            engine.limit(buckets=[8])


def test_other_lengths_of_captured_steps_give_the_same_texts(model, byte_tokenizer):
    with Engine(model, byte_tokenizer, steps="captured", buckets=[8, 16], share_prefixes=False) as engine:
        steps = engine._worker._ahead._steps._steps  # by shape
        whole = texts(engine, longest=1)  # of eight tokens each
        assert {shape.context for shape in steps} == {8}
        engine.limit(buckets=[12])
        assert texts(engine, longest=1) == whole
        assert {shape.context for shape in steps} == {8, 12}


def test_step_kernels_are_pytorchs_on_a_cpu_and_others_are_refused(model, byte_tokenizer):
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured") as engine:
        assert engine.settings["step_kernels"] == ("torch", "cpu has no launches to save")
    for steps, words in (("captured", "for NVIDIA's GPUs, not for cpu"), ("eager", "steps are eager")):
        with pytest.raises(UserError, match=f"step_kernels triton cannot be had: .*{words}"):
            Engine(model, byte_tokenizer, kernels="torch", dtype=torch.float32, steps=steps, step_kernels="triton")
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured", step_kernels="torch") as engine:
        assert engine.settings["step_kernels"] == ("torch", "as asked")
