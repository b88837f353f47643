"""Turns each "auto" of the settings into a value with a reason: measured, remembered, or decided by a rule.

One resolver per setting, called in the order of CONTRACTS: device, dtype, threads, then (once the recipe has fixed
the steps) compile and device_batch. What the person asked for is checked and kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

from intone import hardware
from intone.child import ChildFailed
from intone.config import ModelConfig
from intone.errors import UserError
from intone.hardware import BUSY_CORES, Facts
from intone.log import human_bytes
from intone.records import Choice, choice
from intone.resolving import Resolved
from intone.tune import compiling, memory, precision, threads
from intone.tune.precision import RunSteps
from intone.tune.probe import Case, time_cases
from intone.tune.trials import Trials, code_fingerprint

TimeCases = Callable[[ModelConfig, Sequence[Case], Facts], list[list[float]]]

# tokens per pass from which a step's time per token no longer falls: on a CPU 2,048 are still 2 to 7 % slower and more
# are as fast (our kernels, LOG.md); for GPUs a guess until the batch is measured
PLATEAU_TOKENS = {"cpu": 4096, "cuda": 32768, "mps": 8192}
MARGIN = 0.15  # of available memory left alone: the estimate's own error
GPU_THREADS = 8  # guess: enough to feed one GPU


def settle_device(asked: Resolved, facts: Facts) -> Choice:
    """cuda, mps or cpu. Raises UserError where torch cannot compute on what was asked for."""
    no_torch = f"torch {facts.torch_version} could not be started" if facts.torch_version else "torch is not installed"
    if facts.device is None:
        raise UserError(f"no device to compute on: {no_torch}", fix="reinstall torch (>=2.11,<2.14)")
    unusable = facts.device == "cpu" and facts.gpu_name is not None
    if asked.value != "auto":
        if asked.value not in ("cpu", facts.device):
            why = f" ({facts.gpu_name} is there, but torch {facts.torch_version} cannot use it)" if unusable else ""
            raise UserError(
                f"device {asked.value} is not usable here{why}",
                value=asked.value,
                fix="install a torch build for it, or use --device auto",
            )
        return choice(asked)
    if facts.device == "cpu":
        reason = f"torch {facts.torch_version} cannot use the {facts.gpu_name}" if unusable else "no GPU here"
        return Choice("cpu", reason, "default")
    reason = f"{facts.gpu_name or 'a GPU'} is usable"
    return Choice(facts.device, reason, "default", ({"value": "cpu", "why": "slower than any GPU"},))


def settle_devices(asked: Resolved, facts: Facts, *, device: str, rows_per_step: int) -> Choice:
    """Processes that share the rows of every step: one per GPU, else one unless more are asked for.

    Raises UserError for more than the rows of a step, and for more than one where the device is no CPU or CUDA GPU.
    """
    gpus = (facts.num_gpus or 1) if device == "cuda" else 1
    if asked.value == "auto":
        if gpus == 1:
            return Choice(1, "one GPU is here" if device == "cuda" else "threads share one process", "default")
        beat = tuple({"value": gpus, "why": f"a step has {rows_per_step} rows"} for _ in range(gpus > rows_per_step))
        return Choice(min(gpus, rows_per_step), f"{gpus} GPUs are here", "default", beat)
    if asked.value > rows_per_step:
        raise UserError(
            f"devices {asked.value:,} is more than the {rows_per_step:,} rows of a step",
            value=asked.value,
            fix=f"use --devices {rows_per_step} or fewer, or a larger --batch-tokens",
        )
    if asked.value > 1 and device not in ("cpu", "cuda"):
        raise UserError(
            f"several processes cannot train together on device {device}",
            value=asked.value,
            fix="use --devices 1",
        )
    if device == "cuda" and asked.value > gpus:
        raise UserError(
            f"devices {asked.value:,} is more than the {gpus} GPUs here", value=asked.value, fix=f"use --devices {gpus}"
        )
    return choice(asked)


def shared_threads(settled: Choice, facts: Facts, devices: int) -> Choice:
    """The threads of each of several processes on one CPU; a number that was asked for is that of each."""
    if devices == 1 or facts.device != "cpu" or settled.origin == "flag":
        return settled
    each = max(1, settled.value // devices)
    return Choice(each, f"{settled.value} are shared by {devices} processes ({settled.reason})", settled.origin)


def settle_dtype(
    asked: Resolved, facts: Facts, config: ModelConfig, trials: Trials, *, run_steps: RunSteps,
    time_steps: TimeCases = time_cases,
) -> Choice:  # fmt: skip
    """The fastest dtype whose losses follow fp32's, eager; compiled code has its own gate in settle_compile.

    run_steps: see precision.RunSteps; called twice for a candidate that is faster, never otherwise.
    """
    if asked.value != "auto":
        if asked.value == "fp16" and facts.device == "cpu":
            raise UserError("dtype fp16 needs a GPU", value="fp16", fix="use --dtype auto, bf16 or fp32")
        return choice(asked)

    def decide() -> Choice:
        def timed(names: Sequence[str]) -> dict[str, Sequence[float]]:
            cases = [Case(facts.cores_physical, name) for name in names]
            return dict(zip(names, time_steps(config, cases, facts), strict=True))

        return precision.choose(
            precision.candidates(facts),
            rates=precision.rates(facts),
            time_steps=timed,
            gate=lambda dtype: precision.run_gate(dtype, compiled=False, run_steps=run_steps),
        )

    return trials.settle("dtype", shape_key(facts, config), decide)


def settle_threads(
    asked: Resolved,
    facts: Facts,
    config: ModelConfig,
    trials: Trials,
    *,
    dtype: str,
    time_steps: TimeCases = time_cases,
) -> Choice:
    """The number of CPU threads; the answer is kept per load of the machine, since others' work decides it too."""
    if asked.value != "auto":
        return choice(asked)
    if facts.device != "cpu":
        return Choice(min(GPU_THREADS, facts.cores_physical), "the work is on the GPU", "default")
    numbers = threads.candidates(facts)
    if len(numbers) == 1:
        return Choice(1, "one core is usable", "default")

    def decide() -> Choice:
        try:
            times = time_steps(config, [Case(number, dtype) for number in numbers], facts)
        except ChildFailed as error:
            busy = facts.busy_cores is not None and facts.busy_cores > BUSY_CORES
            number = 1 if busy else facts.cores_physical
            return Choice(number, f"the training step could not be timed: {error}", "default")
        return threads.pick(dict(zip(numbers, times, strict=True)))

    busy_cores = None if facts.busy_cores is None else round(facts.busy_cores)
    return trials.settle("threads", shape_key(facts, config) | {"dtype": dtype, "busy_cores": busy_cores}, decide)


