import signal
import threading

import numpy as np
import pytest
import torch

from intone.data.chat import Message
from intone.engine.decoder import GPTDecoder
from intone.engine.engine import Engine, EngineStopped
from intone.engine.naive import generate_naive
from intone.engine.requests import Done, Failed, Request, Token, ToolCall
from intone.errors import UserError

PROMPT = [5, 200, 17, 5, 9]
END = "<|assistant_end|>"


@pytest.fixture
def engine_of(byte_tokenizer):
    """Makes engines and closes them after the test."""
    engines = []

    def make(model, **options):
        engines.append(Engine(model, byte_tokenizer, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def model(random_model):
    # scale 0.2: random logits wide enough that argmax has no near ties
    return random_model(vocab_size=265, depth=2, scale=0.2)


@pytest.fixture(scope="module")
def long_model(random_model):
    return random_model(vocab_size=265, depth=1, context=263, dtype=torch.float32)


def prompts(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, length).tolist() for length in lengths]


def ids_of(engine, requests):
    return [[sample.ids for sample in samples] for samples in engine.generate(requests)]


def reference(model, prompt, *, max_tokens, tokenizer, **options):
    ends = frozenset((tokenizer.bos, tokenizer.special(END)))
    return generate_naive(model, prompt, max_tokens=max_tokens, stop_ids=ends, **options).ids


@pytest.mark.parametrize("num_slots", [1, 3, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mixed_prompts_give_what_each_gives_without_a_cache(model, byte_tokenizer, engine_of, num_slots, temperature):
    texts = prompts([1, 31, 2, 7, 8, 6, 19, 1, 13])
    requests = [
        Request(text, max_tokens=3 + 2 * i, temperature=temperature, seed=i, top_k=40) for i, text in enumerate(texts)
    ]
    got = ids_of(engine_of(model, num_slots=num_slots), requests)
    for i, (text, samples) in enumerate(zip(texts, got, strict=True)):
        room = min(3 + 2 * i, 45 - len(text))
        expected = reference(
            model, text, max_tokens=room, tokenizer=byte_tokenizer, temperature=temperature, top_k=40, seed=i
        )
        assert samples == [expected]


@pytest.mark.parametrize("num_slots", [2, 3, 8])
def test_n_samples_differ_when_hot_agree_when_cold_and_feed_the_prompt_once(model, engine_of, num_slots):
    engine = engine_of(model, num_slots=num_slots)
    request = Request(PROMPT, max_tokens=9, n=5, seed=3)
    hot = ids_of(engine, [request])[0]
    assert len({tuple(ids) for ids in hot}) == 5
    assert engine.num_token_forwards == len(PROMPT) + sum(len(ids) - 1 for ids in hot)
    cold = ids_of(engine, [Request(PROMPT, max_tokens=9, n=5, temperature=0)])[0]
    assert len({tuple(ids) for ids in cold}) == 1 and len(cold) == 5


def test_samples_do_not_depend_on_slots_or_neighbours(model, engine_of):
    request = Request(PROMPT, max_tokens=8, n=7, seed=3)
    others = [Request(text, max_tokens=5, seed=9, n=2) for text in prompts([3, 12, 1, 5])]
    alone = ids_of(engine_of(model, num_slots=16), [request])[0]
    assert ids_of(engine_of(model, num_slots=3), [*others, request])[-1] == alone
    assert ids_of(engine_of(model, num_slots=5), [request, *others])[0] == alone
    first = ids_of(engine_of(model, num_slots=2), [Request(PROMPT, max_tokens=8, n=2, seed=3)])[0]
    assert first == alone[:2]


def test_without_a_seed_each_request_has_its_own_and_reports_it(model, engine_of):
    engine = engine_of(model)
    first, second = (engine.generate([Request(PROMPT, max_tokens=8)])[0][0] for _ in range(2))
    assert first.ids != second.ids
    assert ids_of(engine, [Request(PROMPT, max_tokens=8, seed=first.seed)])[0] == [first.ids]


def test_many_samples_of_one_token_each_follow_the_models_distribution(model, engine_of):
    completions = engine_of(model, num_slots=7).generate([Request(PROMPT, max_tokens=1, n=1500, seed=1, top_k=4)])[0]
    counts = np.bincount([completion.ids[0] for completion in completions], minlength=265)
    logits = model.logits(torch.tensor([PROMPT]))[0, -1].detach()
    top = logits.topk(4)
    expected = top.values.softmax(-1).numpy() * 1500
    assert counts.sum() == counts[top.indices].sum() == 1500
    # chi-square with 3 degrees of freedom: above 27 once in 200,000
    assert ((counts[top.indices] - expected) ** 2 / expected).sum() < 27


def test_token_forwards_of_50_and_200_tokens(long_model, byte_tokenizer, engine_of):
    prompt = prompts([50])[0]
    naive = generate_naive(long_model, prompt, max_tokens=200)
    assert naive.num_token_forwards == 29_900
    engine = engine_of(long_model)
    # nothing stops this model early: its logits are too even for the two tokens that would
    completion = engine.generate([Request(prompt, max_tokens=200, temperature=0)])[0][0]
    assert completion.reason == "length" and completion.usage.completion_tokens == 200
    assert completion.ids == naive.ids
    # the last token is never fed: nothing comes after it
    assert engine.num_token_forwards == 50 + 199


def test_float32_and_bfloat16_engines_answer(long_model, engine_of):
    for dtype in (torch.float32, torch.bfloat16):
        engine = engine_of(long_model, dtype=dtype)
        assert len(ids_of(engine, [Request(PROMPT, max_tokens=6, seed=0)])[0][0]) == 6
    assert long_model.embedding.weight.dtype == torch.float32 and long_model.compute_dtype == torch.float32


def test_events_tell_the_same_story_as_the_completion(model, engine_of):
    handle = engine_of(model).submit(Request(PROMPT, max_tokens=12, seed=4, n=3, top_logprobs=2))
    events = list(handle)
    assert list(handle) == []
    for completion in handle.result():
        tokens = [e for e in events if isinstance(e, Token) and e.sample == completion.sample]
        assert [token.id for token in tokens] == completion.ids
        assert "".join(token.text for token in tokens) == completion.text
        assert [token.logprob for token in tokens] == completion.logprobs
        logits = model.logits(torch.tensor([PROMPT + completion.ids]))[0].log_softmax(-1).detach()
        for place, token in enumerate(tokens, len(PROMPT) - 1):
            assert token.logprob == pytest.approx(float(logits[place, token.id]), abs=1e-6)
            assert [i for i, _ in token.top] == logits[place].topk(2).indices.tolist()
    done = [event for event in events if isinstance(event, Done)]
    assert sorted(event.sample for event in done) == [0, 1, 2]
    assert {event.usage.prompt_tokens for event in done} == {5}


def scripted(scripted_model, tokenizer, text, *, prompt=PROMPT, **options):
    """A model that says text, in which <|names|> are special tokens."""
    return scripted_model(script_ids(tokenizer, text), prompt_length=len(prompt), **options)


def script_ids(tokenizer, text):
    ids = []
    for piece in text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
        ids += [tokenizer.special(piece)] if piece.startswith("<|") else list(piece.encode())
    return ids


def test_an_answer_ends_with_the_turn_the_document_a_stop_id_or_a_stop_text(scripted_model, byte_tokenizer, engine_of):
    def answer(text, **options):
        engine = engine_of(scripted(scripted_model, byte_tokenizer, text))
        return engine.generate([Request(PROMPT, **options)])[0][0]

    for end in (END, "<|bos|>"):
        completion = answer(f"fine{end}more")
        assert (completion.text, completion.reason) == ("fine", "stop")
        assert completion.usage.completion_tokens == 5
    assert answer("one two", stop=ord("t")).text == "one t"
    completion = answer("one END two", stop=["??", "END"])
    assert (completion.text, completion.reason, len(completion.ids)) == ("one ", "stop", 7)
    assert answer("one EN two", stop="END", max_tokens=6).text == "one EN"
    assert answer("one E" + END, stop="END").text == "one E"
    completion = answer("a long answer", max_tokens=6)
    assert (completion.text, completion.reason) == ("a long", "length")
    completion = answer("endless " * 20)
    assert (completion.reason, len(completion.ids)) == ("length", 64 - len(PROMPT))


def test_text_that_may_start_a_stop_text_is_held_back_while_streaming(scripted_model, byte_tokenizer, engine_of):
    engine = engine_of(scripted(scripted_model, byte_tokenizer, "aENbENDc"))
    texts = [event.text for event in engine.submit(Request(PROMPT, stop="END")) if isinstance(event, Token)]
    assert texts == ["a", "", "", "ENb", "", "", ""]


def test_streaming_never_splits_a_letter(scripted_model, byte_tokenizer, engine_of):
    said = "é€😀 ok"
    engine = engine_of(scripted(scripted_model, byte_tokenizer, said + END))
    texts = [event.text for event in engine.submit(Request(PROMPT)) if isinstance(event, Token)]
    assert "".join(texts) == said
    assert all("�" not in text for text in texts)
    assert texts[:5] == ["", "é", "", "", "€"]


def test_half_a_letter_at_the_end_becomes_a_replacement_character(scripted_model, byte_tokenizer, engine_of):
    engine = engine_of(scripted(scripted_model, byte_tokenizer, "€€"))
    assert engine.generate([Request(PROMPT, max_tokens=5)])[0][0].text == "€�"


CALL = "so <|python_start|>12*12<|python_end|>"


def test_a_tool_call_is_answered_inside_the_text(scripted_model, byte_tokenizer, engine_of):
    tokenizer = byte_tokenizer
    model = scripted(scripted_model, tokenizer, CALL + "?????" + "144!" + END)
    engine = engine_of(model)
    events = list(engine.submit(Request(PROMPT)))
    assert ToolCall(0, "calculator", "12*12", "144") in events
    tokens = [event for event in events if isinstance(event, Token)]
    forced = script_ids(tokenizer, "<|output_start|>144<|output_end|>")
    assert [token.id for token in tokens if token.logprob is None] == forced
    assert "".join(token.text for token in tokens) == "so 144!"
    assert [token.id for token in tokens] == script_ids(
        tokenizer, CALL + "<|output_start|>144<|output_end|>144!" + END
    )
    # the call's end and its answer are fed in one pass
    assert [tokenizer.special("<|python_end|>"), *forced] in model.ids_seen


def test_tools_answer_only_where_asked_to(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, CALL + "fine" + END)
    completion = engine_of(model).generate([Request(PROMPT, tools=False)])[0][0]
    assert (completion.text, completion.tool_calls) == ("so fine", [])
    model = scripted(scripted_model, byte_tokenizer, "<|python_start|>import os<|python_end|>no" + END)
    completion = engine_of(model).generate([Request(PROMPT)])[0][0]
    assert completion.tool_calls == [ToolCall(0, "calculator", "import os", None)]
    assert completion.text == "no" and None not in completion.logprobs


@pytest.mark.parametrize("max_tokens, num_ids", [(10, 10), (14, 10), (15, 15), (16, 16)])
def test_a_tools_answer_that_does_not_fit_is_left_out(scripted_model, byte_tokenizer, engine_of, max_tokens, num_ids):
    model = scripted(scripted_model, byte_tokenizer, CALL + "?????" + "144!" + END)
    completion = engine_of(model).generate([Request(PROMPT, max_tokens=max_tokens)])[0][0]
    assert (completion.reason, len(completion.ids)) == ("length", num_ids)
    assert [call.output for call in completion.tool_calls] == ["144"]


class Calling:
    """A random model that, at every 16th position, begins to write a call of the calculator."""

    def __init__(self, model, tokenizer):
        self.model, self.config, self.dtype = model, model.config, model.compute_dtype
        self.decoder = GPTDecoder.of(model, device=torch.device("cpu"), dtype=self.dtype)
        self.call = script_ids(tokenizer, "<|python_start|>7*8<|python_end|>")

    def logits(self, batch):
        return self.calling(self.decoder.logits(batch), batch.positions[batch.wanted])

    def full_logits(self, ids):
        """(T, V) of a whole text."""
        return self.calling(self.model.logits(torch.tensor([ids]))[0].detach().clone(), torch.arange(len(ids)))

    def calling(self, logits, places):
        for number, token in enumerate(self.call):
            logits[:, token] += 100.0 * (places % 16 == number)
        return logits


def test_forced_tokens_of_one_row_do_not_disturb_the_others(model, byte_tokenizer, engine_of):
    calling = Calling(model, byte_tokenizer)
    texts = prompts([2, 9, 4, 1, 11])
    requests = [Request(text, max_tokens=30, seed=i, temperature=2.0) for i, text in enumerate(texts)]
    completions = [samples[0] for samples in engine_of(calling, num_slots=3).generate(requests)]
    for text, request, completion in zip(texts, requests, completions, strict=True):
        assert [call.output for call in completion.tool_calls].count("56") >= 1
        expected = calling.full_logits(text + completion.ids).log_softmax(-1)
        for place, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs, strict=True), len(text) - 1):
            assert logprob is None or logprob == pytest.approx(float(expected[place, token]), abs=1e-6)
        assert ids_of(engine_of(calling, num_slots=1), [request]) == [[completion.ids]]


def test_conversations_and_texts_are_prompts_too(scripted_model, byte_tokenizer, engine_of):
    messages = [Message("user", "hi")]
    model = scripted_model(script_ids(byte_tokenizer, "hello" + END), prompt_length=6)
    assert engine_of(model).generate([Request(messages)])[0][0].text == "hello"
    assert model.ids_seen[0] == script_ids(byte_tokenizer, "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>")
    model = scripted_model(script_ids(byte_tokenizer, " there" + END), prompt_length=3)
    assert engine_of(model).generate([Request("hi")])[0][0].text == " there"
    assert model.ids_seen[0] == script_ids(byte_tokenizer, "<|bos|>hi")


def test_a_cancelled_request_ends_and_the_others_go_on(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, "a" * 50)
    reached, go_on = threading.Event(), threading.Event()

    def pause(number):
        if number == 5:
            reached.set()
            assert go_on.wait(timeout=20)

    model.before_pass = pause
    engine = engine_of(model, num_slots=3)
    first, second = engine.submit(Request(PROMPT, n=4)), engine.submit(Request(PROMPT, max_tokens=20))
    assert reached.wait(timeout=20)
    first.cancel()
    go_on.set()
    cancelled = first.result()
    assert [completion.reason for completion in cancelled] == ["cancelled"] * 4
    assert 0 < len(cancelled[0].ids) < 20 and cancelled[3].ids == []
    assert [event.reason for event in first if isinstance(event, Done)] == ["cancelled"] * 4
    assert [completion.text for completion in second.result()] == ["a" * 20]
    first.cancel()


def test_numbers_that_are_not_finite_fail_their_request_only(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, "well" + END)
    model.nan_token = 99
    engine = engine_of(model, num_slots=4)
    bad, good = engine.submit(Request([1, 2, 99, 4, 5], n=3)), engine.submit(Request(PROMPT))
    events = list(bad)
    assert [type(event) for event in events] == [Failed]
    assert "not finite at position 5" in str(events[0].error)
    assert [completion.reason for completion in bad.result()] == ["error"] * 3
    assert "not finite" in bad.result()[0].error
    assert good.result()[0].text == "well"
    assert engine.generate([Request(PROMPT)])[0][0].text == "well"


def test_numbers_that_are_not_finite_leave_nothing_in_their_slot(random_model, byte_tokenizer, engine_of):
    model = random_model(vocab_size=265, depth=2, scale=0.2, dtype=torch.float32)
    with torch.no_grad():
        model.embedding.weight[99] = torch.nan
    engine = engine_of(model, num_slots=2)
    assert engine.generate([Request([99] * 20)])[0][0].reason == "error"
    # the short text gets the slot of the failed one, the long one makes its old places part of the computation
    texts = [[1, 2, 3], [text % 90 for text in prompts([25])[0]]]
    got = ids_of(engine, [Request(text, max_tokens=6, temperature=0) for text in texts])
    assert got == [[reference(model, text, max_tokens=6, tokenizer=byte_tokenizer)] for text in texts]


def test_a_model_that_breaks_fails_every_request_and_ends_the_engine(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, "a" * 50)
    submitted = threading.Event()

    def burst(number):
        assert submitted.wait(timeout=20)
        if number == 3:
            raise RuntimeError("out of luck")

    model.before_pass = burst
    engine = engine_of(model, num_slots=2)
    handles = [engine.submit(Request(PROMPT, n=2)) for _ in range(4)]
    submitted.set()
    for handle in handles:
        assert isinstance(list(handle)[-1], Failed)
        assert [(c.reason, c.error) for c in handle.result()] == [("error", "out of luck")] * 2
    with pytest.raises(EngineStopped, match="out of luck"):
        engine.submit(Request(PROMPT))
    with pytest.raises(EngineStopped, match="out of luck"):
        engine.score([[1, 2]])


def test_closing_ends_what_runs_and_what_waits(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, "a" * 50)
    closing, submitted = threading.Thread(target=lambda: engine.close()), threading.Event()

    def close_midway(number):
        assert submitted.wait(timeout=20)
        if number == 2:
            closing.start()
            with pytest.raises(EngineStopped, match="closed"):
                while True:
                    engine.submit(Request(PROMPT))

    model.before_pass = close_midway
    engine = engine_of(model, num_slots=1)
    handles = [engine.submit(Request(PROMPT)) for _ in range(2)]
    submitted.set()
    completions = [handle.result()[0] for handle in handles]
    assert [completion.reason for completion in completions] == ["cancelled"] * 2
    assert [len(completion.ids) for completion in completions] == [3, 0]
    closing.join(timeout=20)
    engine.close()


def test_an_interrupt_while_generating_cancels_and_leaves_the_engine_usable(scripted_model, byte_tokenizer, engine_of):
    model = scripted(scripted_model, byte_tokenizer, "ab" + END, context=2000)
    model.script = [ord("a")] * 1990

    def interrupt(number):
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    model.before_pass = interrupt
    engine = engine_of(model, num_slots=2)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request(PROMPT)] * 9)
    assert engine.generate([Request(PROMPT, max_tokens=3)])[0][0].text == "aaa"


