"""Text files of many kinds as a stream of documents or conversations, with an account of what could not be read."""

import contextlib
import glob
import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from intone.data.chat import Message, parse_messages
from intone.data.unpack import COMPRESSIONS, open_binary, open_utf8, pieces, read_errors, unreadable
from intone.errors import UserError, nearest

Document = str | list[Message]
Kind = Literal["documents", "conversations"]
COLUMN_OF: dict[Kind, str] = {"documents": "text", "conversations": "messages"}

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".parquet")
KNOWN_TYPES = f"{', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, each also with {', '.join(COMPRESSIONS)}"
VALIDATION_NAME = re.compile(r"(val|valid|validation)(?![a-z])", re.IGNORECASE)
VALIDATION_SHARE = 0.01

NOT_UTF8 = "it is not valid UTF-8"
NAMED_ROWS = 5  # damaged rows that a report names one by one; the others are counted
KEPT_REASONS = 50  # different ones that are counted by themselves
HOPELESS_ROWS = 1000  # a file whose first rows are all damaged is given up early


@dataclass
class ReadReport:
    """What reading left out, and why: filled while the rows stream by."""

    num_rows: int = 0  # damaged ones included
    num_damaged: int = 0
    num_empty_files: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)  # "file:row: reason", the first few

    def damaged(self, path: Path, row: int, reason: str) -> None:
        self.num_damaged += 1
        known = reason in self.reasons or len(self.reasons) < KEPT_REASONS
        self.reasons[reason if known else "other reasons"] += 1
        if len(self.first) < NAMED_ROWS:
            self.first.append(f"{path}:{row}: {reason}")

    def as_json(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "num_damaged": self.num_damaged,
            "num_empty_files": self.num_empty_files,
            "reasons": dict(self.reasons),
            "first": self.first,
        }

    def summary(self) -> str | None:
        """One line for people, None where nothing was left out."""
        parts = []
        if self.num_damaged:
            parts.append(
                f"{self.num_damaged:,} of {self.num_rows:,} rows are damaged and were left out, "
                f"the first: {self.first[0]}"
            )
        if self.num_empty_files:
            parts.append(f"{self.num_empty_files:,} files are empty")
        return "; ".join(parts) or None


# --- finding files ----------------------------------------------------------------------------------------------


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
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    guess = nearest(path.name, (entry.name for entry in folder.iterdir()))
    fix = f"did you mean {folder / guess}?" if guess else f"nothing in {folder} has a similar name"
    return UserError(f"{path} does not exist", value=str(path), fix=fix)


# --- rows -------------------------------------------------------------------------------------------------------


def read_documents(paths: Sequence[Path], report: ReadReport, *, kind: Kind | None = None) -> Iterator[Document]:
    """The rows of all files in order, with flat memory; kind decides where a row holds both `text` and `messages`.

    Rows that cannot be read are left out, counted and named in the report. Raises UserError where a file cannot be
    read as its type, more than half of its rows (or of all rows) are damaged, or nothing at all was found.
    """
    num_documents = 0
    for path in paths:
        for document in read_rows(path, report, kind=kind):
            num_documents += 1
            yield document
    if report.num_damaged > report.num_rows / 2:
        raise _mostly_damaged(_listed(paths), report.num_damaged, report.num_rows, report)
    if not num_documents:
        raise UserError(
            f"there is no text in {_listed(paths)}",
            value=[str(path) for path in paths],
            fix="check that the files are not empty",
        )


def read_rows(path: Path, report: ReadReport, *, kind: Kind | None = None) -> Iterator[Document]:
    """The documents (str) or conversations (list[Message]) of one file; see read_documents."""
    reader = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(file_type(path) or "")
    if path.stat().st_size == 0:
        report.num_empty_files += 1
        return
    with read_errors(path):
        if reader is None:
            yield from _read_text(path, report)
            return
        rows_before, damaged_before = report.num_rows, report.num_damaged
        for document in reader(path, report, kind):
            if document is not None:
                yield document
            num_rows, num_damaged = report.num_rows - rows_before, report.num_damaged - damaged_before
            if num_rows == num_damaged == HOPELESS_ROWS:
                break
        num_rows, num_damaged = report.num_rows - rows_before, report.num_damaged - damaged_before
        if num_damaged > num_rows / 2:
            raise _mostly_damaged(str(path), num_damaged, num_rows, report)


def _mostly_damaged(where: str, num_damaged: int, num_rows: int, report: ReadReport) -> UserError:
    reason, _ = report.reasons.most_common(1)[0]
    all_alike = num_damaged == num_rows and len(report.reasons) == 1
    why = f": {reason}" if all_alike else f", mostly: {reason}; the first: {report.first[0]}"
    fix = (
        "text needs rows with `text`, a string; conversations rows with `messages`, a list of {role, content} "
        "with the roles system, user, assistant and tool"
    )
    if reason == NOT_UTF8:
        fix = "convert it to UTF-8, for example with: iconv -f latin1 -t utf-8 FILE"
    return UserError(f"{num_damaged:,} of {num_rows:,} rows of {where} cannot be used{why}", value=reason, fix=fix)


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(str(path) for path in paths[:3])
    return f"{names} and {len(paths) - 3:,} more files" if len(paths) > 3 else names or "an empty list of files"


