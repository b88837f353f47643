"""The order of settling: from what a person asked to complete job folders, every open value with its reason."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from intone import recipe
from intone.config import ModelConfig, ScheduleConfig, TrainJob, model_config
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.ground import VAL_TOKENS, Beside, Ground, Settled, beside_steps, settle_ground
from intone.hardware import BUSY_CORES, Facts, load_facts
from intone.log import human_count, human_duration, say
from intone.model.checkpoint import has_optimizer, load_weights
from intone.model.cost import train_flops_per_token
from intone.paths import read_json
from intone.prepare import (
    Source,
    check_mix,
    ensure_mix,
    ensure_tokenizer,
    ensure_val,
    fetched,
    find_source,
    tokenise_ahead,
)
from intone.records import Choice, Choices, Segment, choice
from intone.resolving import Resolved
from intone.runs import find_stage
from intone.settings import RunSettings, TrainingSettings, TrainSettings
from intone.tune.settle import fallbacks, settle_device, settle_device_batch, settle_devices
from intone.tune.trial import attention_for

FEW_STEPS = 100  # of a run; its first stage, 15 of them, is then long enough for a look at how fast they are
BUSY_FACTOR = 4  # guess: what a machine that others used may become faster by

STARTER_PROMPTS = {
    "base": ("One day Anna walked to the", "Words in order:", "One metre is"),
    "mid": ("Who are you?", "What is 12 + 30?", "How do you spell garden?"),
    "sft": ("Who are you?", "What is 12 + 30?", "How do you spell garden?", "What is the capital of France?"),
}
TEXT_PROMPTS = {
    "base": ("The most important", "In the year", "Water is"),
    "mid": ("Who are you?", "What is water?"),
    "sft": ("Who are you?", "What is water?", "Give me a tip for learning."),
}


@dataclass(frozen=True)
class Plan:
    """What planning hands over: a job and its choices per stage, in order; the evaluation's config; a forecast."""

    stages: dict[str, tuple[TrainJob, Choices]]
    evaluation: dict[str, Any] | None
    forecast: dict[str, Any]  # "stages" and "beside" stand in it where the minutes decide: pipeline/horizon.py


