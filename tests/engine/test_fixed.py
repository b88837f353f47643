"""Steps of fixed sizes give the tokens of steps that the host plans, at every border of pages, windows and sizes"""

import numpy as np
import pytest
import torch

from intone.engine import ahead, fixed, sample
from intone.engine.engine import Engine
from intone.engine.kv import PageStore, page_groups
from intone.engine.naive import generate_naive
from intone.engine.pages import PAGE
from intone.engine.requests import Request
from intone.engine.sample import Settings, choose, choose_on_device, streams, uniforms, uniforms_on_device
from intone.errors import UserError


@pytest.fixture(scope="module")
def model(random_model):
    # float64: greedy choices and draws have no near ties. A window that ends inside a page, texts over several pages
    return random_model(vocab_size=265, depth=3, scale=0.2, context=4 * PAGE, window=70, heads_per_key=3)


@pytest.fixture(params=[0.0, 10.0], ids=["single", "lumps"])
def small_sizes(request, monkeypatch):
    """Sizes between which these tests move: of rows 1, 2, 3, 5 and 8, of tokens seen 64, 128 and all; steps that are
    launched one by one, and as many in a lump as there is room for."""
    monkeypatch.setattr(ahead, "LUMP_S", request.param)
    monkeypatch.setattr(fixed, "ROWS", (1, 2, 3, 5, 8))
    monkeypatch.setattr(fixed, "CONTEXTS", (PAGE, 2 * PAGE))


def requests(seed, *, temperature, count=9):
    """Prompts that end before, at and after the ends of pages, with other limits, stops and filters each."""
    rng = np.random.default_rng(seed)
    lengths = [PAGE - 3, 1, PAGE, 2 * PAGE - 1, 5, PAGE + 1, 69, 70, 2 * PAGE + 7]
    return [
        Request(
            rng.integers(0, 256, length).tolist(), max_tokens=int(rng.integers(3, 75)), seed=place, n=1 + place % 2,
            temperature=temperature * (1 if place % 3 else 0), top_k=(None, 20, 7)[place % 3],
            top_p=(1.0, 0.9)[place % 2], min_p=0.02 * (place % 2), logprobs=place % 2 == 0,
            stop=[int(rng.integers(0, 256))] if place % 4 == 1 else [],
        )
        for place, length in enumerate(lengths[:count])
    ]  # fmt: skip


def answers(engine, asked):
    return [[(sample.ids, sample.reason) for sample in samples] for samples in engine.generate(asked)]


def both(model, tokenizer, asked, **options):
    """The answers with steps of the host and with fixed ones; and how many of the latter there were."""
    found = []
    for steps in ("eager", "captured"):
        sizes = {"num_guesses": 0, "prompt_tokens": PAGE, **options}  # prompts come in parts, beside texts that grow
        with Engine(model, tokenizer, kernels="torch", steps=steps, **sizes) as engine:
            found.append(answers(engine, asked))
            desk = engine._worker._ahead
    return *found, desk._steps._num_launched


# a third of the texts at temperature 1 are greedy, and in one slot each of them is alone: that is not done twice
@pytest.mark.parametrize(("num_slots", "temperature"), [(1, 1.0), (3, 0.0), (3, 1.0), (7, 0.0), (7, 1.0)])
def test_tokens_are_those_of_steps_by_the_host(model, byte_tokenizer, small_sizes, temperature, num_slots):
    asked = requests(num_slots, temperature=temperature)
    by_host, by_device, num_launched = both(model, byte_tokenizer, asked, num_slots=num_slots)
    assert by_device == by_host
    assert num_launched > 60


def test_log_probabilities_are_the_models(model, byte_tokenizer, small_sizes):
    asked = [Request([5, 9, 200], max_tokens=PAGE + 5, seed=1), Request([7] * 60, max_tokens=9, seed=2, n=2)]
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured") as engine:
        found = engine.generate(asked)
    for request, samples in zip(asked, found, strict=True):
        for completion in samples:
            text = [*request.prompt, *completion.ids]
            logits = model.logits(torch.tensor([text]))[0].log_softmax(-1).detach()
            places = range(len(request.prompt) - 1, len(text) - 1)
            assert completion.logprobs == pytest.approx(logits[places, completion.ids].tolist(), abs=1e-9)


