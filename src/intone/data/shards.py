"""Text tokenised once: memory-mapped token shards on disk, their manifest, and when they are made again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intone.data.contents import KnownHashes, SourceFile
from intone.data.encoding import Encoded, encode_stream
from intone.data.shard_writer import ShardWriter
from intone.data.text import Document, Kind, ReadReport
from intone.data.tokenizer import Tokenizer
from intone.errors import Damaged, UserError
from intone.paths import FolderLock, read_json, write_json

Progress = Callable[[int, int], None]  # (documents so far, bytes of text so far)

FORMAT = 2
MANIFEST = "manifest.json"
SHARD_TOKENS = 64_000_000  # 128 MB at 16 bits: a damaged or lost shard costs little, a large set has few files
BATCH_CHARS = 1 << 20  # text encoded at a time: enough to keep the threads busy, little enough for flat memory
BATCH_DOCUMENTS = 4096


@dataclass(frozen=True)
class Shard:
    """One mapped piece of a token set; documents and tokens are counted from its own start."""

    first_document: int
    num_documents: int
    ids: np.ndarray  # (num_tokens,) uint16 or uint32
    offsets: np.ndarray  # (num_documents + 1,) int64: document i is ids[offsets[i] : offsets[i + 1]]
    mask_bits: np.ndarray | None  # one bit a token, first token in the highest bit; None for documents


class TokenSet:
    """Documents or conversations as token ids on disk, each beginning with BOS. Mapped, read only, cheap to open."""

    def __init__(self, folder: Path, manifest: dict[str, Any], shards: list[Shard]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.shards = shards
        self.kind: Kind = manifest["kind"]
        self.tokenizer_hash: str = manifest["tokenizer"]
        self.vocab_size: int = manifest["vocab_size"]
        self.bos: int = manifest["bos"]
        self.num_documents: int = manifest["num_documents"]
        self.num_tokens: int = manifest["num_tokens"]
        self.num_bytes: int = manifest["num_bytes"]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "TokenSet":
        """Maps a complete token set. Every file whose state on disk changed since it was written or last read is
        read and compared with its SHA-256 in the manifest; with verify all of them are.

        Raises UserError where the folder is missing or was not finished, Damaged (naming the file) where a file is
        not what the manifest says, or the manifest is not what was written.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise UserError(
                f"{folder} is not a complete token set: it has no {MANIFEST}",
                value=str(folder),
                fix="give the command that made it again: it is made anew from its text",
            )
        manifest = read_manifest(folder)
        try:
            _check_files(folder, manifest, verify=verify)
            shards, first = [], 0
            for entry in manifest["shards"]:
                shards.append(_map_shard(folder, entry, first, manifest["dtype"], manifest["kind"]))
                first += entry["num_documents"]
            return cls(folder, manifest, shards)
        except KeyError as missing:
            raise _damaged(folder, path, f"lacks {missing}") from None

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every document, BOS included, (num_documents,) int32."""
        parts = [np.diff(shard.offsets).astype(np.int32) for shard in self.shards]
        return np.concatenate(parts)

    def tokens(self, document: int) -> np.ndarray:
        """The ids of one document, a view of the mapped file (T,) uint16 or uint32."""
        shard, begin, end = self._place(document)
        return shard.ids[begin:end]

    def mask(self, document: int) -> np.ndarray | None:
        """1 where the model learns to write the token, (T,) uint8; None for kind documents: everything is learned."""
        shard, begin, end = self._place(document)
        if shard.mask_bits is None:
            return None
        bits = np.unpackbits(shard.mask_bits[begin // 8 : -(-end // 8)])
        return bits[begin % 8 : begin % 8 + end - begin]

    def _place(self, document: int) -> tuple[Shard, int, int]:
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents:,}")
        for shard in self.shards:
            place = document - shard.first_document
            if place < shard.num_documents:
                return shard, int(shard.offsets[place]), int(shard.offsets[place + 1])
        raise AssertionError("the shards hold fewer documents than the manifest says")


def write_token_set(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    kind: Kind,
    sources: Sequence[SourceFile] = (),
    options: dict[str, Any] | None = None,
    report: ReadReport | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenSet:
    """Tokenises a stream of texts (kind documents) or message lists (kind conversations) into folder.

    Memory stays flat: a batch of text per core and one write buffer. What was in the folder is replaced; a reader
    that has it mapped keeps the old files. Empty texts are left out and counted. After an error, a full disk
    included, no half-written shard is left. report, filled while documents is read, is kept in the manifest.
    Raises UserError where there is not one document, a document has the wrong kind, or a source changed meanwhile;
    DiskFull.
    """
    writer = ShardWriter(folder, vocab_size=tokenizer.vocab_size, kind=kind, shard_tokens=shard_tokens)
    totals = _Totals()
    try:
        for encoded in encode_stream(_batches(documents, totals), tokenizer, kind):
            writer.add(encoded)
            totals.add(encoded, tokenizer)
            if progress:
                progress(totals.num_documents, totals.num_bytes)
        if not totals.num_documents:
            raise UserError(
                f"there is no text for {folder.name}: {totals.num_empty:,} empty documents and no other",
                value=totals.num_empty,
                fix="check the files behind --data and --sft",
            )
        for source in sources:
            source.check_unchanged()
        shards = writer.finish()
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "tokenizer": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "bos": tokenizer.bos,
            "dtype": writer.dtype.name,
            "num_documents": totals.num_documents,
            "num_tokens": totals.num_tokens,
            "num_bytes": totals.num_bytes,
            "num_supervised": totals.num_supervised,
            "num_empty": totals.num_empty,
            "options": options or {},
            "sources": [source.as_json() for source in sources],
            "report": report.as_json() if report else None,
            "shards": shards,
        }
        _write_manifest(folder, manifest)
    except BaseException:
        writer.discard()
        raise
    _known(folder).note(_hashes(folder, manifest))
    return TokenSet.open(folder)


def ensure_token_set(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    kind: Kind,
    documents: Callable[[ReadReport], Iterable[Document]],
    sources: Sequence[SourceFile] = (),
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[TokenSet, str]:
    """The token set in folder, made by documents(report) only where it is missing, damaged or no longer fits.

    It fits if the tokenizer, the kind, the options (whatever else determines the text, such as a generator's seed)
    and the contents of the sources are those of the manifest. Returns the set and a reason to show: "reused", or
    why it was made. One process at a time makes it; others wait and then use what that one made.
    """
    with FolderLock(folder / "lock", wait=True, what=f"the token set {folder.name}"):
        reason = _why_not_reusable(folder, tokenizer, kind=kind, sources=sources, options=options or {})
        if reason is None:
            return TokenSet.open(folder), "reused"
        report = ReadReport()
        made = write_token_set(
            folder,
            documents(report),
            tokenizer,
            kind=kind,
            sources=sources,
            options=options,
            report=report,
            progress=progress,
        )
        return made, reason


# --- reuse ------------------------------------------------------------------------------------------------------


def _why_not_reusable(
    folder: Path, tokenizer: Tokenizer, *, kind: Kind, sources: Sequence[SourceFile], options: dict[str, Any]
) -> str | None:
    """None where the set in folder may be used as it is, otherwise the reason to make it again."""
    if not (folder / MANIFEST).exists():
        return "made for the first time"
    try:
        manifest = TokenSet.open(folder).manifest
    except Damaged as error:
        return f"made again: {error.message}"
    if manifest["tokenizer"] != tokenizer.hash:
        return "made again: the tokenizer changed"
    if manifest["kind"] != kind or manifest["options"] != json.loads(json.dumps(options)):
        return "made again: it was made with other settings"
    change = changed_source(manifest["sources"], [source.as_json() for source in sources])
    return f"made again: {change}" if change else None


def changed_source(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str | None:
    """What differs between the sources of a set and those of today; None where the contents are the same."""
    if [entry["sha256"] for entry in before] == [entry["sha256"] for entry in now]:
        return None
    old, new = ({entry["path"]: entry["sha256"] for entry in entries} for entries in (before, now))
    for path, content in new.items():
        if path not in old:
            return f"{path} is new"
        if content != old[path]:
            return f"{path} changed"
    gone = next((path for path in old if path not in new), None)
    return f"{gone} is no longer among the files" if gone else "the files come in another order"


# --- manifest ---------------------------------------------------------------------------------------------------


def _checksum(manifest: dict[str, Any]) -> str:
    """The SHA-256 of all entries but itself: a manifest that is JSON can still be damaged."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, {**manifest, "checksum": _checksum(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a token set. Raises UserError where there is none, Damaged where it is not what was written."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except Damaged:
        raise _damaged(folder, path, "is not valid JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _damaged(folder, path, f"has format {manifest.get('format') if isinstance(manifest, dict) else None}")
    if manifest.get("checksum") != _checksum(manifest):
        raise _damaged(folder, path, "does not have its own checksum")
    return manifest


def _known(folder: Path) -> KnownHashes:
    return KnownHashes(folder / "states.json")


def _hashes(folder: Path, manifest: dict[str, Any]) -> dict[Path, str]:
    return {folder / name: facts["sha256"] for entry in manifest["shards"] for name, facts in entry["files"].items()}


# --- opening ----------------------------------------------------------------------------------------------------


def _damaged(folder: Path, path: Path, what: str) -> Damaged:
    return Damaged(
        f"{path} {what}",
        value=str(path),
        fix=f"give the command that made it again, or delete {folder}: it is made anew from its text",
    )


def _check_files(folder: Path, manifest: dict[str, Any], *, verify: bool) -> None:
    for entry in manifest["shards"]:
        for name, facts in entry["files"].items():
            path = folder / name
            if not path.exists():
                raise _damaged(folder, path, "is missing")
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise _damaged(folder, path, f"has {size:,} bytes where the manifest says {facts['bytes']:,}")
    expected = _hashes(folder, manifest)
    known = _known(folder)
    found = known.of(expected, again=verify)
    for path, content in zip(expected, found, strict=True):
        if content != expected[path]:
            raise _damaged(folder, path, "does not have the SHA-256 of the manifest")


def _map_shard(folder: Path, entry: dict[str, Any], first_document: int, dtype: str, kind: Kind) -> Shard:
    name = entry["name"]
    return Shard(
        first_document=first_document,
        num_documents=entry["num_documents"],
        ids=_mapped(folder / f"{name}.ids", np.dtype(dtype).newbyteorder("<")),
        offsets=_mapped(folder / f"{name}.offsets", np.dtype("<i8")),
        mask_bits=_mapped(folder / f"{name}.mask", np.dtype(np.uint8)) if kind == "conversations" else None,
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    # a plain array over the map: indexing numpy's subclass for maps costs 1.3 microseconds more each time [measured]
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


# --- writing ----------------------------------------------------------------------------------------------------


@dataclass
class _Totals:
    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_supervised: int = 0
    num_empty: int = 0

    def add(self, encoded: Encoded, tokenizer: Tokenizer) -> None:
        self.num_documents += len(encoded.lengths)
        self.num_tokens += len(encoded.ids)
        self.num_bytes += int(tokenizer.token_bytes[encoded.ids].sum(dtype=np.int64))
        self.num_supervised += int(encoded.mask.sum()) if encoded.mask is not None else len(encoded.ids)


def _batches(documents: Iterable[Document], totals: _Totals) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        if not document:
            totals.num_empty += 1
            continue
        batch.append(document)
        num_chars += len(document) if isinstance(document, str) else sum(len(m.visible) for m in document)
        if num_chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
