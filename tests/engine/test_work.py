"""What holds whatever runs together: a text is its own affair, guesses change no token, nothing leaks, all end"""

import math
import random
import threading

import numpy as np
import pytest
import torch

from intone.engine.engine import Engine
from intone.engine.naive import generate_naive
from intone.engine.pages import PAGE
from intone.engine.requests import Done, Failed, Request
from intone.model.native import build

KERNELS = ["torch"] + (["native"] if build.obstacle("generate") is None else [])


@pytest.fixture(scope="module")
def model(random_model):
    # a window inside a page and texts over several pages
    return random_model(vocab_size=265, depth=2, scale=0.2, dtype=torch.float32, context=4 * PAGE, window=21)


@pytest.fixture(scope="module")
def failing_model(random_model):
    """The same, but texts with token 255 fail, where it is given or drawn."""
    model = random_model(vocab_size=265, depth=2, scale=0.2, dtype=torch.float32, context=4 * PAGE, window=21)
    with torch.no_grad():
        model.embedding.weight[255] = torch.nan
    return model


def prompt(rng, low, high, start=()):
    return [*start, *rng.integers(0, 256, int(rng.integers(low, high))).tolist()]


def answers(engine, requests):
    return [[(sample.ids, sample.logprobs) for sample in samples] for samples in engine.generate(requests)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("stored_as", ["auto", "int8"])
def test_deterministic_tokens_and_logprobs_have_the_same_bits_in_any_company(model, byte_tokenizer, kernels, stored_as):
    if kernels == "torch" and stored_as == "int8":
        pytest.skip("eight bits are our kernels'")
    rng = np.random.default_rng(4)
    start = prompt(rng, PAGE + 9, PAGE + 10)
    wanted = [
        Request(prompt(rng, 3, 90, start), max_tokens=int(rng.integers(3, 25)), n=1 + number % 2, logprobs=True,
                temperature=number % 2, seed=number)
        for number in range(4)
    ]  # fmt: skip
    options = {"deterministic": True, "kernels": kernels, "weights": stored_as}
    expected = []
    for request in wanted:
        with Engine(model, byte_tokenizer, share_prefixes=False, **options) as engine:
            expected += answers(engine, [request])
    for mix in range(3):
        others = [
            Request(prompt(rng, 1, 150, start[: 40 * (k % 3)]), max_tokens=int(rng.integers(1, 30)), seed=k)
            for k in range(9)
        ]  # fmt: skip
        order = [*enumerate(wanted), *((None, other) for other in others)]
        random.Random(mix).shuffle(order)
        sizes = {"num_slots": 3 + 4 * mix, "num_guesses": 2 * mix, "prompt_tokens": (PAGE, 100, 8 * PAGE)[mix]}
        with Engine(model, byte_tokenizer, **sizes, **options) as engine:
            found = answers(engine, [request for _, request in order])
        for (number, _), got in zip(order, found, strict=True):
            assert number is None or got == expected[number]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_change_speed_and_no_token(model, byte_tokenizer, temperature):
    rng = np.random.default_rng(1)
    piece = prompt(rng, 9, 10)
    # the end of every prompt stood in it before; a strong bias makes answers repeat themselves
    requests = [
        Request(piece * 3 + piece[:cut], max_tokens=40, temperature=temperature, seed=cut,
                logit_bias={token: 4.0 for token in piece})
        for cut in (2, 5, 8)
    ]  # fmt: skip
    found = []
    for num_guesses in (0, 4):
        with Engine(model, byte_tokenizer, num_guesses=num_guesses) as engine:
            found.append([engine.generate([request])[0][0].ids for request in requests])
            stats = engine.stats()
    assert found[0] == found[1]
    assert stats.num_right_guesses > 0 and stats.num_guessed > stats.num_right_guesses


def test_first_and_later_tokens_of_4096_samples_follow_the_softmax_and_are_independent(model, byte_tokenizer):
    start, kept, count = [5, 200, 17, 5, 9], 4, 4096
    request = Request(start, max_tokens=2, min_tokens=2, n=count, seed=1, top_k=kept, temperature=2.0)
    with Engine(model, byte_tokenizer) as engine:
        ids = np.array([sample.ids for sample in engine.generate([request])[0]])

    def check(drawn, text):
        logits = model.logits(torch.tensor([text]))[0, -1].detach().double() / 2
        logits[[byte_tokenizer.bos, byte_tokenizer.special("<|assistant_end|>")]] = -torch.inf  # min_tokens
        top = logits.topk(kept)
        expected = top.values.softmax(-1).numpy()
        counts = np.array([(drawn == token).sum() for token in top.indices.tolist()])
        assert counts.sum() == len(drawn)  # nothing that top_k excludes is ever drawn
        # 3 degrees of freedom: above 27 once in 200,000
        assert ((counts - len(drawn) * expected) ** 2 / (len(drawn) * expected)).sum() < 27
        collide = (expected**2).sum()
        for distance in (1, 2, 64):  # a sampler that copies one draw to several samples collides too often
            same = (drawn[distance:] == drawn[:-distance]).mean()
            assert abs(same - collide) < 5 * (collide * (1 - collide) / (len(drawn) - distance)) ** 0.5

    check(ids[:, 0], start)
    for token in np.unique(ids[:, 0]):
        later = ids[ids[:, 0] == token, 1]
        if len(later) > 300:
            check(later, [*start, int(token)])


@pytest.mark.parametrize("kernels", KERNELS)
def test_greedy_texts_over_pages_and_windows_are_those_without_a_cache(model, byte_tokenizer, kernels):
    rng = np.random.default_rng(7)
    ends = {byte_tokenizer.bos, byte_tokenizer.special("<|assistant_end|>")}
    texts = [prompt(rng, length, length + 1) for length in (PAGE - 1, PAGE, 2 * PAGE - 20, 1, 20, 21, 22)]
    requests = [Request(text, max_tokens=30, temperature=0.0) for text in texts]
    with Engine(model, byte_tokenizer, kernels=kernels, num_slots=3, prompt_tokens=PAGE) as engine:
        found = [samples[0].ids for samples in engine.generate(requests)]
    assert found == [generate_naive(model, text, max_tokens=30, stop_ids=frozenset(ends)).ids for text in texts]


def test_samples_that_share_a_prompt_are_those_that_each_feed_it(model, byte_tokenizer):
    rng = np.random.default_rng(9)
    ends = frozenset({byte_tokenizer.bos, byte_tokenizer.special("<|assistant_end|>")})
    for length in (PAGE - 1, PAGE, PAGE + 3):
        start = prompt(rng, length, length + 1)
        with Engine(model, byte_tokenizer) as engine:
            (shared,) = engine.generate([Request(start, max_tokens=9, n=5, seed=3, top_k=30)])
        for number, sample in enumerate(shared):
            own = generate_naive(
                model, start, max_tokens=9, temperature=1.0, top_k=30, seed=3, number=number, stop_ids=ends
            )
            assert sample.ids == own.ids


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.3}, {"excluded": 200}], ids=str)
def test_tokens_that_are_excluded_are_never_drawn(model, byte_tokenizer, options):
    start = [5, 200, 17, 5, 9]
    logits = model.logits(torch.tensor([start]))[0, -1].detach().double()
    share, order = logits.softmax(-1), logits.argsort(descending=True)
    before = share[order].cumsum(0) - share[order]
    allowed = {
        "top_k": lambda: order[:3],
        "top_p": lambda: order[before < 0.4 + 1e-6],
        "min_p": lambda: (share > 0.3 * share.max() - 1e-6).nonzero()[:, 0],
        "excluded": lambda: order[200:],
    }[next(iter(options))]()
    asked = {"logit_bias": {int(token): -math.inf for token in order[:200]}} if "excluded" in options else options
    with Engine(model, byte_tokenizer) as engine:
        (samples,) = engine.generate([Request(start, max_tokens=1, n=700, seed=5, **asked)])
    assert len({sample.ids[0] for sample in samples}) > 1
    assert {sample.ids[0] for sample in samples} <= set(allowed.tolist())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_prompt_that_is_not_finite_and_half_fed_reaches_nobody_who_begins_like_it(
    failing_model, byte_tokenizer, kernels, is_cancelled
):
    rng = np.random.default_rng(2)
    start = prompt(rng, 40, 41)
    # 255 is the last token of the first step: attention weighs it by 0 for those before it, and 0 times NaN is NaN
    bad = Request([*start, *[1] * (PAGE - 41), 255, *prompt(rng, 30, 31)], max_tokens=4)
    good = Request([*start, 7, 7], max_tokens=8, temperature=0)
    with Engine(failing_model, byte_tokenizer, kernels=kernels) as engine:
        expected = [sample.ids for sample in engine.generate([good])[0]]
        assert expected[0]
    late = []
    with Engine(failing_model, byte_tokenizer, kernels=kernels, prompt_tokens=PAGE) as engine:
        feed = engine._worker.runner.feed

        def fed(segments):
            """The step, during which a cancellation and another request arrive."""
            found = feed(segments)
            if not late:
                if is_cancelled:
                    segments[0].row.group.handle.cancel()
                late.append(engine.submit(good))
            return found

        engine._worker.runner.feed = fed
        (failed,) = engine.submit(bad).result()
        assert [sample.ids for sample in late[0].result()] == expected
        assert failed.reason == "error" and f"not finite at position {PAGE}" in failed.error