def plan_run(
    settings: RunSettings, origins: Mapping[str, Resolved], run_folder: Path, *, started_s: float
) -> Plan:
    """The three stages of `intone run`, sized to this machine and the minutes. Raises UserError."""
    facts = load_facts()
    settled = Settled(facts, {name: choice(value) for name, value in origins.items()})
    device = settled.put("device", settle_device(origins["device"], facts))
    text = find_source("documents", settings.data, settings.val)
    talk = find_source("conversations", settings.sft, settings.sft_val)
    minutes = settled.put("minutes", settle_minutes(origins["minutes"]))
    depth, context, vocab = settle_size(settled, origins, facts, minutes, is_starter=text.is_starter)
    config = model_config(settings.preset, depth=depth, vocab_size=vocab, context=context)
    batch_tokens, expected_steps = settle_steps(settled, origins, config, minutes)
    rows_per_step = batch_tokens // context
    devices_choice = settle_devices(origins["devices"], facts, device=device, rows_per_step=rows_per_step)
    devices = settled.put("devices", devices_choice)
    (text, talk), fetch_s = timed_fetch([text, talk], expected_steps * batch_tokens)
    tokenizer_folder, tokenizer = ensure_tokenizer([text, talk], vocab)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    base_val = ensure_val(text, tokenizer_folder, tokenizer, name="base")
    sft_val = ensure_val(talk, tokenizer_folder, tokenizer, name="sft")
    tokenise_ahead([(text, "base"), (talk, "sft")], tokenizer_folder, tokenizer, tokens=expected_steps * batch_tokens)
    ground = settle_ground(
        settled, settings, origins, config, tokenizer_folder, tokenizer, trial_data=base_val.folder,
        rows_per_step=rows_per_step, device=device, devices=devices, expected_steps=expected_steps,
    )  # fmt: skip
    started_s += fetch_s  # the minutes of a run begin when its data is here
    beside = beside_steps(ground, asks_skills=talk.has_starter)
    steps = max(30, fitting_steps(60 * minutes - (time.monotonic() - started_s), ground, beside, num_stages=3))
    plans = recipe.stage_plans(steps, is_starter=text.is_starter, lr_scale=1.0)
    say(
        f"{steps:,} steps of {human_count(batch_tokens)} tokens at {human_count(batch_tokens / ground.step_s)} "
        f"tokens/s fill {human_duration(steps * ground.step_s)} of the {minutes:g} minutes"
    )
    tokens = {plan.stage: plan.steps * batch_tokens for plan in plans}
    base, sft = (
        ensure_mix(fetched(source, total), tokenizer_folder, tokenizer, tokens=total, name=name)
        for source, total, name in (
            (text, tokens["base"] + tokens["mid"], "base"), (talk, tokens["mid"] + tokens["sft"], "sft")
        )
    )  # fmt: skip
    data = {"base": (base, base_val), "mid": (base.halves(sft), base_val), "sft": (sft, sft_val)}
    stages: dict[str, tuple[TrainJob, Choices]] = {}
    prompts = STARTER_PROMPTS if text.is_starter else TEXT_PROMPTS
    before: Path | None = None
    for plan in plans:
        mix, val = data[plan.stage]
        job = replace(
            stage_job(settings, ground, plan.stage, plan.steps, plan.schedule),
            data=mix.folders,
            weights=mix.weights,
            val=str(val.folder),
            learn_all=plan.stage == "mid",
            init_from=None if before is None else str(before),
            keep_optimizer=before is not None,
            samples=prompts[plan.stage],
        )
        stages[plan.stage] = (job, stage_choices(settled, ground))
        before = run_folder / plan.stage
    check_mix(base, tokens["base"])
    check_mix(sft, tokens["sft"])
    # a model that was taught other conversations was never taught the starter skills
    evaluation = evaluation_config(ground, run_folder / "sft", sft_val.folder) if talk.has_starter else None
    forecast = {
        "format": 1, "steps": steps, "step_s": ground.step_s, "minutes": minutes, "fetch_s": fetch_s,
        "stages": {plan.stage: plan.steps for plan in plans}, "beside": asdict(beside),
    }  # fmt: skip
    return Plan(stages, evaluation, forecast)


@dataclass(frozen=True)
class StageGround:
    """One stage of `intone train` with everything settled but its length."""

    ground: Ground
    named: list[tuple[Source, str]]  # what it learns from, and the names of the token sets
    val: Path
    before: Path | None  # the stage whose weights it starts from
    keeps_optimizer: bool
    batch_tokens: int
    minutes: float
    fetch_s: float


