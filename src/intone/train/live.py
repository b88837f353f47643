"""Training on command: the same Trainer, which does a block of steps when it is told to and says how long they took."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from intone.blocks import Exchange, whole_number
from intone.config import TrainJob
from intone.errors import UserError, unknown_name
from intone.evals.bpb import row_sums
from intone.model.checkpoint import list_checkpoints, save_checkpoint
from intone.model.optim import StepScale
from intone.paths import read_json
from intone.rates import waiter
from intone.records import Choices, Outcome, StepRow
from intone.train.loop import Batches, Trainer
from intone.train.memory import free_bytes, peak_bytes, reserved_bytes, reset_peak, resident_bytes
from intone.train.plan import check_segments

WARM_STEPS = 2  # allocator and caches settle in them, as in the trials of tune
# what a block may ask to compute otherwise
PLAN = (
    "device_batch", "compiled", "threads", "dtype", "attention", "kernels", "head_pieces", "by_block", "num_slots"
)  # fmt: skip
EVALUATED_ROWS = 16  # of a batch of data/loader.validation_rows
COMMAND = ("steps", "plan", "restart", "rows", "warm", "first", "split", "moments")
# several micro-batches in one process each compile; torch gives up compiling one function after 8 shapes, silently
NUM_COMPILED = 256


class LiveTraining:
    """One training job in a process that waits for commands. serve() is called once.

    A block answers {steps, seconds, tokens (positions), supervised (tokens learned), losses (None: not finite),
    peak_bytes (of this block), first_step (optimizer steps done before it), data_s (waited for rows)}. Blocks go on
    with the same run; with "restart": true the job begins again at its start, without compiling again. "plan" changes
    how this and later blocks are computed, never what; where it does, a first and "warm" more steps (WARM_STEPS where
    not said) come before the block, and the answer has their first_s and warm_s; "first": false leaves them out, for a
    plan that this process has computed before. "rows": optimizer steps of so many rows from here on, which is another
    recipe: only for looking at what a micro-batch costs. "split": true: the answer has update_s, for which the device
    is waited for around every update. "moments": true: an evaluated batch and a save come before the steps, so that
    peak_bytes covers them.
    """

    def __init__(self, folder: Path) -> None:
        self._trainer = trainer_of(folder, self._note)
        self._rows: list[tuple[StepRow, int]] = []
        self._moments: dict[str, int | None] = {}  # the most memory that was seen outside of steps
        self._start: dict[str, int | None] = {}  # memory before the first step: weights and moments are there

    def serve(self, exchange: Exchange) -> Outcome:
        """Answers blocks until it is told to end -> how it ended. Errors pass through, as those of Trainer.run."""
        trainer = self._trainer
        if list_checkpoints(trainer.folder):
            raise UserError(
                f"{trainer.folder} has saves: blocks on command would spoil its log",
                value=str(trainer.folder),
                fix="copy config.json and choices.json to a folder of their own",
            )
        trainer.set_up()
        allow_many_shapes(trainer.choices)
        trainer.job = replace(trainer.job, keep=0)  # a block neither saves nor evaluates
        with trainer.batches() as batches:
            self._start = {"start_bytes": resident_bytes(trainer.device), "free_bytes": free_bytes(trainer.device)}
            first_s = self._timed(batches, 1)[0]
            warm_s = self._timed(batches, WARM_STEPS)[0]
            exchange.ready(first_s, warm_s, facts=self._facts())
            block = self._until_restart(exchange, batches)
        while block is not None:
            warmed: dict[str, float] = {}
            rows = whole_number(block, "rows", trainer.job.rows_per_step)
            changed = self._change_plan(block.get("plan", {})) or rows != trainer.job.rows_per_step
            trainer.job = replace(trainer.job, rows_per_step=rows)
            if changed:
                if block.get("restart"):
                    trainer.restore()
                if block.get("first", True):
                    with trainer.batches() as batches:
                        warmed = self._warmed(batches, block)
            if block.get("restart"):
                trainer.restore()
            with trainer.batches() as batches:
                exchange.answer(self._block(batches, block) | warmed)
                block = self._until_restart(exchange, batches)
        return Outcome("done", trainer.progress.step)

    def _until_restart(self, exchange: Exchange, batches: Batches) -> dict[str, Any] | None:
        """Answers blocks that go on -> the first that begins again or takes other rows, None at the end."""
        commands = exchange.blocks(COMMAND)
        while True:
            with batches.paused():  # nothing works here while another process is measured
                block = next(commands, None)
            rows = self._trainer.job.rows_per_step
            if block is None or block.get("restart") or whole_number(block, "rows", rows) != rows:
                return block
            changed = self._change_plan(block.get("plan", {}))
            warmed = self._warmed(batches, block) if changed and block.get("first", True) else {}
            exchange.answer(self._block(batches, block) | warmed)

    def _warmed(self, batches: Batches, command: Mapping[str, Any] = MappingProxyType({})) -> dict[str, float]:
        """Steps that compile, allocate and fill caches -> their seconds."""
        first_s, _ = self._timed(batches, 1)
        num_warm = WARM_STEPS if command.get("warm") is None else whole_number(command, "warm", least=0)
        warm_s = self._timed(batches, num_warm)[0] if num_warm else 0.0
        return {"first_s": first_s, "warm_s": warm_s}

    def _block(self, batches: Batches, command: dict[str, Any]) -> dict[str, Any]:
        steps = whole_number(command, "steps", 1)
        trainer = self._trainer
        first_step = trainer.progress.step
        if command.get("moments"):
            self._other_moments()
        split: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            updates = stack.enter_context(timed_updates(trainer)) if command.get("split") else None
            seconds, rows = self._timed(batches, steps)
        if updates is not None:
            split["update_s"] = sum(updates)
        return {
            "steps": steps,
            "seconds": seconds,
            "tokens": steps * trainer.job.rows_per_step * trainer.job.context,
            "supervised": sum(num_supervised for _, num_supervised in rows),
            "losses": [row.loss for row, _ in rows],
            "data_s": sum(row.data_s for row, _ in rows),
            "peak_bytes": most(peak_bytes(trainer.device), self._moments.get("peak_bytes")),
            "reserved_bytes": most(reserved_bytes(trainer.device), self._moments.get("reserved_bytes")),
            "first_step": first_step,
            **split,
        }

    def _other_moments(self) -> None:
        """What a run does between steps: an evaluation's largest pass, and a save, which is thrown away."""
        trainer = self._trainer
        reset_peak(trainer.device)
        rows = trainer.rows.rows(0, EVALUATED_ROWS)
        token_bytes = trainer.tokenizer.token_bytes
        row_sums(trainer.model, [rows], token_bytes, device=trainer.device, dtype=trainer.model.compute_dtype)
        with tempfile.TemporaryDirectory(dir=trainer.folder) as scratch:
            save_checkpoint(
                Path(scratch), 0, model=trainer.job.model, weights=trainer.model.state_dict(),
                optimizer=trainer.optimizer.state_tensors(), state=trainer.progress.as_json(),
                tokenizer_hash=trainer.job.tokenizer_hash,
            )  # fmt: skip
        device = trainer.device
        self._moments = {"peak_bytes": peak_bytes(device), "reserved_bytes": reserved_bytes(device)}

    def _timed(self, batches: Batches, steps: int) -> tuple[float, list[tuple[StepRow, int]]]:
        """(seconds, rows) of these steps, nothing queued on the device before or after them."""
        trainer = self._trainer
        first_step = trainer.progress.step
        if first_step + steps > trainer.job.steps:
            raise UserError(
                f"{steps:,} steps from step {first_step:,} on go beyond the {trainer.job.steps:,} of the job",
                value=steps,
                fix="give the job more steps, or begin again with restart",
            )
        wait = waiter(trainer.device)
        self._rows = []
        reset_peak(trainer.device)
        wait()
        begin_s = time.perf_counter()
        outcome = trainer.advance(batches, first_step + steps)
        wait()
        seconds = time.perf_counter() - begin_s
        if outcome is not None:
            raise EndedEarly(outcome)
        return seconds, self._rows

    def _note(self, row: StepRow, num_supervised: int) -> None:
        self._rows.append((row, num_supervised))

    def _change_plan(self, plan: Any) -> bool:
        """Computes by another plan from here on; False where it is the same. Raises UserError for an impossible one."""
        trainer = self._trainer
        if not isinstance(plan, dict):
            raise UserError(f"plan {plan!r} is not an object", value=plan)
        for name in plan:
            if name not in PLAN:
                raise unknown_name("plan setting", name, PLAN)
        now = trainer.choices.segment_at(trainer.progress.step)
        if all(getattr(now, name) == value for name, value in plan.items()):
            return False
        asked = replace(now, from_step=0, reason="asked for a block", **plan)
        trainer.choices = replace(trainer.choices, segments=(asked,))
        check_segments(trainer.choices)
        allow_many_shapes(trainer.choices)
        return True

    def _facts(self) -> dict[str, Any]:
        """What the measured process says about itself."""
        trainer = self._trainer
        segment = trainer.choices.segment_at(trainer.progress.step)
        on_cuda = trainer.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(trainer.device) if on_cuda else trainer.device.type,
            "torch": torch.__version__,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "tokens_per_step": trainer.job.rows_per_step * trainer.job.context,
            "threads": torch.get_num_threads(),
            **self._start,
            **{name: getattr(segment, name) for name in PLAN if name != "threads"},
        }


