"""Run by test_step_kernels.py with Triton's interpreter: its kernels against the decoder that PyTorch computes."""

from dataclasses import dataclass

import pytest
import torch

from intone.bench.gpu_suites.decode_kernels import ALLOWED as ALLOWED_THERE
from intone.bench.gpu_suites.decode_kernels import FEW_ROWS, ONE_ROW, apart
from intone.config import model_config
from intone.engine import fused_decoder, products
from intone.engine.decoder import Batch, GPTDecoder, wide_dtype
from intone.engine.engine import Engine
from intone.engine.fixed import FixedAttention, FixedSteps, Shape
from intone.engine.fused_decoder import LOGITS_BLOCK, FusedDecoder, StepRows, launch_options, small_product
from intone.engine.kv import PageStore, page_groups
from intone.engine.naive import generate_naive
from intone.engine.pages import PAGE
from intone.engine.requests import Request
from intone.errors import UserError
from intone.model.gpt import GPT

CONTEXT = 5 * PAGE
# relative to the largest logit: float32 sums in another order; bfloat16 has 8 bits, and rounds at other places here
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 5e-3}


@pytest.fixture(autouse=True)
def plain_products(monkeypatch):
    monkeypatch.setattr(products, "can_pack", lambda weight: False)
    with torch.inference_mode():
        yield


@dataclass
class Case:
    """A decoder, rows in the middle of their texts, and stores with the same random keys for both sides."""

    decoder: GPTDecoder
    rows: StepRows
    stores: tuple[PageStore, PageStore]
    trash: list[int]

    def expected(self):
        store, (rows, config) = self.stores[0], (self.rows, self.decoder.config)
        attention = FixedAttention(
            store, rows.tables, self.trash, rows.position, rows.running > 0, context=CONTEXT,
            scale=self.scale, wide=wide_dtype(self.decoder.dtype),
        )  # fmt: skip
        wanted = torch.arange(len(rows.token))
        assert config.context == CONTEXT
        return self.decoder.logits(Batch(rows.token, rows.before, rows.position, wanted, attention))

    def found(self, *, units=4):
        fused = FusedDecoder(self.decoder, self.stores[1], trash=self.trash, scale=self.scale, units=units)
        return fused.logits(self.rows, context=CONTEXT)

    @property
    def scale(self):
        config = self.decoder.config
        return config.qk_scale**2 * config.head_width**-0.5


def make_case(model, positions, *, dtype=torch.float32, idle=(), seed=0):
    """positions: of each row's new token. idle: rows that do not run. Pages are in no order."""
    generator = torch.Generator().manual_seed(seed)
    device = torch.device("cpu")
    config, count = model.config, len(positions)
    decoder = GPTDecoder.of(model, device=device, dtype=dtype)
    groups = page_groups(config, CONTEXT)
    num_pages = count * CONTEXT // PAGE
    stores = tuple(
        PageStore(config, groups, [num_pages] * len(groups), dtype=dtype, device=device, has_spare=True)
        for _ in range(2)
    )
    for block, other in zip(*(store.blocks for store in stores), strict=True):
        block.copy_(torch.randn(block.shape, generator=generator))
        other.copy_(block)
    running = torch.ones(count, dtype=torch.int64)
    running[list(idle)] = 0
    token, before = (torch.randint(0, config.vocab_size, (count,), generator=generator) for _ in range(2))
    position = torch.tensor(positions)
    tables = [torch.randperm(num_pages, generator=generator).view(count, -1) for _ in groups]
    rows = StepRows(token, torch.where(position > 0, before, -1), position, running, tables)
    return Case(decoder, rows, stores, [num_pages] * len(groups))


def assert_same(case, **options):
    """Logits, and what the pages hold afterwards: everything but the trash, which several rows may write to."""
    expected, found = case.expected(), case.found(**options)
    allowed = ALLOWED[case.decoder.dtype]
    assert found.shape == expected.shape and found.isfinite().all()
    runs = case.rows.running > 0
    torch.testing.assert_close(found[runs], expected[runs], rtol=0, atol=allowed * float(expected.abs().max()))
    for one, other in zip(*(store.blocks for store in case.stores), strict=True):
        kept = slice(0, len(one) - PAGE)
        most = allowed * float(one.abs().max())
        torch.testing.assert_close(other[kept].float(), one[kept].float(), rtol=0, atol=most)


