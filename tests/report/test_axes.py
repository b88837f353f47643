"""Scales of charts: round ticks that hold the data, and labels of equal form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intone.report.axes import linear_scale, log_scale, round_step, tick_labels


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 9.7, (0, 2, 4, 6, 8, 10)),
        (0.0, 100.0, (0, 20, 40, 60, 80, 100)),
        (0.617, 0.662, (0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67)),
        (-3.0, 4.0, (-4, -2, 0, 2, 4)),
    ],
)
def test_ticks_are_round_numbers_around_the_data(low, high, ticks):
    scale = linear_scale(low, high, 0, 100)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale.low, scale.high) == pytest.approx((ticks[0], ticks[-1]))


def test_an_exact_scale_ends_with_the_data_and_has_its_ticks_inside():
    scale = linear_scale(0, 1793, 50, 750, exact=True)
    assert (scale(0), scale(1793)) == (50, 750)
    assert scale.ticks == (0, 500, 1000, 1500)


def test_a_constant_gets_a_span_around_it():
    assert linear_scale(4.0, 4.0, 0, 100)(4.0) == 50
    zero = linear_scale(0.0, 0.0, 0, 100)
    assert zero.low < 0 < zero.high


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 9))
def test_every_linear_scale_holds_its_data_with_ticks_in_order(low, span, num):
    scale = linear_scale(low, low + span, 0, 100, num_ticks=num)
    slack = 1e-6 * (abs(low) + span)
    assert scale.low <= low + slack and scale.high >= low + span - slack
    assert list(scale.ticks) == sorted(scale.ticks)
    assert len(scale.ticks) <= num + 2


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e8))
def test_every_logarithmic_scale_holds_its_data(low, factor):
    scale = log_scale(low, low * factor, 0, 100)
    assert scale.low <= low * (1 + 1e-6) and scale.high >= low * factor * (1 - 1e-6)
    assert 2 <= len(scale.ticks) <= 16
    assert all(0 <= scale(tick) <= 100 for tick in scale.ticks)


def test_a_logarithmic_scale_puts_equal_factors_at_equal_distances():
    scale = log_scale(0.01, 10, 0, 300)
    assert scale.ticks == (0.01, 0.1, 1, 10)
    assert [round(scale(tick)) for tick in scale.ticks] == [0, 100, 200, 300]
    assert log_scale(0.3, 4, 0, 1).ticks == (0.2, 0.5, 1, 2, 5)
    with pytest.raises(ValueError, match="cannot begin at 0"):
        log_scale(0, 1, 0, 1)


def test_values_outside_are_drawn_at_the_end_of_the_scale():
    scale = linear_scale(0, 10, 0, 100)
    assert (scale(-5), scale(20)) == (0, 100)


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ((0, 20_000, 40_000), ("0", "20k", "40k")),
        ((0, 2_000, 4_000), ("0", "2,000", "4,000")),
        ((0, 2.5, 5.0), ("0", "2.5", "5.0")),
        ((0, 0.02, 0.04), ("0", "0.02", "0.04")),
        ((0, 5e8, 1e9), ("0", "500M", "1,000M")),
        ((0.01, 0.1, 1, 10), ("0.01", "0.1", "1", "10")),
        ((0.5, 1, 2, 5), ("0.5", "1", "2", "5")),
        ((), ()),
    ],
)
def test_labels_of_one_axis_have_one_form(ticks, labels):
    assert tick_labels(ticks) == labels


def test_steps_are_one_two_two_and_a_half_or_five():
    assert [round_step(span, 5) for span in (5, 6, 11, 13, 26, 51)] == [1, 2, 2.5, 5, 10, 20]
