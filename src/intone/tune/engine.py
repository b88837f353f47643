"""Chooses how much an engine computes at once, by timing it: texts, tokens of their prompts, lengths of captured steps

Nothing is measured where an engine opens: it takes what `intone tune infer` kept for its model, else the rules of
engine/choose.py.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.child import ChildFailed, ask_child
from intone.config import ModelConfig, TrainJob
from intone.errors import UserError
from intone.hardware import Facts, known_facts, quiet
from intone.log import table
from intone.paths import read_json
from intone.records import Choice, read_choices
from intone.resolving import Resolved
from intone.runs import Place, find_stage
from intone.tune.probe import speedup
from intone.tune.trials import Trials, code_fingerprint

WORTH = 1.05  # another value must be this much faster than the rule's, see faster_by(): a host has slow spells (LOG.md)
BUDGET_S = 0.7  # of timed work per question: with the start of the child some ten seconds on two cores (LOG.md)
TIMEOUT_S = 120.0  # twelve times that: kernels may have to be built first, and a large vocabulary takes longer


@dataclass(frozen=True)
class Question:
    """One option of Engine: its values by device, the rule's first, and what they are in words."""

    name: str
    values: Mapping[str, tuple[Any, ...]]
    words: str

    @property
    def kind(self) -> str:
        """What its answers are kept under."""
        return f"engine_{self.name}"

    def rule(self, device: str) -> Any:
        """What engine/choose.py takes where nobody measured: a GPU's values wherever it is no CPU."""
        return self.values[device if device in self.values else "cuda"][0]


# the first of each is the rule's, see engine/choose.py and engine/fixed.py
QUESTIONS = (
    Question("num_slots", {"cpu": (64, 16, 32, 128), "cuda": (256, 64, 128)}, "texts at once"),
    Question("prompt_tokens", {"cpu": (512, 256, 1024), "cuda": (8192, 2048, 4096, 16384)}, "prompt tokens a step"),
    Question("buckets", {"cuda": ((512, 2048), (), (256, 512, 1024, 2048, 4096))}, "lengths of captured steps"),
)


@dataclass(frozen=True)
class Seen:
    """What was seen of one question. Lists go with its values in order; those of refused ones are empty.

    seconds: per token, entry i of all from the same round. apart: nats by which log-probabilities differ from those
    under the rule's value; allowed: what rounding may make. refused: why a value cannot be, None where it can.
    again: the place of the fastest that may be chosen, where one seemed worth it; again_s: the rule's seconds and its,
    measured once more in turns.
    """

    seconds: Sequence[Sequence[float]]
    apart: Sequence[float | None]
    refused: Sequence[str | None]
    allowed: float
    again: int | None = None
    again_s: Sequence[Sequence[float]] = ()


# (config, tokenizer's folder, device, dtype, how matrices are kept) -> by question's name
Measure = Callable[[ModelConfig, Path, str, str, str], dict[str, Seen]]


def settle_engine(
    facts: Facts, config: ModelConfig, trials: Trials, *, tokenizer: Path, device: str, dtype: str, weights: str,
    measure: Measure | None = None,
) -> dict[str, Choice]:  # fmt: skip
    """A choice for every question that this device has, measured now unless it is kept; weights as in Engine."""
    questions = asked_of(device)
    if not questions:
        reason = f"by rule: nothing was measured on {device}"
        known = [entry for entry in QUESTIONS if "cpu" in entry.values]  # steps are captured on CUDA alone
        return {entry.name: Choice(entry.rule(device), reason, "default") for entry in known}

    def kept() -> dict[str, Choice]:
        found = kept_engine(facts, config, device=device, dtype=dtype, weights=weights, trials=trials)
        return found if set(found) == {question.name for question in questions} else {}

    if answer := kept():
        return answer
    with quiet(trials.path.parent, "tuning of the engine"):
        if answer := kept():  # somebody else measured it while we waited
            return answer
        try:
            seen = (measure or asked_child)(config, tokenizer, device, dtype, weights)
        except ChildFailed as error:
            failed = f"by rule: the engine could not be timed: {error}"
            return {entry.name: Choice(entry.rule(device), failed, "default") for entry in questions}
        key = engine_key(config, device=device, dtype=dtype, weights=weights)
        choices = {entry.name: pick(entry, entry.values[device], seen[entry.name]) for entry in questions}
        for entry in questions:
            trials.record(entry.kind, key, choices[entry.name])
        return choices


