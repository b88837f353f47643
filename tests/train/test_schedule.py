"""The schedule: rates rise, stay and fall as configured, for runs of any length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intone.config import ScheduleConfig
from intone.train.schedule import scale_at

SHARES = st.floats(0, 1)


def rates(config, steps):
    return [scale_at(config, step, steps).lr for step in range(steps)]


@given(steps=st.integers(1, 300), warmup=st.integers(0, 90), share=SHARES, final=SHARES, scale=st.floats(0.01, 3))
def test_rates_rise_then_fall_and_are_always_positive(steps, warmup, share, final, scale):
    config = ScheduleConfig(lr_scale=scale, warmup_steps=warmup, warmdown_share=share, final_share=final)
    seen = rates(config, steps)
    top = seen.index(max(seen))
    assert seen[: top + 1] == sorted(seen[: top + 1])
    assert seen[top:] == sorted(seen[top:], reverse=True)
    assert all(0 < rate <= scale for rate in seen)


def test_the_rate_rises_stays_and_falls_to_its_final_share():
    config = ScheduleConfig(lr_scale=2.0, warmup_steps=3, warmdown_share=0.4, final_share=0.1)
    seen = rates(config, 20)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert seen[4:13] == [2.0] * 9
    # the line reaches the final share just after the last step
    assert seen[12:] == pytest.approx([2.0 - (2.0 - 0.2) * i / 8 for i in range(8)])


@pytest.mark.parametrize("steps", [1, 3, 11, 40])
def test_a_short_run_still_reaches_the_full_rate(steps):
    assert max(rates(ScheduleConfig(warmup_steps=40, warmdown_share=0.0), steps)) == 1.0


def test_without_a_warmdown_the_rate_stays():
    assert rates(ScheduleConfig(warmup_steps=0, warmdown_share=0.0, final_share=1.0), 9) == [1.0] * 9


def test_momentum_rises_over_its_steps_and_stays():
    config = ScheduleConfig(momentum_from=0.8, momentum_to=0.9, momentum_steps=10)
    seen = [scale_at(config, step, 30).momentum for step in (0, 5, 10, 29)]
    assert seen == pytest.approx([0.8, 0.85, 0.9, 0.9])
    assert scale_at(ScheduleConfig(momentum_to=0.9, momentum_steps=0), 0, 30).momentum == pytest.approx(0.9)


def test_the_decay_factor_moves_linearly_over_the_stage():
    config = ScheduleConfig(decay_from=0.8, decay_to=0.2)
    seen = [scale_at(config, step, 6).weight_decay for step in range(6)]
    assert seen == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3])


def test_a_step_outside_the_stage_is_our_mistake():
    with pytest.raises(AssertionError, match="step 5 of 5"):
        scale_at(ScheduleConfig(), 5, 5)
