"""The SHA-256 of files, remembered as long as the file system says that a file is the same."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.paths import file_sha256, read_json, write_json

FORMAT = 1
# A file that changed so shortly before it was read may change once more within the same time stamp, and one with a
# time in the future says nothing: neither is remembered. 2 s: the coarsest time stamps in use (FAT).
SETTLED_NS = 2_000_000_000
THREADS = 4  # hashing and reading let go of Python's lock; more than a disk gives is of no use (guess)

State = dict[str, int]


def disk_state(path: Path) -> State:
    """What changes when a file does: size, times and inode. Raises UserError where it is not there."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    # the change time also moves when somebody sets the modification time back
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns, "inode": state.st_ino}


class KnownHashes:
    """Hashes kept in one JSON file. It only saves time: missing, damaged or not writable, everything is read again.

    States are compared for equality, never by which is newer: a clock that jumps costs at most another reading.
    Two processes that write at once: one loses what it learned, and reads again the next time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, paths: Iterable[Path], *, again: bool = False) -> list[str]:
        """The SHA-256 of each file's content, read only where its state on disk is not the one remembered.

        again: every file is read. Raises UserError where one cannot be.
        """
        known = {} if again else self._read()
        everything = list(paths)
        states = [disk_state(path) for path in everything]
        hashes = [_recalled(known, path, state) for path, state in zip(everything, states, strict=True)]
        unknown = [number for number, found in enumerate(hashes) if found is None]
        if unknown:
            began_ns = time.time_ns()
            with ThreadPoolExecutor(THREADS) as pool:
                read = list(pool.map(_hash_of, [everything[number] for number in unknown]))
            learned: dict[str, dict[str, Any]] = {}
            for number, found in zip(unknown, read, strict=True):
                path, state = everything[number], states[number]
                hashes[number] = found
                is_settled = max(state["mtime_ns"], state["ctime_ns"]) < began_ns - SETTLED_NS
                if is_settled and disk_state(path) == state:
                    learned[str(path.absolute())] = {**state, "sha256": found}
            self._add(known, learned)
        return [found for found in hashes if found is not None]

    def note(self, hashes: Mapping[Path, str]) -> None:
        """Remembers what this process has just written itself."""
        learned = {str(path.absolute()): {**disk_state(path), "sha256": found} for path, found in hashes.items()}
        self._add(self._read(), learned)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        with contextlib.suppress(UserError, OSError):
            value = read_json(self._path)
            if isinstance(value, dict) and value.get("format") == FORMAT and isinstance(value.get("files"), dict):
                return dict(value["files"])
        return {}

    def _add(self, known: dict[str, Any], learned: dict[str, dict[str, Any]]) -> None:
        if not learned:
            return
        files = {name: entry for name, entry in (known | learned).items() if os.path.exists(name)}
        with contextlib.suppress(UserError, OSError):  # a full or a read-only disk
            write_json(self._path, {"format": FORMAT, "files": files})


@dataclass(frozen=True)
class SourceFile:
    """A text file as it was when it was hashed."""

    path: Path
    sha256: str
    state: State

    @classmethod
    def read(cls, paths: Iterable[Path], known: KnownHashes) -> "tuple[SourceFile, ...]":
        """The files with their hashes. Raises UserError where one cannot be read."""
        everything = list(paths)
        states = [disk_state(path) for path in everything]
        hashes = known.of(everything)
        return tuple(cls(*parts) for parts in zip(everything, hashes, states, strict=True))

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path.absolute()), "sha256": self.sha256, "size": self.state["size"]}

    def check_unchanged(self) -> None:
        """Raises UserError where the file is no longer as it was."""
        if disk_state(self.path) != self.state:
            raise UserError(
                f"{self.path} changed while it was read",
                value=str(self.path),
                fix="give the command again when nothing writes to that file",
            )


def _recalled(known: dict[str, Any], path: Path, state: State) -> str | None:
    entry = known.get(str(path.absolute()))
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in state.items()):
        return None
    return str(entry.get("sha256"))


def _hash_of(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {path}: {os.strerror(error.errno or 0)}", value=str(path), fix="check the path and its rights"
    )
