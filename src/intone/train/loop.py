"""The training loop of base, mid and SFT: executes config.json and choices.json of a job folder, decides nothing."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import torch

from intone.config import TrainJob
from intone.data.loader import Batch, Prefetcher
from intone.dist import World
from intone.log import say
from intone.model.attention import Backend
from intone.model.checkpoint import discard_after, prune, remove_leftovers
from intone.model.optim import Optimizer
from intone.paths import read_json, write_json
from intone.records import Choices, EventRow, Outcome, Rollouts, Segment, StepRow, log_row, read_choices
from intone.team import ALONE, Team
from intone.train.evaluation import evaluate_stage
from intone.train.guard import MemoryGuard
from intone.train.memory import peak_bytes, reset_peak
from intone.train.opening import build_model, open_data
from intone.train.plan import check_kernels, check_segments, pick_device
from intone.train.progress_line import ProgressLine
from intone.train.saves import Progress, Saves, restore_logs
from intone.train.schedule import place_of, scale_at
from intone.train.step import DTYPES, Pending, TrainStep, step_lag
from intone.train.swap import waited_for_code
from intone.train.waiting import Waiting

MAX_NOT_FINITE = 3  # skipped steps in a row that end the run


class Batches(Protocol):
    """What the steps of a stage learn from, in their order."""

    def __next__(self) -> tuple[int, Batch]: ...

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is made ahead inside the with block."""


def join_team(folder: Path, world: World) -> Team:
    """Meets the other processes of the job in folder. Raises UserError, RankLost."""
    if world.size == 1:
        return ALONE
    return Team.join(world, pick_device(read_choices(folder), world))


