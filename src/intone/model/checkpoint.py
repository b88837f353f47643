"""Saves of a training job: complete or absent, checksummed, self-describing, and how to fall back from a bad one."""

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from intone.config import ModelConfig
from intone.errors import Damaged, UserError
from intone.log import say
from intone.paths import disk_errors, file_sha256, read_json, sync_folder, write_json

FORMAT = 1
WEIGHTS = "model.safetensors"
STATE = "state.json"


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
    state: dict[str, Any], tokenizer_hash: str, rank: int = 0,
) -> Path:  # fmt: skip
    """Writes checkpoints/step_N: files under a temporary name, fsync, manifest last, rename, fsync of the folder.

    A save of the same step is replaced. Raises DiskFull; what was saved before is not touched by that.
    """
    final = step_folder(job_folder, step)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with disk_errors(final):
        remove_leftovers(job_folder)
        try:
            temporary.mkdir(parents=True)
            files = {}
            for name, tensors in ((WEIGHTS, weights), (optimizer_file(rank), optimizer)):
                _save_tensors(temporary / name, tensors)
                files[name] = _file_facts(temporary / name)
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
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(final.parent)
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


def is_save(folder: Path) -> bool:
    """Whether a folder has the name of a save: step_ and digits, no copy that somebody put beside it."""
    return re.fullmatch(r"step_\d+", folder.name) is not None


def saved_step(folder: Path) -> int:
    """The step in the name of a save's folder."""
    return int(folder.name.removeprefix("step_"))


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a save whose every file has its size and checksum.

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
        if file_sha256(path) != facts["sha256"]:
            raise Damaged(f"{path} does not have the checksum of its manifest", value=str(path))
    return manifest


def read_checkpoint(folder: Path, *, optimizer: bool = True, rank: int = 0) -> Checkpoint:
    """A save, verified. Raises Damaged, or UserError for another format."""
    manifest = verify(folder)
    try:
        model = ModelConfig.from_json(manifest["model"])
    except UserError as error:
        raise Damaged(f"{folder / 'manifest.json'}: {error.message}", value=str(folder), fix=error.fix) from None
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        model=model,
        weights=load_file(folder / WEIGHTS),
        optimizer=load_file(folder / optimizer_file(rank)) if optimizer else {},
        state=read_json(folder / STATE),
        tokenizer_hash=manifest["tokenizer_hash"],
    )


def has_optimizer(folder: Path, *, rank: int = 0) -> bool:
    """Whether a save holds the optimizer's state: that of an imported model does not."""
    with safe_open(folder / optimizer_file(rank), framework="pt") as file:
        return bool(list(file.keys()))


def newest_checkpoint(job_folder: Path, *, optimizer: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """The newest save that verifies, and what was wrong with the newer ones that do not.

    None where the job has no save. Raises Damaged where it has some and none verifies, UserError for another format.
    """
    problems: list[str] = []
    for folder in reversed(list_checkpoints(job_folder)):
        try:
            return read_checkpoint(folder, optimizer=optimizer), problems
        except (Damaged, SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            problems.append(error.message if isinstance(error, Damaged) else f"{folder}: {error}")
    if problems:
        raise Damaged(
            f"every save in {job_folder / 'checkpoints'} is damaged: {problems[0]}",
            value=str(job_folder),
            fix=f"delete {job_folder / 'checkpoints'}; the stage then starts again from its beginning",
        )
    return None, []


def load_weights(job_folder: Path) -> tuple[ModelConfig, dict[str, Tensor], Checkpoint]:
    """Model and weights of a job's newest good save; says so where a newer one is damaged.

    Raises UserError where it has none, Damaged where all are damaged.
    """
    checkpoint, problems = newest_checkpoint(job_folder, optimizer=False)
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
