"""Saves of a training job: complete or absent, checksummed, self-describing, and how to fall back from a bad one."""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from intone.config import ModelConfig
from intone.errors import Damaged, UserError
from intone.log import say
from intone.model.sharding import Part
from intone.paths import disk_errors, file_sha256, read_json, sync_folder, write_json
from intone.team import ALONE, Team

FORMAT = 1
WEIGHTS = "model.safetensors"
STATE = "state.json"
NUM_STEPS = "num_steps"  # of the optimizer: the same for all processes


def optimizer_file(rank: int) -> str:
    """Every rank writes its own shard of the optimizer."""
    return f"optimizer.rank{rank}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete save read back: CPU tensors and the state a loop needs to go on."""

    folder: Path
    step: int
    model: ModelConfig
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    tokenizer_hash: str


def step_folder(job_folder: Path, step: int) -> Path:
    return job_folder / "checkpoints" / f"step_{step:06d}"


def save_checkpoint(
    job_folder: Path, step: int, *, model: ModelConfig, weights: dict[str, Tensor], optimizer: dict[str, Tensor],
    state: dict[str, Any], tokenizer_hash: str, team: Team = ALONE,
) -> Path:  # fmt: skip
    """Writes checkpoints/step_N: files under a temporary name, fsync, manifest last, rename, fsync of the folder.

    A save of the same step is replaced. Every process of a team calls this and writes its part of the optimizer; the
    first one writes the rest. Raises DiskFull; what was saved before is not touched by that.
    """
    final = step_folder(job_folder, step)
    temporary = final.with_name(f".{final.name}.tmp")
    with disk_errors(final):
        try:
            with team.all_or_none():
                if team.is_main:
                    remove_leftovers(job_folder)
                    temporary.mkdir(parents=True)
            with team.all_or_none():
                own = {optimizer_file(team.rank): optimizer} | ({WEIGHTS: weights} if team.is_main else {})
                for name, tensors in own.items():
                    _save_tensors(temporary / name, tensors)
                facts = {name: _file_facts(temporary / name) for name in own}
            files = {name: entry for said in team.everyone_says(facts) for name, entry in said.items()}
            with team.all_or_none():
                if team.is_main:
                    write_json(temporary / STATE, state)
                    files[STATE] = _file_facts(temporary / STATE)
                    manifest = {
                        "format": FORMAT,
                        "step": step,
                        "model": model.as_json(),
                        "tokenizer_hash": tokenizer_hash,
                        "torch": torch.__version__,
                        "files": files,
                    }
                    write_json(temporary / "manifest.json", manifest)
                    if final.exists():
                        shutil.rmtree(final)
                    os.replace(temporary, final)
                    sync_folder(final.parent)
        except BaseException:
            if team.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise _as_os_error(error) from error
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_os_error(error: SafetensorError) -> OSError:
    """safetensors reports a full disk as text with the number of the system's error inside."""
    for number in (28, 122, 30, 13):  # ENOSPC, EDQUOT, EROFS, EACCES
        if f"os error {number}" in str(error):
            return OSError(number, os.strerror(number))
    return OSError(str(error))


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def remove_leftovers(job_folder: Path) -> None:
    """Deletes half-written and half-deleted saves of killed processes. Only for the holder of the job's lock."""
    folder = job_folder / "checkpoints"
    incomplete = [path for path in folder.glob("step_*") if is_save(path) and not (path / "manifest.json").exists()]
    for path in [*folder.glob(".step_*.tmp"), *incomplete]:
        shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(job_folder: Path) -> list[Path]:
    """Folders of complete saves, oldest first; complete means that the manifest is there."""
    folders = filter(is_save, (job_folder / "checkpoints").glob("step_*"))
    return sorted((path for path in folders if (path / "manifest.json").exists()), key=saved_step)


def weights_hash(folder: Path) -> str:
    """The SHA-256 of a save's weights, as its manifest has it."""
    return str(read_json(folder / "manifest.json")["files"][WEIGHTS]["sha256"])


