"""Penalties, biases and least lengths, against their definitions written out token by token"""

import math

import pytest
import torch

from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.model.native import build

KERNELS = ["torch"] + (["native"] if build.obstacle("generate") is None else [])
PROMPT = [5, 9, 5, 200, 31]
LENGTH = 25


@pytest.fixture(scope="module")
def model(random_model):
    made = random_model(vocab_size=265, depth=1, seed=3, scale=0.2, dtype=torch.float32)
    made.head.weight.data[40:] = 0.0  # texts of few different tokens, which none ends
    return made


def by_definition(model, *, repetition=1.0, presence=0.0, frequency=0.0, bias=None):
    """Greedy tokens: CTRL's penalty for what the text has, OpenAI's for new tokens, then the bias."""
    ids = list(PROMPT)
    for _ in range(LENGTH):
        new, found = ids[len(PROMPT) :], []
        for token, logit in enumerate(model.logits(torch.tensor([ids]))[0, -1].tolist()):
            if token in ids:
                logit = logit / repetition if logit > 0 else logit * repetition
            logit -= frequency * new.count(token) + presence * (token in new)
            found.append(logit + (bias or {}).get(token, 0.0))
        ids.append(max(range(len(found)), key=found.__getitem__))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("kernels", KERNELS)
def test_penalties_and_biases_are_those_of_their_definitions_side_by_side(model, byte_tokenizer, kernels):
    plain = by_definition(model)
    asked = [
        ({}, {}),
        ({"repetition_penalty": 2.0}, {"repetition": 2.0}),
        ({"repetition_penalty": 0.3}, {"repetition": 0.3}),
        ({"presence_penalty": 2.0}, {"presence": 2.0}),
        ({"frequency_penalty": 0.5}, {"frequency": 0.5}),
        ({"logit_bias": {plain[0]: -math.inf, 17: 1.0}}, {"bias": {plain[0]: -math.inf, 17: 1.0}}),
        (
            {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": {9: 2.0}},
            {"repetition": 1.5, "presence": 0.4, "frequency": 0.2, "bias": {9: 2.0}},
        ),
    ]
    expected = [by_definition(model, **terms) for _, terms in asked]
    assert len({tuple(ids) for ids in expected}) == len(expected), "every setting changes this text"
    requests = [Request(PROMPT, max_tokens=LENGTH, temperature=0.0, tools=False, **options) for options, _ in asked]
    with Engine(model, byte_tokenizer, kernels=kernels) as engine:
        assert [samples[0].ids for samples in engine.generate(requests)] == expected


def test_an_answer_does_not_end_before_its_least_length_and_stop_texts_do_not_count(scripted_model, byte_tokenizer):
    end = byte_tokenizer.special("<|assistant_end|>")
    script = [end, *b"a", end, *b"abcab", end]

    def told(**options):
        with Engine(scripted_model(script, prompt_length=1), byte_tokenizer) as engine:
            ((found,),) = engine.generate([Request([1], temperature=0.0, max_tokens=20, **options)])
        return found.ids, found.text, found.reason

    assert told() == ([end], "", "stop")
    # the end is not drawn, so the likeliest of all others, equal here, is: byte 0
    assert told(min_tokens=3)[0] == [0, ord("a"), 0, *b"abcab", end]
    assert told(min_tokens=6, stop="ab")[1:] == ("\x00a\x00abc", "stop"), "the first ab is too early, the second counts"


def test_special_tokens_are_no_text_that_an_answer_could_end_after(scripted_model, byte_tokenizer):
    end, special = (byte_tokenizer.special(name) for name in ("<|assistant_end|>", "<|user_end|>"))
    with Engine(scripted_model([special, end, *b"a", end], prompt_length=1), byte_tokenizer) as engine:
        ((found,),) = engine.generate([Request([1], temperature=0.0, max_tokens=9, min_tokens=1)])
    assert (found.ids, found.text) == ([special, 0, ord("a"), end], "\x00a")


@pytest.mark.parametrize("kernels", KERNELS)
def test_answers_that_may_not_be_empty_are_the_same_in_any_company(model, byte_tokenizer, kernels):
    likely = {byte_tokenizer.special("<|assistant_end|>"): 6.0}
    asked = [
        Request(PROMPT, max_tokens=6, seed=seed, logit_bias=likely, tools=False, min_tokens=least)
        for seed in range(12) for least in (0, 1)
    ]  # fmt: skip
    with Engine(model, byte_tokenizer, kernels=kernels) as engine:
        together = [samples[0].ids for samples in engine.generate(asked)]
        alone = [engine.generate([request])[0][0].ids for request in asked]
    assert together == alone
    ends = {byte_tokenizer.bos, *likely}
    assert any(ids[0] in ends for ids in together[::2]), "as the model has it, some are empty"
    assert not any(ids[0] in ends for ids in together[1::2])
    assert any(len(ids) == 2 and ids[1] in ends for ids in together[1::2]), "after one token they may end"
