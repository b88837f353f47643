"""The plan of a reinforcement stage: what it starts from, what it asks, how long it trains, how it is computed"""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from intone import recipe
from intone.config import ModelConfig, RolloutConfig, ScheduleConfig
from intone.data.questions import Questions, check_named
from intone.data.starter import SKILLS
from intone.data.tokenizer import Tokenizer
from intone.engine.choose import MOST_SLOTS, kind_of
from intone.errors import UserError
from intone.fields import flag_of, shown
from intone.ground import WORKER_S, Beside, Ground, Settled, settle_ground
from intone.hardware import load_facts
from intone.log import say
from intone.model.checkpoint import load_weights
from intone.paths import read_json
from intone.planning import Plan, fitting_steps, settle_minutes, stage_choices, stage_job
from intone.prepare import ensure_val, find_source
from intone.records import Choice, choice
from intone.resolving import Resolved, named_fields
from intone.runs import find_stage
from intone.settings import TrainSettings
from intone.tune.settle import settle_device

STARTER_TOKENS, FILE_TOKENS = 160, 256  # longest answers: the starter's longest has about 90; nanochat's GSM8K 256
ANSWERS_PER_ROW = 2  # a question of the starter with its answer fills half a row of 256 tokens (guess, for a forecast)
TRIAL_TOKENS = 2048  # of a trial's step, as the default run of two cores has
# seconds of writing answers for each of training on them: 0.43 in 22 steps at depth 4 (LOG.md); horizon.py looks at the
# real ones
WRITING = 0.5


def plan_rl(settings: TrainSettings, origins: Mapping[str, Resolved], run_folder: Path, *, started_s: float) -> Plan:
    """`intone train rl`: from the weights of another stage, learning from its own answers. Raises UserError."""
    check_model_settings(settings, origins)
    settled = Settled(load_facts(), {name: choice(value) for name, value in origins.items()})
    before = find_stage(settings.from_run or "latest").folder
    config, tokenizer_folder, tokenizer = start_of(before, settings.from_run)
    rollouts = rollout_config(settings)
    if isinstance(settings.max_tokens, int) and settings.max_tokens >= config.context:
        what = f"answers of {settings.max_tokens:,} tokens do not fit behind a question"
        fix = f"use --max-tokens {config.context // 2} or auto"
        words = f"{what} into the context of {config.context:,} tokens"
        raise UserError(words, value=settings.max_tokens, fix=fix)
    questions = Questions(rollouts, settings.seed, tokenizer, config.context)
    num_held_out = sum(map(len, questions.held_out.values()))
    minutes = settled.put("minutes", settle_minutes(origins["minutes"]))
    ground = rl_ground(settled, settings, origins, config, tokenizer_folder, tokenizer, rollouts)
    forecast: dict[str, Any] = {"format": 1, "step_s": ground.step_s, "minutes": minutes, "fetch_s": 0.0}
    if isinstance(settings.steps, int):
        steps = settings.steps
    else:
        beside = beside_rollouts(rollouts, num_held_out)
        left_s = 60 * minutes - (time.monotonic() - started_s)
        steps = max(10, fitting_steps(left_s, ground, beside, num_stages=1))
        forecast |= {"stages": {"rl": steps}, "beside": asdict(beside)}
        say(f"{steps:,} steps to begin with: how long they take is seen while they run")
    start = read_json(before / "config.json")
    job = replace(
        stage_job(settings, ground, "rl", steps, rl_schedule(settings.rate)),
        rows_per_step=rollouts.prompts * rollouts.samples,
        val=start.get("val"),
        init_from=str(before),
        rollouts=rollouts,
    )
    forecast["steps"] = steps
    settle_asked(settled, settings, config, rollouts, ground.device)
    choices = stage_choices(settled, ground)
    if isinstance(settings.num_slots, int):
        segments = tuple(replace(segment, num_slots=settings.num_slots) for segment in choices.segments)
        choices = replace(choices, segments=segments)
    return Plan({"rl": (job, choices)}, None, forecast)


def settle_asked(
    settled: Settled, settings: TrainSettings, config: ModelConfig, rollouts: RolloutConfig, device: str
) -> None:
    """What no measurement decides, as values with their reasons."""
    put = settled.choices
    if settings.max_tokens == "auto":
        why = "as nanochat has it for GSM8K" if rollouts.files else "the starter's longest answer has about 90"
        put["max_tokens"] = Choice(rollouts.max_tokens, why, "default")
    if settings.num_slots == "auto":
        slots = MOST_SLOTS[kind_of(torch.device(device))]
        put["num_slots"] = Choice(slots, "by rule; intone optimise rl measures it", "default")
    for name in ("context", "vocab_size"):
        put[name] = Choice(getattr(config, name), f"the model of {settings.from_run or 'latest'}", "from")


