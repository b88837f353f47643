"""Independent samples: the tests' own error rates, and what they find."""

import dataclasses

import numpy as np
import pytest

from intone.engine.engine import Engine
from intone.prove.gates import faults, sampling
from intone.prove.gates.result import NotJudged
from intone.prove.gates.sampling import FirstTokens, chi_square, equal_pairs_z, judge, upper_tail
from intone.prove.gates.tiny import random_model

GENERATOR = np.random.default_rng(17)
PROBABILITIES = sampling.softmax(GENERATOR.normal(0, 1.5, 61))


def draws(probabilities=PROBABILITIES, *, seed=0, requests=24, samples=24):
    generator = np.random.default_rng(seed)
    tokens = generator.choice(61, (requests, samples), p=probabilities).tolist()
    return FirstTokens(PROBABILITIES, tuple(map(tuple, tokens)), cold=(5, 5, 5), temperature=1.0)


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"),
    [(3.84, 1, 0.05), (7.81, 3, 0.05), (18.31, 10, 0.05), (23.21, 10, 0.01), (35.56, 10, 1e-4), (9.34, 10, 0.5)],
)
def test_the_tail_of_chi_square_is_the_tables(statistic, freedom, p):
    assert upper_tail(statistic, freedom) == pytest.approx(p, rel=0.2)


def test_right_samples_are_rejected_no_more_often_than_chance():
    results = [draws(seed=seed) for seed in range(400)]
    assert all(judge(found).passed for found in results)
    z = np.array([equal_pairs_z(found) for found in results])
    assert abs(z.mean()) < 0.2 and 0.85 < z.std() < 1.15
    low = np.mean([chi_square(found)[0] < 0.05 for found in results])
    assert 0.02 < low < 0.09


def test_a_first_token_copied_inside_each_request_is_found_though_each_is_drawn_right():
    right = draws()
    copied = dataclasses.replace(right, tokens=tuple((tokens[0],) * 24 for tokens in right.tokens))
    result = judge(copied)
    assert result.passed is False and result.reason.startswith("samples of one request begin alike")
    assert result.evidence["distinct"] == [1] * 24


def test_draws_that_are_each_used_twice_are_found():
    right = draws(np.full(61, 1 / 61), seed=4)
    right = dataclasses.replace(right, probabilities=np.full(61, 1 / 61))
    assert judge(right).passed
    halves = dataclasses.replace(right, tokens=tuple(tokens[:12] * 2 for tokens in right.tokens))
    assert judge(halves).passed is False


def test_draws_from_other_probabilities_are_found():
    uniform = draws(np.full(61, 1 / 61), seed=3)
    result = judge(uniform)
    assert result.passed is False and "do not follow the model's probabilities" in result.reason


def test_greedy_samples_must_agree():
    result = judge(dataclasses.replace(draws(), cold=(5, 6, 5)))
    assert result.passed is False and "greedy samples" in result.reason


def test_a_model_that_leaves_no_choice_or_too_few_samples_show_nothing():
    peaked = np.full(61, 0.3 / 60)
    peaked[4] = 0.7
    assert judge(dataclasses.replace(draws(), probabilities=peaked)).passed is None
    assert judge(draws(requests=1, samples=24)).passed is None


def test_the_engine_passes_and_its_faults_do_not(jobs):
    model = random_model()
    with Engine(model, jobs.tokenizer, num_slots=5) as engine:
        assert sampling.gate(engine.generate, model).run().passed
        for wrong in (faults.copied_first_token, faults.cooler):
            assert sampling.gate(wrong(engine.generate), model).run().passed is False

        def failing(requests):
            failed = {"reason": "error", "error": "no memory"}
            return [[dataclasses.replace(s, **failed) for s in samples] for samples in engine.generate(requests)]

        with pytest.raises(NotJudged, match="no memory"):
            sampling.gather(failing, model)


def test_a_sure_model_is_asked_at_a_temperature_that_leaves_a_choice(jobs):
    model = random_model()
    model.head.weight.data *= 4
    with Engine(model, jobs.tokenizer) as engine:
        found = sampling.gather(engine.generate, model)
    assert found.temperature > 1 and (found.probabilities**2).sum() <= sampling.AIMED_PEAKED
    assert judge(found).passed