def test_scores_are_the_logprobs_of_a_full_forward(model, engine_of):
    texts = prompts([1, 45, 2, 17])
    scores = engine_of(model).score(texts)
    for text, score in zip(texts, scores, strict=True):
        expected = model.logits(torch.tensor([text]))[0].log_softmax(-1).detach()
        expected = expected[range(len(text) - 1), text[1:]].numpy()
        assert score.shape == (len(text) - 1,)
        np.testing.assert_allclose(score, expected, atol=1e-5)


def test_new_weights_hold_for_the_next_request_and_not_for_a_running_one(random_model, engine_of):
    old, new = (random_model(vocab_size=265, depth=1, scale=0.2, seed=seed, dtype=torch.float32) for seed in (1, 2))
    expected = [generate_naive(model, PROMPT, max_tokens=12).ids for model in (old, new)]
    engine = engine_of(old, num_slots=1, dtype=torch.float32)
    running = engine.submit(Request(PROMPT, max_tokens=12, temperature=0))
    next(iter(running))
    engine.update_weights(new.state_dict())
    assert running.result()[0].ids == expected[0]
    assert ids_of(engine, [Request(PROMPT, max_tokens=12, temperature=0)]) == [[expected[1]]]
    with pytest.raises(RuntimeError, match="size mismatch|Missing key"):
        engine.update_weights({"head.weight": torch.zeros(3, 3)})


