"""What a person sees while a stage trains: a line every few seconds with loss, rate, MFU, memory and time left"""

import time

from intone.config import TrainJob
from intone.log import human_bytes, human_count, human_duration, say
from intone.model.cost import train_flops_per_token
from intone.records import Rollouts, StepRow

PROGRESS_EVERY_S = 5.0


class ProgressLine:
    """The lines of one process for the steps of a job; show() is called with the row of every step."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._recent_step_s: float | None = None  # falls behind a change by about ten steps
        self._num_timed = 0
        self._last_line_s = 0.0

    def show(self, row: StepRow) -> None:
        """Says it for the first step, the last, and in between at most every few seconds."""
        recent = self._recent_step_s
        # the first step of a process holds compiling and first touches of memory: it says nothing about the rest
        step_s = row.step_s if recent is None or self._num_timed == 1 else 0.9 * recent + 0.1 * row.step_s
        self._recent_step_s = step_s
        self._num_timed += 1
        now_s = time.monotonic()
        if row.step in (1, self._job.steps) or now_s - self._last_line_s >= PROGRESS_EVERY_S:
            self._last_line_s = now_s
            say(progress_text(self._job, row, step_s))


def progress_text(job: TrainJob, row: StepRow, step_s: float) -> str:
    """base step   100/2,600   loss 3.213   443k tok/s   MFU 31.0%   peak 44.0 GiB   left 49 min"""
    rate = row.tokens / row.step / step_s
    if row.rollouts is not None:
        return rollout_text(job, row, row.rollouts, rate, step_s)
    mfu = "unknown"
    if job.peak_flops:
        share = rate * train_flops_per_token(job.model, job.context) / job.peak_flops
        mfu = f"{100 * share:.1f}%"
    loss = "not finite" if row.loss is None else f"{row.loss:.3f}"
    left = human_duration((job.steps - row.step) * step_s)
    width = len(f"{job.steps:,}")
    return (
        f"{job.stage:<4} step {row.step:>{width},}/{job.steps:,}   loss {loss}   "
        f"{human_count(rate)} tok/s   MFU {mfu}   peak {human_bytes(row.peak_bytes)}   left {left}"
    )


def rollout_text(job: TrainJob, row: StepRow, rollouts: Rollouts, rate: float, step_s: float) -> str:
    """rl   step  10/200   right 45%   alike 3/16   1.2k tok/s   writing 61%   peak 1.1 GiB   left 9 min"""
    width = len(f"{job.steps:,}")
    return (
        f"{job.stage:<4} step {row.step:>{width},}/{job.steps:,}   right {100 * rollouts.right:.0f}%   "
        f"alike {rollouts.even_groups}/{rollouts.groups}   {human_count(rate)} tok/s   "
        f"writing {100 * rollouts.rollout_s / row.step_s:.0f}%   peak {human_bytes(row.peak_bytes)}   "
        f"left {human_duration((job.steps - row.step) * step_s)}"
    )
