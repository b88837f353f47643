"""Where state lives on disk (INTONE_HOME) and how it is written: atomically, or as appended lines."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intone.errors import Damaged, DiskFull, UserError
from intone.log import say


def home() -> Path:
    """INTONE_HOME, by default ~/.cache/intone; not created here."""
    return Path(os.environ.get("INTONE_HOME") or "~/.cache/intone").expanduser().absolute()


def runs_folder() -> Path:
    return home() / "runs"


def text_folder() -> Path:
    return home() / "text"


def sets_folder() -> Path:
    """Files of named public sets, as they came from the hub."""
    return home() / "sets"


def tokenizers_folder() -> Path:
    return home() / "tokenizers"


def native_folder() -> Path:
    """CPU kernels that were built here; INTONE_NATIVE names another folder, for homes that share one."""
    named = os.environ.get("INTONE_NATIVE")
    return Path(named).expanduser().absolute() if named else home() / "native"


def machine_folder(fingerprint: str) -> Path:
    """Facts, trials and caches that hold for one machine only."""
    return home() / "machine" / fingerprint


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns "no space left", "quota", "read-only", "permission denied" and "not a directory" into errors with a fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left on the disk of {path}",
                value=str(path),
                fix="free some space, or set INTONE_HOME to a larger disk; "
                "the same command then goes on from the last save",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise UserError(
                f"cannot write {path}: {os.strerror(error.errno)}",
                value=str(path),
                fix="choose a writable folder, for example INTONE_HOME=~/intone",
            ) from error
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file so that a reader, or a crash, sees the old or the new content, never half.

    Temporary name in the same folder, fsync, rename, fsync of the folder.
    Raises DiskFull, or UserError where the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Makes what was appended to a file survive a power cut; a missing file is none to lose. Raises DiskFull."""
    with disk_errors(path), contextlib.suppress(FileNotFoundError):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """One JSON document, indented, written atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON document at path. Raises UserError where it is missing, Damaged where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist", value=str(path)) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file", value=str(path), fix="name a file in it") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path} is not valid JSON: {error}",
            value=str(path),
            fix=f"move {path.name} away; it is written anew where it can be derived",
        ) from None


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Appends one JSON object as one line in a single write, so that lines never interleave. Raises DiskFull."""
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with disk_errors(path), open(path, "ab", buffering=0) as file:
        written = file.write(line)
        if written < len(line):  # the last free bytes took a part of it, without an error
            file.truncate(os.fstat(file.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line (a crash while appending) is left out.

    Raises Damaged for an unreadable line that is not the last. A missing file is an empty list.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number >= len(lines) - 1:
                break
            raise Damaged(f"{path}:{number} is not a JSON object", value=str(path)) from None
    return rows


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class FolderLock:
    """An exclusive flock on FOLDER/lock, held until close() or the end of the process.

    Raises UserError at once if another process holds it, or waits where wait is True.
    """

    def __init__(self, path: Path, *, wait: bool = False, what: str = "this folder") -> None:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+")  # noqa: SIM115  held for the life of the lock
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait:
                say(f"waiting for another process that is at work on {what}")
                fcntl.flock(self._file, fcntl.LOCK_EX)
                return
            self._file.close()
            raise UserError(
                f"another process is already using {what} ({path.parent})",
                value=str(path.parent),
                fix="wait for it to end, or choose another --name",
            ) from None

    def note(self, text: str) -> None:
        """Writes into the lock's file who holds it, for those who wait."""
        with disk_errors(Path(self._file.name)):
            self._file.truncate(0)
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Gives the lock back; calling it twice is harmless."""
        self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
