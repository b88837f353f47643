"""What slows or spoils a generation of ours, found from outside: times against position, first tokens of samples."""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intone.config import ModelConfig
from intone.data.chat import SPECIALS
from intone.engine.load import load_model
from intone.errors import UserError
from intone.hardware import Facts, quiet
from intone.log import say
from intone.model.checkpoint import load_weights
from intone.model.cost import num_parameters
from intone.optimise.detect.generation import GROWTH
from intone.optimise.signals import Signals
from intone.optimise.stages.target import State, Target, merged
from intone.optimise.stages.training import best_dtype
from intone.prove.gates.physical import DTYPE_BYTES
from intone.prove.gates.sampling import AIMED_PEAKED, TEMPERATURES, plain_logits, softmax
from intone.prove.live import LineChild, LiveFailed

NUM_SAMPLES = 64  # first tokens of one request: more than the 50 that the gate on sampling needs
SEED = 90_001
PROMPT = 5  # tokens of the prompt whose samples are looked at
EARLY, LATE = 16, 512  # tokens before the first timed position and before the last, as far as the context goes
FEW, MANY = 4, 16  # new tokens: the difference of their times is that of tokens alone, without reading the prompt
REPEATS = 5
MORE_REPEATS = 15  # where the growth is between these, so that a threshold between them is not decided by a disturbance
DOUBTFUL = (1.2, 2.5)
GREEDY = {"temperature": 0.0, "tools": False, "logprobs": False}


def look_at_generation(target: Target, state: State, facts: Facts, scratch: Path) -> Signals:
    """Signals of the generation as changed. Raises UserError where its job does not run."""
    say("looking at first tokens and at times against position")
    config = target.generation(state)
    samples = first_tokens(target, state, scratch)
    with quiet(facts.folder, "a look at a generation"):
        times = position_times(target, state, scratch)
        signals = Signals(
            kind="generate", device=config.get("device", "cpu"), num_samples=len(samples.tokens),
            distinct_first=len(set(samples.tokens)), expected_distinct=samples.expected_distinct,
            step_s=times.early_s, late_over_early=times.growth, positions=times.positions,
            read_share=read_share(config, times.early_s, facts), threads=times.threads,
            matmul_dtypes={config.get("dtype", "fp32"): 1.0}, **best_dtype(config.get("dtype", "fp32"), facts),
            notes=times.notes,
        )  # fmt: skip
        if times.growth is not None and times.growth > GROWTH:  # no cache (D8): that is mended first
            return signals
        return differences(signals, target, state, facts, scratch)


# --- samples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """First tokens of samples of one request, beside what the plain model gives them.

    probabilities (V,) float64 at the temperature, by the plain model in fp32. expected_distinct: different first
    tokens among so many independent draws.
    """

    tokens: tuple[int, ...]
    probabilities: np.ndarray
    temperature: float

    @property
    def expected_distinct(self) -> float:
        return float((1 - (1 - self.probabilities) ** len(self.tokens)).sum())


def first_tokens(target: Target, state: State, scratch: Path) -> Samples:
    """The first tokens of NUM_SAMPLES samples of one request, at a temperature that leaves a choice."""
    model = plain_model(target)
    prompt = random_prompts(target, [PROMPT])[0]
    logits = plain_logits(model, prompt)
    for temperature in TEMPERATURES:
        probabilities = softmax(logits / temperature)
        if (probabilities**2).sum() <= AIMED_PEAKED:
            break
    sampling = {"temperature": temperature, "max_tokens": 1, "n": NUM_SAMPLES, "seed": SEED, "tools": False,
                "logprobs": False}  # fmt: skip
    (found,) = written(target, state, scratch / "samples", [prompt], sampling)
    return Samples(tuple(ids[0] for ids in found), probabilities, temperature)


def written(
    target: Target, state: State, folder: Path, prompts: Sequence[Sequence[int]], sampling: Mapping[str, Any]
) -> list[list[list[int]]]:
    """The ids that the generation writes: per prompt, per sample. Raises UserError where its worker fails."""
    target.write("generate", state, folder, prompts=[list(prompt) for prompt in prompts], sampling=dict(sampling))
    outcome = target.run(folder, target.variables("generate", state))
    if outcome.outcome != "done":
        raise UserError(f"the generation ended as {outcome.outcome}: {outcome.message}", value=str(folder),
                        fix=outcome.fix or f"look into {folder}")  # fmt: skip
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return [[list(sample["ids"]) for sample in json.loads(line)["completions"]] for line in lines]


def plain_model(target: Target) -> Any:
    """The model that is generated with, computed plainly in fp32, on the generation's device."""
    config = target.generation({})
    return load_model(Path(config["from"]), dtype="fp32", device=torch.device(config.get("device", "cpu")))


def random_prompts(target: Target, lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
    """Prompts of ordinary tokens."""
    vocab = vocabulary(target)
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab - len(SPECIALS), length).tolist() for length in lengths]


def vocabulary(target: Target) -> int:
    return int(model_config_of(target).vocab_size)


def model_config_of(target: Target) -> ModelConfig:
    """The shape of the model that is generated with."""
    return load_weights(Path(target.generation({})["from"]))[0]


# --- times ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of one token of one text early and late in the context; growth: late over early, None: no room."""

    early_s: float | None
    growth: float | None
    positions: tuple[int, int] | None
    threads: int | None
    notes: tuple[str, ...] = ()


