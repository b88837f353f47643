"""Keys and values in pages: what is read back is what was written, shared or not, and nothing is ever lost."""

import pytest
import torch

from intone.engine.kv import page_groups
from intone.engine.pages import PAGE

CONTEXT = 211
WINDOW = 70  # more than a page, so that windows end inside pages


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ids(length, seed=0):
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def models(random_model):
    """Models of a long context by name, each made once."""
    made = {}

    def model(preset="modern", **options):
        key = (preset, *sorted(options.items()))
        if key not in made:
            made[key] = random_model(preset, context=CONTEXT, window=WINDOW, **options)
        return made[key]

    return model


def full_logits(model, tokens):
    """(T, V) without a cache."""
    return model.logits(torch.tensor([tokens]))[0]


def assert_same(got, expected, atol=1e-9):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize("chunk", [1, 13, PAGE - 1, PAGE, PAGE + 1, WINDOW, WINDOW + 1, CONTEXT])
def test_cached_logits_equal_the_full_forward_at_every_position(models, texts_of, preset, chunk):
    model, tokens = models(preset), ids(CONTEXT)
    texts = texts_of(model)
    table = texts.open([0])
    pieces = [texts.feed({table: tokens[i : i + chunk]})[table] for i in range(0, CONTEXT, chunk)]
    assert table.length == CONTEXT
    assert_same(torch.cat(pieces), full_logits(model, tokens))


