"""The schedule: rates rise, stay and fall as configured, for runs of any length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.config import ScheduleConfig
from intone.train.schedule import place_of, scale_at

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


# --- steps that are planned anew ------------------------------------------------------------------------------------


def planned_rates(config, horizons):
    first, last = horizons[0][1], horizons[-1][1]
    return [scale_at(config, step, first, place=place_of(horizons, step)) for step in range(last)]


@given(steps=st.integers(1, 3000), at=st.floats(0, 1))
def test_a_plan_that_stays_has_bit_for_bit_the_rates_of_the_step_itself(steps, at):
    step, config = int(at * (steps - 1)), ScheduleConfig(warmup_steps=7, warmdown_share=0.85, decay_from=0.7)
    expected = scale_at(config, step, steps)
    for horizons in ([(0, steps)], [(0, steps), (step // 2, steps)], [(0, steps), (step + 1, 9 * steps)]):
        assert scale_at(config, step, steps, place=place_of(horizons, step)) == expected


@settings(deadline=None, max_examples=60)
@given(
    first=st.integers(20, 120), changes=st.lists(st.tuples(st.floats(0.02, 0.9), st.floats(0.3, 3)), max_size=2),
    share=SHARES, final=SHARES,
)  # fmt: skip
def test_rates_of_steps_planned_anew_fall_without_a_jump_to_the_same_end(first, changes, share, final):
    config = ScheduleConfig(warmup_steps=0, warmdown_share=share, final_share=final, momentum_steps=0)
    horizons, steepest = [(0, first)], 1 / first
    for part, factor in changes:
        begin, steps = horizons[-1]
        from_step = begin + max(1, int(part * (steps - begin)))
        if from_step >= steps:
            break
        horizons.append((from_step, from_step + max(1, int(factor * (steps - from_step)))))
        left = 1 - place_of(horizons, from_step) / first
        steepest = max(steepest, left / (horizons[-1][1] - from_step))
    scales = planned_rates(config, horizons)
    rates, decays = [scale.lr for scale in scales], [scale.weight_decay for scale in scales]
    assert rates == sorted(rates, reverse=True) and decays == sorted(decays, reverse=True)
    assert max((a - b for a, b in zip(decays, decays[1:], strict=False)), default=0) <= steepest * (1 + 1e-9)
    # one step before its end a schedule is where its last step leads
    last_step = 1 - place_of(horizons, len(scales) - 1) / first
    assert decays[-1] == pytest.approx(last_step)
    if share > 0.01:
        assert rates[-1] <= final + (1 - final) * min(1, last_step / share) + 1e-9


def test_what_was_left_of_the_schedule_is_spread_over_the_steps_that_are_left():
    config = ScheduleConfig(warmup_steps=3, warmdown_share=0.5, final_share=0.0, momentum_steps=40)
    plain = [scale_at(config, step, 40) for step in range(40)]
    longer = planned_rates(config, [(0, 40), (10, 70)])  # 30 steps were left, now 60
    assert longer[:10] == plain[:10]
    assert [scale.lr for scale in longer[10::2]] == pytest.approx([scale.lr for scale in plain[10:]])
    assert [scale.weight_decay for scale in longer[10::2]] == pytest.approx([s.weight_decay for s in plain[10:]])
    assert [scale.momentum for scale in longer[:40]] == [scale.momentum for scale in plain]  # counted in steps
    shorter = planned_rates(config, [(0, 40), (10, 25)])
    assert [scale.lr for scale in shorter[10:]] == pytest.approx([scale.lr for scale in plain[10::2]])
