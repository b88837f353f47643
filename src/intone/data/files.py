"""Which files a path, a folder or a glob means, and which of them are for validation."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from intone.data.unpack import COMPRESSIONS
from intone.errors import UserError, nearest
from intone.mixture import NAMED

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".parquet")
KNOWN_TYPES = f"{', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, each also with {', '.join(COMPRESSIONS)}"
VALIDATION_NAME = re.compile(r"(val|valid|validation)(?![a-z])", re.IGNORECASE)


def find_files(patterns: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(training files, validation files) of files, folders (recursive) and globs, sorted within each pattern.

    A file is for validation where its name, or that of a folder below the pattern, is val, valid or validation with
    anything but a letter behind it, unless all are. Raises UserError where a path does not exist (offering the
    nearest name that does), has an unknown type, or a folder has no file of a known type.
    """
    found: dict[Path, bool] = {}
    for pattern in patterns:
        if not pattern:
            raise UserError("an empty path was given", value=pattern, fix="name a file or a folder with text")
        for path, is_validation_name in _expand(pattern):
            found.setdefault(path, is_validation_name)
    if all(found.values()):
        return list(found), []
    return [path for path, is_val in found.items() if not is_val], [path for path, is_val in found.items() if is_val]


def file_type(path: Path) -> str | None:
    """ ".txt", ".md", ".jsonl" or ".parquet", whatever the compression; None for a type we do not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_SUFFIXES + ROW_SUFFIXES else None


def _expand(pattern: str) -> list[tuple[Path, bool]]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        if file_type(path) is None:
            raise UserError(f"{path} has an unknown type", value=str(path), fix=f"known: {KNOWN_TYPES}")
        return [(path, _has_validation_name(Path(path.name)))]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        raise _missing(path)
    files: list[tuple[Path, bool]] = []
    for match in matches:
        if match.is_dir():
            files.extend(_in_folder(match))
        elif file_type(match):
            files.append((match, _has_validation_name(Path(match.name))))
    if not files:
        raise UserError(f"{pattern} matches no file of a known type", value=pattern, fix=f"known: {KNOWN_TYPES}")
    return files


def _in_folder(folder: Path) -> list[tuple[Path, bool]]:
    files = []
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.is_file() and file_type(path) and not any(part.startswith(".") for part in below.parts):
            files.append((path, _has_validation_name(below)))
    if not files:
        raise UserError(f"{folder} has no file of a known type", value=str(folder), fix=f"known: {KNOWN_TYPES}")
    return files


def _has_validation_name(path: Path) -> bool:
    return any(VALIDATION_NAME.match(part) for part in path.parts)


def _missing(path: Path) -> UserError:
    is_word = path.parent == Path()  # a set's name, perhaps
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    guess = nearest(path.name, [*(entry.name for entry in folder.iterdir()), *(NAMED if is_word else ())])
    if guess in NAMED and is_word:
        fix = f"did you mean {guess}?"
    elif guess:
        fix = f"did you mean {folder / guess}?"
    else:
        fix = f"nothing in {folder} has a similar name"
        fix += f"; sets with a name: {', '.join(NAMED)}" if is_word else ""
    return UserError(f"{path} does not exist", value=str(path), fix=fix)