def stage_ground(settled: Settled, settings: TrainSettings, origins: Mapping[str, Resolved]) -> StageGround:
    """Fetches data, makes the tokenizer and settles how one stage is computed. Raises UserError."""
    facts = settled.facts
    device = settled.put("device", settle_device(origins["device"], facts))
    sources = stage_sources(settings)
    source = sources[0]
    minutes = settled.put("minutes", settle_minutes(origins["minutes"]))
    before = find_stage(settings.from_run).folder if settings.from_run else None
    keeps_optimizer = False
    if before is not None:
        config, _, start = load_weights(before)
        keeps_optimizer = has_optimizer(start.folder)
        if not keeps_optimizer:
            say(f"{settings.from_run} was imported without its optimizer: it starts afresh, with a warm-up")
        tokenizer_folder = Path(read_json(before / "config.json")["tokenizer"])
        tokenizer = Tokenizer.load(tokenizer_folder)
        if tokenizer.hash != start.tokenizer_hash:
            raise UserError(
                f"{tokenizer_folder} is no longer the tokenizer of {settings.from_run}",
                value=str(tokenizer_folder),
                fix="restore that folder, or start from another run",
            )
        batch_tokens, expected_steps = settle_steps(settled, origins, config, minutes)
    else:
        depth, context, vocab = settle_size(settled, origins, facts, minutes, is_starter=source.is_starter)
        config = model_config(settings.preset, depth=depth, vocab_size=vocab, context=context)
        batch_tokens, expected_steps = settle_steps(settled, origins, config, minutes)
    rows_per_step = batch_tokens // config.context
    devices_choice = settle_devices(origins["devices"], facts, device=device, rows_per_step=rows_per_step)
    devices = settled.put("devices", devices_choice)
    if isinstance(settings.steps, int):
        expected_steps = settings.steps  # compiling must pay within what will be trained, not within what would fit
    sources, fetch_s = timed_fetch(sources, expected_steps * batch_tokens)
    if before is None:
        tokenizer_folder, tokenizer = ensure_tokenizer(sources, vocab)
        config = replace(config, vocab_size=tokenizer.vocab_size)
    names = ["sft" if entry.kind == "conversations" else "base" for entry in sources]
    val_set = ensure_val(sources[0], tokenizer_folder, tokenizer, name=names[0])
    named = list(zip(sources, names, strict=True))
    tokenise_ahead(named, tokenizer_folder, tokenizer, tokens=expected_steps * batch_tokens)
    ground = settle_ground(
        settled, settings, origins, config, tokenizer_folder, tokenizer, trial_data=val_set.folder,
        rows_per_step=rows_per_step, device=device, devices=devices, expected_steps=expected_steps,
    )  # fmt: skip
    return StageGround(ground, named, val_set.folder, before, keeps_optimizer, batch_tokens, minutes, fetch_s)


def plan_stage(
    settings: TrainSettings, origins: Mapping[str, Resolved], run_folder: Path, *, started_s: float
) -> Plan:
    """One stage of `intone train`, from the start or from another run's weights. Raises UserError."""
    settled = Settled(load_facts(), {name: choice(value) for name, value in origins.items()})
    stage = stage_ground(settled, settings, origins)
    ground, batch_tokens, before = stage.ground, stage.batch_tokens, stage.before
    minutes, fetch_s, keeps_optimizer = stage.minutes, stage.fetch_s, stage.keeps_optimizer
    started_s += fetch_s
    forecast: dict[str, Any] = {"format": 1, "step_s": ground.step_s, "minutes": minutes, "fetch_s": fetch_s}
    if isinstance(settings.steps, int):
        steps = settings.steps
    else:
        beside = beside_steps(ground, asks_skills=False)
        steps = max(10, fitting_steps(60 * minutes - (time.monotonic() - started_s), ground, beside, num_stages=1))
        forecast |= {"stages": {settings.stage: steps}, "beside": asdict(beside)}
    tokens = steps * batch_tokens
    mixes = [
        ensure_mix(fetched(entry, tokens), ground.tokenizer_folder, ground.tokenizer, tokens=tokens, name=name)
        for entry, name in stage.named
    ]
    mix = mixes[0].halves(mixes[1]) if len(mixes) > 1 else mixes[0]
    check_mix(mix, tokens)
    schedule = ScheduleConfig()
    if keeps_optimizer:
        schedule = replace(schedule, warmup_steps=0, momentum_from=0.95, momentum_steps=0)
    job = replace(
        stage_job(settings, ground, settings.stage, steps, schedule),
        data=mix.folders,
        weights=mix.weights,
        val=str(stage.val),
        learn_all=settings.stage == "mid",
        init_from=None if before is None else str(before),
        keep_optimizer=keeps_optimizer,
        samples=(STARTER_PROMPTS if stage.named[0][0].is_starter else TEXT_PROMPTS)[settings.stage],
    )
    forecast["steps"] = steps
    return Plan({settings.stage: (job, stage_choices(settled, ground))}, None, forecast)


# --- one value after the other --------------------------------------------------------------------------------------


def settle_minutes(asked: Resolved) -> Choice:
    if asked.value != "auto":
        return choice(asked)
    return Choice(recipe.default_minutes(), "what the eleven starter skills need on two cores", "default")


