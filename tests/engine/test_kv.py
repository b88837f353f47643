import pytest
import torch

from intone.engine.kv import KVCache, slot_bytes

CONTEXT = 45
WINDOW = 7


def sample_ids(rows, length, seed=0):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def feed(model, cache, rows):
    """rows {slot: ids} fed as one padded pass -> {slot: logits (len, V)}."""
    slots, counts = list(rows), [len(ids) for ids in rows.values()]
    padded = torch.zeros(len(slots), max(counts), dtype=torch.long)
    for row, ids in enumerate(rows.values()):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    logits = model.logits(padded, cache=cache.view(slots, counts))
    return {slot: logits[row, :count] for row, (slot, count) in enumerate(zip(slots, counts, strict=True))}


def new_cache(model, num_slots=5):
    dtype = model.compute_dtype
    return KVCache(model.config, num_slots=num_slots, capacity=CONTEXT, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize("chunk", [1, 3, WINDOW - 1, WINDOW, WINDOW + 1, CONTEXT])
@torch.no_grad()
def test_cached_logits_equal_the_full_forward_at_every_position(random_model, preset, chunk):
    model = random_model(preset)
    ids = sample_ids(2, CONTEXT)
    cache = new_cache(model)
    pieces = [model.logits(ids[:, i : i + chunk], cache=cache.view([0, 1], [len(ids[0, i : i + chunk])] * 2))
              for i in range(0, CONTEXT, chunk)]  # fmt: skip
    assert cache.lengths[:2] == [CONTEXT, CONTEXT]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.logits(ids), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@torch.no_grad()
def test_rows_of_odd_lengths_in_any_slots_equal_the_full_forward(random_model, dtype, atol):
    model = random_model(dtype=dtype, heads_per_key=2, depth=4)
    texts = {3: sample_ids(1, 29, seed=1)[0], 0: sample_ids(1, 17, seed=2)[0], 4: sample_ids(1, 23, seed=3)[0]}
    cache = new_cache(model)
    logits = {slot: [] for slot in texts}
    # prompts of 5, 1 and 11; then single tokens of some rows; then mixed chunks, one row not at all
    fed = dict.fromkeys(texts, 0)
    for step in ({3: 5, 0: 1, 4: 11}, {0: 1, 4: 1}, {4: 3, 3: 8, 0: 1}, {0: 0, 3: 16, 4: 8}, {0: 14}):
        new = {slot: texts[slot][fed[slot] : fed[slot] + count] for slot, count in step.items()}
        for slot, rows in feed(model, cache, new).items():
            logits[slot].append(rows)
            fed[slot] += step[slot]
    for slot, text in texts.items():
        got = torch.cat(logits[slot])
        torch.testing.assert_close(got, model.logits(text[None])[0, : len(got)], atol=atol, rtol=0)
        assert cache.lengths[slot] == len(got) == len(text)


@torch.no_grad()
def test_a_copied_prompt_goes_on_like_the_original(random_model):
    model = random_model()
    prompt, rest = sample_ids(1, 13)[0], sample_ids(1, 9, seed=5)[0]
    cache = new_cache(model)
    feed(model, cache, {2: prompt})
    cache.copy(2, [0, 4])
    feed(model, cache, {2: sample_ids(1, 4, seed=9)[0]})
    got = feed(model, cache, {4: rest, 0: rest[:3]})
    expected = model.logits(torch.cat((prompt, rest))[None])[0, 13:]
    torch.testing.assert_close(got[4], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(got[0], expected[:3], atol=1e-9, rtol=0)


@torch.no_grad()
def test_a_freed_slot_starts_afresh(random_model):
    model = random_model()
    cache = new_cache(model)
    feed(model, cache, {1: sample_ids(1, 31)[0], 2: sample_ids(1, 3)[0]})
    cache.free(1)
    ids = sample_ids(1, 6, seed=4)[0]
    got = feed(model, cache, {1: ids, 2: ids})
    torch.testing.assert_close(got[1], model.logits(ids[None])[0], atol=1e-9, rtol=0)


@torch.no_grad()
def test_a_scrubbed_slot_leaves_no_trace_of_numbers_that_were_not_finite(random_model):
    model = random_model()
    cache = new_cache(model)
    feed(model, cache, {0: sample_ids(1, 8)[0], 1: sample_ids(1, 20)[0]})
    for stored in (*cache.keys, *cache.values):
        stored[0] = torch.nan
    cache.scrub(0)
    ids = sample_ids(1, 3, seed=6)[0]
    got = feed(model, cache, {0: ids, 1: ids})
    torch.testing.assert_close(got[0], model.logits(ids[None])[0], atol=1e-9, rtol=0)


def test_a_view_refuses_more_tokens_than_the_slot_has_room_for(random_model):
    cache = new_cache(random_model())
    with pytest.raises(AssertionError, match="room for 45 tokens, asked for 46"):
        cache.view([0], [CONTEXT + 1])


def test_slot_bytes_are_those_of_the_tensors(random_model):
    model = random_model(dtype=torch.float32)
    cache = new_cache(model, num_slots=3)
    tensors = (*cache.keys, *cache.values, cache.previous)
    assert sum(t.nbytes for t in tensors) == 3 * slot_bytes(model.config, capacity=CONTEXT, dtype=torch.float32)
