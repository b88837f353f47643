"""Generation in blocks: the job's prompts in turn, the same tokens every time, counted and timed."""

import io
import json

import pytest

from intone.blocks import Exchange
from intone.engine import live
from intone.engine.engine import Engine
from intone.engine.live import live_generation
from intone.engine.requests import Request
from intone.paths import write_json


@pytest.fixture
def in_blocks(random_model, byte_tokenizer, tmp_path, monkeypatch):
    """in_blocks(*commands) -> (ready, answers, prompt lengths per pass); prompts of 2, 3, 4 tokens, 5 new ones each."""
    seen = []

    def opened(config):
        engine = Engine(random_model(vocab_size=265, depth=1, seed=4), byte_tokenizer)
        generate = engine.generate
        monkeypatch.setattr(
            engine, "generate", lambda requests: seen.append([len(r.prompt) for r in requests]) or generate(requests)
        )
        return engine, [Request([9] * n, max_tokens=5, temperature=0.0, seed=0, tools=False) for n in (2, 3, 4)]

    monkeypatch.setattr(live, "open_engine", opened)

    def done(*commands):
        write_json(tmp_path / "config.json", {"job": "generate", "threads": 1})
        lines = "".join(json.dumps({"do": "block", **command}) + "\n" for command in commands)
        exchange = Exchange(io.StringIO(lines), io.StringIO())
        assert live_generation(tmp_path, exchange).outcome == "done"
        ready, *answers = map(json.loads, exchange.answers.getvalue().splitlines())
        return ready, answers, seen

    return done


def test_blocks_go_through_the_prompts_in_turn(in_blocks):
    ready, answers, seen = in_blocks({"requests": 2}, {"requests": 2}, {"requests": 5, "restart": True}, {})
    assert seen == [[2, 3, 4], [2, 3, 4], [2, 3], [4, 2], [2, 3, 4, 2, 3], [4, 2, 3]]
    assert [answer["first_request"] for answer in answers] == [0, 2, 0, 5]
    assert [answer["requests"] for answer in answers] == [2, 2, 5, 3]
    assert [answer["tokens"] for answer in answers] == [10, 10, 25, 15]
    assert [answer["prompt_tokens"] for answer in answers] == [5, 6, 14, 9]
    assert all(answer["seconds"] > 0 for answer in answers)
    assert ready["facts"]["prompts"] == 3


class OneByOne:
    """An engine that takes one text at a time, each in a claimed second."""

    settings = {"num_slots": (1, "test")}


def warmed_by(monkeypatch, engine, texts, *, seconds):
    seen = []
    monkeypatch.setattr(live, "timed", lambda _, group: seen.append(len(group)) or {"seconds": seconds})
    return live.warmed(engine, [Request([1], max_tokens=1)] * texts), seen


def test_a_slow_generation_is_warmed_up_for_seconds_and_not_for_all_its_texts(monkeypatch):
    (first_s, warm_s), seen = warmed_by(monkeypatch, OneByOne(), 16, seconds=2.0)
    assert (first_s, warm_s) == (2.0, 2.0) and seen == [1, 1], "the first text, then until a second is over"


def test_a_fast_one_goes_over_all_prompts_twice_as_many_at_once_as_it_takes(monkeypatch):
    engine = OneByOne()
    engine.settings = {"num_slots": (2, "test")}
    (first_s, warm_s), seen = warmed_by(monkeypatch, engine, 5, seconds=0.125)
    assert (first_s, warm_s) == (0.125, 0.625) and seen == [2, 2, 1, 2, 2, 1]
