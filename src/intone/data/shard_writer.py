"""How encoded documents become shard files: streamed, hashed while written, gone again after an error."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intone.data.encoding import Encoded
from intone.data.text import Kind
from intone.paths import disk_errors, sync_folder


class _HashedFile:
    """A file written from start to end, with its size and SHA-256 known at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._size = 0
        path.unlink(missing_ok=True)  # never truncated in place: a reader may have it mapped
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  closed by finish or discard

    def write(self, data: np.ndarray) -> None:
        content = data.tobytes()
        self._digest.update(content)
        self._size += len(content)
        self._file.write(content)

    def finish(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class ShardWriter:
    """Cuts a stream of encoded documents into shards; a document never spans two of them."""

    def __init__(self, folder: Path, *, vocab_size: int, kind: Kind, shard_tokens: int) -> None:
        self.dtype = np.dtype(np.uint16 if vocab_size <= 65_536 else np.uint32)
        self._folder, self._kind, self._shard_tokens = folder, kind, shard_tokens
        self._finished: list[dict[str, Any]] = []
        self._files: dict[str, _HashedFile] = {}
        self._lengths: list[np.ndarray] = []
        self._num_tokens = 0
        self._mask_rest = np.empty(0, np.uint8)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._remove_files()

    def add(self, encoded: Encoded) -> None:
        ends = np.cumsum(encoded.lengths)
        first, begin = 0, 0
        while first < len(ends):
            room = self._shard_tokens - self._num_tokens
            last = int(np.searchsorted(ends, begin + room, side="right"))
            if last <= first:
                if self._num_tokens:
                    self._close_shard()
                    continue
                last = first + 1  # one document larger than a shard: a shard of its own
            end = int(ends[last - 1])
            mask = encoded.mask[begin:end] if encoded.mask is not None else None
            with disk_errors(self._folder):
                self._write(encoded.ids[begin:end], encoded.lengths[first:last], mask)
            first, begin = last, end

    def finish(self) -> list[dict[str, Any]]:
        """The manifest's entries of all shards; everything is on the disk."""
        if self._num_tokens:
            self._close_shard()
        sync_folder(self._folder)
        return self._finished

    def discard(self) -> None:
        for file in self._files.values():
            file.discard()
        with contextlib.suppress(OSError):
            self._remove_files()

    def _remove_files(self) -> None:
        (self._folder / "manifest.json").unlink(missing_ok=True)  # first: without it the folder is not a set
        for path in [*self._folder.glob("shard_*"), *self._folder.glob("states.json")]:
            path.unlink()

    def _write(self, ids: np.ndarray, lengths: np.ndarray, mask: np.ndarray | None) -> None:
        if not self._files:
            name = f"shard_{len(self._finished):05d}"
            suffixes = ("ids", "offsets", "mask") if self._kind == "conversations" else ("ids", "offsets")
            for suffix in suffixes:
                self._files[suffix] = _HashedFile(self._folder / f"{name}.{suffix}")
        self._files["ids"].write(ids.astype(self.dtype.newbyteorder("<")))
        self._lengths.append(lengths)
        self._num_tokens += len(ids)
        if mask is not None:
            bits = np.concatenate([self._mask_rest, mask])
            whole = len(bits) // 8 * 8
            self._files["mask"].write(np.packbits(bits[:whole]))
            self._mask_rest = bits[whole:]

    def _close_shard(self) -> None:
        with disk_errors(self._folder):
            lengths = np.concatenate(self._lengths)
            self._files["offsets"].write(np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"))
            if self._kind == "conversations":
                self._files["mask"].write(np.packbits(self._mask_rest))
            facts = {file.path.name: file.finish() for file in self._files.values()}
        self._finished.append(
            {
                "name": f"shard_{len(self._finished):05d}",
                "num_documents": len(lengths),
                "num_tokens": self._num_tokens,
                "files": facts,
            }
        )
        self._files, self._lengths, self._num_tokens = {}, [], 0
        self._mask_rest = np.empty(0, np.uint8)
