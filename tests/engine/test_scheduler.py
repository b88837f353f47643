"""Who runs and who waits: slots go round, large requests are not passed for ever, the youngest gives way"""

import pytest
import torch

from intone.engine.pages import PAGE
from intone.engine.requests import Request
from intone.engine.rows import Group, Handle
from intone.engine.scheduler import MOST_OVERTAKING, Limits, Scheduler
from intone.engine.text import Specials


@pytest.fixture
def made(random_model, texts_of, byte_tokenizer):
    """made(num_slots, num_pages) -> requests and the scheduler that runs them, without a model's products."""
    model = random_model("classic", vocab_size=265, depth=1, context=8 * PAGE)

    class Desk:
        def __init__(self, num_slots, num_pages):
            cache = texts_of(model, num_pages=num_pages).cache
            self.scheduler = Scheduler(cache, Limits(num_slots, alone_tokens=8 * PAGE, mixed_tokens=PAGE))
            self.num_asked = 0

        def ask(self, num_tokens, *, n=1, limit=5):
            self.num_asked += 1
            # prompts that share nothing
            prompt = [self.num_asked % 250, *[k % 250 for k in range(num_tokens - 1)]]
            handle = Handle(Request(prompt, n=n, max_tokens=limit), seed=0, on_cancel=lambda handle: None)
            group = Group(handle, prompt, limit, byte_tokenizer, Specials.of(byte_tokenizer))
            self.scheduler.add(group)
            return group

        def step(self):
            """One step of everything that is planned; every text that is up to date gets a token."""
            scheduler = self.scheduler
            grown = []
            while forked := scheduler.admit():
                grown += [row for row, _ in forked]
            for segment in scheduler.plan():
                row = segment.row
                scheduler.cache.advance(row.table, segment.count, row.tokens)
                scheduler.cache.trust(row.table)
                if segment.is_last:
                    if not row.ids:
                        scheduler.keep_prompt(row, torch.zeros(1))
                    grown.append(row)
            for row in grown:
                taken = row.take(7, None, ())
                if taken.reason is not None:
                    row.group.end_row(row, taken.reason)
                    scheduler.release(row)
                    if not row.group.active and not row.group.num_waiting:
                        scheduler.drop(row.group)
                    row.group.close_if_done()

        def running(self):
            return [row.group for row in self.scheduler.rows]

    return Desk


def test_a_free_slot_goes_to_whoever_runs_least_and_not_to_one_more_sample_of_the_same_request(made):
    desk = made(num_slots=3, num_pages=32)
    many = desk.ask(20, n=9, limit=4)
    for _ in range(2):
        desk.step()
    assert desk.running() == [many] * 3
    late = desk.ask(30, limit=3)
    for _ in range(10):
        if late in desk.running():
            break
        desk.step()
    assert late in desk.running() and many.num_waiting > 3, "it did not wait for all nine"
    for _ in range(60):
        desk.step()
    assert len(many.handle.completions) == 9 and late.handle.is_finished


def test_a_large_request_is_overtaken_so_often_and_no_oftener(made):
    desk = made(num_slots=4, num_pages=7)
    for _ in range(2):
        desk.ask(PAGE, limit=3 * PAGE)
    desk.step()
    large = desk.ask(5 * PAGE, limit=4)
    num_before = 0
    for _ in range(8 * PAGE):
        small = desk.ask(4, limit=2)  # somebody always comes who would fit
        desk.step()
        num_before += small.handle.is_finished or small in desk.running()
        if large.handle.is_finished:
            break
    assert large.handle.is_finished and large.handle.completions[0].reason == "length"
    assert num_before <= 2 * MOST_OVERTAKING


def test_the_youngest_gives_way_where_pages_run_out_and_every_text_gets_its_tokens(made):
    desk = made(num_slots=4, num_pages=6)
    groups = [desk.ask(PAGE - 10, limit=3 * PAGE) for _ in range(3)]
    for _ in range(40 * PAGE):
        desk.step()
        if all(group.handle.is_finished for group in groups):
            break
        assert groups[0].handle.is_finished or desk.running()[0] is groups[0], "the eldest is never interrupted"
    assert [len(group.handle.completions[0].ids) for group in groups] == [3 * PAGE] * 3
    assert desk.scheduler.num_evicted >= 1
    assert all(pool.num_held == 0 for pool in desk.scheduler.cache.pools)
