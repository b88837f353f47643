"""Where numbers lie on a chart: scales, tick marks at round numbers, and the words beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
LOG_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Scale:
    """Maps values low..high to pixels start..end, evenly or by their logarithms. Ticks are inside low..high."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside are moved to the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def labels(self) -> tuple[str, ...]:
        """One text per tick."""
        return tick_labels(self.ticks)


def linear_scale(
    low: float, high: float, start: float, end: float, *, num_ticks: int = 5, exact: bool = False
) -> Scale:
    """A scale that holds low..high and, unless exact, ends at round numbers on both sides."""
    if not high > low:
        low, high = _widened(low)
    step = round_step(high - low, num_ticks)
    if not exact:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, start, end, tuple(number * step for number in range(first, last + 1)))


def log_scale(low: float, high: float, start: float, end: float, *, num_ticks: int = 6) -> Scale:
    """A logarithmic scale from the round number below low to the one above high. Raises ValueError unless low > 0."""
    if low <= 0:
        raise ValueError(f"a logarithmic scale cannot begin at {low}")
    rounds = _round_numbers(low, max(high, low * 1.01))
    ticks = rounds
    if len(ticks) > num_ticks:
        ticks = [value for value in rounds if _is_power_of_ten(value)]
    if len(ticks) < 3:
        ticks = rounds[:: -(-len(rounds) // num_ticks)]
    return Scale(rounds[0], rounds[-1], start, end, tuple(ticks), is_log=True)


def round_step(span: float, num_ticks: int) -> float:
    """The smallest step of the form 1, 2, 2.5 or 5 times a power of ten that needs at most num_ticks of them."""
    rough = span / max(1, num_ticks)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in ROUND_STEPS if step * power >= rough * (1 - 1e-9))


def tick_labels(ticks: Sequence[float]) -> tuple[str, ...]:
    """Texts of equal form for a row of ticks: 0, 2.5, 5.0 or 0, 20k, 40k; logarithmic ones as they are."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * s), (1.0, ""))
    scaled = [tick / size for tick in ticks]
    steps = [b - a for a, b in zip(scaled, scaled[1:], strict=False)]
    if not steps or max(steps) > 1.5 * min(steps):  # uneven steps: a logarithmic axis
        return tuple(f"{value:.6g}{unit}" for value in scaled)
    decimals = next((d for d in range(6) if abs(round(steps[0], d) - steps[0]) < 1e-9 + 1e-6 * steps[0]), 6)
    return tuple("0" if value == 0 else f"{value:,.{decimals}f}{unit}" for value in scaled)


def _widened(value: float) -> tuple[float, float]:
    """A span around one value: a chart of a constant must not divide by zero."""
    half = abs(value) / 2 or 0.5
    return value - half, value + half


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the one at or below low to the one at or above high."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [float(f"{step}e{power}") for power in powers for step in LOG_STEPS]
    first = max((i for i, n in enumerate(numbers) if n <= low * (1 + 1e-9)), default=0)
    last = next((i for i, n in enumerate(numbers) if n >= high * (1 - 1e-9)), len(numbers) - 1)
    return numbers[first : last + 1]


def _is_power_of_ten(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9
