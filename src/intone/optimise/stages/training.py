"""What slows a training of ours: its steps timed part by part, profiled, and timed again with one thing changed."""

import contextlib
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone.child import PACKAGE_PARENT
from intone.config import TrainJob
from intone.errors import UserError
from intone.hardware import Facts, compile_obstacle, quiet
from intone.log import say
from intone.model.attention import BACKENDS
from intone.model.cost import train_flops_per_token
from intone.optimise.late import late_signals
from intone.optimise.program import drift, spread
from intone.optimise.signals import PARTS, Signals
from intone.optimise.stages import rollouts
from intone.optimise.stages.target import State, Target, child_variables
from intone.optimise.stages.watch import num_steps
from intone.optimise.trace import Profile, read_profile
from intone.paths import read_json, write_json
from intone.prove.gates.physical import max_known
from intone.prove.live import LineChild, LiveFailed
from intone.records import Segment, read_log, read_outcome
from intone.tune.kernels import kernels_obstacle
from intone.tune.trial import attention_for

STEPS = {"warm": 3, "plain": 9, "split": 5}  # nine: three thirds of three show a drift
WRITING_STEPS = {"warm": 3, "plain": 6, "split": 3}  # of answers, which take seconds: three thirds of two
TIMEOUT_S = 600.0
BLOCK_S = 0.4  # of a differential test: two a side are enough to see 5 %
# two at least: padded batches differ in width from one step to the next. Steps of 10 s and more are taken one by one
BLOCK_STEPS, LONG_S = 2, 10.0
MANY_STEPS = 1_000_000  # of a job that is measured in blocks: more than any look needs
FAST_CODE = 1.05  # measured gain from which another way to compute is worth a try (detector D3)
WORTH = 1.02  # a rung of the ladder of rows that adds less is the last one
MOST_MEMORY = 0.7  # share of the device's memory from which no larger micro-batch is looked at (detector D1)
MOST_ROWS = 64  # rows of a padded micro-batch, whose number the packed rows of a step do not bound
QUIET: dict[str, Any] = {"keep": 0, "eval_every": None, "samples": (), "val": None, "save_every_s": 1e9}


def look_at_training(
    target: Target, state: State, facts: Facts, scratch: Path, *, quick: bool = False
) -> Signals:
    """Signals of the training as changed: its split by clocks, then what other settings would do, measured in turns.

    quick: where our kernels are faster by more than is needed to try them, other attention and compiled code are not
    looked at: what is tried first is known then. Raises UserError where the job does not run.
    """
    with quiet(facts.folder, "a look at a training"):
        found, profile = watched(target, state, scratch)
        signals = signals_of(found, profile, target, state, facts)
        return differences(signals, target, state, facts, scratch, quick=quick)


# --- clocks and profile ---------------------------------------------------------------------------------------------


def watched(target: Target, state: State, scratch: Path) -> tuple[dict[str, Any], Profile | None]:
    """What the clocks in the worker saw, and its profile. Raises UserError where the job does not come so far."""
    folder = scratch / "watched"
    out = scratch / "watched.json"
    segment = target.choices(state).segments[0]
    plan: dict[str, Any] = {
        "worker": target.worker, "folder": str(folder), "out": str(out), "writes": target.writes,
        "eager": segment.kernels == "torch" and not segment.compiled,
        **(WRITING_STEPS if target.writes else STEPS),
    }  # fmt: skip
    target.write("train", state, folder, steps=num_steps(plan), **QUIET)
    write_json(scratch / "watch.json", plan)
    say("looking at a few steps of the training")
    words = [sys.executable, "-P", "-m", "intone.optimise.stages.watch", str(scratch / "watch.json")]
    with open(scratch / "watched.log", "ab") as log:
        code = subprocess.run(
            words, env=child_variables(target.variables("train", state)), stdout=log, stderr=log, timeout=TIMEOUT_S,
            check=False,
        ).returncode  # fmt: skip
    if not out.exists():
        outcome = read_outcome(folder)
        why = outcome.message if outcome is not None else f"its worker ended with exit code {code}"
        raise UserError(f"the training could not be looked at: {why}", value=str(folder),
                        fix=outcome.fix if outcome is not None and outcome.fix else f"see {log.name}")  # fmt: skip
    return read_json(out), read_profile(Path(f"{out}.trace"))


