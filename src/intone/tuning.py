"""`intone tune STAGE`: every auto of a stage settled here, with the curve of its micro-batch; or a dry run"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.child import ChildFailed
from intone.config import ModelConfig, TrainJob, model_config
from intone.errors import UserError
from intone.ground import Settled
from intone.hardware import Facts, load_facts
from intone.log import human_bytes, say, table
from intone.model.checkpoint import list_checkpoints, saved_step
from intone.paths import read_json
from intone.planning import stage_choices, stage_ground
from intone.records import Answer, choice, read_choices
from intone.resolving import Resolved
from intone.runs import Place, find_stage
from intone.settings import TrainSettings, TuneSettings
from intone.tune.batch import candidates, passes_of
from intone.tune.curve import curve_text
from intone.tune.engine import settle_engine, shown
from intone.tune.facts import facts_json, facts_text
from intone.tune.kernels import kernels_obstacle
from intone.tune.memory import training_bytes, worker_bytes
from intone.tune.settings import TuneInferSettings
from intone.tune.settle import MARGIN, fallbacks, settle_device
from intone.tune.trace import traced
from intone.tune.trials import Trials

SIZES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
LINE_TOKENS = 1024  # of a pass, from which what is alive is a line in the rows: logits exist for 512 tokens at a time
SHOWN = (
    "device", "devices", "threads", "dtype", "products", "kernels", "compile", "compile_by_block", "attention",
    "head_pieces", "allocator", "loader_workers", "batch_tokens", "device_batch", "memory_margin_bytes",
)  # fmt: skip


def tune_verb(settings: TuneSettings, origins: Mapping[str, Resolved]) -> Answer:
    """Facts, a dry run, or everything that a stage needs settled, measured where that was not done yet."""
    if settings.facts:
        facts = load_facts(again=settings.fresh)
        return Answer(facts_json(facts), facts_text(facts), path=str(facts.folder))
    return dry_run(settings) if settings.dry_run else tuned(settings, origins)


def tuned(settings: TuneSettings, origins: Mapping[str, Resolved]) -> Answer:
    """Settles the stage as `intone train` would, but searches the micro-batch however short the run is."""
    facts = load_facts()
    chosen = {name: choice(value) for name, value in origins.items()}
    settled = Settled(facts, chosen, always=True, fresh=settings.fresh, method=settings.method)
    asked = as_train(settings)
    stage = stage_ground(settled, asked, {**origins, "steps": Resolved("auto", "default", "not asked")})
    ground, found = stage.ground, settled.found
    tokens = stage.batch_tokens
    step_s = ground.step_s if found is None else found.step_s  # of the micro-batch that was taken; else of the trials'
    rows = [[name, in_words(name, settled.choices[name].value), settled.choices[name].reason] for name in SHOWN
            if name in settled.choices]  # fmt: skip
    lines = [table(rows, header=["setting", "value", "reason"], left=3), ""]
    lines.append(curve_text(found, tokens) if found else "the micro-batch was not searched: see its reason")
    known = {entry.name for entry in dataclasses.fields(TrainSettings)} - {"stage"}
    is_flagged = any(value.origin == "flag" for name, value in origins.items() if name in known)
    lines += ["", f"one step: {tokens:,} tokens in {step_s:.3g} s, {tokens / step_s:,.0f} tokens/s",
              f"next: intone train {settings.stage}{' with the same flags' if is_flagged else ''}"]  # fmt: skip
    result: dict[str, Any] = {
        "stage": settings.stage,
        "choices": {name: dataclasses.asdict(entry) for name, entry in settled.choices.items() if name in SHOWN},
        "search": None if found is None else found.as_json(),
        "segment": dataclasses.asdict(stage_choices(settled, ground).segments[0]),
        "fallbacks": list(fallbacks(ground.device_batch)),
        "tokens_per_step": tokens,
        "step_s": step_s,
        "tokens_per_s": tokens / step_s,
    }
    return Answer(result, "\n".join(lines), path=str(facts.folder))


def in_words(name: str, value: Any) -> str:
    """A choice's value as the table has it: sizes in GiB, numbers with commas."""
    if name.endswith("_bytes") and isinstance(value, int):
        return human_bytes(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def as_train(settings: TuneSettings) -> TrainSettings:
    """The settings of `intone train` that this asks about. A stage without a start is tuned from random weights."""
    names = {entry.name for entry in dataclasses.fields(TrainSettings)}
    values = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    if settings.from_run is None:
        values["like"] = "nothing"  # which planning does not read: a stage alone is refused where it must train
    return TrainSettings(**values)


def tune_infer(settings: TuneInferSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """How much the engine computes at once for a run's model: measured in a child, kept for whoever opens it."""
    facts, place = load_facts(), find_stage(settings.from_run)
    job = TrainJob.from_json(read_json(place.folder / "config.json"))
    asked = Resolved(settings.device, "default" if settings.device == "auto" else "flag", "--device")
    device = settle_device(asked, facts).value
    dtype = read_choices(place.folder).segments[-1].dtype if settings.dtype == "auto" else settings.dtype
    weights = weights_of(place, job.model, settings.weights, device=device, dtype=dtype)
    choices = settle_engine(
        facts, job.model, Trials(facts, fresh=settings.fresh), tokenizer=Path(job.tokenizer), device=device,
        dtype=dtype, weights=weights,
    )  # fmt: skip
    rows = [[name, shown(entry.value), entry.reason] for name, entry in choices.items()]
    lines = [table(rows, header=["setting", "value", "reason"], left=3), ""]
    for name, entry in choices.items():
        lines += [f"{name}: not {shown(lost['value'])}: {lost['why']}" for lost in entry.beat]
    lines += ["", f"chat, serve, eval and intone.load take these for {settings.from_run} and every model of its shape"]
    run = place.run.name if place.run else None
    result = {
        "device": device, "dtype": dtype, "weights": weights,
        "choices": {name: dataclasses.asdict(entry) for name, entry in choices.items()},
    }  # fmt: skip
    return Answer(result, "\n".join(lines), run=run, path=str(place.folder))


def weights_of(place: Place, config: ModelConfig, asked: str, *, device: str, dtype: str) -> str:
    """How chat and serve would keep the matrices of a run's newest save; torch is imported here."""
    import torch

    from intone.serve.loading import weights_for

    saves = list_checkpoints(place.folder)
    if not saves:
        return asked
    step = saved_step(saves[-1])
    kept, _ = weights_for(place, step, asked, config, device=torch.device(device), dtype=dtype)  # type: ignore[arg-type]
    return kept


# --- without running anything ---------------------------------------------------------------------------------------


def dry_run(settings: TuneSettings) -> Answer:
    """What a worker that trains this model needs by micro-batch, from its shape alone, and which fit in the memory."""
    facts = load_facts()
    device = settings.device if settings.device != "auto" else (facts.device or "cpu")
    budget, source = dry_budget(settings, facts.gpu_memory_free_bytes, facts.memory_available_bytes, device)
    dtype = settings.dtype if settings.dtype != "auto" else "bf16" if device == "cuda" or settings.memory else "fp32"
    compiled = settings.compile == "on" or (settings.compile == "auto" and dtype == "bf16")
    context = settings.context if settings.context != "auto" else 2048 if device == "cuda" or settings.memory else 512
    vocab_size = settings.vocab_size if settings.vocab_size != "auto" else 32768
    assert isinstance(settings.depth, int), "checked by the settings"
    config = model_config(settings.preset, depth=settings.depth, vocab_size=vocab_size, context=context)
    batch_tokens = settings.batch_tokens if settings.batch_tokens != "auto" else 524_288
    rows_per_step = max(1, batch_tokens // context)
    sizes = [rows for rows in candidates(rows_per_step) if rows & (rows - 1) == 0]
    on_cpu = device == "cpu" and (settings.memory is None or settings.device == "cpu")
    needs, how = dry_needs(facts, settings, config, candidates(rows_per_step), dtype, compiled, on_cpu=on_cpu)
    fitting = [rows for rows, need in needs.items() if budget is None or need <= budget * (1 - MARGIN)]
    largest = max(fitting, default=None)
    shown = sorted({*sizes, *([largest] if largest else [])})
    lines = [
        f"depth {config.depth}, width {config.width}, context {context:,}, {config.vocab_size:,} entries, "
        f"{dtype}{', compiled' if compiled else ''}; {human_bytes(budget)} ({source})", "",
        table([[f"{rows:,}", f"{passes_of(rows_per_step, rows):,}", human_bytes(needs[rows]),
                "yes" if rows in fitting else "no"] for rows in shown],
              header=["micro-batch", f"passes for {batch_tokens:,} tokens", "memory", "fits"]), "",
    ]  # fmt: skip
    if largest is None:
        lines.append(f"it does not fit: one row needs about {human_bytes(needs[min(needs)])}")
    else:
        lines.append(f"it fits: up to {largest:,} rows at once, with {MARGIN:.0%} of memory left alone")
    lines.append(f"{how}, not measured: intone tune measures on the device itself")
    result = {
        "dry_run": True, "depth": config.depth, "context": context, "vocab_size": config.vocab_size, "dtype": dtype,
        "compiled": compiled, "model": how, "memory_bytes": budget, "fits": largest is not None,
        "largest_device_batch": largest,
        "curve": [{"device_batch": rows, "bytes": needs[rows], "fits": rows in fitting} for rows in shown],
    }  # fmt: skip
    return Answer(result, "\n".join(lines))


def dry_needs(
    facts: Facts, settings: TuneSettings, config: ModelConfig, sizes: Sequence[int], dtype: str, compiled: bool, *,
    on_cpu: bool,
) -> tuple[dict[int, int], str]:  # fmt: skip
    """(bytes of a worker by micro-batch, where they come from). On this CPU, where our kernels can run, by a trace."""
    can_trace = on_cpu and settings.kernels != "torch" and settings.compile != "on" and dtype == "fp32"
    if can_trace and kernels_obstacle(facts, config, dtype, "off") is None:
        try:
            least = -(-LINE_TOKENS // config.context)
            one, two = traced(config, [least, 2 * least], dtype=dtype, kernels="native")
        except ChildFailed as error:
            say(f"the step could not be traced ({error}): by arithmetic instead")
        else:
            needs = {}
            for rows in sizes:
                in_pass = one.pass_bytes + (rows - least) * (two.pass_bytes - one.pass_bytes) // least
                needs[rows] = sum(worker_bytes(config, max(in_pass, one.update_bytes), two.packed_bytes))
            return needs, "by a trace of the step's tensors for our CPU kernels"
    return {rows: training_bytes(config, rows, dtype=dtype, compiled=compiled) for rows in sizes}, "by arithmetic"


def dry_budget(
    settings: TuneSettings, gpu_free: int | None, available: int | None, device: str
) -> tuple[int | None, str]:
    """(bytes, where they come from)."""
    if settings.memory is not None:
        return parse_size(settings.memory), "--memory"
    return (gpu_free, "free on the GPU now") if device == "cuda" else (available, "available on this machine now")


def parse_size(text: str) -> int:
    """24GiB, 24 GB, 16000MiB -> bytes. Raises UserError."""
    found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]+)", text.strip())
    unit = found[2].lower() if found else ""
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if unit not in SIZES or number <= 0:
        raise UserError(f"memory {text!r} is no size", value=text, fix="write it as 24GiB, 80GB or 16000MiB")
    return int(number * SIZES[unit])


