"""Settles how training is computed here: threads, dtype, kernels, compiling, micro-batch; and its step time"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone import recipe
from intone.config import ModelConfig, TrainJob
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.hardware import Facts, compile_obstacle, environment
from intone.log import human_duration, say
from intone.model.native.build import PRODUCTS
from intone.prove.noise import Disturbance, Watch, disturbances
from intone.records import Choice, Segment
from intone.resolving import Resolved
from intone.settings import TrainingSettings
from intone.tune import compiling, precision
from intone.tune.allocator import settle_allocator, variables_of
from intone.tune.attention import settle_attention
from intone.tune.batch import Method
from intone.tune.found import Found
from intone.tune.head import settle_head
from intone.tune.kernels import settle_kernels
from intone.tune.precision import NoTrial
from intone.tune.products import settle_products
from intone.tune.settle import (
    MARGIN,
    available_bytes,
    compile_key,
    gate_key,
    settle_compile,
    settle_device_batch,
    settle_dtype,
    settle_threads,
    shared_threads,
)
from intone.tune.settle_batch import BatchQuestion, settle_batch
from intone.tune.trial import TrialRunner, attention_for, loader_choice
from intone.tune.trials import Trials

SPEED_STEPS = 8  # of the speed trial: two warm, six timed
GATE_STEPS = 12  # of the loss-trajectory gate, tune/precision.py
# a worker from its start to its first step, and from its last step to its end: 5.0 to 7.1 s in the stages of two
# default runs on an EPYC 7003 with nothing beside them (LOG.md, "What is set aside in a run")
WORKER_S = 5.5
WARM_COMPILE_S = compiling.WARM_S  # a stage that finds its compiled code in the cache
# the questions at the end of a run take so many times the evaluation of a stage: 2.2 to 3.5 in four default runs
QUESTIONS = 3.5
VAL_TOKENS = 65_536
BUSY = ("load", "steal", "quota")  # disturbances that make steps slower and may be over when training begins


@dataclass
class Settled:
    """Values settled so far, with their reasons, for choices.json."""

    facts: Facts
    choices: dict[str, Choice]
    always: bool = False  # compare and search, however short the run
    swap_step: int | None = None  # compiled code from this step on, made by a process beside the run
    fresh: bool = False  # measure again what is kept
    method: Method = "line"
    found: Found | None = None  # the search behind device_batch

    def run_s(self, steps: int, step_s: float) -> float | None:
        """Seconds of training in which a comparison must pay; None: compare in any case.

        Steps that were not asked for are an estimate made before anything was timed: the minutes bound it.
        """
        if self.always:
            return None
        asked, minutes = self.choices.get("steps"), self.choices.get("minutes")
        is_bounded = (asked is None or asked.value == "auto") and minutes is not None and minutes.value != "auto"
        return min(steps * step_s, 60.0 * minutes.value) if is_bounded and minutes is not None else steps * step_s

    def put(self, name: str, settled: Choice) -> Any:
        """Keeps a choice, says it if the machine decided, and returns its value."""
        self.choices[name] = settled
        if settled.origin in ("measured", "cached") or "auto" in settled.reason:
            say(f"{name} {settled.value}: {settled.reason}")
        return settled.value


@dataclass(frozen=True)
class Ground:
    """What every stage shares: the model, the tokenizer, how to compute, and how fast that is."""

    config: ModelConfig
    tokenizer_folder: Path
    tokenizer: Tokenizer
    device: str
    dtype: str
    threads: int
    kernels: str
    attention: str
    compiled: bool
    device_batch: int
    rows_per_step: int
    step_s: float  # measured seconds per optimizer step as planned
    eager_step_s: float
    environment: dict[str, str]
    devices: int = 1  # processes that share the rows of a step
    head_pieces: int = 1  # see records.Segment
    by_block: bool = False  # see records.Segment
    swap_step: int | None = None  # eager until this step, compiled from it on; None: one way from the start
    was_busy: bool = False  # others used the machine while step_s was measured


def settle_ground(
    settled: Settled, settings: TrainingSettings, origins: Mapping[str, Resolved], config: ModelConfig,
    tokenizer_folder: Path, tokenizer: Tokenizer, *, trial_data: Path, rows_per_step: int, device: str,
    devices: int, expected_steps: int,
) -> Ground:  # fmt: skip
    """threads, dtype, kernels, compile and micro-batch, in this order, with the step time they lead to.

    devices: processes that share the rows of a step; threads and micro-batch are those of each of them.
    """
    facts, trials = settled.facts, Trials(settled.facts, fresh=settled.fresh)
    watch = Watch([os.getpid()])
    begin = watch.look()
    dtype_guess = precision.guess(facts) if origins["dtype"].value == "auto" else origins["dtype"].value
    threads_choice = settle_threads(origins["threads"], facts, config, trials, dtype=dtype_guess)
    threads = settled.put("threads", shared_threads(threads_choice, facts, devices))
    variables = {name: variable.value for name, variable in environment(facts, threads=threads).items()}
    rows_per_device = -(-rows_per_step // devices)
    first_batch = settle_device_batch(
        origins["device_batch"], facts, config, rows_per_step=rows_per_device, dtype=dtype_guess, compiled=False
    )
    trial_job = TrainJob(
        stage="base", model=config, tokenizer=str(tokenizer_folder), tokenizer_hash=tokenizer.hash,
        data=(str(trial_data),), val=None, context=config.context, steps=1, rows_per_step=rows_per_step,
        optim=recipe.RUN_OPTIM, schedule=recipe.TRIAL_SCHEDULE, seed=settings.seed, keep=0,
    )  # fmt: skip
    runner = TrialRunner(trial_job, device, threads, first_batch.value, variables, facts.folder / "trials", devices)
    dtype = settled.put(
        "dtype", settle_dtype(origins["dtype"], facts, config, trials, run_steps=runner.run_steps)
    )
    eager_s = step_s = timed_step(runner, dtype, compiled=False)
    products = settle_products(
        origins["kernels"], origins["compile"], facts, config, trials, dtype=dtype, threads=threads,
        run_s=settled.run_s(expected_steps, eager_s),
    )  # fmt: skip
    if products is not None:
        runner.environment = variables | {PRODUCTS: settled.put("products", products)}
    kernels_choice = settle_kernels(
        origins["kernels"], origins["compile"], facts, config, trials, dtype=dtype, runner=runner
    )
    kernels = settled.put("kernels", kernels_choice)
    compiled = False
    if kernels == "native":
        step_s = timed_step(runner, dtype, compiled=False, kernels=kernels)
        settled.put("compile", Choice("off", "our kernels leave little to compile, and need no compiling", "default"))
    else:
        compiled, step_s = settle_compiled(
            settled, origins["compile"], config, trials, runner, dtype, expected_steps=expected_steps, eager_s=eager_s
        )
    swaps = settled.swap_step is not None  # until then nothing is compiled, and so are all comparisons below
    attention, head_pieces, runner, step_s = settle_surroundings(
        settled, config, trials, runner, dtype=dtype, compiled=compiled, kernels=kernels, step_s=step_s,
        expected_steps=expected_steps,
    )  # fmt: skip
    if swaps:
        step_s = swapped_step_s(settled, config, trials, runner, dtype, step_s, expected_steps)
    variables, run_s = dict(runner.environment), settled.run_s(expected_steps, step_s)
    segment = Segment(
        0, 1, compiled, dtype, attention, "probe", threads, kernels=kernels, head_pieces=head_pieces,
        by_block=compiled and runner.by_block,
    )  # fmt: skip
    question = BatchQuestion(trial_job, segment, device, devices, variables, facts.folder / "trials")
    batch, settled.found = settle_batch(
        origins["device_batch"], facts, trials, question, method=settled.method,
        run_s=run_s, start_s=runner.start_s,
    )  # fmt: skip
    if settled.found is None and batch.value > runner.device_batch:
        reason = f"a trial with more ran out of memory ({batch.reason})"
        batch = Choice(runner.device_batch, reason, "measured", ({"value": batch.value, "why": "memory ran out"},))
    settled.put("device_batch", batch)
    settled.choices["memory_margin_bytes"] = memory_margin(settled.found, facts)
    if settled.found is not None:
        step_s *= faster_by(settled.found, runner.device_batch)
    busy = busy_words(disturbances([(begin, watch.look())], watch.num_cpus), device)
    settled.put("step_s", step_choice(step_s, busy))
    return Ground(
        config, tokenizer_folder, tokenizer, device, dtype, threads, kernels, attention, compiled,
        batch.value, rows_per_step, step_s, eager_s, variables, devices, head_pieces,
        runner.by_block and (compiled or swaps), settled.swap_step, busy is not None,
    )  # fmt: skip


def busy_words(found: Sequence[Disturbance], device: str) -> str | None:
    """What others did most to a CPU's machine while trials ran on it; None: nothing that makes steps slower."""
    busy = [entry for entry in found if entry.kind in BUSY and device == "cpu"]
    return max(busy, key=lambda entry: entry.size).words if busy else None


