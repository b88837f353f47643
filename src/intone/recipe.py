"""The recipe: how big a model, how many tokens and which rates for which stage. The machine only decides how fast."""

from dataclasses import dataclass, replace

from intone.config import OptimConfig, ScheduleConfig, model_config
from intone.settings import Stage

# the starter shares of the runs in LOG.md "Starter recipe"; other shares were not compared. Those of text: guess
STARTER_SHARES: dict[Stage, float] = {"base": 0.15, "mid": 0.15, "sft": 0.70}
TEXT_SHARES: dict[Stage, float] = {"base": 0.70, "mid": 0.10, "sft": 0.20}

STARTER_CONTEXT = 256  # 99 % of the starter conversations are shorter, the mean is 90 tokens at 1,024 entries
TEXT_CONTEXT = 512
MAX_DEPTH = 24
MIN_DEPTH = 4
# a closed world of 2,800 words and eleven skills: deeper models only learn it slower
MAX_STARTER_DEPTH = 8
# share of the measured matrix-product rate that training a small model reaches: guess, before anything was timed
USUAL_MFU = 0.4
TRAINING_SHARE = 0.75  # of the minutes of a run goes into optimizer steps: guess, before anything was timed
# tokens per parameter of matrices and head that a run should see before a deeper model pays; nanochat trains to 12,
# time-boxed runs of minutes do better with wider models seen less often (reference: autoresearch)
STARTER_RATIO = 0.6
TEXT_RATIO = 2.0


# loss after 117 steps of 2,048 tokens at depth 4: 1.35 at 0.02, 1.31 at 0.04 (LOG.md)
RUN_OPTIM = OptimConfig(matrix_lr=0.03)
# rates of a loss-trajectory trial: at full rates from a cold start, rounding alone moves a loss by 5 % within
# 12 steps, at a third fp32 and bf16 stay near unless something is wrong (LOG.md)
TRIAL_SCHEDULE = ScheduleConfig(lr_scale=0.3)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run: its optimizer steps and how rates move over them."""

    stage: Stage
    steps: int
    schedule: ScheduleConfig


def default_minutes() -> float:
    """Minutes of a run when nobody says: on two cores what the eleven starter skills need (LOG.md)."""
    return 10.0


def auto_vocab_size(depth: int, *, is_starter: bool) -> int:
    """Entries of the tokenizer. A large one dominates the cost of a small model (reference training.md 4.2)."""
    if is_starter:
        return 1024
    return 4096 if depth <= 4 else 8192 if depth <= 8 else 32768


def auto_context(*, is_starter: bool) -> int:
    return STARTER_CONTEXT if is_starter else TEXT_CONTEXT


def training_seconds(minutes: float) -> float:
    """Seconds of optimizer steps that are likely in a run of so many minutes."""
    return TRAINING_SHARE * 60 * minutes


def auto_depth(flops_per_s: float | None, minutes: float, *, is_starter: bool) -> tuple[int, str]:
    """The deepest model that sees enough tokens per parameter in a run of so many minutes -> (depth, reason).

    flops_per_s None (rate unknown): the smallest depth.
    """
    if flops_per_s is None:
        return MIN_DEPTH, "the rate of this machine is unknown"
    budget = flops_per_s * USUAL_MFU * training_seconds(minutes)
    ratio = STARTER_RATIO if is_starter else TEXT_RATIO
    deepest = MIN_DEPTH
    for depth in range(MIN_DEPTH, (MAX_STARTER_DEPTH if is_starter else MAX_DEPTH) + 1):
        if ratio * scaling_parameters(depth, is_starter=is_starter) * flops_per_token(depth, is_starter) <= budget:
            deepest = depth
    tokens = budget / flops_per_token(deepest, is_starter)
    seen = tokens / scaling_parameters(deepest, is_starter=is_starter)
    return deepest, f"about {tokens / 1e6:,.1f}M tokens fit in the time, {seen:.1f} per parameter"


def scaling_parameters(depth: int, *, is_starter: bool) -> int:
    """Parameters of the blocks' matrices and the head at a depth, nanochat's measure of size."""
    config = model_config("modern", depth=depth, vocab_size=auto_vocab_size(depth, is_starter=is_starter), context=512)
    return config.depth * 12 * config.width**2 + config.padded_vocab * config.width


def flops_per_token(depth: int, is_starter: bool) -> float:
    """Training operations per token, attention left out: 6 per parameter in a product."""
    return 6.0 * scaling_parameters(depth, is_starter=is_starter)


def auto_batch_tokens(total_tokens: float) -> int:
    """Tokens per optimizer step, a power of two: small runs need many steps more than smooth ones.

    A run should have about 1,000 steps or more; between 2,048 tokens (below, Muon costs more than the model) and
    524,288 (nanochat's batch at depth 12).
    """
    size = 2048
    while size < 524_288 and total_tokens / (2 * size) >= 1500:
        size *= 2
    return size


def auto_batch_reason(batch_tokens: int, total_tokens: float) -> str:
    return f"about {total_tokens / batch_tokens:,.0f} steps in the time"


def stage_plans(total_steps: int, *, is_starter: bool, lr_scale: float) -> list[StagePlan]:
    """The three stages of a run: one warm-up, one constant stretch, one fall to the end across all of them."""
    shares = STARTER_SHARES if is_starter else TEXT_SHARES
    base = max(1, round(total_steps * shares["base"]))
    mid = max(1, round(total_steps * shares["mid"]))
    sft = max(1, total_steps - base - mid)
    # the decay factor falls linearly over the run as a whole
    at_mid, at_sft = 1 - base / total_steps, 1 - (base + mid) / total_steps
    first = ScheduleConfig(
        lr_scale=lr_scale, warmup_steps=10, warmdown_share=0.0 if is_starter else 0.5,
        final_share=1.0 if is_starter else 0.3, momentum_steps=200, decay_from=1.0, decay_to=at_mid,
    )  # fmt: skip
    late = ScheduleConfig(
        lr_scale=lr_scale if is_starter else 0.5 * lr_scale, warmup_steps=0,
        momentum_from=0.95, momentum_to=0.95, momentum_steps=0,
    )  # fmt: skip
    middle = replace(late, warmdown_share=0.0, final_share=1.0, decay_from=at_mid, decay_to=at_sft)
    last = replace(late, warmdown_share=0.85, final_share=0.03, decay_from=at_sft, decay_to=0.0)
    return [StagePlan("base", base, first), StagePlan("mid", mid, middle), StagePlan("sft", sft, last)]
