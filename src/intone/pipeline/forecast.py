"""What a run would take, told before anything starts and without torch: minutes, memory, disk, and the likely size."""

from collections.abc import Mapping
from typing import Any

from intone import recipe
from intone.config import model_config
from intone.hardware import Facts, load_facts
from intone.log import human_bytes, three_digits
from intone.mixture import STARTER, parse_mixture
from intone.model.cost import training_state_bytes, weight_bytes
from intone.resolving import Resolved
from intone.settings import RunSettings, TrainSettings
from intone.tune import memory

NUM_STAGES = 3  # base, mid, sft
PASS_TOKENS = 2048  # of a micro-batch on a CPU, where a larger one is no faster
SUPERVISOR_BYTES = 2**29  # the command itself beside its worker (guess)
TEXT_BYTES = 2**26  # token sets and tokenizer of starter: 20 to 60 MiB
# a training and a validation file of each public set, see data/sources.py: more only for runs of many hours
FETCHED_BYTES = {"climbmix": 200e6, "fineweb-edu": 200e6, "tinystories": 259e6, "smoltalk": 278e6}
TOKENS_PER_FETCHED = 1.7  # bytes of token sets for a byte that was fetched, at most (data/streams.py)


def forecast(settings: RunSettings, _origins: Mapping[str, Resolved]) -> tuple[str, dict[str, Any]]:
    """Minutes, memory and disk of `intone run` with these settings -> (line of text, the same as JSON).

    Estimates by arithmetic from the machine's facts, which are measured once where they are not known yet.
    """
    facts = load_facts()
    minutes = run_minutes(settings.minutes)
    is_starter = uses_starter(settings)
    depth, reason = likely_depth(settings, facts)
    context = recipe.auto_context(is_starter=is_starter) if settings.context == "auto" else settings.context
    vocab = settings.vocab_size
    if vocab == "auto":
        vocab = recipe.auto_vocab_size(depth, is_starter=is_starter)
    config = model_config(settings.preset, depth=depth, vocab_size=vocab, context=context)
    dtype = "fp32" if settings.dtype == "auto" else settings.dtype  # the larger one, until it is measured
    rows = max(1, PASS_TOKENS // context) if settings.device_batch == "auto" else settings.device_batch
    memory_bytes = memory.training_bytes(config, rows, dtype=dtype, compiled=settings.compile != "off")
    save_bytes = training_state_bytes(config) - weight_bytes(config)  # weights and moments, no gradients
    portions = [*parse_mixture(settings.data).portions, *parse_mixture(settings.sft).portions]
    fetch_bytes = sum(FETCHED_BYTES.get(portion.name or "", 0.0) for portion in portions)
    values = {
        "minutes": minutes,
        "memory_bytes": memory_bytes + SUPERVISOR_BYTES,
        # a save that is being written stands beside those kept and the best one
        "disk_bytes": NUM_STAGES * (settings.keep + 2) * save_bytes
        + TEXT_BYTES
        + round((1 + TOKENS_PER_FETCHED) * fetch_bytes),
        "fetch_bytes": round(fetch_bytes),
        "depth": depth,
        "context": context,
        "vocab_size": vocab,
    }
    fetching = f", {human_bytes(fetch_bytes)} to fetch where they are not here yet" if fetch_bytes else ""
    text = (
        f"about {three_digits(minutes)} minutes, {human_bytes(values['memory_bytes'])} of memory, "
        f"{human_bytes(values['disk_bytes'])} of disk{fetching}\n"
        f"depth {depth} ({reason}), context {context:,}, {vocab:,} vocabulary entries"
    )
    return text, values


def run_minutes(asked: float | str) -> float:
    """The minutes of a run: those asked for, or the recipe's."""
    return recipe.default_minutes() if isinstance(asked, str) else float(asked)


def likely_depth(settings: RunSettings | TrainSettings, facts: Facts) -> tuple[int, str]:
    """The depth asked for, or the one that planning will settle on from the same facts, and why."""
    if settings.depth != "auto":
        return settings.depth, "asked for"
    minutes = run_minutes(settings.minutes)
    return recipe.auto_depth(facts.fastest_flops_per_s, minutes, is_starter=uses_starter(settings))


def uses_starter(settings: RunSettings | TrainSettings) -> bool:
    """Whether all text comes from the generator, as planning will see it."""
    return all(portion.name == STARTER for portion in parse_mixture(settings.data).portions)