def is_save(folder: Path) -> bool:
    """Whether a folder has the name of a save: step_ and digits, no copy that somebody put beside it."""
    return re.fullmatch(r"step_\d+", folder.name) is not None


def saved_step(folder: Path) -> int:
    """The step in the name of a save's folder."""
    return int(folder.name.removeprefix("step_"))


def verify(folder: Path, *, only: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest of a save whose every file has its size and checksum; with only, the checksums of these files.

    Raises Damaged that names the file, UserError for a save of another format, which is not damaged.
    """
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise Damaged(f"{folder / 'manifest.json'} is not the manifest of a save", value=str(folder))
    if manifest["format"] != FORMAT:
        raise UserError(
            f"the save {folder} has format {manifest['format']}, this version reads {FORMAT}",
            value=manifest["format"],
            fix="read it with the version of intone that wrote it",
        )
    for name, facts in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != facts["bytes"]:
            raise Damaged(f"{path} has {size} bytes, its manifest says {facts['bytes']}", value=str(path))
        if (only is None or name in only) and file_sha256(path) != facts["sha256"]:
            raise Damaged(f"{path} does not have the checksum of its manifest", value=str(path))
    return manifest


def read_checkpoint(folder: Path, *, optimizer: bool = True, only: Collection[str] | None = None) -> Checkpoint:
    """A save, verified (with only, as far as verify() says), with the whole optimizer if asked.

    The weights are the file itself, mapped into memory: what nobody reads of them is never read from disk.
    Raises Damaged, or UserError for another format.
    """
    manifest = verify(folder, only=only)
    try:
        model = ModelConfig.from_json(manifest["model"])
    except UserError as error:
        raise Damaged(f"{folder / 'manifest.json'}: {error.message}", value=str(folder), fix=error.fix) from None
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        model=model,
        weights=load_file(folder / WEIGHTS),
        optimizer=read_optimizer(folder) if optimizer else {},
        state=read_json(folder / STATE),
        tokenizer_hash=manifest["tokenizer_hash"],
    )


def read_optimizer(folder: Path, parts: Mapping[str, Part] | None = None) -> dict[str, Tensor]:
    """The optimizer's state in a save, of however many processes wrote it: the whole, or only these parts of it.

    Parts come as they are cut; of the whole, what several processes wrote comes flat for AdamW. Not verified here.
    Raises KeyError for a name that is not in the save.
    """
    names = list(read_json(folder / "manifest.json")["files"])
    ranks = sum(re.fullmatch(r"optimizer\.rank\d+\.safetensors", name) is not None for name in names)
    if parts is None and ranks == 1:
        return load_file(folder / optimizer_file(0))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / optimizer_file(r), framework="pt")) for r in range(ranks)]
        known = set(files[0].keys())
        tensors = {NUM_STEPS: files[0].get_tensor(NUM_STEPS)}
        if parts is None:
            for name in known - {NUM_STEPS}:
                tensors[name] = torch.cat([file.get_tensor(name) for file in files])
            return tensors
        for name, part in parts.items():
            if name not in known:
                raise KeyError(name)
            tensors[name] = _read_part([file.get_slice(name) for file in files], part)
        return tensors


def _read_part(slices: list[Any], part: Part) -> Tensor:
    """Entries of a tensor that lies in several files one after the other; only these are read."""
    pieces: list[Tensor] = []
    first = 0
    for piece in slices:
        shape = piece.get_shape()
        count = math.prod(shape) if part.is_flat else shape[0]
        begin, end = max(part.begin - first, 0), min(part.end - first, count)
        if begin < end or not pieces:
            pieces.append(_cut_slice(piece, shape, begin, max(begin, end), is_flat=part.is_flat))
        first += count
    found = torch.cat(pieces)
    if len(found) != part.end - part.begin:
        raise ValueError(f"the save has {first} entries of a tensor, {part.end} are asked for")
    return found


def _cut_slice(piece: Any, shape: list[int], begin: int, end: int, *, is_flat: bool) -> Tensor:
    """Entries begin..end-1 of one tensor in a file, counted over its numbers or over its first dimension."""
    begin = min(begin, end)
    if not is_flat or len(shape) == 1:
        return cast(Tensor, piece[begin:end])
    if not shape:
        return cast(Tensor, piece[...]).reshape(1)[begin:end]
    width = math.prod(shape[1:])
    rows = piece[begin // width : -(-end // width)].reshape(-1)
    skipped = begin // width * width
    return cast(Tensor, rows[begin - skipped : end - skipped])


def has_optimizer(folder: Path) -> bool:
    """Whether a save holds the optimizer's state: that of an imported model does not."""
    with safe_open(folder / optimizer_file(0), framework="pt") as file:
        return bool(list(file.keys()))


def newest_checkpoint(
    job_folder: Path, *, optimizer: bool = True, only: Collection[str] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest save that verifies, and what was wrong with the newer ones that do not. only: as for verify().

    None where the job has no save. Raises Damaged where it has some and none verifies, UserError for another format.
    """
    problems: list[str] = []
    for folder in reversed(list_checkpoints(job_folder)):
        try:
            return read_checkpoint(folder, optimizer=optimizer, only=only), problems
        except (Damaged, SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            problems.append(error.message if isinstance(error, Damaged) else f"{folder}: {error}")
    if problems:
        raise Damaged(
            f"every save in {job_folder / 'checkpoints'} is damaged: {problems[0]}",
            value=str(job_folder),
            fix=f"delete {job_folder / 'checkpoints'}; the stage then starts again from its beginning",
        )
    return None, []


def agreed_checkpoint(job_folder: Path, team: Team) -> tuple[Checkpoint | None, list[str]]:
    """newest_checkpoint() as the first process of a team sees it, which alone verifies and reads the weights.

    Its optimizer is empty: each process reads its own parts. Raises as newest_checkpoint, RankLost in the others.
    """
    found: Checkpoint | None = None
    problems: list[str] = []
    with team.all_or_none():
        if team.is_main:
            found, problems = newest_checkpoint(job_folder, optimizer=False)
    about = found and {
        "folder": str(found.folder), "step": found.step, "model": found.model.as_json(), "state": found.state,
        "tokenizer_hash": found.tokenizer_hash,
    }  # fmt: skip
    about = team.main_says(about)
    if about is None or found is not None:
        return found, problems
    model, folder = ModelConfig.from_json(about.pop("model")), Path(about.pop("folder"))
    return Checkpoint(folder=folder, model=model, weights={}, optimizer={}, **about), []


def load_weights(job_folder: Path) -> tuple[ModelConfig, dict[str, Tensor], Checkpoint]:
    """Model and weights of a job's newest save whose weights are good; says so where those of a newer one are not.

    Of the optimizer, two thirds of a save, only the sizes are looked at.

    Raises UserError where it has none, Damaged where all are damaged.
    """
    checkpoint, problems = newest_checkpoint(job_folder, optimizer=False, only=(WEIGHTS, STATE))
    for problem in problems:
        say(f"damaged save skipped: {problem}")
    if checkpoint is None:
        raise UserError(
            f"{job_folder} has no save yet", value=str(job_folder), fix="train it first, or choose another run"
        )
    return checkpoint.model, checkpoint.weights, checkpoint


def prune(job_folder: Path, *, keep: int, best_step: int | None) -> None:
    """Deletes old saves: the newest keep and the best one stay. A failure to delete is not an error."""
    assert keep >= 1, f"keep {keep}: the newest save always stays"
    for folder in list_checkpoints(job_folder)[:-keep]:
        if best_step is None or saved_step(folder) != best_step:
            _delete(folder)


def discard_after(job_folder: Path, step: int) -> None:
    """Deletes the saves after this step: a job that goes on from here because they are damaged writes them anew."""
    for folder in list_checkpoints(job_folder):
        if saved_step(folder) > step:
            _delete(folder)


def _delete(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "manifest.json").unlink()  # incomplete from here on, whatever happens next
        shutil.rmtree(folder)