def test_what_the_device_cannot_decide_the_host_draws(model, byte_tokenizer, small_sizes, monkeypatch):
    monkeypatch.setattr(sample, "MOST_COLUMNS", 3)
    asked = [
        Request([3, 4], max_tokens=20, seed=1, top_p=0.95, temperature=3.0),
        Request([8], max_tokens=25, seed=2, top_k=2),
        Request([8, 1], max_tokens=15, seed=2, top_k=40),
    ]
    by_host, by_device, _ = both(model, byte_tokenizer, asked)
    assert by_device == by_host


def test_rows_that_need_the_host_run_beside_others_and_end_alike(model, byte_tokenizer, small_sizes):
    asked = [
        Request([3, 4], max_tokens=20, seed=1, frequency_penalty=0.5),
        Request([8, 9, 7], max_tokens=40, seed=2),
        Request([8, 9], max_tokens=30, seed=2, min_tokens=20),
        Request([8, 5], max_tokens=30, seed=6, min_tokens=1),
        Request([1, 9], max_tokens=30, seed=4, stop=["q", "zz"]),
        Request([1, 2], max_tokens=12, seed=4, logit_bias={5: 3.0}),
    ]
    by_host, by_device, num_launched = both(model, byte_tokenizer, asked)
    assert by_device == by_host and num_launched > 5


def test_new_weights_are_what_later_steps_read(random_model, byte_tokenizer, small_sizes):
    old, new = (random_model(vocab_size=265, depth=1, scale=0.2, seed=seed) for seed in (1, 2))
    request = Request([5, 9, 200], max_tokens=12, temperature=0)
    with Engine(old, byte_tokenizer, kernels="torch", steps="captured") as engine:
        assert engine.generate([request])[0][0].ids == generate_naive(old, [5, 9, 200], max_tokens=12).ids
        steps = engine._worker._ahead._steps
        assert steps._steps
        engine.update_weights(new.state_dict())
        assert not steps._steps  # on a GPU a captured step would read where the old weights were
        assert engine.generate([request])[0][0].ids == generate_naive(new, [5, 9, 200], max_tokens=12).ids


def test_uniforms_of_the_device_are_those_of_the_host():
    rng = np.random.default_rng(0)
    states = streams(rng.integers(0, 2**63, 400).astype(np.uint64), np.arange(400))
    positions = rng.integers(0, 100_000, 400)
    found = uniforms_on_device(torch.from_numpy(states.astype(np.int64)), torch.from_numpy(positions))
    assert found.numpy().tolist() == uniforms(states, positions).tolist()


@pytest.mark.parametrize("columns", [4, 64, 1024])
def test_draws_of_the_device_are_those_of_the_host_where_it_decides(columns, monkeypatch):
    monkeypatch.setattr(sample, "MOST_COLUMNS", columns)
    rng = np.random.default_rng(3)
    count, vocab = 300, 301
    logits = torch.from_numpy(rng.normal(size=(count, vocab)) * 2)
    logits[::7, 10:20] = logits[::7, 10:11]  # ties at the borders of filters
    wanted = Settings(
        temperature=rng.choice([0.0, 0.7, 1.5], count), top_k=rng.choice([1, 3, 40, 250, vocab], count),
        top_p=rng.choice([0.3, 0.9, 1.0], count), min_p=rng.choice([0.0, 0.05], count),
    )  # fmt: skip
    uniform = rng.random(count)
    parts = (wanted.temperature, wanted.top_k, wanted.top_p, wanted.min_p, uniform)
    ids, is_decided = choose_on_device(logits, *(torch.from_numpy(part) for part in parts))
    expected = choose(logits, wanted, uniform)
    assert ids[is_decided].tolist() == expected[is_decided].tolist()
    if columns >= vocab:
        assert is_decided.all()
    else:
        is_limited = (wanted.temperature > 0) & ((wanted.top_k < vocab) | (wanted.top_p < 1))
        assert is_decided[~torch.from_numpy(is_limited)].all() and 0 < is_decided.sum() < count