@pytest.mark.parametrize(
    ("preset", "dtype", "positions"),
    [
        ("modern", torch.float32, [200]), ("modern", torch.float32, [0, 63, 130]), ("modern", torch.bfloat16, [200]),
        ("modern", torch.bfloat16, [130, 64]), ("modern", torch.float16, [1, 63]), ("classic", torch.float32, [200]),
        ("classic", torch.float32, [64, 3]),
    ],
    ids=str,
)  # fmt: skip
def test_logits_and_pages_are_those_of_the_decoder(random_model, preset, dtype, positions):
    # of two blocks one has a window, one gates
    assert_same(make_case(random_model(preset, context=CONTEXT, window=70, depth=2), positions, dtype=dtype))


def test_rows_at_every_border_of_pages_and_windows(random_model):
    positions = [0, 1, 63, 64, 65, 69, 70, 71, 128, 5 * PAGE - 1]
    assert_same(make_case(random_model(context=CONTEXT, window=70, depth=2), positions))


@pytest.mark.parametrize(("units", "heads_per_key"), [(1, 2), (6, 1), (200, 2)])
def test_splits_of_what_a_row_sees_meet_again(random_model, units, heads_per_key):
    model = random_model(context=CONTEXT, window=70, depth=2, heads_per_key=heads_per_key)
    assert_same(make_case(model, [310, 64]), units=units)


def test_more_rows_than_a_tile_and_rows_that_do_not_run(random_model):
    model = random_model(context=CONTEXT, window=70, heads_per_key=3)
    positions = [0, 63, 64, 65, 319, *range(5, 245, 20)]
    assert_same(make_case(model, positions, idle=[2, 16]))


def test_a_few_rows_of_which_one_does_not_run(random_model):
    assert_same(make_case(random_model(context=CONTEXT, window=70, depth=2), [70, 5, 64], idle=[1]))


def test_a_model_whose_middle_is_its_end(random_model):
    assert_same(make_case(random_model(context=CONTEXT, depth=1), [70]))


def test_numbers_that_are_not_finite_reach_the_logits(random_model):
    case = make_case(random_model(context=CONTEXT, depth=2), [70, 3])
    page = int(case.rows.tables[0][0, 1])
    case.stores[1].blocks[1][page * PAGE + 2] = torch.nan
    assert case.found().isfinite().all(1).tolist() == [False, True]
    case.stores[1].blocks[1][page * PAGE + 2] = 0.0
    case.stores[1].blocks[1][page * PAGE + 9] = torch.nan  # behind the text's end: nobody reads it
    assert case.found().isfinite().all()


def test_an_engine_says_the_same_texts_with_them(random_model, byte_tokenizer):
    model = random_model(vocab_size=265, depth=1, scale=0.2, context=2 * PAGE, dtype=torch.float32)
    asked = [Request([7] * 62, max_tokens=5, temperature=0), Request([3, 4], max_tokens=3, temperature=0)]
    found = []
    for step_kernels in ("torch", "triton"):
        options = {"kernels": "torch", "steps": "captured", "step_kernels": step_kernels}
        with Engine(model, byte_tokenizer, **options) as engine:
            found.append([samples[0].ids for samples in engine.generate(asked)])
            assert engine.settings["step_kernels"] == (step_kernels, "as asked")
            assert engine._worker._ahead._steps._num_launched
    assert found[0] == found[1]


def test_obstacles_are_said(random_model, byte_tokenizer):
    narrow = GPT(model_config("modern", depth=1, vocab_size=265, context=32, head_width=16))
    narrow.init_weights(seed=0)
    wide = random_model(vocab_size=265, depth=1, context=32)
    for model, words in ((narrow, "heads are 16 wide, they take 32, 64"), (wide, "they do not compute in float64")):
        with pytest.raises(UserError, match=words):
            Engine(model, byte_tokenizer, kernels="torch", steps="captured", step_kernels="triton")


def test_the_check_on_a_gpu_measures_how_far_logits_are_apart(monkeypatch):
    config = model_config("modern", depth=2, vocab_size=64, context=2 * PAGE)
    same = apart(config, 2, torch.device("cpu"))
    assert 0 < same <= ALLOWED_THERE
    monkeypatch.setattr(fused_decoder, "SMEAR_CHANNELS", 7)  # a gate of fewer channels
    assert apart(config, 2, torch.device("cpu")) > 3 * same