def pick(question: Question, values: Sequence[Any], seen: Seen) -> Choice:
    """The rule's value, unless the fastest other one with the same texts is WORTH faster, and is so a second time."""
    gains = [faster_by(seen.seconds[0], times) if times else 0.0 for times in seen.seconds]
    beat, best = [], 0
    for place in sorted(range(1, len(values)), key=gains.__getitem__, reverse=True):
        apart, refused = seen.apart[place], seen.refused[place]
        why = f"{gains[place]:.2f}x as fast as {shown(values[0])}"
        if refused is not None:
            why = refused
        elif apart is None or not apart <= seen.allowed:
            difference = "cannot be compared" if apart is None else f"differ by {apart:.2g} nats"
            why += f", but its log-probabilities {difference}; {seen.allowed:g} are allowed"
        elif place == seen.again:
            gains[place] = min(gains[place], faster_by(*seen.again_s))
            if gains[place] > WORTH:
                best = place
                continue
            why += f", {faster_by(*seen.again_s):.2f}x when both were measured again"
        beat.append({"value": values[place], "why": why})
    rates = {shown(value): 1 / statistics.median(times) for value, times in zip(values, seen.seconds, strict=True)
             if times}  # fmt: skip
    words = ", ".join(f"{value}: {rate:,.0f} tokens/s" for value, rate in rates.items())
    reason = f"no other value of {question.words} is {WORTH:.2f}x as fast as the rule's"
    if best:
        beat.insert(0, {"value": values[0], "why": f"{shown(values[best])} are {gains[best]:.2f}x as fast"})
        agree = f"log-probabilities agree within {seen.apart[best]:.1g} nats"
        reason = f"{gains[best]:.2f}x as fast as the rule's {shown(values[0])}; {agree}"
    measured = {"tokens_per_s": rates, "rounds": len(seen.seconds[0]), "allowed_nats": seen.allowed}
    return Choice(values[best], f"{reason} ({words})", "measured", tuple(beat), measured)


def faster_by(rule_s: Sequence[float], times: Sequence[float]) -> float:
    """How many times as fast as the rule: by rounds and by the fastest of each, whichever says less.

    Others on the machine make single blocks slower, never faster: what only slow ones of the rule's say is not said.
    """
    return min(speedup(rule_s, times), min(rule_s) / min(times))


def asked_child(config: ModelConfig, tokenizer: Path, device: str, dtype: str, weights: str) -> dict[str, Seen]:
    """Asks engine_probe.py in a process of its own, in the environment that chat and serve have. Raises ChildFailed."""
    questions = [{"name": entry.name, "values": entry.values[device]} for entry in asked_of(device)]
    question = {
        "config": config.as_json(), "tokenizer": str(tokenizer), "device": device, "dtype": dtype, "weights": weights,
        "questions": questions, "budget_s": BUDGET_S,
    }  # fmt: skip
    answer = ask_child("intone.tune.engine_probe", question, timeout_s=TIMEOUT_S)
    return {name: Seen(**seen) for name, seen in answer.items()}


def asked_of(device: str) -> list[Question]:
    """The questions that a device has; none: nothing is measured there."""
    return [question for question in QUESTIONS if device in question.values]


# --- what is kept ---------------------------------------------------------------------------------------------------


def kept_engine(
    facts: Facts, config: ModelConfig, *, device: str, dtype: str, weights: str, trials: Trials | None = None
) -> dict[str, Choice]:  # fmt: skip
    """What was measured here of an engine for such a model, by option of Engine; empty where nothing was. Milliseconds,
    less where nothing of an engine is kept at all."""
    trials = trials or Trials(facts)
    questions = asked_of(device)
    if not questions or not trials.knows(questions[0].kind):
        return {}
    key = engine_key(config, device=device, dtype=dtype, weights=weights)
    found = {entry.name: trials.find(entry.kind, key) for entry in questions}
    return {name: choice for name, choice in found.items() if choice is not None}


def engine_key(config: ModelConfig, *, device: str, dtype: str, weights: str) -> dict[str, Any]:
    """What an engine's speed depends on, besides the machine and torch."""
    stored = dtype if weights == "auto" else weights
    return {
        "device": device, "config": config.as_json(), "dtype": dtype, "weights": stored,
        "code": code_fingerprint("engine", "model", "tune/engine.py", "tune/engine_probe.py"),
    }  # fmt: skip


# --- for `--show` ---------------------------------------------------------------------------------------------------


def forecast(settings: Any, _origins: Mapping[str, Resolved]) -> tuple[str, dict[str, Any]]:
    """`--show` of a verb that opens an engine: what is kept for the run that it names; nothing is measured."""
    if getattr(settings, "url", None) is not None:
        return "the engine is the server's", {}
    try:
        place = find_stage(getattr(settings, "from_run", None) or settings.run)
        choices = kept_for(place, settings)
    except UserError as error:
        return f"nothing is known of the engine: {error.message}", {}
    if not choices:
        return "the engine computes as much at once as the rules say; intone tune infer measures it", {}
    rows = [[name, shown(entry.value), entry.origin, entry.reason] for name, entry in choices.items()]
    text = table(rows, header=["engine", "value", "origin", "reason"], left=4)
    return text, {name: {"value": entry.value, "reason": entry.reason} for name, entry in choices.items()}


def kept_for(place: Place, settings: Any) -> dict[str, Choice]:
    """What the engine of a run would find; matrices in 8 bits count where nothing else was measured."""
    facts = known_facts()
    asked = {name: getattr(settings, name, "auto") for name in ("dtype", "weights")}
    device = facts.device or "cpu" if settings.device == "auto" else settings.device
    dtype = read_choices(place.folder).segments[-1].dtype if asked["dtype"] == "auto" else asked["dtype"]
    config = TrainJob.from_json(read_json(place.folder / "config.json")).model
    ways = ("auto", "int8") if asked["weights"] == "auto" else (asked["weights"],)
    kept = (kept_engine(facts, config, device=device, dtype=dtype, weights=way) for way in ways)
    return next((choices for choices in kept if choices), {})


def shown(value: Any) -> str:
    """A value in words."""
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(f"{length:,}" for length in value) or "the whole context alone"
