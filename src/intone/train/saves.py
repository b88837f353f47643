"""How a stage goes on where it was: from its newest good save or the stage before, with its log; and how it saves"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.errors import UserError
from intone.model.checkpoint import (
    Checkpoint,
    agreed_checkpoint,
    newest_checkpoint,
    read_optimizer,
    save_checkpoint,
)
from intone.model.gpt import GPT
from intone.model.optim import Optimizer
from intone.paths import sync_file
from intone.records import cut_log, read_log
from intone.team import Team


@dataclass
class Progress:
    """What a resumed loop must know besides weights and moments; state.json of a save."""

    step: int = 0  # optimizer steps done
    tokens: int = 0
    num_skipped: int = 0
    num_not_finite: int = 0  # in a row, up to now
    elapsed_s: float = 0.0  # training time of all processes that worked on the stage
    best_step: int | None = None
    best_bpb: float | None = None
    loss_scale: float = 1.0
    good_steps: int = 0  # since the loss scale changed

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Saves:
    """The saves of a job, read into its model and optimizer in place, and written from them.

    All processes of a team make the same calls; only the first one then has the weights, and only it writes them.
    """

    folder: Path
    job: TrainJob
    model: GPT
    optimizer: Optimizer
    team: Team

    def resume(self) -> tuple[Checkpoint | None, list[str]]:
        """Takes over the newest good save, if there is one -> (that save, what was wrong with newer ones).

        Raises Damaged where all are damaged, UserError for a save of another model or tokenizer.
        """
        checkpoint, problems = self._newest(self.folder, optimizer=True)
        if checkpoint is not None:
            self._take_over(checkpoint, optimizer=True)
        return checkpoint, problems

    def start_from(self, before: Path) -> list[str]:
        """Takes over the weights of another job's newest good save; returns what was wrong with newer ones."""
        start, problems = self._newest(before, optimizer=self.job.keep_optimizer)
        if start is None:
            raise UserError(f"{before} has no save to start from", value=str(before), fix="train that stage first")
        self._take_over(start, optimizer=self.job.keep_optimizer)
        return problems

    def write(self, progress: Progress) -> Path:
        """One more save, after the log on the disk -> its folder. Raises as save_checkpoint."""
        if self.team.is_main:
            for name in ("log.jsonl", "samples.jsonl"):  # a save must not outlive the rows that lead to it
                sync_file(self.folder / name)
        return save_checkpoint(
            self.folder,
            progress.step,
            model=self.job.model,
            weights=self.model.state_dict(),
            optimizer=self.optimizer.state_tensors(),
            state=progress.as_json(),
            tokenizer_hash=self.job.tokenizer_hash,
            team=self.team,
        )

    def _newest(self, folder: Path, *, optimizer: bool) -> tuple[Checkpoint | None, list[str]]:
        """The newest good save of a job and what was wrong with newer ones; in a team without the optimizer."""
        if self.team.size == 1:
            return newest_checkpoint(folder, optimizer=optimizer)
        return agreed_checkpoint(folder, self.team)

    def _take_over(self, checkpoint: Checkpoint, *, optimizer: bool) -> None:
        """Weights, which in a team only the first process has, and where asked the moments that are ours."""
        with self.team.all_or_none():
            self._check(checkpoint)
            if self.team.is_main:
                self.model.load_state_dict(checkpoint.weights)
            if optimizer and self.team.size == 1:
                self.optimizer.load_state_tensors(checkpoint.optimizer)
            elif optimizer:
                self.optimizer.load_state_tensors(read_optimizer(checkpoint.folder, self.optimizer.parts()))

    def _check(self, checkpoint: Checkpoint) -> None:
        if checkpoint.model != self.job.model or checkpoint.tokenizer_hash != self.job.tokenizer_hash:
            raise UserError(
                f"the save {checkpoint.folder} has another model or tokenizer than this job",
                value=str(checkpoint.folder),
                fix="give the job the settings of the run it starts from",
            )


def restore_logs(folder: Path, progress: Progress) -> int:
    """Cuts what was written after the restored step, and recalls from the rest the best score -> step evaluated last.

    An evaluation comes after the save of its step: the log knows of it, the save does not.
    """
    log = folder / "log.jsonl"
    cut_log(log, progress.step)
    rows = read_log(log, "eval")
    evaluated_step: int = rows[-1]["step"] if rows else 0
    cut_log(folder / "samples.jsonl", evaluated_step)
    scores = [(row["values"]["bpb"], row["step"]) for row in rows if "bpb" in row["values"]]
    progress.best_bpb, progress.best_step = min(scores, default=(None, None))
    return evaluated_step