@pytest.mark.parametrize(
    "options", [{"deterministic": True, "kernels": "torch"}, {"num_guesses": 2, "kernels": "torch"}], ids=str
)
def test_captured_steps_are_refused_where_they_cannot_be_had(model, byte_tokenizer, options):
    with pytest.raises(UserError, match="steps captured cannot be had"):
        Engine(model, byte_tokenizer, steps="captured", **options)


def test_a_step_that_nobody_waits_for_leaves_nothing_that_a_later_text_reads(random_model, byte_tokenizer):
    model = random_model(vocab_size=265, depth=2, scale=0.2, context=2 * PAGE)
    first, later = [7] * 30, Request([3, 4], max_tokens=9, temperature=0)
    ids = generate_naive(model, first, max_tokens=PAGE).ids
    # a token that is a letter, comes for the first time, and is fed by a step that runs ahead
    place = next(k for k, token in enumerate(ids) if k > 1 and token < 128 and token not in [7, *ids[:k]])
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured") as engine:
        expected = answers(engine, [later])
    assert ids[place] not in [*later.prompt, *expected[0][0][0]]
    with torch.no_grad():
        model.embedding.weight[ids[place]] = torch.nan
    # the host alone finds a stop text: the step that feeds its last token runs by then
    options = {"kernels": "torch", "steps": "captured", "share_prefixes": False}  # so its page is the next one taken
    with Engine(model, byte_tokenizer, **options) as engine:
        found = answers(engine, [Request(first, max_tokens=PAGE, temperature=0, stop=chr(ids[place]))])
        assert found == [[(ids[: place + 1], "stop")]]
        assert answers(engine, [later]) == expected


def test_keys_may_be_read_narrower_than_queries_are_computed(random_model):
    # as on a GPU: queries come in float32, keys are attended to in bfloat16
    config = random_model(depth=3, heads_per_key=3, context=PAGE).config  # six heads of 32
    generator, found = torch.Generator().manual_seed(0), []
    q, kv = (torch.randn(shape, generator=generator) for shape in ((2, 6, 32), (2, 2, 2, 32)))
    for wide in (torch.float32, torch.bfloat16):
        groups = page_groups(config, PAGE)
        store = PageStore(
            config, groups, [3] * len(groups), dtype=torch.bfloat16, device=torch.device("cpu"), has_spare=True
        )
        store.blocks[0][: 2 * PAGE] = torch.randn((2 * PAGE, 2, 2, 32), generator=generator.manual_seed(1))
        attention = fixed.FixedAttention(
            store, [torch.tensor([[0], [1]])] * len(groups), [3] * len(groups), torch.tensor([5, 63]),
            torch.tensor([True, True]), context=PAGE, scale=0.3, wide=wide,
        )  # fmt: skip
        found.append(attention(0, q, kv.bfloat16()))
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], atol=0.03, rtol=0)  # bfloat16 has 8 bits: 0.4 % of 3


@pytest.mark.parametrize(("lump_s", "most"), [(0.0, 2), (10.0, 16)])
def test_so_many_steps_are_launched_before_their_results_are_read(model, byte_tokenizer, monkeypatch, lump_s, most):
    monkeypatch.setattr(ahead, "LUMP_S", lump_s)
    seen = []
    launch = fixed.FixedSteps.launch

    def counted(steps):
        launch(steps)
        seen.append(steps.num_ahead)

    monkeypatch.setattr(fixed.FixedSteps, "launch", counted)
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured", num_guesses=0) as engine:
        engine.generate([Request([3, 4], max_tokens=60, temperature=0.0)])
    assert max(seen) == most and len(seen) == 59
