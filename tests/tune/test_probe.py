"""Timed steps: how large they are, in which order they run, and one real measurement."""

import dataclasses

import pytest

from intone.child import ChildFailed
from intone.config import model_config
from intone.tune import probe
from intone.tune.probe import Case, probe_shape, speedup, time_cases, timed_rounds


def test_rounds_alternate_their_order_so_that_no_case_is_always_first():
    seen = []
    times = timed_rounds(["a", "b", "c"], lambda case: seen.append(case) or 10.0)
    assert "".join(seen) == "abc" + "abc" + "cba" + "abc"  # warm-up, then as few rounds as allowed: they are slow
    assert [len(entries) for entries in times] == [3, 3, 3]


def test_short_steps_get_more_rounds_but_not_without_end():
    assert len(timed_rounds(["a", "b"], lambda case: 0.001)[0]) == probe.MAX_ROUNDS


def test_times_stay_with_their_case_whatever_the_order():
    assert timed_rounds([1.5, 2.5], lambda case: case) == [[1.5] * 3, [2.5] * 3]


def test_a_speedup_is_paired_by_round_so_that_drift_of_the_machine_cancels():
    slow, fast = [1.0, 2.0, 4.0, 8.0, 3.0], [0.5, 1.0, 2.0, 4.0, 3.0]
    assert speedup(slow, fast) == 2.0


def test_the_probe_keeps_the_models_widths_and_shrinks_the_rest(facts):
    big = model_config("modern", depth=20, vocab_size=32768, context=2048)
    small, rows = probe_shape(big, facts)
    assert (small.width, small.num_heads, small.vocab_size) == (1280, 20, 32768)
    assert small.depth == 2 and rows == 1
    assert 64 <= small.context < 512
    fast = dataclasses.replace(facts, device="cuda", fp32_flops_per_s=50e12)
    small, rows = probe_shape(big, fast)
    assert small.context == 512 and rows > 10


def test_an_unknown_rate_gives_a_plain_size(facts):
    tiny = model_config("modern", depth=1, vocab_size=300, context=100)
    small, rows = probe_shape(tiny, dataclasses.replace(facts, fp32_flops_per_s=None))
    assert small == tiny and rows == 10


def test_a_child_really_times_every_case(facts, home):
    tiny = model_config("modern", depth=1, vocab_size=300, context=40)
    slow_machine = dataclasses.replace(facts, fp32_flops_per_s=1e8)  # makes the probe as small as it gets
    cases = [Case(1, "fp32"), Case(1, "bf16", "products")]
    times = time_cases(tiny, cases, slow_machine, variables={"OMP_NUM_THREADS": "1"}, budget_s=0.1)
    assert len(times) == 2 and len(times[0]) == len(times[1]) >= probe.MIN_ROUNDS
    assert all(0 < step_s < 5 for entries in times for step_s in entries)


def test_a_child_that_takes_too_long_is_ended(facts, home, config):
    with pytest.raises(ChildFailed, match="no answer within 0.01 s"):
        time_cases(config, [Case(1, "fp32")], facts, timeout_s=0.01)