def settle_size(
    settled: Settled, origins: Mapping[str, Resolved], facts: Facts, minutes: float, *, is_starter: bool
) -> tuple[int, int, int]:
    """(depth, context, vocab_size): the recipe's values for this machine and time, unless the person gave them."""
    depth_asked, context_asked, vocab_asked = (origins[name] for name in ("depth", "context", "vocab_size"))
    depth = choice(depth_asked)
    if depth.value == "auto":
        value, reason = recipe.auto_depth(facts.fastest_flops_per_s, minutes, is_starter=is_starter)
        depth = Choice(value, reason, "default")
    settled.put("depth", depth)
    context = choice(context_asked)
    if context.value == "auto":
        context = Choice(recipe.auto_context(is_starter=is_starter), "what the documents of this data need", "default")
    settled.put("context", context)
    vocab = choice(vocab_asked)
    if vocab.value == "auto":
        value = recipe.auto_vocab_size(depth.value, is_starter=is_starter)
        vocab = Choice(value, f"a larger one would dominate the cost at depth {depth.value}", "default")
    settled.put("vocab_size", vocab)
    return depth.value, context.value, vocab.value


def expected_tokens(facts: Facts, config: ModelConfig, minutes: float) -> float:
    """Tokens that fit into the time by the machine's rate, before anything was timed."""
    rate = facts.fastest_flops_per_s or 5e10  # guess for a machine that could not be measured: one old core
    training_s = recipe.training_seconds(minutes)
    return training_s * rate * recipe.USUAL_MFU / train_flops_per_token(config, config.context)


def settle_steps(
    settled: Settled, origins: Mapping[str, Resolved], config: ModelConfig, minutes: float
) -> tuple[int, int]:
    """(tokens per optimizer step, steps that are likely to fit in the time), before anything was timed or tokenised.

    Raises UserError where the batch or micro-batch that was asked for cannot be.
    """
    total = expected_tokens(settled.facts, config, minutes)
    batch_tokens = settled.put("batch_tokens", settle_batch_tokens(origins["batch_tokens"], config.context, total))
    if origins["device_batch"].value != "auto":
        rows_per_step = batch_tokens // config.context
        settle_device_batch(
            origins["device_batch"], settled.facts, config, rows_per_step=rows_per_step, dtype="fp32", compiled=False
        )
    return batch_tokens, int(total / batch_tokens)


def fitting_steps(left_s: float, ground: Ground, beside: Beside, *, num_stages: int) -> int:
    """Steps that fit into so many seconds beside what else must be done in them.

    Few steps from a busy moment are too few to see in time that the machine is faster (pipeline/horizon.py): those that
    would fit on one BUSY_FACTOR times as fast are planned then, up to FEW_STEPS.
    """

    def fit(step_s: float) -> int:
        return int((left_s - beside.seconds(num_stages, step_s)) / step_s)

    return max(0, fit(ground.step_s), min(FEW_STEPS, fit(ground.step_s / BUSY_FACTOR)) if ground.was_busy else 0)


