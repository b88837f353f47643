"""Trials: a few steps of the real training in a throw-away folder, run by the same worker that will train."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from intone import jobs
from intone.config import TrainJob
from intone.log import say
from intone.prove.trial import Trial, run_job, run_worker
from intone.records import Choice, Choices, Segment
from intone.tune.precision import NoTrial
from intone.tune.settle import fallbacks

WARM_STEPS = 2  # allocator and caches settle in them


@dataclass(frozen=True)
class TrialResult:
    """What the steps of a trial showed."""

    losses: list[float]  # nats per supervised token; nan where not finite
    first_step_s: float  # with compiling
    step_s: float  # median after the warm ones
    peak_bytes: int | None
    data_share: float | None = None  # of the warm steps' time that went into waiting for rows


@dataclass
class TrialRunner:
    """Runs trials of one job under different plans; the same question is asked of the machine once."""

    job: TrainJob
    device: str
    threads: int
    device_batch: int
    environment: Mapping[str, str]
    folder: Path
    devices: int = 1
    by_block: bool = False  # what compiled trials compile, see records.Segment
    start_s: float | None = None  # the least that a worker took beside its steps: its start and its end
    # by dtype, compiled, kernels, number of steps, attention, pieces of the head
    known: dict[tuple[str, bool, str, int, str | None, int], TrialResult] = field(default_factory=dict)

    def run(
        self, dtype: str, *, compiled: bool, num_steps: int, kernels: str = "torch", attention: str | None = None,
        head_pieces: int = 1,
    ) -> TrialResult:  # fmt: skip
        """Trains num_steps from the start. Raises NoTrial where the worker ended in another way than done.

        attention None: the backend that the rule says.

        Where memory runs out, or the worker is killed as where it does, the next smaller micro-batch is tried, and
        device_batch is that one from then on.
        """
        key = (dtype, compiled, kernels, num_steps, attention, head_pieces)
        if key in self.known:
            return self.known[key]
        attention = attention or attention_for(self.device, compiled, kernels)
        how = "our kernels" if kernels == "native" else f"attention {attention}"
        say(f"trying {num_steps} steps: {'compiled' if compiled else 'eager'} {dtype}, {how}")
        segment = Segment(
            0, self.device_batch, compiled, dtype, attention, "trial", self.threads,  # type: ignore[arg-type]
            kernels=kernels, head_pieces=head_pieces, by_block=compiled and self.by_block,  # type: ignore[arg-type]
        )  # fmt: skip
        found = self._run(segment, num_steps)
        for smaller in fallbacks(self.device_batch)[1:]:
            if found.outcome.outcome != "out_of_memory" and not jobs.may_want_memory(found.outcome):
                break
            say(f"device_batch {self.device_batch} -> {smaller}: {found.outcome.message}")
            self.device_batch, segment = smaller, replace(segment, device_batch=smaller)
            found = self._run(segment, num_steps)
        if found.outcome.outcome not in ("done", "not_finite"):
            raise NoTrial(found.outcome.message)
        times = [row["step_s"] for row in found.rows]
        losses = [float("nan") if loss is None else loss for loss in found.losses]
        warm = times[WARM_STEPS:] or times
        waited_s = sum(row["data_s"] for row in found.rows[-len(warm):])
        peak = found.rows[-1]["peak_bytes"]
        result = TrialResult(losses, times[0], statistics.median(warm), peak, waited_s / sum(warm))
        self.known[key] = result
        return result

    def _run(self, segment: Segment, num_steps: int) -> Trial:
        """The job's first steps under one plan, in a throw-away folder."""
        asked = {"device": self.device, "devices": self.devices}
        settings = {name: Choice(value, "trial", "default") for name, value in asked.items()}
        with jobs.trial_folder(self.folder) as folder:
            choices = Choices(settings, (segment,), {}, dict(self.environment))
            job = replace(self.job, steps=num_steps, keep=0, eval_every=None, samples=(), val=None)
            begin_s = time.monotonic()
            trial = run_job(folder, job, choices, run_worker)
        beside_s = max(0.0, time.monotonic() - begin_s - sum(row["step_s"] for row in trial.rows))
        if trial.outcome.outcome == "done":
            self.start_s = beside_s if self.start_s is None else min(self.start_s, beside_s)
        return trial

    def run_steps(self, dtype: str, compiled: bool, num_steps: int) -> list[float]:
        """The losses alone, as the gates of tune/precision.py ask for them."""
        return self.run(dtype, compiled=compiled, num_steps=num_steps).losses


def attention_for(device: str, compiled: bool, kernels: str = "torch") -> str:
    """The attention backend by rule: our kernels bring theirs; on a CPU compiled products fuse with mask and softmax,
    on a GPU compiled code skips what the mask hides.

    At depth 4, 8 rows of 256 tokens, bf16 on two cores: compiled products 9,060 tokens/s, compiled fused kernel
    7,570; eager the two are equal. On an H200, 16 rows of 2,048 tokens in documents of 800, 6 heads of 128, forward and
    backward: 0.77 ms, where the fused kernel takes 0.89 ms without any mask (LOG.md).
    """
    if kernels == "native":
        return "native"
    if not compiled:
        return "sdpa"
    return {"cpu": "products", "cuda": "flex"}.get(device, "sdpa")


def loader_choice(runner: TrialRunner) -> Choice:
    """How many threads prepare rows: one, and what a second one could save at most, by the last trial."""
    shares = [result.data_share for result in runner.known.values() if result.data_share is not None]
    if not shares:
        return Choice(1, "one thread prepares rows ahead; how long steps wait for it was not measured", "default")
    reason = f"one thread prepares rows ahead; steps wait for it {shares[-1]:.1%} of their time, no more is to be had"
    return Choice(1, reason, "measured", (), {"data_share": shares[-1]})