def settle_compile(
    asked: Resolved, facts: Facts, config: ModelConfig, trials: Trials, *, dtype: str, steps: int, eager_step_s: float,
    run_steps: RunSteps, compiled_step_s: float | None = None, compile_s: float | None = None, by_block: bool = False,
) -> Choice:  # fmt: skip
    """ "on" where compiling pays over these steps and the compiled model trains like eager fp32, else "off".

    compiled_step_s and compile_s None: what they were the last time for this shape and dtype, else a guess.
    by_block: what run_steps compiles, see records.Segment. Raises UserError where it was asked for and cannot work.
    """
    obstacle = hardware.compile_obstacle(facts)
    if asked.value == "on" and obstacle:
        raise UserError(f"cannot compile: {obstacle}", value="on", fix=obstacle.rpartition(": ")[2])
    if asked.value != "auto":
        return choice(asked)
    key = compile_key(facts, config, dtype)
    expected = compiling.expect(trials, key, facts.device or "cpu", by_block=by_block)
    decision = compiling.decide(
        obstacle is None, steps, eager_step_s, compiled_step_s, expected.compile_s if compile_s is None else compile_s,
        ratio=expected.ratio, obstacle=obstacle or "",
    )  # fmt: skip
    if decision.value == "off":
        return decision
    gate = trials.settle(
        "gate",
        gate_key(facts, config, dtype, by_block=by_block),
        lambda: precision.run_gate(dtype, compiled=True, run_steps=run_steps),
    )
    if not gate.value:
        beat = ({"value": "on", "why": gate.reason},)
        return Choice("off", f"it would pay, but {gate.reason}", gate.origin, beat, decision.measured)
    return Choice("on", f"{decision.reason}; {gate.reason}", decision.origin, decision.beat, decision.measured)


