"""The packed model is the same function as the trained one."""

import pytest
import torch

from intone.engine.attend import Scratch


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ids(length, seed=0):
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def decoded(texts, tokens):
    table = texts.open([0])
    return texts.feed({table: tokens})[table]


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize("heads_per_key, depth", [(1, 3), (2, 2), (1, 4), (2, 1)])
def test_logits_are_those_of_the_model(random_model, texts_of, preset, heads_per_key, depth):
    model, tokens = random_model(preset, heads_per_key=heads_per_key, depth=depth), ids(45)
    got = decoded(texts_of(model), tokens)
    torch.testing.assert_close(got, model.logits(torch.tensor([tokens]))[0], atol=1e-9, rtol=0)


def test_pairs_turn_alike_with_and_without_complex_numbers(random_model, texts_of):
    texts, tokens = texts_of(random_model()), ids(30)
    expected = decoded(texts, tokens)
    texts.decoder._turns = None  # as on a device without complex numbers
    torch.testing.assert_close(decoded(texts, tokens), expected, atol=1e-12, rtol=0)


def test_only_wanted_places_give_logits_and_a_vocabulary_may_be_padded(random_model, texts_of):
    model = random_model(vocab_size=61)
    assert model.head.weight.shape[0] == 64
    assert decoded(texts_of(model), ids(9)).shape == (9, 61)


def test_a_decoder_keeps_its_weights_until_it_is_given_others(random_model, texts_of):
    first, second = (random_model(seed=seed) for seed in (1, 2))
    tokens = ids(20)
    expected = [model.logits(torch.tensor([tokens]))[0] for model in (first, second)]
    texts = texts_of(first, remembers=False)
    for parameter in first.parameters():
        parameter.zero_()
    torch.testing.assert_close(decoded(texts, tokens), expected[0], atol=1e-9, rtol=0)
    texts.decoder.load(second.state_dict())
    torch.testing.assert_close(decoded(texts, tokens), expected[1], atol=1e-9, rtol=0)


def test_weights_of_another_model_are_refused_and_change_nothing(random_model, texts_of):
    model, tokens = random_model(), ids(20)
    texts = texts_of(model, remembers=False)
    expected = decoded(texts, tokens)
    for change, words in (
        ({"head.weight": torch.zeros(3, 3)}, "size mismatch for 'head.weight'.*the model has .64, 192."),
        ({"heads": torch.zeros(1)}, "unexpected key 'heads'"),
    ):
        with pytest.raises(RuntimeError, match=words):
            texts.decoder.load({**random_model(seed=5).state_dict(), **change})
    with pytest.raises(RuntimeError, match="Missing key 'residual_scale'"):
        texts.decoder.load({})
    assert torch.equal(decoded(texts, tokens), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_numbers_do_not_depend_on_how_many_tokens_are_computed(random_model, texts_of, dtype):
    model, tokens = random_model(dtype=torch.float32), ids(45)
    texts = texts_of(model, dtype=dtype, deterministic=True, remembers=False)
    others = [texts.open([0]) for _ in range(19)]
    alone, table = texts.open([0]), texts.open([0])
    texts.feed({alone: tokens[:30]})
    texts.feed({table: tokens[:30]})
    for place in range(30, 40):
        expected = texts.feed({alone: tokens[place : place + 1]})[alone]
        company = {other: ids(1 + (number + place) % 2, seed=number) for number, other in enumerate(others)}
        got = texts.feed({**company, table: tokens[place : place + 1]})[table]
        assert torch.equal(got, expected)


def test_keys_may_be_read_narrower_than_queries_are_computed(random_model, texts_of):
    # as on a GPU: queries come in float32, keys are attended to in bfloat16
    model, tokens = random_model(dtype=torch.float32), ids(30)
    config, found = model.config, []
    for wide in (torch.float32, torch.bfloat16):
        texts = texts_of(model, dtype=torch.bfloat16, batches_rows=True)
        texts.scratch = Scratch(config.num_kv_heads, config.head_width, wide, torch.device("cpu"))
        table, other = texts.open([0]), texts.open([0])
        texts.feed({table: tokens, other: tokens[:9]})
        many = texts.feed({table: [5, 9], other: [3]})
        found.append(torch.cat([*many.values(), texts.feed({table: [7]})[table]]))
    torch.testing.assert_close(found[1], found[0], atol=0.02 * float(found[0].abs().max()), rtol=0)
