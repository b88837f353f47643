"""How what texts gain is gathered into messages: at once at first, then at even distances, never lost."""

import statistics
from types import SimpleNamespace

import pytest

from intone.engine.requests import Done, Failed, Token, Usage
from intone.serve.outbox import MOST_TOKENS, SHORT_WAIT_S, Outbox

STEP_S = 0.08


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def run_texts(count, steps, *, parts=4):
    """count texts grow by a token a step, whose events arrive in several parts -> (messages by text, what is left)."""
    clock = Clock()
    outbox = Outbox(clock)
    listeners = [outbox.listener(number) for number in range(count)]
    handle = SimpleNamespace(request=SimpleNamespace(logprobs=False), started_s=clock.now_s, seed=0)
    found = {number: [] for number in range(count)}

    def take():
        for message in outbox.take():
            if message[0] == "text":
                found[message[1]].append((clock.now_s, message[3], message[4]))

    for step in range(steps):
        for part in range(parts):
            for number in range(part, count, parts):
                listeners[number](handle, [Token(0, 1, f"{step},", None)])
            clock.now_s += 0.002
            take()
        ends = clock.now_s + STEP_S - 0.002 * parts
        while clock.now_s < ends:
            clock.now_s += 0.004
            take()
    for number in range(count):
        listeners[number](handle, [Done(0, "stop", Usage(3, steps))])
        listeners[number](handle, None)
    take()
    return found, outbox


def gaps(messages):
    times = [time_s for time_s, _, _ in messages]
    return [after - before for before, after in zip(times, times[1:], strict=False)]


@pytest.mark.parametrize("count", [1, 3, 256])
def test_texts_arrive_whole_and_in_order_however_many_grow(count):
    found, outbox = run_texts(count, 40)
    for messages in found.values():
        assert "".join(text for _, text, _ in messages) == "".join(f"{step}," for step in range(40))
        assert sum(tokens for _, _, tokens in messages) == 40
        assert messages[0][2] == 1  # the first token does not wait
        assert max(tokens for _, _, tokens in messages) <= MOST_TOKENS
    assert outbox.is_empty and not outbox._open


def test_a_few_texts_are_sent_step_by_step_and_many_less_often_at_even_distances():
    few, _ = run_texts(3, 40)
    assert statistics.median(gap for messages in few.values() for gap in gaps(messages)) < STEP_S + SHORT_WAIT_S
    many, _ = run_texts(256, 60)
    # the first gap is that behind the token that did not wait, the last that before the end
    found = sorted(gap for messages in many.values() for gap in gaps(messages)[1:-1])
    assert 2 * STEP_S < statistics.median(found) < 0.256 + 2 * STEP_S
    assert found[int(0.99 * len(found))] < 1.5 * statistics.median(found)


def test_a_request_that_fails_does_not_slow_the_others_down_for_ever():
    outbox = Outbox(Clock())
    handle = SimpleNamespace(request=SimpleNamespace(logprobs=False), started_s=0.0, seed=0)
    note = outbox.listener(7)
    note(handle, [Token(0, 1, "a", None), Token(1, 1, "b", None)])
    note(handle, [Failed(RuntimeError("no memory"))])
    note(handle, None)
    kinds = [message[0] for message in outbox.take()]
    assert kinds == ["start", "text", "text", "failed", "end"]
    assert outbox.is_empty and not outbox._open