class _BadRow(Exception):
    """Why one row is left out."""


def _document(row: Any, kind: Kind | None) -> Document:
    """A row's content. Raises _BadRow with the reason where it has none."""
    if isinstance(row, _BadRow):
        raise row
    if not isinstance(row, dict):
        raise _BadRow(f"it is {_json_type(row)}, not an object")
    wanted = [COLUMN_OF[kind]] if kind else ["messages", "text"]
    present = [name for name in wanted if name in row]
    if not present:
        columns = ", ".join(sorted(map(str, row))[:8]) or "none"
        raise _BadRow(f"it has no {' or '.join(f'`{name}`' for name in wanted)}, columns found: {columns}")
    name = present[0] if row[present[0]] is not None else present[-1]
    value = row[name]
    if name == "text":
        if not isinstance(value, str):
            raise _BadRow(f"`text` is {_json_type(value)}, not a string")
        return value
    if value is None:
        raise _BadRow("`messages` is null")
    try:
        return parse_messages(value)
    except UserError as error:
        raise _BadRow(f"`messages`: {error.message}") from None


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _read_jsonl(path: Path, report: ReadReport, kind: Kind | None) -> Iterator[Document | None]:
    """None stands for a damaged row, so that the caller sees every row go by."""
    with open_utf8(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            report.num_rows += 1
            try:
                yield _document(_parse_line(line), kind)
            except _BadRow as reason:
                report.damaged(path, number, str(reason))
                yield None


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise _BadRow(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise _BadRow("it is not valid JSON") from None


def _read_parquet(path: Path, report: ReadReport, kind: Kind | None) -> Iterator[Document | None]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.suffix.lower() in COMPRESSIONS:  # parquet is read from its end: it needs a file one can seek in
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(open_binary(path)), source)
        try:
            table = stack.enter_context(pyarrow.parquet.ParquetFile(source))
            names = table.schema_arrow.names
            columns = [name for name in ("messages", "text") if name in names]
            if not columns:
                raise UserError(
                    f"all {table.metadata.num_rows:,} rows of {path} lack a column `text` or `messages`, "
                    f"columns found: {', '.join(names)}",
                    value=names,
                    fix="rename the column with the text to `text`",
                )
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in _parquet_rows(batch):
                    number += 1
                    report.num_rows += 1
                    try:
                        yield _document(row, kind)
                    except _BadRow as reason:
                        report.damaged(path, number, str(reason))
                        yield None
        except pyarrow.ArrowException as error:
            raise unreadable(path, str(error).splitlines()[0]) from None


def _parquet_rows(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one bad string fails the batch: find out which row it is
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                yield _BadRow(NOT_UTF8)


def _read_text(path: Path, report: ReadReport) -> Iterator[Document]:
    """A small file whole, a large one in pieces that end at blank lines."""
    with open_utf8(path) as stream:
        for number, piece in enumerate(pieces(stream), 1):
            report.num_rows += 1
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                report.damaged(path, number, NOT_UTF8)
                continue
            if "\0" in text:
                report.damaged(path, number, "it holds zero bytes: no text, or UTF-16 without a byte order mark")
            elif not text.isspace():
                yield text


# --- splitting --------------------------------------------------------------------------------------------------


def read_part(
    paths: Sequence[Path], part: Literal["train", "validation"], report: ReadReport, *, kind: Kind | None = None
) -> Iterator[Document]:
    """The documents of one side of a split by content: 1 % are validation, at least one of two different documents.

    Equal documents are always on the same side. The beginning of the files is read twice, to see that both sides
    get something. Raises UserError as read_documents, and where there is nothing for validation.
    """
    is_validation_document = split_rule(read_documents(paths, ReadReport(), kind=kind))
    num_documents = 0
    for document in read_documents(paths, report, kind=kind):
        if is_validation_document(document) == (part == "validation"):
            num_documents += 1
            yield document
    if not num_documents:
        raise UserError(
            f"{_listed(paths)} holds only one document: nothing is left for {part}",
            value=1,
            fix="give more text, or a validation file with --val",
        )


def split_rule(documents: Iterable[Document]) -> Callable[[Document], bool]:
    """Whether a document belongs to validation. Reads documents only until both sides have one."""
    sides: set[bool] = set()
    digests: set[bytes] = set()
    for document in documents:
        sides.add(is_validation(document))
        if len(sides) == 2:
            return is_validation
        digests.add(_digest(document))
    if len(digests) < 2:
        return lambda document: False
    chosen = min(digests)
    return lambda document: _digest(document) == chosen


def is_validation(document: Document) -> bool:
    """True for one in a hundred contents, chosen by their SHA-256."""
    return int.from_bytes(_digest(document)[:8], "big") < VALIDATION_SHARE * 2**64


def _digest(document: Document) -> bytes:
    content = document if isinstance(document, str) else repr(document)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
