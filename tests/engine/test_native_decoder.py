"""A step on our CPU kernels is the same function as the packed model in PyTorch, and a text's numbers are its own."""

import pytest
import torch

from intone.engine.native_decoder import NativeDecoder, native_obstacle
from intone.engine.pages import PAGE
from intone.model.native import build

pytestmark = pytest.mark.skipif(
    build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}"
)


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ids(length, seed=0):
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def pair_of_texts(random_model, texts_of, *, dtype=torch.float32, stored_as="auto", **options):
    """The same model twice: by PyTorch in float64, and on our kernels."""
    model = random_model(dtype=torch.float64, **options)
    if dtype == torch.bfloat16:
        for name, parameter in model.named_parameters():
            if "scale" not in name and "gate" not in name:
                parameter.copy_(parameter.to(dtype))
        model.cos, model.sin = (table.to(dtype).to(torch.float64) for table in (model.cos, model.sin))
    ours = texts_of(model, dtype=dtype, scattered=True)
    ours.decoder = NativeDecoder.of(model, dtype=dtype, stored_as=stored_as)
    return texts_of(model, scattered=True), ours


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize("heads_per_key, depth", [(1, 3), (2, 2), (1, 4), (2, 1)])
def test_a_step_is_the_model(random_model, texts_of, preset, heads_per_key, depth):
    exact, ours = pair_of_texts(
        random_model, texts_of, preset=preset, heads_per_key=heads_per_key, depth=depth, context=3 * PAGE
    )
    tokens = ids(2 * PAGE + 9)
    for texts in (exact, ours):
        texts.first, texts.second = texts.open([0]), texts.open([0])
    # across pages and the window of 7: a chunk, single tokens beside another text's chunk, a chunk again
    for begin, end in ((0, 30), (30, PAGE - 1), (PAGE - 1, PAGE), (PAGE, PAGE + 1), (PAGE + 1, 2 * PAGE + 9)):
        new = {"first": tokens[begin:end], "second": tokens[begin : end + 2][::-1]}
        found = [texts.feed({getattr(texts, name): part for name, part in new.items()}) for texts in (exact, ours)]
        for name in new:
            torch.testing.assert_close(
                found[1][getattr(ours, name)].double(), found[0][getattr(exact, name)], atol=2e-5, rtol=0
            )


def test_in_bfloat16_less_is_rounded_than_by_pytorchs_operations(random_model, texts_of):
    exact, ours = pair_of_texts(random_model, texts_of, dtype=torch.bfloat16)
    plain = texts_of(random_model(dtype=torch.float64), dtype=torch.bfloat16)  # rounds activations too
    tokens = ids(40)
    expected, found, other = (
        texts.feed({(table := texts.open([0])): tokens})[table].double() for texts in (exact, ours, plain)
    )
    # what is stored, and where the processor multiplies bf16, what goes into a product; never what adds up
    most = 0.6 if build.obstacle("linear") else 0.8
    assert (found - expected).std() < most * (other - expected).std()


def test_eight_bits_lose_little(random_model, texts_of):
    exact, ours = pair_of_texts(random_model, texts_of, stored_as="int8")
    tokens = ids(40)
    found, expected = (texts.feed({(table := texts.open([0])): tokens})[table] for texts in (ours, exact))
    assert 1e-4 < (found.double() - expected).std() / expected.std() < 0.06  # 0.7 % a product


@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_same_bits_alone_in_company_and_in_any_chunk(random_model, texts_of, dtype, stored_as):
    model, tokens = random_model(dtype=torch.float32, heads_per_key=2, context=2 * PAGE), ids(PAGE + 20)

    def texts():
        made = texts_of(model, dtype=dtype, remembers=False, num_pages=256)
        made.decoder = NativeDecoder.of(model, dtype=dtype, stored_as=stored_as)
        return made

    alone = texts()
    table = alone.open([0])
    expected = torch.cat([alone.feed({table: [token]})[table] for token in tokens])
    for step in (3, 17, PAGE + 20):
        company = texts()
        table, others = company.open([0]), [company.open([0]) for _ in range(min(step, 19))]
        found = []
        for begin in range(0, len(tokens), step):
            new = {other: ids(1 + (begin + place) % 3, seed=place) for place, other in enumerate(others)}
            if others[0].length > PAGE:
                new = {}
            found.append(company.feed({**new, table: tokens[begin : begin + step]})[table])
        assert torch.equal(torch.cat(found), expected)


def test_weights_can_be_replaced_and_are_kept_until_then(random_model, texts_of):
    first, second = (random_model(dtype=torch.float32, seed=seed) for seed in (1, 2))
    tokens = ids(20)
    expected = [model.logits(torch.tensor([tokens]))[0] for model in (first, second)]
    texts = texts_of(first, remembers=False)
    texts.decoder = NativeDecoder.of(first, dtype=torch.float32)
    for parameter in first.parameters():
        parameter.zero_()
    for place, model in enumerate((first, second)):
        if place:
            texts.decoder.load(model.state_dict())
        table = texts.open([0])
        torch.testing.assert_close(texts.feed({table: tokens})[table], expected[place], atol=2e-5, rtol=0)
    with pytest.raises(RuntimeError, match="Missing key 'residual_scale'"):
        texts.decoder.load({})


def test_numbers_that_are_not_finite_stay_visible(random_model, texts_of):
    for stored_as in ("fp32", "int8"):
        model = random_model(dtype=torch.float32)
        model.embedding.weight[7, 3] = torch.nan
        texts = texts_of(model, remembers=False)
        texts.decoder = NativeDecoder.of(model, dtype=torch.float32, stored_as=stored_as)
        good, bad = texts.open([0]), texts.open([0])
        found = texts.feed({good: [5], bad: [1, 7, 5]})
        assert found[good].isfinite().all() and found[bad][0].isfinite().all()
        assert found[bad][1:].isnan().all()


def test_what_our_kernels_cannot_do_is_said(random_model):
    cpu = torch.device("cpu")
    config = random_model(dtype=torch.float32).config
    assert native_obstacle(config, device=cpu, dtype=torch.float32) is None
    assert "float64" in native_obstacle(config, device=cpu, dtype=torch.float64)
    assert "meta" in native_obstacle(config, device=torch.device("meta"), dtype=torch.float32)