def step_choice(step_s: float, busy: str | None) -> Choice:
    """Seconds per optimizer step as planned, with what others did meanwhile."""
    meanwhile = f"; meanwhile {busy}: it may be too long" if busy else ""
    return Choice(round(step_s, 6), f"seconds per optimizer step, as the trials had it{meanwhile}", "measured")


def settle_surroundings(
    settled: Settled, config: ModelConfig, trials: Trials, runner: TrialRunner, *, dtype: str, compiled: bool,
    kernels: str, step_s: float, expected_steps: int,
) -> tuple[str, int, TrialRunner, float]:  # fmt: skip
    """(attention backend, pieces of the head, a runner with the workers' variables, seconds per step then).

    And who prepares the rows.
    """
    facts, threads, device = settled.facts, runner.threads, runner.device
    run_s = settled.run_s(min(expected_steps, settled.swap_step or expected_steps), step_s)
    backend = settle_attention(
        facts, config, trials, dtype=dtype, threads=threads, compiled=compiled, kernels=kernels, runner=runner,
        run_s=run_s,
    )  # fmt: skip
    attention = settled.put("attention", backend)
    head = settle_head(
        facts, config, trials, dtype=dtype, threads=threads, compiled=compiled, kernels=kernels, runner=runner,
        run_s=run_s,
    )  # fmt: skip
    pieces = settled.put("head_pieces", head)
    allocator = settle_allocator(
        facts, config, trials, dtype=dtype, threads=threads, kernels=kernels, already=os.environ, run_s=run_s
    )
    variables = variables_of(settled.put("allocator", allocator), facts, threads, os.environ)
    variables |= {name: value for name, value in runner.environment.items() if name == PRODUCTS}
    changed = None if attention == attention_for(device, compiled, kernels) else attention
    if changed is not None or pieces != 1 or variables != runner.environment:
        runner = replace(runner, environment=variables, known={})
        step_s = timed_step(
            runner, dtype, compiled=compiled, kernels=kernels, attention=changed, head_pieces=pieces
        )
    settled.choices["loader_workers"] = loader_choice(runner)
    return attention, pieces, runner, step_s