def settle_device_batch(
    asked: Resolved, facts: Facts, config: ModelConfig, *, rows_per_step: int, dtype: str, compiled: bool
) -> Choice:
    """Rows per pass: the fewest that fill the device, dividing the rows of a step, within the memory there is.

    The estimate is too rough to refuse a single row. Raises UserError where the weights alone do not fit, and
    where more rows are asked for than a step has.
    """
    if asked.value != "auto":
        if asked.value > rows_per_step:
            raise UserError(
                f"device_batch {asked.value:,} is more than the {rows_per_step:,} rows of a step",
                value=asked.value,
                fix=f"use --device-batch {rows_per_step} or auto",
            )
        return choice(asked)
    device = facts.device or "cpu"
    available = available_bytes(facts)

    def needs(rows: int) -> int:
        return memory.training_bytes(config, rows, dtype=dtype, compiled=compiled)

    sizes = [rows for rows in range(1, rows_per_step + 1) if rows_per_step % rows == 0]
    wanted = next((rows for rows in sizes if rows * config.context >= PLATEAU_TOKENS[device]), rows_per_step)
    fitting = [rows for rows in sizes if available is None or needs(rows) <= available * (1 - MARGIN)]
    if available is not None and memory.fixed_bytes(config) > available:
        raise UserError(
            f"the model needs {human_bytes(memory.fixed_bytes(config))} and {human_bytes(available)} are available",
            value=memory.fixed_bytes(config),
            fix="use a smaller --depth or --vocab-size, or free memory",
        )
    value = min(wanted, max(fitting, default=1))
    measured: dict[str, Any] = {"estimated_bytes": needs(value), "available_bytes": available}
    need = f"about {human_bytes(needs(value))} of {human_bytes(available)} available"
    tokens = f"{value * config.context:,} tokens per pass"
    if value not in fitting:
        return Choice(value, f"the smallest there is, though it may not fit: {need}", "default", (), measured)
    if value < wanted:
        too_large = {"value": wanted, "why": f"would need about {human_bytes(needs(wanted))}"}
        return Choice(value, f"the most that memory allows: {tokens}, {need}", "default", (too_large,), measured)
    beat = tuple({"value": rows, "why": "more memory, hardly faster"} for rows in sizes if rows == 2 * value)
    return Choice(value, f"{tokens} fill the device; {need}", "default", beat, measured)


def available_bytes(facts: Facts) -> int | None:
    """Memory that training may use now: the GPU's where it computes, else the machine's; None: unknown."""
    if facts.device == "cuda":
        return facts.gpu_memory_bytes if facts.gpu_memory_free_bytes is None else facts.gpu_memory_free_bytes
    return facts.memory_available_bytes


def fallbacks(device_batch: int) -> tuple[int, ...]:
    """The sizes to go down when memory runs out: b, 3/4 b, 1/2 b, 3/8 b, 1/4 b ... 1, each once."""
    sizes, part = set(), float(device_batch)
    while part >= 1:
        sizes |= {int(part + 0.5), int(part * 0.75 + 0.5)}
        part /= 2
    return tuple(sorted(sizes | {1}, reverse=True))


def shape_key(facts: Facts, config: ModelConfig) -> dict[str, Any]:
    """What a timed or gated training step depends on, besides the machine and torch."""
    return {
        "device": facts.device,
        "config": config.as_json(),
        "code": code_fingerprint("model", "train", "tune/probe.py"),
    }


def gate_key(facts: Facts, config: ModelConfig, dtype: str, *, by_block: bool) -> dict[str, Any]:
    """What the gate on compiled code's losses depends on."""
    return shape_key(facts, config) | {"dtype": dtype, "compiled": True, "by_block": by_block}


def compile_key(facts: Facts, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What the gain of compiling depends on; not on the exact code, so that a changed file still predicts."""
    shape = config.as_json() | {"depth": None, "vocab_size": None, "context": None}
    return {"device": facts.device, "dtype": dtype, "shape": shape}
