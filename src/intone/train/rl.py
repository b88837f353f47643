"""Reinforcement learning: the training loop, fed by the model's own answers to questions that can be checked"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from intone.config import RolloutConfig
from intone.data.loader import Batch, validation_rows
from intone.data.questions import Question, Questions
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.native_decoder import native_obstacle
from intone.errors import UserError
from intone.evals.bpb import bits_per_byte
from intone.evals.skills import evaluate_skills
from intone.log import human_duration, say
from intone.paths import read_json, write_json
from intone.pulse import beat, beating
from intone.records import EvalRow, Outcome, Rollouts, log_row, read_log
from intone.train.loop import MAX_NOT_FINITE, Batches, Trainer
from intone.train.opening import open_tokenizer
from intone.train.rollouts import RolloutBatch, RolloutSource

RIGHT = "right"  # the share of right answers in an evaluation's row, "right KIND" of one kind


class Reinforcer(Trainer):
    """A reinforcement stage in one process: like any stage, but every step's rows are written by the model itself.

    The step number is the state of the loader: it gives the questions, and with the weights the answers.
    """

    def run(self) -> Outcome:
        """Asks the held-out questions before the first step and after the last one, and trains in between."""
        try:
            return super().run()
        finally:
            self._close()

    def set_up(self) -> None:
        """As of every stage; then the engine, and where nothing was trained yet the questions before."""
        self._engine: Engine | None = None
        self._engine_plan: tuple[object, ...] = ()
        super().set_up()
        self._runner_at(self.progress.step)  # sets the dtype that the engine packs weights in
        rows = read_log(self.folder / "log.jsonl", "eval")
        if self.job.keep and self.progress.step == 0 and not rows:
            self._ask()

    def restore(self) -> None:
        """As of every stage; a save is never the best one by bits per byte, which it does not train for."""
        super().restore()
        self.progress.best_bpb = self.progress.best_step = None

    @property
    def rollouts(self) -> RolloutConfig:
        """What is asked in each step."""
        assert self.job.rollouts is not None, "the worker looked"
        return self.job.rollouts

    def _open(self) -> None:
        job = self.job
        self.tokenizer: Tokenizer = open_tokenizer(job)
        self.questions = Questions(self.rollouts, job.seed, self.tokenizer, job.context)
        self.val = TokenSet.open(Path(job.val)) if job.val else None

    def _batches(self) -> contextlib.AbstractContextManager[Batches]:
        return RolloutSource(
            self._opened, self.model, self.questions, self.rollouts, seed=self.job.seed, context=self.job.context,
            first_step=self.progress.step, folder=self.folder, on_answer=lambda: beat(self.folder),
        )  # fmt: skip

    def _rollouts_of(self, batch: Batch) -> Rollouts | None:
        return cast(RolloutBatch, batch).stats

    def _opened(self) -> Engine:
        """The engine of the present segment, opened once for it: its weights are renewed before every use.

        A token's numbers must not depend on what else was computed with it, so that a resumed run writes the same
        answers: our kernels have that by nature, PyTorch on a CPU where it is asked to, a GPU at its full price only.
        """
        segment = self.segment
        assert segment is not None, "set_up() made the runner"
        plan = (segment.dtype, segment.threads, segment.num_slots)
        if self._engine is not None and plan != self._engine_plan:
            self._close()  # threads and formats are those that it was opened with
        if self._engine is None:
            model, is_cpu = self.model, self.device.type == "cpu"
            obstacle = native_obstacle(model.config, device=self.device, dtype=model.compute_dtype)
            exact = self.job.deterministic or (is_cpu and obstacle is not None)
            self._engine = Engine(
                model, self.tokenizer, context=self.job.context, dtype=model.compute_dtype,
                num_slots=segment.num_slots, deterministic=exact,
            )  # fmt: skip
            self._engine_plan = plan
        return self._engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # --- measuring --------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Held-out questions, once per step; the save was made before."""
        if self.progress.step != self.evaluated_step:
            self._ask()
            self.evaluated_step = self.progress.step

    def _ask(self) -> None:
        """Greedy answers to the held-out questions, and bits per byte of other text: eval.json, a log row, a line."""
        begin_s, step, folder = time.monotonic(), self.progress.step, self.folder
        result: dict[str, Any] = {"format": 1, "step": step}
        values: dict[str, float] = {}
        if self.val is not None:
            rows = beating(folder, validation_rows(self.val, self.job.context, self.job.eval_tokens))
            result["bpb"] = bits_per_byte(
                self.model, rows, self.tokenizer.token_bytes, device=self.device, dtype=self.model.compute_dtype
            )
            values["bpb"] = float(result["bpb"]["value"])
        answers = self._answers()
        values |= {RIGHT: answers["mean"]} | {f"{RIGHT} {kind}": s["score"] for kind, s in answers["skills"].items()}
        before = answers if step == 0 else earlier(folder).get("before")
        write_json(folder / "eval.json", result | {"answers": answers, "before": before})
        seconds = time.monotonic() - begin_s
        log_row(folder / "log.jsonl", EvalRow(step, seconds, values))
        num_items = sum(entry["num_items"] for entry in answers["skills"].values())
        say(
            f"{self.job.stage:<4} step {step:,}   {100 * answers['mean']:.1f}% right of {num_items:,} held-out "
            f"questions   ({human_duration(seconds)})"
        )

    def _answers(self) -> dict[str, Any]:
        engine = self._opened()
        engine.update_weights(self.model.state_dict())
        return evaluate_skills(
            engine, self.questions.held_out, self.rollouts.max_tokens, on_answer=self._go_on, is_right=Question.is_right
        )

    def _go_on(self) -> None:
        """A sign of life; ends the job at once where it was told to stop: saves come before questions."""
        beat(self.folder)
        if self.should_stop():
            raise KeyboardInterrupt

    def _not_finite(self) -> Outcome:
        step = self.progress.step
        message = f"the loss was not finite in {MAX_NOT_FINITE} steps in a row, the last is step {step:,}"
        return Outcome("not_finite", step, message, "try --dtype fp32, or a smaller --rate")


def earlier(folder: Path) -> Mapping[str, Any]:
    """eval.json as the last evaluation left it; empty where there is none or it is damaged."""
    with contextlib.suppress(UserError):
        found = read_json(folder / "eval.json")
        return found if isinstance(found, dict) else {}
    return {}
