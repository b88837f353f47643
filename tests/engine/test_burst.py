"""Several tokens in one call of our kernels: the same texts as step by step, in lumps that readers do not notice"""

import dataclasses

import pytest
import torch

from intone.engine import burst, native_decoder
from intone.engine.engine import Engine
from intone.engine.pace import Pace
from intone.engine.pages import PAGE
from intone.engine.requests import Request, Token
from intone.model.native import build

pytestmark = pytest.mark.skipif(
    build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}"
)


@pytest.fixture(scope="module")
def model(random_model):
    # a window inside a page and texts over several pages
    made = random_model(vocab_size=265, depth=2, scale=0.2, dtype=torch.float32, context=3 * PAGE, window=21)
    made.head.weight.data[256:] = 0.0  # special tokens are rare
    return made


@pytest.fixture
def calls(monkeypatch):
    """The steps made in every call that may make several."""
    seen, real = [], burst.NativeDecoder.burst

    def counted(self, *args, **options):
        found = real(self, *args, **options)
        seen.append(len(found))
        return found

    monkeypatch.setattr(burst.NativeDecoder, "burst", counted)
    return seen


def told(engine, requests):
    return [[(c.ids, c.text, c.logprobs, c.reason) for c in samples] for samples in engine.generate(requests)]


def requests_of(temperature, **options):
    return [
        Request([7 * n % 256, *range(n)], max_tokens=5 + 31 * n % 90, temperature=temperature, seed=n, n=1 + n % 2,
                tools=False, **options)
        for n in range(1, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("temperature, options", [(0.0, {}), (1.0, {}), (0.8, {"top_k": 7, "top_p": 0.9})])
@pytest.mark.parametrize("num_slots", [1, 5])
def test_texts_are_those_of_steps_by_the_host(
    model, byte_tokenizer, calls, monkeypatch, num_slots, temperature, options
):
    requests = requests_of(temperature, **options)
    with Engine(model, byte_tokenizer, num_slots=num_slots) as engine:
        found = told(engine, requests)
    assert max(calls) > 1 and len(calls) < sum(calls)
    calls.clear()
    monkeypatch.setattr(burst.Bursts, "run", lambda self: False)
    with Engine(model, byte_tokenizer, num_slots=num_slots) as engine:
        assert told(engine, requests) == found, "ids, texts, log-probabilities to the bit, and how they end"
    assert not calls


def test_a_text_that_needs_the_host_stops_the_calls_and_changes_nobodys_tokens(model, byte_tokenizer, calls):
    requests = requests_of(1.0)
    with Engine(model, byte_tokenizer, num_slots=20) as engine:
        expected = told(engine, requests)
        in_calls = sum(calls)
        calls.clear()
        penalised = Request([1, 2], max_tokens=150, seed=3, presence_penalty=0.5, tools=False)
        assert told(engine, [penalised, *requests])[1:] == expected
        assert sum(calls) < in_calls


def test_a_stop_text_ends_a_text_in_the_middle_of_a_call(model, byte_tokenizer, calls):
    asked = [Request([5, seed], max_tokens=60, seed=seed, tools=False) for seed in range(99)]
    specials = range(256, 265)
    with Engine(model, byte_tokenizer) as engine:
        # a stop text is not looked for across special tokens
        number = next(n for n, (text,) in enumerate(engine.generate(asked)) if not set(text.ids) & set(specials))
        ((whole,),) = engine.generate([asked[number]])
        stop = whole.text[25:28]
        calls.clear()
        ((found,),) = engine.generate([dataclasses.replace(asked[number], stop=stop)])
    assert (found.text, found.reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert found.ids == whole.ids[: len(found.ids)] and 3 < len(found.ids) < 60
    assert sum(calls) > len(found.ids) - 1, "what was computed behind the stop text is dropped"


def test_lumps_are_short_in_tokens_and_in_time(model, byte_tokenizer, calls, monkeypatch):
    request = Request([5, 9], max_tokens=60, temperature=0.0, tools=False)
    with Engine(model, byte_tokenizer) as engine:
        engine.generate([request])
        assert max(calls) == burst.MOST_STEPS and sum(calls) == 59, "the first token comes with the prompt"
        for step_s, most in ((burst.MOST_LUMP_S / 3.5, 3), (1.0, 1)):
            calls.clear()
            monkeypatch.setattr(burst.NativeDecoder, "step_s", lambda self, num_rows, step_s=step_s: step_s)
            tokens = [event for event in engine.submit(request) if isinstance(event, Token)]
            assert len(tokens) == 60 and max(calls) == most


def test_how_long_a_lump_may_be_follows_from_steps_of_growing_texts_and_not_from_prompts(
    model, byte_tokenizer, calls, monkeypatch
):
    now_s, step, bursts = 0.0, native_decoder.step, native_decoder.burst

    def fed(*args, **options):  # takes next to no time
        nonlocal now_s
        now_s += 1e-6
        step(*args, **options)

    def grown(*args, **options):
        nonlocal now_s
        made = bursts(*args, **options)
        now_s += made * burst.MOST_LUMP_S / 2.5
        return made

    monkeypatch.setitem(Pace.__init__.__kwdefaults__, "clock", lambda: now_s)
    monkeypatch.setattr(native_decoder, "step", fed)
    monkeypatch.setattr(native_decoder, "burst", grown)
    with Engine(model, byte_tokenizer, share_prefixes=False) as engine:
        for seed in range(4):
            engine.generate([Request([5], max_tokens=20, seed=seed, tools=False)])
    assert set(calls) == {1, 2}
