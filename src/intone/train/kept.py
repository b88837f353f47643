"""The answers of a reinforcement step, judged; and on disk, where gates read them and give both sides the same ones"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from intone.config import strict
from intone.errors import UserError
from intone.paths import read_json, write_json

ANSWERS = "answers"  # below a job's folder


@dataclass(frozen=True)
class Written:
    """P prompts with n answers each, and what they are worth.

    prompts: token ids. ids, logprobs: of every token of every answer; logprob None: a tool put the token there, the
    model did not draw it. rewards: P lists of n. cut: answers that ended because they were as long as they may be.
    """

    prompts: Sequence[Sequence[int]]
    ids: Sequence[Sequence[Sequence[int]]]
    logprobs: Sequence[Sequence[Sequence[float | None]]]
    rewards: Sequence[Sequence[float]]
    cut: int


def kept_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.json"


def keep(folder: Path, step: int, written: Written) -> None:
    """Writes the answers of a step into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(kept_file(folder, step), asdict(written))


def read_kept(folder: Path, step: int) -> Written:
    """What keep() wrote. Raises UserError where it is not there, or is something else."""
    path = kept_file(folder, step)
    if not path.exists():
        raise UserError(f"no answers were kept for step {step:,}", value=str(path), fix="keep those of more steps")
    found: Written = strict(Written, read_json(path), "key of kept answers")
    return found
