import pytest

from intone.engine.pace import TRY_EVERY, Pace


def run(pace, seconds_by_threads, num_tokens, num_steps, now):
    """Runs steps that take so long -> the threads that each was given."""
    given = []

    def step(threads):
        given.append(threads)
        now[0] += seconds_by_threads[threads]
        return 1

    for _ in range(num_steps):
        pace.run(num_tokens, step)
    return given


def test_the_faster_number_of_threads_is_used_and_the_other_tried_now_and_then():
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    given = run(pace, {1: 3.0, 2: 4.0}, 16, 2 * TRY_EVERY, now)
    assert given[:3] == [2, 1, 2] and given[3 : TRY_EVERY + 1] == [1] * (TRY_EVERY - 2)
    assert given.count(2) == 3


def test_it_comes_back_when_the_machine_is_free_again_and_sizes_do_not_mix():
    now = [0.0]
    pace = Pace(4, clock=lambda: now[0])
    run(pace, {1: 1.0, 4: 9.0}, 16, 40, now)
    assert run(pace, {1: 1.0, 4: 0.1}, 1, 5, now) == [4, 1, 4, 4, 4]
    assert run(pace, {1: 1.0, 4: 0.5}, 16, 40 * TRY_EVERY, now)[-3:] == [4, 4, 4]


def test_a_cold_first_step_and_an_interrupted_one_do_not_keep_the_threads_that_are_faster_away():
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    assert run(pace, {1: 2.0, 2: 90.0}, 1, 1, now) == [2]
    assert run(pace, {1: 2.0, 2: 1.0}, 1, 6, now) == [1, 2, 2, 2, 2, 2]
    slow = Pace(2, clock=lambda: now[0])
    run(slow, {1: 2.0, 2: 90.0}, 1, 3, now)  # also the step that was to be believed
    assert set(run(slow, {1: 2.0, 2: 1.0}, 1, TRY_EVERY + 9, now)[-8:]) == {2}, "believed again at its next try"


def test_several_steps_in_a_call_count_as_what_each_of_them_took():
    now = [0.0]
    pace = Pace(1, clock=lambda: now[0])
    assert pace.step_s(3) is None

    def four(threads):
        now[0] += 4 * 0.5
        return 4

    pace.run(3, four)  # the first is not believed
    pace.run(3, four)
    assert pace.step_s(3) == pytest.approx(0.5)
    run(pace, {1: 0.5}, 3, 5, now)
    assert pace.step_s(3) == pytest.approx(0.5) and pace.step_s(200) is None


def test_one_thread_stays_one():
    now = [0.0]
    assert run(Pace(1, clock=lambda: now[0]), {1: 1.0}, 1, 4, now) == [1, 1, 1, 1]
