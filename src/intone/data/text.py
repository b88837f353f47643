"""Text files of many kinds as a stream of documents or conversations, with an account of what could not be read."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from intone.data.chat import Message, parse_messages
from intone.data.files import file_type
from intone.data.unpack import COMPRESSIONS, open_binary, open_utf8, pieces, read_errors, unreadable
from intone.errors import UserError

Document = str | list[Message]
Kind = Literal["documents", "conversations"]
COLUMN_OF: dict[Kind, str] = {"documents": "text", "conversations": "messages"}

VALIDATION_SHARE = 0.01

NOT_UTF8 = "it is not valid UTF-8"
NAMED_ROWS = 5  # damaged rows that a report names one by one; the others are counted
KEPT_REASONS = 50  # different ones that are counted by themselves
MAX_DAMAGED_SHARE = 0.1  # guess: above it something is wrong with all of the data, not with single rows
FEW_DAMAGED = 10  # so many are left out of a small file, too, as long as half of its rows are good
EARLY_ROWS = 1000  # rows after which a file that is mostly damaged is given up before its end
LOOK_EVERY_ROWS = 64  # how often it is noted how far a file was read: a system call (guess)
BATCH_ROWS = 256  # of a parquet file that are Python objects at a time
PAGE_BYTES = 1 << 20


@dataclass
class ReadReport:
    """What reading left out, and why: filled while the rows stream by."""

    num_rows: int = 0  # damaged ones included
    num_damaged: int = 0
    num_empty_files: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)  # "file:row: reason", the first few
    file_bytes: int = 0  # of the files as they are on disk that were read, for progress

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


# --- rows -------------------------------------------------------------------------------------------------------


def read_documents(
    paths: Sequence[Path], report: ReadReport, *, kind: Kind | None = None, share: float = 1.0
) -> Iterator[Document]:
    """The rows of all files in order, with flat memory; kind decides where a row holds both `text` and `messages`.

    share below 1: only about that part of every file, see read_rows. Rows that cannot be read are left out, counted
    and named in the report. Raises UserError where a file cannot be read as its type, too many rows of a file or of
    all together are damaged (see too_many_damaged), or nothing at all was found.
    """
    num_documents = 0
    for path in paths:
        for document in read_rows(path, report, kind=kind, share=share):
            num_documents += 1
            yield document
    if too_many_damaged(report.num_damaged, report.num_rows):
        raise _mostly_damaged(_listed(paths), report.num_damaged, report.num_rows, report)
    if not num_documents:
        raise UserError(
            f"there is no text in {_listed(paths)}",
            value=[str(path) for path in paths],
            fix="check that the files are not empty",
        )


def read_rows(path: Path, report: ReadReport, *, kind: Kind | None = None, share: float = 1.0) -> Iterator[Document]:
    """The documents (str) or conversations (list[Message]) of one file; see read_documents.

    share below 1, a power of 1/2: the beginning of a text or JSON-lines file; of a parquet file row groups from all
    over it where it has enough, else its first rows. Equal files and shares give equal documents.
    """
    reading = _Reading(path, report, kind, share)
    reader = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(file_type(path) or "")
    if path.stat().st_size == 0:
        report.num_empty_files += 1
        return
    with read_errors(path):
        if reader is None:
            yield from _read_text(reading)
        else:
            for document in reader(reading):
                if document is not None:
                    yield document
                elif reading.num_rows >= EARLY_ROWS and reading.is_hopeless:
                    break
            if reading.is_hopeless:
                raise _mostly_damaged(str(path), reading.num_damaged, reading.num_rows, report)
    reading.reached(share)


def too_many_damaged(num_damaged: int, num_rows: int) -> bool:
    """Whether reading must stop: more than a tenth of the rows are damaged, of a few rows more than half."""
    return num_damaged > min(num_rows / 2, max(FEW_DAMAGED, MAX_DAMAGED_SHARE * num_rows))


class _Reading:
    """One file while it is read: how far it is, whether that is enough, and what was damaged in it."""

    def __init__(self, path: Path, report: ReadReport, kind: Kind | None, share: float) -> None:
        self.path, self.report, self.kind, self.share = path, report, kind, share
        self._begun = report.file_bytes, report.num_rows, report.num_damaged
        self._size = path.stat().st_size

    @property
    def num_rows(self) -> int:
        return self.report.num_rows - self._begun[1]

    @property
    def num_damaged(self) -> int:
        return self.report.num_damaged - self._begun[2]

    @property
    def is_hopeless(self) -> bool:
        return too_many_damaged(self.num_damaged, self.num_rows)

    def reached(self, done: float) -> bool:
        """Notes that this part of the file (0..1) was read; True where no more is wanted."""
        self.report.file_bytes = self._begun[0] + round(done * self._size)
        return self.share < 1 and done >= self.share

    def document(self, row: Any, number: int) -> Document | None:
        """The content of row number (from 1), None where it is damaged, which is counted."""
        self.report.num_rows += 1
        try:
            return _document(_parse_line(row) if isinstance(row, bytes) else row, self.kind)
        except _BadRow as reason:
            self.report.damaged(self.path, number, str(reason))
            return None


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


def _read_jsonl(reading: _Reading) -> Iterator[Document | None]:
    """None stands for a damaged row, so that the caller sees every row go by."""
    with open_utf8(reading.path) as (stream, done):
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield reading.document(line, number)
            if number % LOOK_EVERY_ROWS == 0 and reading.reached(done()):
                return


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise _BadRow(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise _BadRow("it is not valid JSON") from None


def _read_parquet(reading: _Reading) -> Iterator[Document | None]:
    import pyarrow
    import pyarrow.parquet

    path = reading.path
    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.suffix.lower() in COMPRESSIONS:  # parquet is read from its end: it needs a file one can seek in
            source = stack.enter_context(tempfile.TemporaryFile())
            binary, _ = stack.enter_context(open_binary(path))
            shutil.copyfileobj(binary, source)
        try:
            # pages are read one by one: a whole row group may be hundreds of megabytes
            table = stack.enter_context(pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=PAGE_BYTES))
            names = table.schema_arrow.names
            columns = [name for name in ("messages", "text") if name in names]
            if not columns:
                raise UserError(
                    f"all {table.metadata.num_rows:,} rows of {path} lack a column `text` or `messages`, "
                    f"columns found: {', '.join(names)}",
                    value=names,
                    fix="rename the column with the text to `text`",
                )
            for number, row, done in _parquet_rows(table, columns, reading.share):
                yield reading.document(row, number)
                if number % LOOK_EVERY_ROWS == 0 and reading.reached(done):
                    return
        except pyarrow.ArrowException as error:
            raise unreadable(path, str(error).splitlines()[0]) from None


def _parquet_rows(table: Any, columns: list[str], share: float) -> Iterator[tuple[int, Any, float]]:
    """(row number from 1, row, share of the file read with it); with share below 1 of row groups spread evenly."""
    metadata = table.metadata
    step = round(1 / share)
    # with fewer groups their number would not be near the share: then the first rows are read
    is_spread = metadata.num_row_groups >= 4 * step
    first_row = 0
    for group in range(metadata.num_row_groups):
        group_rows = metadata.row_group(group).num_rows
        if is_spread and group % step:
            first_row += group_rows
            continue
        number = first_row
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns):
            for row in _batch_rows(batch):
                number += 1
                done = number / metadata.num_rows
                yield number, row, done * share if is_spread else done
        first_row += group_rows


def _batch_rows(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one bad string fails the batch: find out which row it is
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                yield _BadRow(NOT_UTF8)


def _read_text(reading: _Reading) -> Iterator[Document]:
    """A small file whole, a large one in pieces that end at blank lines."""
    report = reading.report
    with open_utf8(reading.path) as (stream, done):
        for number, piece in enumerate(pieces(stream), 1):
            report.num_rows += 1
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                report.damaged(reading.path, number, NOT_UTF8)
                continue
            if "\0" in text:
                report.damaged(
                    reading.path, number, "it holds zero bytes: no text, or UTF-16 without a byte order mark"
                )
            elif not text.isspace():
                yield text
            if reading.reached(done()):
                return


# --- splitting --------------------------------------------------------------------------------------------------


def read_part(
    paths: Sequence[Path],
    part: Literal["train", "validation"],
    report: ReadReport,
    *,
    kind: Kind | None = None,
    share: float = 1.0,
) -> Iterator[Document]:
    """The documents of one side of a split by content: 1 % are validation, at least one of two different documents.

    Equal documents are always on the same side. The beginning of the files is read twice, to see that both sides
    get something. Raises UserError as read_documents, and where there is nothing for validation.
    """
    is_validation_document = split_rule(read_documents(paths, ReadReport(), kind=kind))
    num_documents = 0
    for document in read_documents(paths, report, kind=kind, share=share):
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
