"""The gate on the harness: code that judges, data and settings are the same after a measurement as before it."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from intone.config import TrainJob
from intone.paths import file_sha256, read_json
from intone.prove.gates.result import Gate, GateResult, Threshold, not_judged

NAME = "sealed inputs"
# larger files are known by size, inode and change time, which no program can set, and by their two ends: a data set
# of 100 GB would otherwise be read twice for every gate; guess: a tenth of a second of hashing
HASHED_BYTES = 64 * 2**20
END_BYTES = 2**20
PACKAGE = Path(__file__).resolve().parents[2]
THRESHOLD = Threshold(
    "every file of the harness, the data and the settings has the same content before and after",
    "rule: a change that edits its own judge proves nothing (reference G8)",
)


@dataclass(frozen=True)
class Seal:
    """Content of files by path, at one moment; a path that did not exist then is not in it."""

    files: Mapping[str, str]
    paths: tuple[Path, ...]  # what was sealed: files, and folders with everything below


def seal(paths: Iterable[Path]) -> Seal:
    """The state of files and whole folders now. Caches of Python (__pycache__) are left out, links are followed."""
    kept = tuple(dict.fromkeys(paths))
    return Seal({str(file): content(file) for path in kept for file in files_below(path)}, kept)


def files_below(path: Path) -> list[Path]:
    """The path itself where it is a file, else all files below it, sorted."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def content(path: Path) -> str:
    """A word that changes with a file's content."""
    state = path.stat()
    if state.st_size <= HASHED_BYTES:
        return file_sha256(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(-END_BYTES, os.SEEK_END)
        digest.update(file.read())
    return f"{state.st_size} {state.st_ino} {state.st_ctime_ns} {digest.hexdigest()}"


def harness() -> list[Path]:
    """The code that runs and judges: this package."""
    return [PACKAGE]


def inputs_of(folder: Path) -> list[Path]:
    """The settings of a job folder, and the data, tokenizer and weights that they name."""
    paths = [folder / name for name in ("config.json", "choices.json") if (folder / name).exists()]
    config = read_json(folder / "config.json")
    if config.get("job") != "train":
        named = [config.get(name) for name in ("from", "tokenizer", "val")]
        return paths + [Path(name) for name in named if name]
    job = TrainJob.from_json(config)
    paths += [Path(job.tokenizer), *(Path(part) for part in job.data)]
    paths += [Path(job.val)] if job.val else []
    if job.rollouts is not None:
        paths += [Path(name) for name in (*job.rollouts.files, *job.rollouts.val_files)]
    return paths + ([Path(job.init_from) / "checkpoints"] if job.init_from else [])


def judge(before: Seal, after: Seal) -> GateResult:
    """Names the first file that was changed, removed or added."""
    a, b = before.files, after.files
    changed = sorted(name for name in a if name in b and a[name] != b[name])
    removed, added = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    evidence = {"files": len(a), "changed": changed, "removed": removed, "added": added}
    if not a:
        return not_judged(NAME, "nothing was sealed", "seal the harness and the inputs before the first run")
    for word, names in (("changed", changed), ("removed", removed), ("added", added)):
        if names:
            others = len(changed) + len(removed) + len(added) - 1
            more = f", and {others} more" if others else ""
            reason = f"{names[0]} was {word} while it was being measured{more}"
            fix = "restore the file, find who writes to it, and measure again with that closed to the change"
            return GateResult(NAME, False, reason, THRESHOLD, evidence, fix=fix)
    return GateResult(NAME, True, f"{len(a):,} files are what they were before", THRESHOLD, evidence)


def gate(before: Seal) -> Gate[Seal]:
    """The gate on a seal that was taken before the other gates and measurements; it runs after all of them."""
    return Gate(NAME, float("inf"), lambda: seal(before.paths), lambda after: judge(before, after))
