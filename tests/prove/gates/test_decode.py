"""Cached decoding against the plain model: which texts are asked for, and which differences are ties."""

import dataclasses
import math

import pytest
import torch

from intone.config import model_config
from intone.engine.engine import Engine
from intone.engine.naive import generate_naive
from intone.engine.requests import Request
from intone.prove.gates import decode, faults
from intone.prove.gates.result import NotJudged
from intone.prove.gates.tiny import WINDOW, random_model

RIGHT = decode.Text(65, behind=(0.0, 0.0, 0.0), lead=(0.9, 1.2, 0.4), error=(1e-6, 0.0, 2e-6), reason="length")


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def generate(model, jobs):
    """An engine with fewer slots than texts, so that slots are used again."""
    with Engine(model, jobs.tokenizer, num_slots=3) as engine:
        yield engine.generate


def judge(**fields):
    return decode.judge_texts([RIGHT, dataclasses.replace(RIGHT, **fields)], dtype=torch.float32)


def test_prompts_end_on_and_around_every_boundary_and_fill_the_context(model):
    lengths = decode.prompt_lengths(model.config, context=96)
    assert {1, 95, 96 - decode.NEW_TOKENS, 63, 64, 65, WINDOW, WINDOW + 1, WINDOW + 2} <= set(lengths)
    assert len(lengths) <= decode.MAX_TEXTS and all(1 <= length < 96 for length in lengths)
    crossing = [edge for edge in (64, WINDOW + 1) if any(n < edge < n + decode.NEW_TOKENS for n in lengths)]
    assert crossing == [64, WINDOW + 1]


def test_short_contexts_and_models_without_windows_have_prompts_too():
    config = model_config("classic", depth=1, vocab_size=99, context=9)
    assert decode.prompt_lengths(config, context=9) == [1, 2, 7, 8]


def test_the_engine_passes_and_the_plain_models_view_is_that_of_plain_generation(model, generate, jobs):
    texts = decode.gather_texts(generate, model)
    assert decode.judge_texts(texts, dtype=torch.float32).passed
    ends = frozenset((jobs.tokenizer.bos, jobs.tokenizer.special("<|assistant_end|>")))
    prompt = list(range(7, 7 + 64))
    naive = generate_naive(model, prompt, max_tokens=9, stop_ids=ends).ids
    completion = generate([Request(prompt, max_tokens=9, temperature=0.0)])[0][0]
    assert completion.ids == naive
    assert decode.compared(model, prompt, completion).behind == tuple([0.0] * len(naive))


def test_tokens_that_a_text_may_not_have_are_not_the_plain_models_choice_either(model, generate):
    prompt = list(range(9, 9 + 20))
    likeliest = generate([Request(prompt, max_tokens=1, temperature=0.0)])[0][0].ids
    request = Request(prompt, max_tokens=4, temperature=0.0, logit_bias={likeliest[0]: -100.0})
    other = generate([request])[0][0]
    assert likeliest[0] not in other.ids
    assert max(decode.compared(model, prompt, other).behind) > 0
    assert decode.compared(model, prompt, other, excluded=likeliest).behind == (0.0,) * 4


@pytest.mark.parametrize("name", faults.MODELS)
def test_an_engine_that_computes_something_else_is_rejected(model, jobs, name):
    with Engine(faults.MODELS[name](model), jobs.tokenizer, num_slots=3) as engine:
        result = decode.gate(engine.generate, model).run()
    assert result.passed is False and result.evidence["first_wrong_position"] >= 0


def test_a_window_off_by_one_shows_first_where_the_window_ends(model, jobs):
    with Engine(faults.window_off_by_one(model), jobs.tokenizer, num_slots=3) as engine:
        texts = decode.gather_texts(engine.generate, model)
    for text in texts:
        last_query_sees = text.prompt_tokens + len(text.error) - 1
        short = last_query_sees <= WINDOW + 1  # a query sees itself and WINDOW tokens before it
        assert decode.judge_texts([text], dtype=torch.float32).passed is short, text.prompt_tokens


def test_a_window_off_by_one_shows_in_bf16_too(jobs):
    model = random_model(dtype=torch.bfloat16)
    with Engine(model, jobs.tokenizer, num_slots=3) as engine:
        assert decode.gate(engine.generate, model).run().passed
    with Engine(faults.cached_skip(model), jobs.tokenizer, num_slots=3) as engine:
        assert decode.gate(engine.generate, model).run().passed is False


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"behind": (0.0, 0.3, 0.0)}, "token 2 after a prompt of 65 (position 66) is 0.3 nats less likely"),
        ({"error": (0.0, 0.0, 0.01)}, "token 3 after a prompt of 65 (position 67) has a log-probability 0.01 nats off"),
        ({"error": (math.nan, 0.0, 0.0)}, "token 1 after a prompt of 65 (position 65) has a log-probability nan"),
        ({"behind": (math.nan, 0.0, 0.0)}, "token 1 after a prompt of 65 (position 65) is nan nats less likely"),
    ],
)
def test_another_token_or_probability_is_rejected_with_its_place(fields, reason):
    result = judge(**fields)
    assert result.passed is False and result.reason.startswith(reason)


def test_a_tie_within_rounding_may_fall_either_way():
    result = judge(behind=(0.0, 5e-5, 0.0), lead=(0.9, 5e-5, 0.4))
    assert result.passed and result.evidence["ties"] == 1 and result.evidence["other_tokens"] == 1


def test_a_model_that_knows_nothing_shows_nothing():
    flat = dataclasses.replace(RIGHT, lead=(1e-5, 1e-5, 1e-5))
    result = decode.judge_texts([flat, flat, RIGHT], dtype=torch.float32)
    assert result.passed is None and "6 of 9 choices are ties" in result.reason


def test_texts_without_new_tokens_and_failed_requests_are_not_judged(model, generate):
    assert decode.judge_texts([], dtype=torch.float32).passed is None
    assert judge(behind=(), lead=(), error=()).passed is None

    def failing(requests):
        answers = generate(requests)
        answers[3] = [dataclasses.replace(answers[3][0], reason="error", error="out of memory")]
        return answers

    with pytest.raises(NotJudged, match="ended with error: out of memory"):
        decode.gather_texts(failing, model)
