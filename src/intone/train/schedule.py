"""What the learning rate, momentum and weight decay are at each step of a stage: a pure function of the step."""

from intone.config import ScheduleConfig
from intone.model.optim import StepScale


def scale_at(config: ScheduleConfig, step: int, steps: int) -> StepScale:
    """The factors for optimizer step number step (from 0) out of steps.

    The rate rises linearly over warmup_steps, stays, and falls linearly over the last warmdown_share of the
    stage to final_share. It is always positive. Muon's momentum rises over momentum_steps.
    """
    assert 0 <= step < steps, f"step {step} of {steps}"
    warmup = min(config.warmup_steps, steps // 4)  # a short trial run must still reach the full rate
    rate = min(1.0, (step + 1) / (warmup + 1))
    warmdown = config.warmdown_share * steps
    left = (steps - step) / warmdown if warmdown > 0 else 1.0
    if left < 1.0:
        rate = min(rate, config.final_share + (1 - config.final_share) * left)
    momentum_part = min(1.0, step / config.momentum_steps) if config.momentum_steps else 1.0
    done = step / steps
    return StepScale(
        lr=rate * config.lr_scale,
        momentum=config.momentum_from + (config.momentum_to - config.momentum_from) * momentum_part,
        weight_decay=config.decay_from + (config.decay_to - config.decay_from) * done,
    )
