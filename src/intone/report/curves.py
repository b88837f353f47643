"""Curves out of step rows: averages that follow a noisy value, and few points that stand for many."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

JSON_POINTS = 300  # of a curve in report.json: its shape, while log.jsonl stays the record
AVERAGED_SHARE = 0.02  # of the steps go into one point of the bold line (guess: smooth, and 50 independent points)


def average_steps(num_steps: int) -> int:
    """Over about how many steps the bold line of a curve averages."""
    return max(1, round(AVERAGED_SHARE * num_steps))


def smoothed(values: Sequence[float | None], num_steps: int) -> list[float | None]:
    """An exponential average over about num_steps values, right from the first one on; None stays None.

    The first values are weighted as if nothing was before them, as Adam's moments are (Kingma and Ba 2015, section 3).
    """
    keep = 1 - 2 / (num_steps + 1)
    total, weight = 0.0, 0.0
    averages: list[float | None] = []
    for value in values:
        if value is None:
            averages.append(None)
            continue
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(total / weight)
    return averages


def points(
    xs: Sequence[float], values: Sequence[float | None], *, scale: float = 1.0
) -> list[tuple[float, float]]:
    """(x, value * scale) where there is a value."""
    return [(x, value * scale) for x, value in zip(xs, values, strict=True) if value is not None]


def steady(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows without the slow first ones of a process, whose time is that of compiling and first touches.

    A step counts as a first one where it took more than three times the median and nothing came before it but such.
    """
    if len(rows) < 3:
        return list(rows)
    limit = 3 * statistics.median(row["step_s"] for row in rows)
    first = next((i for i, row in enumerate(rows) if row["step_s"] <= limit), 0)
    return list(rows[first:])


def coarse(rows: Sequence[Mapping[str, Any]], num: int = JSON_POINTS) -> dict[str, list[float | None]]:
    """Step rows as at most num points {step, tokens, loss, tokens_per_s, peak_bytes}: means over groups of steps.

    step, tokens and peak_bytes are those at the end of a group; a group without a finite loss has loss None.
    """
    count = min(num, len(rows))
    cuts = [round(i * len(rows) / count) for i in range(count + 1)] if count else []
    curve: dict[str, list[float | None]] = {
        name: [] for name in ("step", "tokens", "loss", "tokens_per_s", "peak_bytes")
    }
    for begin, end in zip(cuts, cuts[1:], strict=False):
        group = rows[begin:end]
        losses = [row["loss"] for row in group if row["loss"] is not None]
        last = group[-1]
        seconds = sum(row["step_s"] for row in group)
        curve["step"].append(last["step"])
        curve["tokens"].append(last["tokens"])
        curve["loss"].append(statistics.fmean(losses) if losses else None)
        tokens = sum(row["tokens_per_s"] * row["step_s"] for row in group)
        curve["tokens_per_s"].append(tokens / seconds if seconds else None)
        curve["peak_bytes"].append(last["peak_bytes"])
    return curve
