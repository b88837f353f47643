"""Averages and coarse curves of step rows."""

import pytest

from intone.report.curves import average_steps, coarse, points, smoothed, steady


def row(step, step_s=0.5, loss=2.0, peak_bytes=7):
    return {"step": step, "tokens": 10 * step, "loss": loss, "step_s": step_s, "tokens_per_s": 10 / step_s,
            "peak_bytes": peak_bytes}  # fmt: skip


def test_the_average_of_a_constant_is_that_constant_from_the_first_step_on():
    assert smoothed([3.0] * 5, 4) == pytest.approx([3.0] * 5)


def test_the_average_follows_and_a_missing_loss_leaves_a_gap():
    values = smoothed([4.0, 2.0, None, 2.0], 3)
    assert values[0] == 4.0
    assert values[2] is None
    assert 2.0 < values[3] < values[1] < 3.0
    assert smoothed([1.0, 5.0], 1) == [1.0, 5.0]


def test_about_a_fiftieth_of_the_steps_goes_into_an_average():
    assert [average_steps(n) for n in (3, 269, 1255)] == [1, 5, 25]


def test_only_values_become_points():
    assert points([1, 2, 3], [1.0, None, 3.0], scale=2) == [(1, 2.0), (3, 6.0)]


def test_slow_first_steps_are_not_steady_but_later_slow_ones_are():
    rows = [row(1, 9.0), row(2, 3.0), row(3), row(4), row(5, 9.0), row(6), row(7), row(8)]
    assert [r["step"] for r in steady(rows)] == [3, 4, 5, 6, 7, 8]
    assert steady(rows[:2]) == rows[:2]


def test_a_coarse_curve_has_the_tokens_by_the_seconds_and_the_ends_of_its_groups():
    rows = [row(step, 0.5 if step < 3 else 1.0, loss=float(step), peak_bytes=step) for step in range(1, 5)]
    assert coarse(rows, 2) == {
        "step": [2, 4], "tokens": [20, 40], "loss": [1.5, 3.5], "tokens_per_s": [20.0, 10.0], "peak_bytes": [2, 4],
    }  # fmt: skip
    assert coarse([row(1, loss=None)], 300)["loss"] == [None]
    assert coarse([], 300)["step"] == []
    assert len(coarse([row(step) for step in range(1, 1_000)])["step"]) == 300