def position_times(target: Target, state: State, scratch: Path) -> Times:
    """Times texts of a short and of a long prompt, with few and with many new tokens each.

    The difference between many and few is the time of the tokens between them; reading the prompt cancels.
    """
    context = model_config_of(target).context
    late = min(LATE, context - MANY)
    lengths = [EARLY, late] if late >= 4 * EARLY else [min(EARLY, max(1, context - MANY))]
    prompts = random_prompts(target, lengths)
    numbers = itertools.count(1)
    seconds: dict[tuple[int, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        children = {}
        for count in (FEW, MANY):
            sampling = GREEDY | {"max_tokens": count, "min_tokens": count}
            child = stack.enter_context(target.child(
                "generate", state, scratch / f"times-{next(numbers)}", name="the look", prompts=prompts,
                sampling=sampling,
            ))  # fmt: skip
            facts = waited(child)
            children[count] = child
        for repeats in (REPEATS, MORE_REPEATS):
            for _ in range(repeats):
                for count, child in children.items():
                    for length in lengths:  # the prompts come in turn
                        seconds.setdefault((count, length), []).append(float(child.block(requests=1)["seconds"]))
            # the fastest of each: others on the machine only ever add
            each = [(min(seconds[MANY, length]) - min(seconds[FEW, length])) / (MANY - FEW) for length in lengths]
            if min(each) > 0 and not DOUBTFUL[0] < each[-1] / each[0] < DOUBTFUL[1]:
                break
    threads = facts.get("threads") if target.generation(state).get("device", "cpu") == "cpu" else None
    if min(each) <= 0:
        return Times(None, None, None, threads, ("tokens took too little time to tell their positions apart",))
    if len(lengths) < 2:
        return Times(each[0], None, None, threads, (f"a context of {context} is too short to tell positions apart",))
    at = (lengths[0] + (FEW + MANY) // 2, lengths[1] + (FEW + MANY) // 2)
    return Times(each[0], each[1] / each[0], at, threads)


def waited(child: LineChild) -> Mapping[str, Any]:
    """The facts of a child that is ready. Raises UserError where it does not get so far."""
    try:
        return child.wait_ready().facts
    except LiveFailed as failure:
        outcome = failure.outcome
        raise UserError(f"the generation does not start: {outcome.message}", fix=outcome.fix) from failure


def read_share(config: Mapping[str, Any], token_s: float | None, facts: Facts) -> float | None:
    """Bytes of the weights over what could have been read while one token of one text was made (MBU)."""
    most = facts.peak_bytes_per_s or facts.copy_bytes_per_s
    if token_s is None or not most:
        return None
    counts = num_parameters(load_weights(Path(config["from"]))[0])
    return (counts["matrices"] + counts["head"]) * DTYPE_BYTES[config.get("dtype", "fp32")] / token_s / most


# --- differential tests ---------------------------------------------------------------------------------------------


def differences(signals: Signals, target: Target, state: State, facts: Facts, scratch: Path) -> Signals:
    """The signals with what other settings would do to the job's own prompts, in turns with it as it is."""
    config = target.generation(state)
    tried = Alternatives(target, state, scratch)
    changes: dict[str, Any] = {}
    slots, rows = config["engine"].get("num_slots"), len(config["prompts"])
    if slots == 1 and rows > 1:
        alone, together = (tried.seconds(count, {"engine": {"num_slots": rows}}) for count in (1, rows))
        if alone is not None and together is not None:
            changes |= {"batch_gain": together / alone, "batch_gain_rows": rows}
    if signals.threads is not None:
        gains = {
            count: gain for count in sorted({1, facts.cores_physical})
            if count != signals.threads and (gain := tried.gain({"generate": {"threads": count}})) is not None
        }  # fmt: skip
        if gains:
            changes["threads_gain"] = max(gains.items(), key=lambda entry: entry[1])
    best = signals.best_dtype
    if best is not None and best != config.get("dtype", "fp32"):
        gain = tried.gain({"generate": {"dtype": best}})
        if gain is not None:
            changes["best_dtype_gain"] = gain  # of whole texts, in place of that of products alone
    notes = [*signals.notes, *tried.notes]
    return Signals.from_json({**signals.as_json(), **changes, "notes": notes})


@dataclass
class Alternatives:
    """Other settings of the generation, each in a live worker of its own, timed in turns with the present ones."""

    target: Target
    state: State
    scratch: Path
    notes: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def gain(self, change: State) -> float | None:
        """Requests per second as changed over those as it is, in the order A B B A; None: it failed."""
        rows = len(self.target.generation(self.state)["prompts"])
        try:
            with self._child({}) as before, self._child(change) as after:
                for child in (before, after):
                    waited(child)
                seconds = [float(child.block(requests=rows)["seconds"]) for child in (before, after, after, before)]
        except (LiveFailed, UserError) as problem:
            self.notes.append(f"{change} was not measured: {problem}")
            return None
        return (seconds[0] + seconds[3]) / (seconds[1] + seconds[2])

    def seconds(self, requests: int, change: State) -> float | None:
        """The fastest of three times of so many requests as changed; None: it failed."""
        try:
            with self._child(change) as child:
                waited(child)
                return min(float(child.block(requests=requests, restart=True)["seconds"]) for _ in range(3))
        except (LiveFailed, UserError) as problem:
            self.notes.append(f"{change} was not measured: {problem}")
            return None

    def _child(self, change: State) -> LineChild:
        folder = self.scratch / f"other-{next(self._numbers)}"
        return self.target.child("generate", merged(self.state, change), folder, name="the look")
