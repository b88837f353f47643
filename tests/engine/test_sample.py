import numpy as np
import pytest
import torch

from intone.engine.sample import Settings, choose, logprobs_of, streams, uniforms, usable

VOCAB = 64
NUM_DRAWS = 20_000
# normal quantile 4.5: a correct sampler fails one test in 300,000 (chi-square by Wilson and Hilferty 1931)
QUANTILE = 4.5


def settings(num_rows, *, temperature=1.0, top_k=VOCAB, top_p=1.0, min_p=0.0):
    return Settings(*(np.full(num_rows, value) for value in (temperature, top_k, top_p, min_p)))


def noise(num_rows, *, seed=0):
    """The uniforms of samples 0, 1, ... of one request at position 0."""
    return uniforms_of(np.full(num_rows, seed), np.arange(num_rows), np.zeros(num_rows))


def uniforms_of(seeds, samples, positions):
    return uniforms(streams(seeds.astype(np.uint64), samples), positions)


def random_logits(num_rows=1, seed=0, scale=1.5):
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def assert_distributed(ids, probabilities):
    """Chi-square of counts against probabilities; what has probability 0 must not occur."""
    counts = np.bincount(ids, minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    expected = probabilities[kept] * len(ids)
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = int(kept.sum()) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + QUANTILE * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit


def expected_distribution(logits, *, temperature=1.0, top_k=VOCAB, top_p=1.0, min_p=0.0):
    """The definition, token by token: filters in order, each on what the one before left."""
    probabilities = np.exp(logits / temperature - (logits / temperature).max())
    order = np.argsort(-probabilities)
    kept = order[:top_k]
    share = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
    kept = kept[: int((share < top_p).sum()) + 1]
    kept = [i for i in kept if probabilities[i] >= min_p * probabilities.max()]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 1},
     {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.05}],
)  # fmt: skip
def test_draws_follow_the_filtered_distribution(options):
    logits = random_logits(seed=3)
    ids = choose(logits.expand(NUM_DRAWS, -1), settings(NUM_DRAWS, **options), noise(NUM_DRAWS, seed=11)).numpy()
    expected = expected_distribution(logits[0].double().numpy(), **options)
    if options.get("top_k") == 1:
        assert set(ids) == {int(logits.argmax())}
    else:
        assert_distributed(ids, expected)


def test_the_first_tokens_of_n_samples_are_independent():
    # a sampler that copies one draw to all samples, or to pairs of them, collides too often
    logits = random_logits(seed=5)
    ids = choose(logits.expand(4096, -1), settings(4096), noise(4096, seed=23)).numpy()
    probabilities = expected_distribution(logits[0].double().numpy())
    assert_distributed(ids, probabilities)
    collide = (probabilities**2).sum()
    for distance in (1, 2, 64):
        same = (ids[distance:] == ids[:-distance]).mean()
        assert abs(same - collide) < QUANTILE * (collide * (1 - collide) / (4096 - distance)) ** 0.5


def test_uniforms_are_even_and_independent_along_every_part_of_the_address():
    steps = np.arange(30_000)
    zeros = np.zeros_like(steps)
    for address in ((steps, zeros, zeros), (zeros, steps, zeros), (zeros, zeros, steps), (steps, steps, steps)):
        values = uniforms_of(*address)
        assert values.min() >= 0 and values.max() < 1
        assert len(set(values)) == len(values)
        assert_distributed((values * 50).astype(int), np.full(50, 1 / 50))
        pairs = (values[:-1] * 8).astype(int) * 8 + (values[1:] * 8).astype(int)
        assert_distributed(pairs[::2], np.full(64, 1 / 64))


def test_uniforms_of_one_address_never_change():
    got = uniforms_of(np.array([0, 7, 2**63], dtype=np.uint64), np.array([0, 1, 2]), np.array([0, 50, 3]))
    # computed once and written down: another value would change what every stored seed means
    assert got.tolist() == [0.13870941014555427, 0.9285487457919603, 0.8046334646920853]
    assert uniforms_of(*(np.array([x]) for x in (1, 2, 3)))[0] != uniforms_of(*(np.array([x]) for x in (2, 1, 3)))[0]


def test_a_row_draws_the_same_beside_any_other_rows():
    logits = random_logits(6, seed=1)
    logits[2, 10:30] = logits[2, 10]  # ties across the top-k boundary
    mixed = Settings(
        temperature=np.array([0.0, 1.0, 0.7, 2.0, 1.0, 1e-9]),
        top_k=np.array([VOCAB, VOCAB, 5, 9, 30, 3]),
        top_p=np.array([1.0, 0.9, 0.8, 1.0, 0.5, 1.0]),
        min_p=np.array([0.0, 0.0, 0.0, 0.2, 0.1, 0.0]),
    )
    uniform = uniforms_of(np.arange(6), np.arange(6), np.arange(6))
    together = choose(logits, mixed, uniform).tolist()
    alone = [int(choose(logits[i : i + 1], mixed.at([i]), uniform[i : i + 1])) for i in range(6)]
    assert together == alone
    assert together[0] == int(logits[0].argmax()) and together[5] == int(logits[5].argmax())


def test_every_tied_token_at_the_boundary_can_be_drawn():
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, [3, 17, 40]] = 1.0
    ids = choose(logits.expand(500, -1), settings(500, top_k=2), noise(500))
    assert set(ids.tolist()) == {3, 17, 40}


@pytest.mark.parametrize("uniform, expected", [(0.0, 2), (1 - 2**-53, 5)])
def test_the_ends_of_the_unit_interval_give_tokens_that_are_possible(uniform, expected):
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, 2:6] = 0.0
    assert int(choose(logits, settings(1), np.array([uniform]))) == expected
    assert int(choose(logits, settings(1, top_k=VOCAB - 1), np.array([uniform]))) == expected


def test_tiny_temperatures_do_not_overflow():
    logits = random_logits(seed=2, scale=10)
    for temperature in (1e-4, 1e-30, 5e-324):
        assert int(choose(logits, settings(1, temperature=temperature), noise(1))) == int(logits.argmax())


def test_rows_with_numbers_that_are_not_finite_are_recognised():
    logits = random_logits(5)
    logits[1, 3], logits[2, 4], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, :10] = -torch.inf
    assert usable(logits).tolist() == [True, False, False, False, True]
    ids = choose(logits, settings(5), noise(5))
    assert (ids >= 0).all() and (ids < VOCAB).all()


def test_logprobs_are_the_models_own():
    logits = random_logits(3).double()
    ids = torch.tensor([4, 0, 63])
    torch.testing.assert_close(logprobs_of(logits, ids), logits.log_softmax(-1)[torch.arange(3), ids])