def memory_margin(found: Found | None, facts: Facts) -> Choice:
    """Bytes that a step's worst moment should leave free; a worker with less ends for a smaller micro-batch."""
    if found is not None and found.margin_bytes is not None:
        return Choice(found.margin_bytes, "what the search for the micro-batch left free", "measured")
    available = available_bytes(facts)
    if available is None:
        return Choice(None, "how much memory is free is unknown here: it is not watched", "default")
    return Choice(int(MARGIN * available), f"{MARGIN:.0%} of the memory that was free", "default")


def faster_by(found: Found, rows: int) -> float:
    """Step time of the choice over that of the size that trials ran, at most 1: a search sees the fastest moments."""
    tried = [size.step_s for size in found.curve if size.rows == rows and size.step_s]
    return min(1.0, found.step_s / tried[0]) if tried and "eager" not in found.method else 1.0


def settle_compiled(
    settled: Settled, asked: Resolved, config: ModelConfig, trials: Trials, runner: TrialRunner, dtype: str, *,
    expected_steps: int, eager_s: float,
) -> tuple[bool, float]:  # fmt: skip
    """(whether to compile, seconds per step then); a compiled step that is no faster after all is not taken.

    False with settled.swap_step where the run begins eager and is compiled by a process beside it.
    """
    facts, key, device = settled.facts, compile_key(settled.facts, config, dtype), settled.facts.device or "cpu"
    runner.by_block = compiling.by_block_pays(trials, key, device, expected_steps, eager_s)
    if compiles_beside(settled, asked, config, trials, runner, dtype, expected_steps=expected_steps, eager_s=eager_s):
        return False, eager_s
    choice = settle_compile(
        asked, facts, config, trials, dtype=dtype, steps=expected_steps, eager_step_s=eager_s,
        run_steps=runner.run_steps, by_block=runner.by_block,
    )  # fmt: skip
    if settled.put("compile", choice) != "on":
        return False, eager_s
    settled.put("compile_by_block", scope_choice(trials, key, device, runner.by_block, expected_steps))
    step_s = timed_step(runner, dtype, compiled=True)
    if asked.value != "auto":
        return True, step_s
    first_s = next(result.first_step_s for key, result in runner.known.items() if key[1])
    if first_s > 2 * WARM_COMPILE_S:  # a warm start says nothing about what a cold one costs
        compiling.remember(
            trials, key, eager_step_s=eager_s, compiled_step_s=step_s, compile_s=first_s, by_block=runner.by_block
        )
    if step_s < eager_s:
        return True, step_s
    reason = f"compiled steps took {step_s:.3f} s, eager ones {eager_s:.3f} s"
    settled.put("compile", Choice("off", reason, "measured"))
    return False, eager_s


