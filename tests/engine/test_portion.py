"""How much of prompts goes beside growing texts: what fits into the time that readers may wait, and never too little"""

import threading

import pytest

from intone.engine import work
from intone.engine.engine import Engine
from intone.engine.portion import MOST_STEP_S, Portion
from intone.engine.requests import Request

BOUNDS = {"least": 64, "most": 512}


def test_so_many_tokens_are_fed_as_fit_into_the_time_between_the_bounds():
    portion = Portion()
    assert portion.tokens(1, **BOUNDS) == 64, "nothing is known"
    portion.note(100, 100 * MOST_STEP_S / 300.5)
    assert portion.tokens(40, **BOUNDS) == 260, "growing texts take their part of the time"
    assert portion.tokens(280, **BOUNDS) == 64, "prompts get on in any case"
    for _ in range(9):
        portion.note(260, 260 * MOST_STEP_S / 3000)
    assert portion.tokens(40, **BOUNDS) == 512
    for _ in range(9):
        portion.note(260, 260 * MOST_STEP_S / 30)
    assert portion.tokens(1, **BOUNDS) == 64


def test_a_small_step_says_nothing_and_a_slow_one_is_believed_in_part():
    portion = Portion()
    portion.note(100, 100 * MOST_STEP_S / 300.5)
    before = portion.tokens(0, **BOUNDS)
    portion.note(3, MOST_STEP_S)
    assert portion.tokens(0, **BOUNDS) == before == 300
    portion.note(100, 90.0)
    assert portion.tokens(0, **BOUNDS) == 120, "one slow step is believed as far as four times, and half of that counts"


@pytest.fixture
def fed(scripted_model, byte_tokenizer, monkeypatch):
    """fed(token_s, is_read) -> tokens of each step while a text grows and a prompt of 6,000 tokens is fed.

    A token takes token_s, and nothing else takes any time.
    """
    now_s = 0.0
    monkeypatch.setattr(work, "perf_counter", lambda: now_s)

    def run(token_s, *, is_read):
        class Timed(scripted_model):
            def logits(self, batch):
                nonlocal now_s
                now_s += token_s * len(batch.ids)
                return super().logits(batch)

        model, are_both_there = Timed([], prompt_length=0, context=8192), threading.Event()
        model.before_pass = lambda number: are_both_there.wait(60)
        requests = [Request([7] * 5, max_tokens=120), Request([8] * 6000, max_tokens=1)]
        with Engine(model, byte_tokenizer, num_slots=2, prompt_tokens=1024) as engine:
            if is_read:
                handles = [engine.submit(request) for request in requests]
                are_both_there.set()
                for handle in handles:
                    handle.result()
            else:
                are_both_there.set()
                engine.generate(requests)
        # the first step or two may have begun before both were there or anything was known
        return [len(ids) for ids in model.ids_seen if len(ids) > 1][2:]

    return run


@pytest.mark.parametrize(("fitting", "expected"), [(50, 65), (500, 500), (5000, 1025)])
def test_steps_beside_a_text_that_is_read_take_no_longer_than_said_unless_that_were_too_little(fed, fitting, expected):
    *whole, rest = fed(MOST_STEP_S / (fitting + 0.5), is_read=True)
    assert set(whole) == {expected} and 1 < rest <= expected


def test_where_only_the_end_is_waited_for_prompts_are_fed_in_whole_steps(fed):
    *whole, rest = fed(1e-3, is_read=False)
    assert set(whole) == {1025} and 1 < rest <= 1025