def signals_of(
    found: Mapping[str, Any], profile: Profile | None, target: Target, state: State, facts: Facts
) -> Signals:
    """The signals in what the clocks wrote."""
    job, segment = target.job(), target.choices(state).segments[0]
    times, whole = found["step_s"], found["split_s"]
    step_s = statistics.median(times)
    parts = {name: found["parts"].get(name, 0.0) / whole for name in PARTS if name in found["parts"]}
    parts["unexplained"] = max(0.0, 1.0 - sum(parts.values()))
    looks = found["looks"]
    positions = sum(look["rows"] * look["tokens"] for look in looks)
    hashes = [value for look in looks for value in look["hashes"]]
    compiled = bool(found["compiled"])
    # operators of compiled code and of our own kernels do not show in a profile of a CPU: their time would look idle
    hidden = compiled or segment.kernels == "native"
    seen = profile if profile is not None and (profile.has_device_work or not hidden) else None
    memory = found["memory"]
    signals = Signals(
        kind="train",
        device=found["device"],
        step_s=step_s,
        step_spread=spread(times),
        drift=drift(times),
        num_steps=len(times),
        parts=parts,
        device_batch=segment.device_batch,
        micro_steps=found["passes"],
        num_shapes=len({(look["rows"], look["tokens"]) for look in looks}),
        pad_share=sum(look["padded"] for look in looks) / positions if positions else None,
        ops_per_step=seen.num_ops / 2 if seen is not None else None,
        idle_share=seen.idle_share if seen is not None else None,
        median_op_s=seen.median_op_s if seen is not None else None,
        compiled=compiled,
        compile_s=max(0.0, found["first_s"] - step_s) if compiled else None,
        planned_s=found["first_s"] + (job.steps - 1) * step_s,
        off_step_share=off_step_share(target.folder / "train" / "log.jsonl"),
        recompiles=max(0, found["graphs"] - found["graphs_at_warm"]) if compiled else None,
        flop_share=flop_share(job, job.rows_per_step * job.context / step_s, segment.dtype, facts),
        matmul_dtypes=seen.product_dtypes if seen is not None and seen.product_dtypes else {segment.dtype: 1.0},
        **best_dtype(segment.dtype, facts),
        **late_signals(found, step_s, len(times), PACKAGE_PARENT),
        threads=found["threads"] if found["device"] == "cpu" else None,
        memory_kinds={name: size for name, size in memory.items() if name != "start"},
        peak_bytes=found.get("peak_bytes"),
        memory_bytes=found.get("memory_bytes") or facts.memory_bytes,
        logits_bytes=found["logits_bytes"] or None,
        reserved_bytes=found.get("reserved"),
        allocated_bytes=found.get("peak_bytes") if found.get("reserved") else None,
        alloc_retries=found.get("retries"),
        duplicate_rows=len(hashes) - len(set(hashes)) if len(hashes) > 1 else None,
        rows_looked_at=len(hashes) or None,
        notes=() if seen is not None else ("the profiler sees nothing of compiled code and of our kernels on a CPU",),
    )
    return rollouts.of_writing(signals, found) if target.writes else signals


def off_step_share(log: Path) -> float | None:
    """What part of a run's time its evaluations and saves took, by its log; None where it has none."""
    steps = sum(row["step_s"] for row in read_log(log, "step")) if log.exists() else 0.0
    if not steps:
        return None
    off = sum(row["seconds"] for row in read_log(log, "eval"))
    off += sum(row["seconds"] or 0.0 for row in read_log(log, "event") if row["event"] == "save")
    return off / (off + steps)


def flop_share(job: TrainJob, tokens_per_s: float, dtype: str, facts: Facts) -> float | None:
    """Products of the model per second over what this device is stated, or was measured, to do; None: unknown."""
    most = facts.peak_flops_per_s or max_known(facts, dtype)
    return tokens_per_s * train_flops_per_token(job.model, job.context) / most if most else None


def best_dtype(dtype: str, facts: Facts) -> dict[str, Any]:
    """The fastest format of products that was measured here, and how much faster than the present one it is."""
    rates = {name: max_known(facts, name) for name in ("fp32", "bf16")}
    known = {name: rate for name, rate in rates.items() if rate}
    if dtype not in known:
        return {}
    best = max(known, key=lambda name: known[name])
    return {"best_dtype": best, "best_dtype_gain": known[best] / known[dtype]}


# --- differential tests ---------------------------------------------------------------------------------------------


