"""Probes of the batch search by the real worker: one live child, told how many rows and passes each step has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from intone import jobs
from intone.config import TrainJob
from intone.paths import write_json
from intone.prove.live import LiveFailed, Ready, WorkerChild
from intone.records import Choice, Choices, Segment, write_choices
from intone.tune.found import ProbeFailed, Sample

MANY_STEPS = 10**9  # of a probed job: it never comes to its end
READY_S = 600.0  # a cold compile on a busy machine


@dataclass
class WorkerProbe:
    """Steps of a training job in a child process that may die: it is started again at the next question.

    Use it in a with statement. limits: see jobs.Limits; an out-of-memory error there is a finding, not a failure.
    """

    job: TrainJob
    segment: Segment
    device: str
    environment: Mapping[str, str]
    scratch: Path
    limits: jobs.Limits | None = None
    first_rows: int = 1  # of the steps that the child warms up with
    first_batch: int | None = None  # their micro-batch; None: all rows at once
    ready: Ready | None = None
    num_starts: int = 0
    _computed: set[int] = field(default_factory=set)  # sizes that this child has done steps of
    _child: WorkerChild | None = None
    _folder: Any = None

    def __enter__(self) -> "WorkerProbe":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def start(self) -> Ready:
        """The child's answer once it has done its first steps of one row. Raises ProbeFailed."""
        if self._child is not None and self.ready is not None:
            return self.ready
        self._folder = jobs.trial_folder(self.scratch)
        folder = self._folder.__enter__()
        job = replace(
            self.job, steps=MANY_STEPS, rows_per_step=self.first_rows, keep=0, eval_every=None, samples=(), val=None,
            init_from=None, keep_optimizer=False,
        )  # fmt: skip
        segment = replace(self.segment, from_step=0, device_batch=self.first_batch or self.first_rows)
        settings = {"device": Choice(self.device, "probe", "default")}
        write_choices(folder, Choices(settings, (segment,), {}, dict(self.environment)))
        write_json(folder / "config.json", job.as_json())
        self.num_starts += 1
        self._computed.clear()
        try:
            self._child = WorkerChild(folder, self.environment, self.limits, name="the probe")
            self.ready = self._child.wait_ready(READY_S)
        except LiveFailed as error:
            raise self._lost(error) from None
        return self.ready

    @property
    def free_bytes(self) -> int | None:
        """What memory may grow by beyond that before the first step."""
        value = self.start().facts.get("free_bytes")
        return None if value is None else int(value)

    @property
    def start_bytes(self) -> int:
        return int(self.start().facts.get("start_bytes") or 0)

    def __call__(self, rows: int, passes: int, steps: int, *, moments: bool = False) -> Sample:
        """See batch.Measure. moments: an evaluation and a save count in the memory too.

        A size that this child has not computed before has a step before the timed ones.
        """
        start_bytes = self.start_bytes
        assert self._child is not None, "started above"
        try:
            answer = self._child.block(
                steps=steps, rows=rows * passes, warm=0, first=rows not in self._computed,
                plan={"device_batch": rows}, split=True, moments=moments,
            )  # fmt: skip
        except LiveFailed as error:
            raise self._lost(error) from None
        self._computed.add(rows)
        peak = answer.get("reserved_bytes") or answer.get("peak_bytes")
        update_s = answer["update_s"] / steps
        growth = None if peak is None else max(0, peak - start_bytes)
        return Sample((answer["seconds"] / steps - update_s) / passes, update_s, growth)

    def close(self) -> None:
        """Ends the child and removes its folder; harmless when called twice."""
        if self._child is not None:
            self._child.close()
        if self._folder is not None:
            self._folder.__exit__(None, None, None)
        self._child = self._folder = self.ready = None

    def _lost(self, error: LiveFailed) -> ProbeFailed:
        self.close()
        return ProbeFailed(str(error), out_of_memory=error.outcome.outcome == "out_of_memory")
