"""What the learning rate, momentum and weight decay are at each step of a stage: a pure function of step and plan."""

from collections.abc import Sequence

from intone.config import ScheduleConfig
from intone.model.optim import StepScale


def scale_at(config: ScheduleConfig, step: int, steps: int, *, place: float | None = None) -> StepScale:
    """The factors for optimizer step number step (from 0) out of steps.

    The rate rises linearly over warmup_steps, stays, and falls linearly over the last warmdown_share of the
    stage to final_share. It is always positive. Muon's momentum rises over momentum_steps.

    place: where between 0 and steps the step stands, for a stage whose steps were planned anew (place_of); None: there.
    What is counted in steps (both rises) goes by the step, what is a share of the stage by its place.
    """
    at = step if place is None else place
    assert 0 <= at < steps, f"step {at} of {steps}"
    warmup = min(config.warmup_steps, steps // 4)  # a short trial run must still reach the full rate
    rate = min(1.0, (step + 1) / (warmup + 1))
    warmdown = config.warmdown_share * steps
    left = (steps - at) / warmdown if warmdown > 0 else 1.0
    if left < 1.0:
        rate = min(rate, config.final_share + (1 - config.final_share) * left)
    momentum_part = min(1.0, step / config.momentum_steps) if config.momentum_steps else 1.0
    done = at / steps
    return StepScale(
        lr=rate * config.lr_scale,
        momentum=config.momentum_from + (config.momentum_to - config.momentum_from) * momentum_part,
        weight_decay=config.decay_from + (config.decay_to - config.decay_from) * done,
    )


def place_of(horizons: Sequence[tuple[int, int]], step: int) -> float:
    """Where a step stands on the schedule of the first of these plans, in its steps: the step itself under that one.

    horizons: (from which step on, how many steps the stage has), the first from 0 on, in order. Under a later one
    the part of the schedule that was left at its begin is spread over the steps that are left: nothing ever jumps.
    """
    begin, steps = horizons[0]
    first, place = steps, 0.0  # the place of begin
    for from_step, new_steps in horizons[1:]:
        if step < from_step:
            break
        if new_steps != steps:
            place += (from_step - begin) * ((first - place) / (steps - begin))
            begin, steps = from_step, new_steps
    return place + (step - begin) * ((first - place) / (steps - begin))