def differences(
    signals: Signals, target: Target, state: State, facts: Facts, scratch: Path, *, quick: bool = False
) -> Signals:
    """The signals with what each other setting would do, each swapped in and out in one live worker."""
    segment = target.choices(state).segments[0]
    assert signals.step_s is not None, "steps were timed"
    least = BLOCK_STEPS if signals.step_s < LONG_S and not target.writes else 1
    swap = Swap(target, state, scratch, block_steps=max(least, round(BLOCK_S / signals.step_s)))
    with swap:
        ladder = rows_ladder(swap, segment, most_rows(target, state), signals.memory_bytes)
        changes: dict[str, Any] = {"ladder": {str(rows): gain for rows, gain in ladder.items()}}
        changes["elasticity"] = ladder.get(2 * segment.device_batch)
        job = target.job()
        if job.rollouts is not None and signals.num_slots is not None:
            changes["slots_ladder"] = rollouts.slots_ladder(swap, job.rollouts, signals.num_slots, signals.memory_bytes)
        if signals.device == "cpu":
            changes["threads_gain"] = threads_gain(swap, signals.threads, facts.cores_physical)
        is_eager = segment.kernels == "torch" and not segment.compiled
        if is_eager and kernels_obstacle(facts, job.model, segment.dtype, "auto") is None:
            changes["kernels_gain"] = swap.gain(kernels="native", attention="native")
        enough = quick and (changes.get("kernels_gain") or 0.0) > FAST_CODE
        if enough:
            swap.notes.append("compiled code and other attention (quick: our kernels are faster)")
        if is_eager and not enough:
            others = [name for name in BACKENDS if name != segment.attention]
            gains = {name: gain for name in others if (gain := swap.gain(attention=name)) is not None}
            changes["attention_gain"] = max(gains.items(), key=lambda entry: entry[1], default=None)
        # every step of answers has another number of rows, and would be compiled anew
        if is_eager and not enough and not target.writes and compile_obstacle(facts) is None:
            say("compiling, to see what it brings")
            attention = attention_for(signals.device, compiled=True)
            changes["compiled_gain"] = swap.gain(compiled=True, attention=attention)
    notes = (*signals.notes, *swap.notes)
    return Signals.from_json({**signals.as_json(), **{k: v for k, v in changes.items() if v is not None},
                              "notes": list(notes)})  # fmt: skip


@dataclass
class Swap:
    """A live worker whose settings are swapped out and back; one that dies is started again at the next question."""

    target: Target
    state: State
    scratch: Path
    block_steps: int
    notes: list[str] = field(default_factory=list)
    peak_bytes: int | None = None  # of the newest block
    _child: LineChild | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __enter__(self) -> "Swap":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.close()

    def gain(self, *, base: Mapping[str, Any] | None = None, **plan: Any) -> float | None:
        """Learned tokens per second with these settings over those without, in the order A B B A; None: it failed.

        base: settings of A that are not the target's own.
        """
        segment = self.target.choices(self.state).segments[0]
        before = {name: getattr(segment, name) for name in plan} | dict(base or {})
        try:
            rates = [self._rate(settings) for settings in (before, plan, plan, before)]
        except LiveFailed as failure:
            words = ", ".join(f"{name} {value}" for name, value in plan.items())
            self.notes.append(f"{words} was not measured: {failure.outcome.message}")
            self._child = None
            return None
        return (rates[1] + rates[2]) / (rates[0] + rates[3])

    def _rate(self, plan: Mapping[str, Any]) -> float:
        # answers that begin again are the same: one step warms them up
        command = {"warm": 0 if self.target.writes else 1, **self.target.block_command}
        answer = self._started().block(steps=self.block_steps, plan=dict(plan), **command)
        self.peak_bytes = answer.get("peak_bytes")
        return float(answer["supervised"] / answer["seconds"])

    def _started(self) -> LineChild:
        if self._child is None:
            folder = self.scratch / f"swap-{next(self._numbers)}"
            self._child = self.target.child("train", self.state, folder, name="the look", steps=MANY_STEPS, **QUIET)
            try:
                self._child.wait_ready()
            except LiveFailed:
                with contextlib.suppress(LiveFailed):
                    self._child.close()
                raise
        return self._child


def rows_ladder(swap: Swap, segment: Segment, most: int, memory_bytes: int | None) -> dict[int, float]:
    """Rows at once -> tokens/s over those now, doubled until it brings nothing, rows or memory end."""
    now = rows = segment.device_batch
    ladder: dict[int, float] = {}
    while 2 * rows <= most:
        gain = swap.gain(base={"device_batch": rows}, device_batch=2 * rows)
        if gain is None:
            break
        ladder[2 * rows] = ladder.get(rows, 1.0) * gain
        rows *= 2
        full = swap.peak_bytes is not None and memory_bytes and swap.peak_bytes > MOST_MEMORY * memory_bytes
        if gain < WORTH or full:
            break
    if ladder:
        ladder[now] = 1.0
    return ladder


def most_rows(target: Target, state: State) -> int:
    """The largest micro-batch that means something: all rows of a step, and more where rows are padded."""
    pads = any(
        switch.detector == "D16" and state.get("switches", {}).get(switch.name, switch.now) != switch.mended
        for switch in target.switches
    )
    return max(target.job().rows_per_step, MOST_ROWS) if pads else target.job().rows_per_step


def threads_gain(swap: Swap, now: int | None, cores: int) -> tuple[int, float] | None:
    """The best other number of threads and its gain; None where there is none to try."""
    found = {
        count: gain for count in sorted({1, cores})
        if now is not None and count != now and (gain := swap.gain(threads=count)) is not None
    }  # fmt: skip
    return max(found.items(), key=lambda entry: entry[1]) if found else None


def knee(ladder: Mapping[str, float]) -> int | None:
    """The fewest rows within 1 % of the fastest."""
    if not ladder:
        return None
    best = max(ladder.values())
    return min(int(rows) for rows, gain in ladder.items() if gain >= best / 1.01)