def check_model_settings(settings: TrainSettings, origins: Mapping[str, Resolved]) -> None:
    """Raises UserError for a flag about the model: it is that of the run it starts from."""
    fields = named_fields(TrainSettings)
    for name in ("depth", "context", "vocab_size", "preset"):
        if origins[name].origin == "flag":
            raise UserError(
                f"{flag_of(fields[name])} cannot be given to train rl: its model is that of {settings.from_run}",
                value=shown(origins[name].value), fix="leave it out",
            )  # fmt: skip


def start_of(before: Path, named: str | None) -> tuple[ModelConfig, Path, Tokenizer]:
    """Model, folder of the tokenizer and tokenizer of the stage that training starts from. Raises UserError."""
    config, _, start = load_weights(before)
    folder = Path(read_json(before / "config.json")["tokenizer"])
    tokenizer = Tokenizer.load(folder)
    if tokenizer.hash != start.tokenizer_hash:
        raise UserError(
            f"{folder} is no longer the tokenizer of {named or before}", value=str(folder),
            fix="restore that folder, or start from another run",
        )  # fmt: skip
    return config, folder, tokenizer


def rollout_config(settings: TrainSettings) -> RolloutConfig:
    """What is asked in each step. Raises UserError for files that are none."""
    files, val_files = check_named(settings.data, settings.val)
    tokens = settings.max_tokens
    if not isinstance(tokens, int):
        tokens = FILE_TOKENS if files else STARTER_TOKENS
    return RolloutConfig(
        prompts=settings.prompts, samples=settings.samples, max_tokens=tokens, temperature=settings.temperature,
        top_k=settings.top_k, skills=() if files else settings.skills or SKILLS, files=files, val_files=val_files,
        num_items=settings.num_items,
    )  # fmt: skip


def rl_schedule(rate: float) -> ScheduleConfig:
    """Rates that fall in a line from their share of the recipe's to 0, without weight decay.

    Source of share and shape: nanochat's reinforcement stage, 0.05 and linear to 0.
    """
    return ScheduleConfig(
        lr_scale=rate, warmup_steps=0, warmdown_share=1.0, final_share=0.0, decay_from=0.0, decay_to=0.0
    )


def rl_ground(
    settled: Settled, settings: TrainSettings, origins: Mapping[str, Resolved], config: ModelConfig,
    tokenizer_folder: Path, tokenizer: Tokenizer, rollouts: RolloutConfig,
) -> Ground:  # fmt: skip
    """How the training step is computed, settled as for any stage on the starter's conversations; one process, eager.

    step_s is that of a whole step, with its answers written: a guess.
    """
    device = settled.put("device", settle_device(origins["device"], settled.facts))
    eager = Resolved("off", "default", "every step has another number of rows, and would be compiled anew")
    alone = Resolved(1, "default", "a reinforcement stage trains in one process")
    settled.choices["devices"] = choice(alone)
    val = ensure_val(find_source("conversations", ("starter",), ()), tokenizer_folder, tokenizer, name="sft")
    rows = max(1, rollouts.prompts * rollouts.samples // ANSWERS_PER_ROW)
    # on a CPU a row costs the same in any number, and trials of whole steps would take minutes
    tried = rows if device != "cpu" else min(rows, max(1, TRIAL_TOKENS // config.context))
    ground = settle_ground(
        settled, settings, {**origins, "compile": eager, "devices": alone}, config, tokenizer_folder, tokenizer,
        trial_data=val.folder, rows_per_step=tried, device=device, devices=1,
        expected_steps=settings.steps if isinstance(settings.steps, int) else recipe_steps(settings),
    )  # fmt: skip
    return replace(ground, rows_per_step=rows, step_s=(1 + WRITING) * rows / tried * ground.step_s)


def recipe_steps(settings: TrainSettings) -> int:
    """Steps that are likely, for deciding what measuring pays, before any was timed: one in three seconds (guess)."""
    minutes = recipe.default_minutes() if isinstance(settings.minutes, str) else settings.minutes
    return max(10, int(recipe.training_seconds(minutes) / 3))


def beside_rollouts(rollouts: RolloutConfig, num_held_out: int) -> Beside:
    """A worker's start, and the held-out questions before and after, by the answers that a step writes."""
    share = WRITING / (1 + WRITING)
    return Beside(start_s=WORKER_S, stage_steps=2 * share * num_held_out / (rollouts.prompts * rollouts.samples))