def test_an_engine_in_another_dtype_leaves_the_model_alone_and_shares_none_of_it(random_model, engine_of):
    model = random_model(vocab_size=265, depth=1, dtype=torch.float32)
    engine = engine_of(model, dtype=torch.bfloat16)
    before = ids_of(engine, [Request(PROMPT, max_tokens=6, temperature=0)])
    with torch.no_grad():
        model.head.weight.zero_()
    assert ids_of(engine, [Request(PROMPT, max_tokens=6, temperature=0)]) == before


@pytest.mark.parametrize(
    "prompt, words",
    [
        ([1] * 45, "45 tokens do not fit into the context of 45 with an answer"),
        ([1, 265], "unknown token id 265"),
        ([-1], "unknown token id -1"),
        ([1.5], "not a whole number"),
        ([Message("assistant", "hi")], "last message must be from the user"),
        ([Message("user", "hi"), 5], "mixes messages"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_anything_starts(model, engine_of, prompt, words):
    engine = engine_of(model)
    with pytest.raises(UserError, match=words):
        engine.generate([Request(PROMPT, max_tokens=2), Request(prompt)])
    assert engine.num_token_forwards == 0


def test_a_foreign_tokenizer_and_impossible_sizes_are_refused(random_model, model, byte_tokenizer):
    with pytest.raises(UserError, match="tokenizer has 265 entries and the model 61"):
        Engine(random_model(), byte_tokenizer)
    with pytest.raises(UserError, match="context 46"):
        Engine(model, byte_tokenizer, context=46)
    with pytest.raises(UserError, match="num_slots is 0"):
        Engine(model, byte_tokenizer, num_slots=0)
