"""Saves of a training job: complete or absent, checksummed, self-describing, and how to fall back from a bad one."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intone.config import ModelConfig
from intone.errors import Damaged, UserError
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
    """Deletes half-written saves of killed processes. Only the holder of the job's lock may call it."""
    for path in (job_folder / "checkpoints").glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(job_folder: Path) -> list[Path]:
    """Folders of complete saves, oldest first; complete means that the manifest is there."""
    found = [path for path in (job_folder / "checkpoints").glob("step_*") if (path / "manifest.json").exists()]
    return sorted(found, key=lambda path: int(path.name.split("_")[1]))


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a save whose every file has its size and checksum. Raises Damaged that names the file."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Damaged(f"{folder} is not a save of format {FORMAT}", value=str(folder))
    for name, facts in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != facts["bytes"]:
            raise Damaged(f"{path} has {size} bytes, its manifest says {facts['bytes']}", value=str(path))
        if file_sha256(path) != facts["sha256"]:
            raise Damaged(f"{path} does not have the checksum of its manifest", value=str(path))
    return manifest


def read_checkpoint(folder: Path, *, optimizer: bool = True, rank: int = 0) -> Checkpoint:
    """A save, verified. Raises Damaged."""
    manifest = verify(folder)
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        model=ModelConfig.from_json(manifest["model"]),
        weights=load_file(folder / WEIGHTS),
        optimizer=load_file(folder / optimizer_file(rank)) if optimizer else {},
        state=read_json(folder / STATE),
        tokenizer_hash=manifest["tokenizer_hash"],
    )


def newest_checkpoint(job_folder: Path, *, optimizer: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """The newest save that verifies, and what was wrong with the newer ones that do not.

    None where the job has no save. Raises Damaged where it has some and none verifies.
    """
    problems: list[str] = []
    for folder in reversed(list_checkpoints(job_folder)):
        try:
            return read_checkpoint(folder, optimizer=optimizer), problems
        except (Damaged, SafetensorError, KeyError, OSError) as error:
            problems.append(error.message if isinstance(error, Damaged) else f"{folder}: {error}")
    if problems:
        raise Damaged(
            f"every save in {job_folder / 'checkpoints'} is damaged: {problems[0]}",
            value=str(job_folder),
            fix=f"delete {job_folder / 'checkpoints'}; the stage then starts again from its beginning",
        )
    return None, []


def load_weights(job_folder: Path) -> tuple[ModelConfig, dict[str, Tensor], Checkpoint]:
    """Model and weights of a job's newest good save. Raises UserError where it has none."""
    checkpoint, _ = newest_checkpoint(job_folder, optimizer=False)
    if checkpoint is None:
        raise UserError(
            f"{job_folder} has no save yet", value=str(job_folder), fix="train it first, or choose another run"
        )
    return checkpoint.model, checkpoint.weights, checkpoint


def prune(job_folder: Path, *, keep: int, best_step: int | None) -> None:
    """Deletes old saves: the newest keep and the best one stay. A failure to delete is not an error."""
    folders = list_checkpoints(job_folder)
    for folder in folders[:-keep]:
        if best_step is None or folder.name != step_folder(job_folder, best_step).name:
            with contextlib.suppress(OSError):
                (folder / "manifest.json").unlink()  # incomplete from here on, whatever happens next
                shutil.rmtree(folder)