def compiles_beside(
    settled: Settled, asked: Resolved, config: ModelConfig, trials: Trials, runner: TrialRunner, dtype: str, *,
    expected_steps: int, eager_s: float,
) -> bool:  # fmt: skip
    """Whether cores are to spare and compiling would pay, though nobody knows yet how the code trains: then the plan
    swaps to it later, and settled has the step. Known code is in the cache: it is used from the first step on.
    """
    facts = settled.facts
    key = gate_key(facts, config, dtype, by_block=runner.by_block)
    spare = facts.cores_physical >= compiling.SPARE_FROM_CORES and runner.devices == 1 and not settled.always
    if asked.value != "auto" or not spare or compile_obstacle(facts) or trials.find("gate", key) is not None:
        return False
    shape, device = compile_key(facts, config, dtype), facts.device or "cpu"
    expected = compiling.expect(trials, shape, device, by_block=runner.by_block)
    step = compiling.swap_step(expected_steps, eager_s, expected)
    if step is None:
        return False
    settled.swap_step = step
    words = "as the last time here" if expected.is_measured else "guessed"
    reason = (
        f"eager first, compiled from step {step:,} on: a process beside the run compiles, for about "
        f"{human_duration(round(expected.compile_s))} ({words}), and {1 / expected.ratio:.2f}x per step is expected; "
        "the gate on losses decides there"
    )
    beat = ({"value": "off", "why": f"{expected_steps:,} steps are enough to gain from it"},)
    settled.put("compile", Choice("on", reason, "default", beat))
    settled.put("compile_by_block", scope_choice(trials, shape, device, runner.by_block, expected_steps))
    return True