@pytest.mark.parametrize("kernels", [*KERNELS, "captured"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_arrives_is_cancelled_fails_or_runs_out_every_request_ends_once_and_no_page_is_left(
    failing_model, byte_tokenizer, kernels, seed
):
    rng = np.random.default_rng(seed)
    options = {"num_slots": int(rng.integers(2, 9)), "num_guesses": 2 * (seed % 2), "kernels": kernels,
               "prompt_tokens": (1 + 3 * (seed % 3)) * PAGE}  # fmt: skip
    if kernels == "captured":
        options |= {"kernels": "torch", "steps": "captured", "num_guesses": 0}
    whole_bytes = 2 * failing_model.config.num_kv_heads * 32 * 4 * PAGE  # of a page in one block
    # room for about two whole texts: samples must give way to each other
    with Engine(failing_model, byte_tokenizer, cache_bytes=(12 + 14) * whole_bytes, **options) as engine:
        handles, heard = [], {}

        def listen(number, handle):
            heard[number] = [event for event in handle if isinstance(event, Done | Failed)]

        threads = []
        start = prompt(rng, 20, 70)
        for number in range(40):
            own_start = start[: int(rng.integers(0, len(start)))] if rng.random() < 0.5 else ()
            limit = int(rng.integers(1, 60))
            stop = [int(rng.integers(0, 256))] if rng.random() < 0.3 else []
            handles.append(engine.submit(Request(
                prompt(rng, 1, 120, own_start), max_tokens=limit, n=int(rng.integers(1, 4)), seed=number, stop=stop,
                temperature=float(rng.integers(0, 2)), logprobs=bool(rng.integers(0, 2)),
            )))  # fmt: skip
            threads.append(threading.Thread(target=listen, args=(number, handles[-1])))
            threads[-1].start()
            if rng.random() < 0.25:
                handles[int(rng.integers(0, len(handles)))].cancel()
        # those may have ended before they were cancelled; this one is at its first token, and may not end by itself
        begun = engine.submit(
            Request([1, 2, 3], max_tokens=99, min_tokens=99, seed=0, logit_bias={255: -math.inf}),
            listener=lambda handle, events: handle.cancel() if events else None,
        )
        for thread in threads:
            thread.join(60)
        assert len(heard) == 40
        assert begun.result()[0].reason == "cancelled" and 0 < len(begun.result()[0].ids) < 99
        for number, handle in enumerate(handles):
            completions = handle.result()
            request = handle.request
            if any(isinstance(event, Failed) for event in heard[number]):
                assert sum(isinstance(event, Failed) for event in heard[number]) == 1
                assert "not finite" in next(c.error for c in completions if c.reason == "error")
                texts = [[*request.prompt, *completion.ids] for completion in completions]
                assert any(255 in text for text in texts), f"a fault of another request than {number}: {texts}"
                continue
            assert sorted(event.sample for event in heard[number]) == list(range(request.n))
            for completion in completions:
                assert completion.reason in ("stop", "length", "cancelled")
                assert len(completion.ids) <= request.max_tokens
                assert completion.reason != "length" or len(completion.ids) == request.max_tokens
                assert completion.reason != "stop" or completion.ids[-1] in {*request.stop, 256, 264, *range(256, 265)}
        stats = engine.stats()
        assert (stats.held_bytes, stats.num_running, stats.num_waiting) == (0, 0, 0)
        pools = engine._worker._cache.pools
        assert all(pool.num_free + pool.num_idle == pool.num_pages for pool in pools)
        if kernels == "captured":  # steps read behind the ends of texts: all but the page for what nobody reads
            assert all(stored[:-PAGE].isfinite().all() for stored in engine._worker._cache.store.blocks)
    reasons = {completion.reason for handle in handles for completion in handle.result()}
    assert {"error", "length"} <= reasons


@pytest.mark.parametrize("deterministic", [False, True])
def test_prompts_that_come_again_find_all_but_the_last_token_or_all_whole_pages(model, byte_tokenizer, deterministic):
    rng = np.random.default_rng(3)
    lengths = [length for length in (PAGE - 1, PAGE, PAGE + 1, PAGE + 16) for _ in range(40)]
    requests = [Request(prompt(rng, length, length + 1), max_tokens=2, temperature=0) for length in lengths]
    with Engine(model, byte_tokenizer, num_slots=200, deterministic=deterministic) as engine:
        engine.generate(requests)
        found = [samples[0].usage.cached_tokens for samples in engine.generate(requests)]
    assert found == [(length - 1) // PAGE * PAGE if deterministic else length - 1 for length in lengths]


def test_a_text_with_windows_holds_only_the_pages_that_its_windows_reach(model, byte_tokenizer):
    rng = np.random.default_rng(0)
    held = []

    with Engine(model, byte_tokenizer) as engine:
        worker = engine._worker
        note_step = worker._account.note_step

        def watch(*step):
            note_step(*step)
            held.append([pool.num_held for pool in worker._cache.pools])

        worker._account.note_step = watch
        engine.generate([Request(prompt(rng, 3 * PAGE, 3 * PAGE + 1), max_tokens=40, min_tokens=40, temperature=0)])
    full, windowed = zip(*held[1:], strict=True)
    assert max(full) == 4 and max(windowed) == 2