@pytest.mark.parametrize("batches_rows", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("heads_per_key, depth", [(1, 3), (2, 2), (4, 4)])
def test_texts_of_odd_lengths_together_equal_the_full_forward(
    models, texts_of, batches_rows, scattered, heads_per_key, depth
):
    model = models(heads_per_key=heads_per_key, depth=depth)
    texts = texts_of(model, batches_rows=batches_rows, scattered=scattered)
    tokens = [ids(length, seed) for seed, length in enumerate((173, 71, 130, 66))]
    tables = [texts.open([0]) for _ in tokens]
    got = [[] for _ in tokens]
    # prompts of 62, 1, 128 and 63; then single tokens across a page's end; then mixed chunks, and single ones again
    fed = [0] * len(tokens)
    steps = [(62, 1, 128, 63), *[(1, 0, 1, 1)] * 3, (1, 69, 0, 0), (80, 0, 0, 0), (1, 1, 0, 0), *[(1, 0, 0, 0)] * 6]
    for step in steps:
        ends = [min(len(text), at + count) for text, at, count in zip(tokens, fed, step, strict=True)]
        new = {t: text[a:b] for t, text, a, b in zip(tables, tokens, fed, ends, strict=True) if b > a}
        found = texts.feed(new)
        for place, table in enumerate(tables):
            if table in found:
                got[place].append(found[table])
        fed = ends
    for text, pieces, table in zip(tokens, got, tables, strict=True):
        logits = torch.cat(pieces)
        assert len(logits) == table.length > 65
        assert_same(logits, full_logits(model, text)[: len(logits)])


def test_float32_and_bfloat16_are_as_close_to_the_truth_as_the_training_model(models, texts_of):
    model, tokens = models(), ids(150)
    truth = full_logits(model, tokens)
    for dtype in (torch.float32, torch.bfloat16):
        texts = texts_of(model, dtype=dtype)
        table = texts.open([0])
        pieces = [texts.feed({table: tokens[:80]})[table]]
        pieces += [texts.feed({table: [token]})[table] for token in tokens[80:]]
        error = (torch.cat(pieces).double() - truth).abs().mean()
        model.compute_dtype = dtype
        own_error = (full_logits(model.to(dtype), tokens).double() - truth).abs().mean()
        model.to(torch.float64).compute_dtype = torch.float64
        assert error < 1.2 * own_error + 1e-7


@pytest.mark.parametrize("length", [1, 13, 64, 65, 150])
@pytest.mark.parametrize("batches_rows", [False, True])
def test_forks_of_a_prompt_go_on_as_if_each_had_fed_it(models, texts_of, length, batches_rows):
    model, prompt = models(), ids(length)
    texts = texts_of(model, batches_rows=batches_rows)
    first = texts.open([0])
    texts.feed({first: prompt})
    tables = [first, texts.fork(first), texts.fork(first)]
    pages = [pool.num_held for pool in texts.cache.pools]
    rest = [ids(20, seed) for seed in (5, 6, 7)]
    got = [[] for _ in tables]
    for place in range(0, 20, 4):
        # one token each, then three for each: a read of one query and one of several
        for begin, end in ((place, place + 1), (place + 1, place + 4)):
            new = {table: text[begin:end] for table, text in zip(tables, rest, strict=True)}
            found = texts.feed(new)
            for pieces, table in zip(got, tables, strict=True):
                pieces.append(found[table])
    for pieces, text in zip(got, rest, strict=True):
        assert_same(torch.cat(pieces), full_logits(model, prompt + text)[length:])
    shared = length // PAGE
    assert texts.cache.pools[0].num_held == shared + 3 * (-(-(length + 20) // PAGE) - shared)
    assert pages[0] == -(-length // PAGE)


@pytest.mark.parametrize("known, asked", [(150, 150), (100, 211), (190, 90), (64, 128), (65, 129), (40, 41)])
@pytest.mark.parametrize("scattered", [False, True])
def test_what_is_found_of_an_earlier_text_is_what_would_have_been_computed(models, texts_of, known, asked, scattered):
    model, tokens = models(), ids(CONTEXT)
    texts = texts_of(model, scattered=scattered)
    earlier = texts.open([0])
    texts.feed({earlier: tokens[:known]})
    texts.close(earlier)
    later = texts.open(tokens[:asked])
    assert later.length == later.num_found == min(known, asked - 1)
    rest = tokens[later.length : asked]
    assert_same(texts.feed({later: rest})[later], full_logits(model, tokens[:asked])[-len(rest) :])


def test_a_text_that_parts_inside_a_page_takes_the_common_beginning_and_leaves_the_other_alone(models, texts_of):
    model, tokens, other = models(), ids(120), [*ids(120)[:90], *ids(31, seed=3)]
    texts = texts_of(model)
    first = texts.open([0])
    texts.feed({first: tokens[:100]})
    texts.cache.remember_end(first, lambda a, b: texts.tokens[first][a:b])
    second = texts.open(other)
    assert second.length == 90
    got = texts.feed({first: tokens[100:], second: other[90:]})
    assert_same(got[first], full_logits(model, tokens)[100:])
    assert_same(got[second], full_logits(model, other)[90:])


def test_whole_pages_only_and_nothing_at_all_where_so_asked(models, texts_of):
    tokens = ids(150)
    for options, expected in (({"whole_pages": True}, 128), ({"remembers": False}, 0)):
        texts = texts_of(models(), **options)
        table = texts.open(tokens)
        texts.feed({table: tokens})
        texts.close(table)
        assert texts.open(tokens).length == expected


def test_windowed_pages_out_of_reach_are_given_back_and_still_found_by_others(models, texts_of):
    model, tokens = models(), ids(211)
    texts = texts_of(model)
    assert [group.reach for group in texts.cache.groups] == [None, WINDOW]
    table = texts.open([0])
    full, windowed = texts.cache.pools
    for token in tokens[:200]:
        texts.feed({table: [token]})
    # a token at 200 sees 130 to 199: pages 2 and 3
    assert (full.num_held, windowed.num_held, windowed.num_idle) == (4, 2, 2)
    other = texts.open(tokens[:131])
    assert other.length == 130  # needs pages 0 to 2 of the windowed group: 60 to 129
    assert_same(texts.feed({other: tokens[130:135]})[other], full_logits(model, tokens)[130:135])


def test_reserving_takes_nothing_where_there_is_not_enough_and_takes_back_what_is_idle(models, texts_of):
    texts = texts_of(models(), num_pages=3)
    old = texts.open([0])
    texts.feed({old: ids(130, seed=9)})
    assert [pool.num_free for pool in texts.cache.pools] == [0, 0]
    table = texts.open(ids(130))
    assert not texts.cache.reserve(table, 1)
    assert table.pages == [[], []]
    texts.close(old)
    # what was forgotten is forgotten for later texts too
    assert texts.cache.reserve(table, 190)
    assert texts.open(ids(130, seed=9)).length == 0


@pytest.mark.parametrize("forked", [False, True])
def test_keys_that_nobody_trusted_are_found_by_nobody_and_leave_zeros(models, texts_of, forked):
    texts, tokens = texts_of(models()), ids(200)
    table = texts.open([0])
    texts.feed({table: tokens[:100]})
    # the windowed group gives pages 0 and 1 back in this step, and page 1 holds some of its keys
    texts.feed({table: tokens[100:]}, trusts=False)
    other = texts.fork(table) if forked else None
    texts.close(table)
    if forked:
        texts.close(other)
    assert texts.open(tokens).length == PAGE
    for stored in texts.cache.store.blocks:
        assert stored[:PAGE].any() and not stored[PAGE : 4 * PAGE].any()
    assert [pool.num_held for pool in texts.cache.pools] == [1, 1]


def test_pages_at_the_end_of_a_closed_text_are_wiped_where_something_was_written_behind_it(models, texts_of):
    texts, tokens = texts_of(models()), ids(100)
    table = texts.open([0])
    texts.feed({table: tokens})
    texts.close(table)
    assert texts.cache.known_length(tokens) == 99
    texts.cache.wipe(table)
    assert texts.cache.known_length(tokens) == PAGE
    for stored in texts.cache.store.blocks:
        assert stored[:PAGE].any() and not stored[PAGE : 2 * PAGE].any()


def test_forgetting_all_leaves_nothing_to_find(models, texts_of):
    texts = texts_of(models())
    table = texts.open([0])
    texts.feed({table: ids(100)})
    texts.close(table)
    texts.cache.forget_all()
    assert texts.open(ids(100)).length == 0
    assert [pool.num_free for pool in texts.cache.pools] == [64, 64]


def test_blocks_that_see_equally_far_share_their_pages(models):
    groups = page_groups(models(depth=4).config, CONTEXT)
    assert [(group.blocks, group.reach) for group in groups] == [((3,), None), ((0, 1, 2), WINDOW)]
    # in a shorter context the window covers everything
    assert [group.blocks for group in page_groups(models(depth=4).config, WINDOW)] == [(0, 1, 2, 3)]
    assert [group.blocks for group in page_groups(models("classic").config, CONTEXT)] == [(0, 1, 2)]
