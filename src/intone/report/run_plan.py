"""What a report says about the plan of a run: model, recipe, machine, and every decision with its reason."""

from collections.abc import Mapping
from typing import Any

from intone.fields import shown
from intone.log import human_bytes, human_count, three_digits
from intone.records import Choice, Choices
from intone.report.document import Block, Section, Table
from intone.report.record import RunRecord
from intone.resolving import OPEN_REASON

UNDECIDED = ("name", "new", "show", "json", "like", "prepare")  # settings of the command, not of the run
RECIPE_FIRST = ("minutes", "depth", "context", "vocab_size", "batch_tokens", "device", "dtype", "threads", "compile")


def model_section(record: RunRecord) -> Section:
    """The model, the recipe of each stage, and the machine."""
    blocks: list[Block] = []
    job = planned_job(record)
    if job is not None:
        blocks.append(Table(["model", ""], model_rows(job["model"], record), left=2))
        blocks.append(Table(["recipe", *_names(record)], recipe_rows(record), left=1))
    facts = machine_rows(record)
    if facts:
        blocks.append(Table(["machine", ""], facts, left=2))
    return Section("Model, recipe, machine", "model", blocks)


def _names(record: RunRecord) -> list[str]:
    return [stage.stage for stage in record.stages if stage.config]


def model_rows(model: Mapping[str, Any], record: RunRecord) -> list[list[str]]:
    """The shape of the model in words."""
    heads = f"{model['num_heads']} heads of {model['head_width']}"
    if model["num_kv_heads"] != model["num_heads"]:
        heads += f", {model['num_kv_heads']} for keys and values"
    rows = [
        ["architecture", f"{model['depth']} blocks, width {model['width']:,}, {heads}"],
        ["context", f"{model['context']:,} tokens, windows {model['window_pattern']}"],
        ["vocabulary", f"{model['vocab_size']:,} entries"],
    ]
    counts = next((stage.parameters for stage in reversed(record.stages) if stage.parameters), None)
    if counts:
        parts = [f"{human_count(count)} {kind}" for kind, count in counts.items() if kind != "total"]
        rows.append(["parameters", f"{counts['total']:,}: {', '.join(parts)}"])
    rows.append(["preset", shown(record.run.settings.get("preset"))])
    return rows


def recipe_rows(record: RunRecord) -> list[list[str]]:
    """Per stage: how long, how much, at which rates."""
    jobs = [stage.config for stage in record.stages if stage.config]

    def row(name: str, words: Any) -> list[str]:
        return [name, *(words(job) for job in jobs)]

    return [
        row("steps", lambda job: f"{job['steps']:,}"),
        row("tokens per step", _step_tokens),
        row("rows per step", _step_rows),
        row("learns", lambda job: _learns(job)),
        row("rate of matrices (Muon)", lambda job: _rate(job, "matrix_lr")),
        row("rate of embedding", lambda job: _rate(job, "embedding_lr")),
        row("rate of head", lambda job: _rate(job, "head_lr")),
        row("warm-up", lambda job: f"{job['schedule']['warmup_steps']:,} steps"),
        row("falls over the last", lambda job: f"{100 * job['schedule']['warmdown_share']:.0f}%"),
        row("down to", lambda job: f"{100 * job['schedule']['final_share']:.3g}% of the rate"),
        row("weight decay", lambda job: three_digits(job["optim"]["weight_decay"] * job["schedule"]["decay_from"])),
        row("seed", lambda job: str(job["seed"])),
    ]


def _step_tokens(job: Mapping[str, Any]) -> str:
    asked = job.get("rollouts")
    return f"{asked['prompts'] * asked['samples']:,} answers" if asked else f"{job['rows_per_step'] * job['context']:,}"


def _step_rows(job: Mapping[str, Any]) -> str:
    return "as they fill" if job.get("rollouts") else f"{job['rows_per_step']:,} of {job['context']:,}"