def trainer_of(folder: Path, on_step: Callable[[StepRow, int], None]) -> Trainer:
    """What runs the job in folder, and is never told to stop. Raises UserError for a folder that is no training job."""
    if TrainJob.from_json(read_json(folder / "config.json")).rollouts is None:
        return Trainer(folder, should_stop=lambda: False, on_step=on_step)
    from intone.train.rl import Reinforcer  # with the engine, which other stages do without

    return Reinforcer(folder, should_stop=lambda: False, on_step=on_step)


def most(a: int | None, b: int | None) -> int | None:
    """The larger of two sizes; one that is unknown does not count."""
    return max((size for size in (a, b) if size is not None), default=None)


class EndedEarly(Exception):
    """The trainer ended by itself within a block."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


@contextlib.contextmanager
def timed_updates(trainer: Trainer) -> Iterator[list[float]]:
    """Within it the seconds of every update are added to the list, nothing else queued on the device."""
    seconds: list[float] = []
    update, wait = trainer.optimizer.step, waiter(trainer.device)

    def timed(scale: StepScale, finite: torch.Tensor | None = None) -> None:
        wait()
        begin_s = time.perf_counter()
        update(scale, finite)
        wait()
        seconds.append(time.perf_counter() - begin_s)

    trainer.optimizer.step = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del trainer.optimizer.step


def live_training(folder: Path, exchange: Exchange) -> Outcome:
    """The job in folder, block by block on command -> how it ended. Raises UserError."""
    try:
        return LiveTraining(folder).serve(exchange)
    except EndedEarly as early:
        return early.outcome


def allow_many_shapes(choices: Choices) -> None:
    """Lets one process compile many shapes, and makes it an error instead of silent eager code where it cannot."""
    if not choices.segments[-1].compiled:
        return  # the compiler's import alone takes a second
    config = torch._dynamo.config
    config.recompile_limit = NUM_COMPILED
    config.accumulated_recompile_limit = 4 * NUM_COMPILED
    config.fail_on_recompile_limit_hit = True
