from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from intone.engine.pages import PagePool


def new_pool(num_pages=5):
    """A pool whose reclaimed pages are forgotten, as whoever remembers them must; and the list of these."""
    reclaimed = []

    def forget(page):
        reclaimed.append(page)
        pool.forget(page)

    pool = PagePool(num_pages, forget)
    return pool, reclaimed


def test_pages_are_given_side_by_side_and_come_back_after_the_last_holder():
    pool, _ = new_pool()
    assert [pool.take() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert (pool.num_available, pool.num_held) == (0, 5)
    pool.hold(3)
    pool.release(3)
    assert pool.num_free == 0 and pool.holders(3) == 1
    pool.release(3)
    assert (pool.num_free, pool.take()) == (1, 3)


def test_remembered_pages_wait_idle_and_the_longest_idle_is_taken_back_first():
    pool, reclaimed = new_pool(3)
    for page in (pool.take(), pool.take(), pool.take()):
        pool.remember(page)
    for page in (1, 0, 2):
        pool.release(page)
    assert (pool.num_free, pool.num_idle, pool.num_available) == (0, 3, 3)
    pool.hold(1)  # somebody found it again
    assert [pool.take(), pool.take()] == [0, 2] == reclaimed
    assert pool.num_available == 0


def test_a_forgotten_idle_page_is_free_at_once_and_a_held_one_when_it_is_released():
    pool, reclaimed = new_pool(2)
    first, second = pool.take(), pool.take()
    pool.remember(first)
    pool.remember(second)
    pool.release(first)
    pool.forget(first)
    pool.forget(second)
    assert (pool.num_free, pool.num_held) == (1, 1)
    pool.release(second)
    assert (pool.num_free, pool.num_idle, reclaimed) == (2, 0, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "hold", "release", "remember", "forget"]), st.integers(0, 6))))
def test_whatever_happens_every_page_is_free_idle_or_held_by_as_many_as_hold_it(actions):
    pool, _ = new_pool(7)
    holders, remembered = Counter(), set()
    for action, page in actions:
        if action == "take" and pool.num_available:
            page = pool.take()
            holders[page] += 1
            remembered.discard(page)
        elif action == "hold" and (holders[page] or page in remembered):
            pool.hold(page)
            holders[page] += 1
        elif action == "release" and holders[page]:
            pool.release(page)
            holders[page] -= 1
        elif action == "remember" and holders[page]:
            pool.remember(page)
            remembered.add(page)
        elif action == "forget":
            pool.forget(page)
            remembered.discard(page)
        assert [pool.holders(page) for page in range(7)] == [holders[page] for page in range(7)]
        assert pool.num_idle == sum(not holders[page] for page in remembered)
        assert pool.num_free + pool.num_idle + pool.num_held == 7
        assert pool.num_held == sum(count > 0 for count in holders.values())