def _learns(job: Mapping[str, Any]) -> str:
    if job.get("rollouts"):
        return "its own answers, by their reward"
    if job["stage"] == "sft":
        return "answers"
    return "everything said" if job["learn_all"] else "text"


def _rate(job: Mapping[str, Any], name: str) -> str:
    return three_digits(job["optim"][name] * job["schedule"]["lr_scale"])


def machine_rows(record: RunRecord) -> list[list[str]]:
    """The machine as it was at the start of the run."""
    cores, memory = fact(record, "cores_physical"), fact(record, "memory_bytes")
    gpu, number = fact(record, "gpu_name"), fact(record, "num_gpus")
    rows = [
        ["processor", f"{fact(record, 'cpu_name') or 'unknown'}, {cores} cores"],
        ["memory", human_bytes(memory)],
        ["GPU", f"{number or 1} x {gpu}" if gpu else "none"],
        ["system", shown(fact(record, "system"))],
        ["software", f"Python {fact(record, 'python_version')}, torch {fact(record, 'torch_version')}"],
    ]
    return rows if (record.machine or {}).get("facts") else []


def decisions_section(record: RunRecord) -> Section:
    """Every setting that was not left alone: its value, where it came from, why, and what it beat."""
    stage = next((stage for stage in record.stages if stage.choices), None)
    if stage is None or stage.choices is None:
        return Section("What was decided, and why", "decisions", [])
    decided: list[list[str]] = []
    left: list[list[str]] = []
    for name, choice, is_plain in ordered_choices(stage.choices):
        beat = "; ".join(f"{written(entry['value'])}: {entry['why']}" for entry in choice.beat)
        row = [name, written(choice.value), choice.origin, choice.reason, beat]
        (left if is_plain else decided).append(row)
    header = ["setting", "value", "from", "why", "what lost"]
    blocks: list[Block] = [Table(header, decided, left=5, stacked=True)]
    if left:
        rows = [row[:2] for row in left]
        blocks.append(Table(header[:2], rows, left=2, caption=f"{len(rows)} settings at their defaults", folded=True))
    variables = [[name, value] for name, value in stage.choices.environment.items()]
    if variables:
        caption = f"{len(variables)} environment variables of the workers"
        blocks.append(Table(["variable", "value"], variables, left=2, caption=caption, folded=True))
    return Section("What was decided, and why", "decisions", blocks)


def ordered_choices(choices: Choices) -> list[tuple[str, Choice, bool]]:
    """(setting, its choice, whether it was left at its default), what the recipe decides first."""
    names = [name for name in RECIPE_FIRST if name in choices.settings]
    names += [name for name in choices.settings if name not in (*RECIPE_FIRST, *UNDECIDED)]
    found = [(name, choices.settings[name]) for name in names]
    plain = ("default", OPEN_REASON)
    return [(name, choice, choice.origin == "default" and choice.reason in plain) for name, choice in found]


def written(value: Any) -> str:
    """A setting's value for people: numbers with commas, the rest as on the command line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return shown(value)


def segment_rows(record: RunRecord) -> list[list[str]]:
    """The segments of the plans, as they were carried out."""
    rows = []
    for stage in record.stages:
        for segment in stage.choices.segments if stage.choices else ():
            rows.append(
                [
                    stage.stage,
                    f"{segment.from_step:,}",
                    f"{segment.device_batch:,} rows",
                    segment.dtype,
                    shown(segment.compiled),
                    f"{segment.attention}, kernels {segment.kernels}",
                    "auto" if segment.threads is None else str(segment.threads),
                    segment.reason,
                ]
            )
    return rows


def fact(record: RunRecord, name: str) -> Any:
    """A fact about the machine at the start of the run; None where it was not kept or is not known."""
    facts = (record.machine or {}).get("facts") or {}
    return (facts.get(name) or {}).get("value")


def planned_job(record: RunRecord) -> Mapping[str, Any] | None:
    """The configuration of the last planned stage."""
    return next((stage.config for stage in reversed(record.stages) if stage.config), None)
