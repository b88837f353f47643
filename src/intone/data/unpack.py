"""The bytes of a text file, whatever its compression and encoding, as UTF-8 that is read piece by piece."""

import bz2
import codecs
import contextlib
import errno
import gzip
import io
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from intone.errors import Damaged, DiskFull, UserError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

# A larger .txt or .md file is read as several documents, so that memory stays flat, a book can be shuffled, and
# one file is enough to have something for validation. Sizes: guess.
LARGE_TEXT_BYTES = 64 * 1024
PIECE_BYTES = 16 * 1024  # a piece ends at the first blank line after so many bytes
LONGEST_PIECE_BYTES = 1 << 20  # without a blank line it ends at a line, or else here
READ_AHEAD_BYTES = 1 << 18  # at most, that decoders have taken of a file and not given out yet
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")

# longest first: the mark of UTF-32 begins with that of UTF-16
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


Done = Callable[[], float]  # which part of the file was read, 0..1


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[tuple[IO[bytes], Done]]:
    """The file's content, decompressed while it is read, and how much of the file that surely took."""
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size

        ahead = READ_AHEAD_BYTES if path.suffix.lower() in COMPRESSIONS else 0

        def done() -> float:
            return max(raw.tell() - ahead, 0) / max(size, 1)

        yield _decompressed(raw, path.suffix.lower()), done


def _decompressed(raw: BinaryIO, suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if suffix == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 17)  # adds reading by lines
    return raw


@contextlib.contextmanager
def open_utf8(path: Path) -> Iterator[tuple[IO[bytes], Done]]:
    """The content as UTF-8 without a byte order mark; UTF-16 and UTF-32 are recognised by theirs and recoded."""
    with open_binary(path) as (stream, _):
        head = stream.read(4)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    with open_binary(path) as (stream, done):
        if encoding == "utf-8-sig":
            stream.read(len(codecs.BOM_UTF8))
        if encoding in (None, "utf-8-sig"):
            yield stream, done
            return
        with tempfile.TemporaryFile() as recoded:
            decoder = codecs.getincrementaldecoder(encoding)()
            while data := stream.read(1 << 20):
                recoded.write(decoder.decode(data).encode())
            recoded.write(decoder.decode(b"", True).encode())
            size = recoded.tell()
            recoded.seek(0)
            yield recoded, lambda: recoded.tell() / max(size, 1)


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """What a truncated or damaged file raises, as one error that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left in {tempfile.gettempdir()} to unpack {path}",
                value=str(path),
                fix="set TMPDIR to a larger disk, or unpack the file yourself",
            ) from None
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:  # a decoder's complaint, not the disk's
            raise unreadable(path, str(error)) from None
        raise UserError(f"cannot read {path}: {error.strerror}", value=str(path)) from None


def unreadable(path: Path, detail: str) -> Damaged:
    return Damaged(
        f"{path} is damaged: {detail}", value=str(path), fix="fetch or make the file again, or leave it out of the data"
    )


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    buffer = stream.read(LARGE_TEXT_BYTES + 1)
    if len(buffer) <= LARGE_TEXT_BYTES:
        yield buffer
        return
    while buffer:
        blank = BLANK_LINE.search(buffer, PIECE_BYTES)
        if blank:
            end = blank.end()
        elif more := stream.read(LARGE_TEXT_BYTES) if len(buffer) < LONGEST_PIECE_BYTES else b"":
            buffer += more
            continue
        else:
            end = len(buffer) if len(buffer) < LONGEST_PIECE_BYTES else _last_break(buffer)
        yield buffer[:end]
        buffer = buffer[end:]  # scan: ok[S70] it holds a few pieces at most, however long the file


def _last_break(buffer: bytes) -> int:
    """Behind the last line or word of a text without blank lines, at least never inside a UTF-8 character."""
    end = max(buffer.rfind(b"\n"), 0) or max(buffer.rfind(b" "), 0)
    if not end:
        end = len(buffer) - 1
        while end > 1 and buffer[end] & 0xC0 == 0x80:
            end -= 1
        return end
    return end + 1