def settle_batch_tokens(asked: Resolved, context: int, total_tokens: float) -> Choice:
    """Tokens per optimizer step. Raises UserError where the asked number is no multiple of the context.

    A number that was asked for is a power of two, checked by settings.py.
    """
    if asked.value == "auto":
        value = max(recipe.auto_batch_tokens(total_tokens), context)
        return Choice(value // context * context, recipe.auto_batch_reason(value, total_tokens), "default")
    if asked.value % context:
        is_power = context & (context - 1) == 0
        other = "--batch-tokens auto, or a power of two for --context"
        advice = f"--batch-tokens {context} or more" if is_power else other
        raise UserError(
            f"batch_tokens {asked.value:,} is not a multiple of the context {context:,}",
            value=asked.value,
            fix=f"use {advice}",
        )
    return choice(asked)


# --- data -----------------------------------------------------------------------------------------------------------


def stage_sources(settings: TrainSettings) -> list[Source]:
    """What a stage learns from: mid from text and conversations, as in a run; the others from one of them."""
    if settings.stage == "sft":
        return [find_source("conversations", settings.data, settings.val)]
    text = find_source("documents", settings.data, settings.val)
    return [text, find_source("conversations", settings.sft, ())] if settings.stage == "mid" else [text]


def timed_fetch(sources: Sequence[Source], tokens: float) -> tuple[list[Source], float]:
    """The sources with the files of public sets on this disk, and the seconds that took. Says how words were read."""
    begin_s = time.monotonic()
    for source in sources:
        if source.note:
            say(source.note)
    return [fetched(source, tokens) for source in sources], time.monotonic() - begin_s


# --- records --------------------------------------------------------------------------------------------------------


def stage_job(
    settings: TrainingSettings, ground: Ground, stage: str, steps: int, schedule: ScheduleConfig
) -> TrainJob:
    """The parts of a stage's job that do not depend on its data."""
    save_every_s = 60.0 if settings.save_every_s == "auto" else float(settings.save_every_s)
    return TrainJob(
        stage=stage, model=ground.config, tokenizer=str(ground.tokenizer_folder), tokenizer_hash=ground.tokenizer.hash,
        data=(), val=None, context=ground.config.context, steps=steps, rows_per_step=ground.rows_per_step,
        optim=recipe.RUN_OPTIM, schedule=schedule, seed=settings.seed, deterministic=settings.deterministic,
        eval_every=None if settings.eval_every in (None, "auto") else int(settings.eval_every),
        eval_tokens=VAL_TOKENS, save_every_s=save_every_s, keep=settings.keep, peak_flops=ground_rate(ground),
    )  # fmt: skip


def ground_rate(ground: Ground) -> float | None:
    """The measured matrix-product rate in the run's dtype, for MFU: of all GPUs together, of a CPU as it is."""
    facts = load_facts()
    if (facts.measured_busy_cores or 0) > BUSY_CORES:
        return None  # others had their part of the machine then: MFU would be too high
    rate = {
        "fp32": facts.fp32_flops_per_s, "bf16": facts.bf16_flops_per_s, "fp16": facts.fp16_flops_per_s
    }[ground.dtype]  # fmt: skip
    return rate * ground.devices if rate and ground.device == "cuda" else rate


def stage_choices(settled: Settled, ground: Ground) -> Choices:
    """choices.json of a stage: its segment, or two that swap, the fall-backs of its micro-batch, the variables."""
    segment = Segment(
        from_step=0,
        device_batch=ground.device_batch,
        compiled=ground.compiled,
        dtype=ground.dtype,  # type: ignore[arg-type]
        attention=ground.attention,
        kernels=ground.kernels,  # type: ignore[arg-type]
        head_pieces=ground.head_pieces,
        by_block=ground.by_block,
        reason="settled at the start of the run",
        threads=ground.threads,
    )
    segments: tuple[Segment, ...] = (segment,)
    if ground.swap_step is not None:
        attention = attention_for(ground.device, True)
        reason = "code that a process beside the run compiled"
        segments += (
            replace(
                segment, from_step=ground.swap_step, compiled=True, attention=attention, head_pieces=1, reason=reason
            ),
        )  # fmt: skip
    return Choices(settled.choices, segments, {"device_batch": fallbacks(ground.device_batch)}, ground.environment)


def evaluation_config(ground: Ground, stage_folder: Path, val: Path) -> dict[str, Any]:
    """config.json of the evaluation at the end of a run."""
    return {
        "format": 1, "job": "evaluate", "from": str(stage_folder), "tokenizer": str(ground.tokenizer_folder),
        "device": ground.device, "dtype": ground.dtype, "threads": ground.threads, "tasks": ["starter"],
        "val": str(val), "val_tokens": VAL_TOKENS, "context": ground.config.context, "num_items": 200, "seed": 0,
    }  # fmt: skip