def scope_choice(trials: Trials, key: dict[str, Any], device: str, by_block: bool, steps: int) -> Choice:
    """Whether one block is compiled for all, with what the two are expected to take."""
    facts = {name: compiling.expect(trials, key, device, by_block=name) for name in (True, False)}
    words = {True: "one block for all", False: "the whole model"}
    shown = {
        name: f"{human_duration(round(entry.compile_s))} of compiling, steps of {entry.ratio:.2f} of an eager one"
        f"{'' if entry.is_measured else ' (guessed)'}"
        for name, entry in facts.items()
    }
    reason = f"{words[by_block]} over {steps:,} steps: {shown[by_block]}"
    beat = ({"value": not by_block, "why": f"{words[not by_block]}: {shown[not by_block]}"},)
    return Choice(by_block, reason, "default", beat)


def swapped_step_s(
    settled: Settled, config: ModelConfig, trials: Trials, runner: TrialRunner, dtype: str, eager_s: float, steps: int
) -> float:
    """Expected seconds per step of a run that swaps to compiled code in the middle."""
    assert settled.swap_step is not None, "it swaps"
    facts = settled.facts
    key = compile_key(facts, config, dtype)
    expected = compiling.expect(trials, key, facts.device or "cpu", by_block=runner.by_block)
    share = min(1.0, settled.swap_step / max(1, steps))
    return eager_s * (share + (1 - share) * expected.ratio)


def timed_step(
    runner: TrialRunner, dtype: str, *, compiled: bool, kernels: str = "torch", attention: str | None = None,
    head_pieces: int = 1,
) -> float:  # fmt: skip
    """Seconds per optimizer step of the real worker; the gate's trial serves where it ran already."""
    ran = runner.known.get((dtype, compiled, kernels, GATE_STEPS, attention, head_pieces))
    if ran is not None:
        return ran.step_s
    asked: dict[str, Any] = {} if attention is None else {"attention": attention}
    asked |= {} if head_pieces == 1 else {"head_pieces": head_pieces}
    try:
        return runner.run(dtype, compiled=compiled, kernels=kernels, num_steps=SPEED_STEPS, **asked).step_s
    except NoTrial as error:
        raise UserError(
            f"a trial of {SPEED_STEPS} steps did not run: {error}",
            fix="use a smaller --depth, --context or --device-batch, or --dtype fp32 --compile off",
        ) from None


@dataclass(frozen=True)
class Beside:
    """What a run does beside its steps. Work that takes as long as so many steps goes with the machine's speed."""

    start_s: float  # a stage's worker, from its start to its first step and from its last one to its end
    stage_steps: float  # the evaluation at the end of a stage
    last_s: float = 0.0  # the worker of the questions at the end of a run; 0: none are asked
    last_steps: float = 0.0  # the questions

    def measured(self, stage_steps: Sequence[float]) -> "Beside":
        """The same with evaluations as they were in the stages that are over, the questions in proportion.

        The shortest counts: it was the least disturbed. A single one that took longer than planned proves nothing yet,
        the first is also the one that makes ready what later ones find.
        """
        known = list(stage_steps) if len(stage_steps) > 1 else [*stage_steps, self.stage_steps]
        steps = min(known)
        return replace(self, stage_steps=steps, last_steps=QUESTIONS * steps if self.last_steps else 0.0)

    def seconds(self, num_stages: int, step_s: float) -> float:
        """Seconds beside the steps of so many stages, and of the questions."""
        return num_stages * (self.start_s + self.stage_steps * step_s) + self.last_s + self.last_steps * step_s


def beside_steps(ground: Ground, *, asks_skills: bool) -> Beside:
    """Starts of workers, evaluations, and the final questions where they are asked."""
    tokens = ground.rows_per_step * ground.config.context * ground.step_s / ground.eager_step_s  # not compiled
    stage_steps = VAL_TOKENS / 3 / tokens  # a forward pass alone takes a third of a training step
    return Beside(
        start_s=WORKER_S + (WARM_COMPILE_S if ground.compiled else 0.0),
        stage_steps=stage_steps,
        last_s=WORKER_S * asks_skills,
        last_steps=QUESTIONS * stage_steps * asks_skills,
    )