@pytest.mark.parametrize("blocks", [*ONE_ROW, *FEW_ROWS], ids=str)
def test_every_cut_gives_the_same_product(blocks):
    generator = torch.Generator().manual_seed(0)
    rows, columns, depth = (1 if blocks in ONE_ROW else 3), 21, 1100  # no multiples of any block
    x, weight = (torch.randn((count, depth), generator=generator) for count in (rows, columns))
    out = torch.full((rows, columns), torch.nan)
    small_product(x, weight, out, ending="store", options=launch_options(False), norm_eps=1e-6, blocks=blocks)
    expected = torch.nn.functional.rms_norm(x, (depth,), eps=1e-6) @ weight.T
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)


def test_the_likeliest_tokens_and_what_follows_are_those_of_pytorch(random_model):
    case, generator = make_case(random_model(context=CONTEXT, depth=1), [0] * 13), torch.Generator().manual_seed(0)
    logits = torch.randn((13, LOGITS_BLOCK + 300), generator=generator)
    logits[0, [7, LOGITS_BLOCK + 9]] = 50.0  # the first of two
    logits[1, [LOGITS_BLOCK + 9, LOGITS_BLOCK + 10]] = 50.0
    logits[2, 5], logits[3, 5], logits[4, 5], logits[5] = torch.nan, torch.inf, -torch.inf, -torch.inf
    likeliest = logits.argmax(1)
    found = []
    for is_fused in (True, False):
        steps = FixedSteps(
            case.decoder, case.stores[0], context=CONTEXT, scale=1.0, most_rows=13, is_fused=is_fused
        )
        steps._whole.copy_(torch.arange(steps._whole.numel()).view_as(steps._whole) * 3 + 2)
        steps._whole[3, 7], steps._whole[4, 8] = 1, 0  # one token left, does not run
        steps._stops[9, 11], steps._stops[10, 0] = likeliest[9], likeliest[9]
        steps._choose(Shape(13, CONTEXT, is_greedy=True, has_logprobs=False), logits)
        found.append((steps._whole[:, :13], steps._out[:, :13]))
    (state, out), (expected, expected_out) = found
    usable = [True, True, False, False, True, False, *[True] * 7]
    assert torch.equal(state, expected) and torch.equal(out[2], expected_out[2])
    assert torch.equal(out[0, usable], expected_out[0, usable])
    assert state[4].tolist() == [1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 1]


def test_an_engine_whose_kernels_fail_goes_on_with_pytorchs_and_says_so(random_model, byte_tokenizer, monkeypatch):
    model = random_model(vocab_size=265, depth=1, scale=0.2, context=2 * PAGE, dtype=torch.float32)
    asked = [Request([7] * 5, max_tokens=7, temperature=0), Request([3, 4], max_tokens=5, temperature=0)]
    expected, calls = [generate_naive(model, request.prompt, max_tokens=7).ids for request in asked], []

    def failing(fused, rows, *, context):
        calls.append(len(rows.token))
        if len(calls) == 2:
            raise ValueError("out of resource\nmore words")
        return logits(fused, rows, context=context)

    logits = FusedDecoder.logits
    monkeypatch.setattr(FusedDecoder, "logits", failing)
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured", step_kernels="triton") as engine:
        assert [samples[0].ids for samples in engine.generate(asked)] == [expected[0], expected[1][:5]]
        assert engine.settings["step_kernels"] == ("torch", "ours failed here: out of resource")
        assert len(calls) == 2 and engine._worker._ahead._steps._num_launched > 3


@pytest.mark.parametrize("is_wrong", [False, True])
def test_kernels_whose_logits_are_not_pytorchs_are_left_before_their_first_token(
    random_model, byte_tokenizer, monkeypatch, is_wrong
):
    logits, calls = FusedDecoder.logits, []

    def planted(fused, rows, *, context):
        calls.append(len(rows.token))
        found = logits(fused, rows, context=context)
        return found.roll(1, dims=1) if is_wrong else found

    monkeypatch.setattr(FusedDecoder, "logits", planted)
    model = random_model(vocab_size=265, depth=1, scale=0.2, context=2 * PAGE, dtype=torch.float32)
    request = Request([7] * 5, max_tokens=7, temperature=0)
    with Engine(model, byte_tokenizer, kernels="torch", steps="captured", step_kernels="triton") as engine:
        found = engine.generate([request])[0][0].ids
        value, why = engine.settings["step_kernels"]
    assert found == generate_naive(model, request.prompt, max_tokens=7).ids
    assert value == ("torch" if is_wrong else "triton") and ("off PyTorch's" in why) == is_wrong
    assert len(calls) == (1 if is_wrong else 7)  # the check's, and one for each token behind the first