@dataclass
class Trainer:
    """One stage in one process. run() is called once and returns how it ended; train/live.py goes step by step.

    on_step is called after every step with its row and the number of its supervised tokens.
    team: this process and those that it trains with. All of them do the same steps, each on its share of the rows; the
    first one decides what a clock decides, and alone writes logs, weights and evaluations.
    """

    folder: Path
    should_stop: Callable[[], bool]
    on_step: Callable[[StepRow, int], None] | None = None
    team: Team = ALONE
    job: TrainJob = field(init=False)
    choices: Choices = field(init=False)
    progress: Progress = field(init=False, default_factory=Progress)
    saved_step: int | None = field(init=False, default=None)  # of the newest save that is known to be good
    evaluated_step: int = field(init=False, default=0)
    waiting: Waiting | None = field(init=False, default=None)  # of run() alone: who steps on command waits in between

    def run(self) -> Outcome:
        """Trains from the newest save, or the start, to the last step of the job, and evaluates.

        Raises UserError for a job that cannot run here, RankLost where another process of the team did not go on;
        MemoryError and torch's out-of-memory errors pass through.
        """
        self.set_up()
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        with self.batches() as batches, Waiting(threads) as self.waiting:
            if self.progress.step:
                # an evaluation that was due after the restored save may be missing
                self._between_steps(due=self._is_due(self.progress.step))
            stopped = self.advance(batches, self.job.steps)
        if stopped is not None:
            return stopped
        if self.job.keep:
            self._save()
            if self.team.anyone(self.should_stop())[0]:
                return Outcome("stopped", self.progress.step, "stopped before the last evaluation")
            self._evaluate()
            if self.team.is_main:
                prune(self.folder, keep=self.job.keep, best_step=self.progress.best_step)
        return Outcome("done", self.progress.step)

    # --- setting up -------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Reads the folder, builds model and optimizer, and takes over the newest save."""
        self.job = TrainJob.from_json(read_json(self.folder / "config.json"))
        self.choices = read_choices(self.folder)
        check_segments(self.choices)
        self.job = replace(self.job, steps=self.choices.num_steps(self.job.steps))
        self.device = pick_device(self.choices, self.team.world)
        with self.team.all_or_none():
            self._open()
            self.model = build_model(self.job, self.choices.segments[0], self.device)
        self.restore()

    def _open(self) -> None:
        """What the stage reads."""
        self.tokenizer, self.rows, self.val = open_data(self.job)

    def restore(self) -> None:
        """The newest good save of this job, else the weights it starts from, else the random start."""
        self.model.init_weights(self.job.seed)
        self.optimizer = Optimizer(self.model, self.job.optim, team=self.team)
        self.saves = Saves(self.folder, self.job, self.model, self.optimizer, self.team)
        self.progress = Progress()
        self.runner: TrainStep | None = None
        self.segment: Segment | None = None  # of the runner
        if self.team.is_main:
            remove_leftovers(self.folder)
        checkpoint, problems = self.saves.resume()
        if checkpoint is not None:
            self.progress = Progress(**checkpoint.state)
            self.saved_step = checkpoint.step
            self._say(f"going on from the save at step {checkpoint.step:,}")
        elif self.job.init_from:
            problems = self.saves.start_from(Path(self.job.init_from))
        self.team.spread_([tensor.detach() for tensor in self.model.state_dict().values()])
        if not self.team.is_main:
            return
        self.evaluated_step = restore_logs(self.folder, self.progress)
        for problem in problems:
            self._event("damaged save skipped", problem)
        if checkpoint is not None:
            self._note("resumed", f"from the save at step {checkpoint.step:,}")
            if problems:
                discard_after(self.folder, checkpoint.step)

    # --- steps ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def batches(self) -> Iterator[Batches]:
        """The batches of the steps that are left, with clocks and peak memory set back."""
        self.started_s = self.last_save_s = time.monotonic()
        self.base_elapsed_s = self.progress.elapsed_s
        self.line = ProgressLine(self.job)
        self.last_finish_s = 0.0
        gc.collect()
        gc.freeze()  # everything alive now stays: collections in the loop need not look at it
        reset_peak(self.device)
        margin = self.choices.settings.get("memory_margin_bytes")
        self.guard = MemoryGuard(self.device, None if margin is None else margin.value)
        try:
            with self._batches() as batches:
                yield batches
        finally:
            gc.unfreeze()

    def _batches(self) -> contextlib.AbstractContextManager[Batches]:
        """The batches themselves, made in the background."""
        share = dict(rank=self.team.rank, size=self.team.size)
        return Prefetcher(self.rows, self.job.rows_per_step, self.progress.step, **share)

    def advance(self, batches: Batches, last_step: int) -> Outcome | None:
        """Steps until last_step is done and its loss is read; an outcome where they end early."""
        job, progress = self.job, self.progress
        waiting: list[Pending] = []  # steps the device was given and whose loss was not read yet
        while progress.step + len(waiting) < last_step:
            begin_s = time.perf_counter()
            if not self._has_code(progress.step + len(waiting)):
                return self._stopped_waiting(waiting)
            runner = self._runner_at(progress.step + len(waiting))
            step, batch = next(batches)
            data_s = time.perf_counter() - begin_s
            horizons = self.choices.horizons(job.steps)
            scale = scale_at(job.schedule, step, horizons[0][1], place=place_of(horizons, step))
            waiting.append(Pending(runner.run(batch, scale), batch, scale.lr, begin_s, data_s))
            alarm = self._memory_alarm(step)
            stopping, crowded = self.team.anyone(self.should_stop(), alarm is not None)
            due = self._is_due(step + 1)
            read_now = stopping or crowded or step + 1 == last_step or due
            lag = 0 if read_now else step_lag(self.device, self.choices.segment_at(step).dtype)
            while len(waiting) > lag:
                outcome = self._finish_step(runner, waiting.pop(0))
                if outcome is not None:
                    return outcome
            if waiting:
                continue
            self._between_steps(due=due)
            if stopping and progress.step < job.steps:
                if job.keep:
                    self._save()
                return Outcome("stopped", progress.step, "stopped by a signal; the same command goes on from here")
            if crowded and progress.step < job.steps:
                self._save()
                return Outcome("out_of_memory", progress.step, alarm or "memory of another process is about to run out")
        return None

    def _memory_alarm(self, step: int) -> str | None:
        """Why this job should go a size down now; None: it need not, or the plan has no smaller size."""
        if not self.job.keep:
            return None  # trials end by themselves
        size = self.choices.segment_at(step).device_batch
        return None if self.choices.next_fallback("device_batch", size) is None else self.guard.alarm()

    def _has_code(self, step: int) -> bool:
        """Waits where the plan swaps to code that is being compiled; False where it was told to stop meanwhile.

        The plan is read again then: it says so where that code is not to be used.
        """
        planned = self.choices.segment_at(step)
        if not planned.compiled or planned.from_step != step or step == 0 or self.team.size > 1:
            return True
        if not waited_for_code(self.folder, self.should_stop):
            return False
        self.choices = read_choices(self.folder)
        return True

    def _stopped_waiting(self, waiting: list[Pending]) -> Outcome:
        """Reads the losses that are still out, saves, and ends."""
        for pending in waiting:
            assert self.runner is not None, "it computed them"
            outcome = self._finish_step(self.runner, pending)
            if outcome is not None:
                return outcome
        if self.job.keep:
            self._save()
        return Outcome("stopped", self.progress.step, "stopped by a signal; the same command goes on from here")

    def _runner_at(self, step: int) -> TrainStep:
        """The step function of the segment that computes this step."""
        planned = self.choices.segment_at(step)
        if self.runner is None or planned is not self.segment:
            self.runner, self.segment = self._runner(planned), planned
        return self.runner

    def _runner(self, segment: Segment) -> TrainStep:
        """The step function of a segment. A new one means other code, never another computation."""
        self.model.compute_dtype = DTYPES[segment.dtype]
        self.model.kernels = self.optimizer.kernels = segment.kernels
        if segment.kernels == "native":
            check_kernels(self.job.model, self.device, segment.dtype)
        else:
            self.model.attention_backend = cast(Backend, segment.attention)
        self.model.head_pieces = segment.head_pieces
        # on a CPU our kernels do it, and where they do not, compiling would cost more than it saves
        self.optimizer.use_compiled(segment.compiled and self.device.type == "cuda")
        if segment.threads:
            torch.set_num_threads(segment.threads)
        if self.runner is not None:  # at the start of a process whoever wrote the segment has said so
            self._event("segment", segment.reason)
        runner = TrainStep(
            self.model,
            self.optimizer,
            device=self.device,
            dtype=segment.dtype,
            device_batch=segment.device_batch,
            compiled=segment.compiled,
            by_block=segment.by_block,
            one_text=self.job.one_text,
            team=self.team,
        )
        if segment.dtype == "fp16" and self.progress.loss_scale > 1.0:
            runner.loss_scale, runner.good_steps = self.progress.loss_scale, self.progress.good_steps
        return runner

    def _finish_step(self, runner: TrainStep, pending: Pending) -> Outcome | None:
        """Waits for a step, counts, logs and prints it; an outcome where too many in a row were not finite."""
        progress, result = self.progress, pending.result
        rollouts = self._rollouts_of(pending.batch)
        tokens = self.job.rows_per_step * self.job.context if rollouts is None else rollouts.tokens
        loss = result.sync_loss()
        applied = bool(result.finite)
        runner.note_finite(applied)
        progress.loss_scale, progress.good_steps = runner.loss_scale, runner.good_steps
        progress.step += 1
        progress.tokens += tokens
        now_s = time.perf_counter()
        step_s = now_s - max(pending.begin_s, self.last_finish_s)
        self.last_finish_s = now_s
        progress.elapsed_s = self.base_elapsed_s + time.monotonic() - self.started_s
        progress.num_skipped += not applied
        not_finite = loss is None and result.num_supervised > 0
        progress.num_not_finite = progress.num_not_finite + 1 if not_finite else 0
        row = StepRow(
            step=progress.step,
            tokens=progress.tokens,
            loss=loss,
            lr=pending.lr,
            step_s=step_s,
            data_s=pending.data_s,
            tokens_per_s=tokens / step_s,
            peak_bytes=peak_bytes(self.device),
            skipped=not applied,
            rollouts=rollouts,
        )
        if self.team.is_main:
            log_row(self.folder / "log.jsonl", row)  # also the sign of life that the supervisor looks for
            self.line.show(row)
        if self.on_step is not None:
            self.on_step(row, result.num_supervised)
        if self.waiting is not None:
            self.waiting.look()
        return None if progress.num_not_finite < MAX_NOT_FINITE else self._not_finite()

    def _rollouts_of(self, batch: Batch) -> Rollouts | None:
        """What a step's rows were made of; None where they were read."""
        return None

    def _not_finite(self) -> Outcome:
        step, num_rows = self.progress.step, self.job.rows_per_step
        first_row = (step - 1) * num_rows
        address = {"step": step, "first_row": first_row, "num_rows": num_rows, "in_a_row": MAX_NOT_FINITE}
        if self.team.is_main:
            write_json(self.folder / "not_finite.json", address)
        return Outcome(
            "not_finite",
            step,
            f"the loss was not finite in {MAX_NOT_FINITE} steps in a row, the last of rows {first_row:,} to "
            f"{first_row + num_rows - 1:,}",
            "the rows are named in not_finite.json; try --dtype fp32, or look at that text",
        )

    def _between_steps(self, *, due: bool) -> None:
        """Saves and evaluates where that is due."""
        step = self.progress.step
        if step == self.job.steps or not due:
            return
        self._save()
        if self._is_evaluated_at(step):
            self._evaluate()

    def _is_due(self, step: int) -> bool:
        """Whether the loop must have finished this step before the next one: the end, a save or an evaluation.

        A team goes by the clock of the first process.
        """
        if step == self.job.steps:
            return True
        if not self.job.keep:
            return False
        save_due = time.monotonic() - self.last_save_s >= self.job.save_every_s
        return self._is_evaluated_at(step) or self.team.anyone(save_due and self.team.is_main)[0]

    def _is_evaluated_at(self, step: int) -> bool:
        return self.job.eval_every is not None and step % self.job.eval_every == 0

    def _save(self) -> None:
        progress = self.progress
        if progress.step == self.saved_step:
            return  # nothing was trained since
        begin_s = time.monotonic()
        folder = self.saves.write(progress)
        self.saved_step, self.last_save_s = progress.step, time.monotonic()
        if self.team.is_main:
            prune(self.folder, keep=self.job.keep, best_step=progress.best_step)
            self._note("save", folder.name, seconds=self.last_save_s - begin_s)

    def _evaluate(self) -> None:
        """bpb on the fixed validation rows, and samples, once per step; the save was made before.

        In a team the first process does it, and the others wait for it where they next need it.
        """
        if self.progress.step == self.evaluated_step or not self.team.is_main:
            return
        bpb = evaluate_stage(self.folder, self.job, self.model, self.tokenizer, self.val, self.progress.step)
        self.evaluated_step = self.progress.step
        if bpb is not None and (self.progress.best_bpb is None or bpb < self.progress.best_bpb):
            self.progress.best_bpb, self.progress.best_step = bpb, self.progress.step

    # --- what people see --------------------------------------------------------------------------------------

    def _event(self, event: str, message: str) -> None:
        if self.team.is_main:
            say(f"{event}: {message}")
            self._note(event, message)

    def _say(self, text: str) -> None:
        if self.team.is_main:
            say(text)

    def _note(self, event: str, message: str, *, seconds: float | None = None) -> None:
        log_row(self.folder / "log.jsonl", EventRow(self.progress.step, event, message, seconds))
