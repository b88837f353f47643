"""Text tokenised once: memory-mapped token shards on disk, their manifest, and when they are made again."""

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intone.data.chat import render
from intone.data.shard_writer import Encoded, ShardWriter
from intone.data.text import Document, Kind, ReadReport
from intone.data.tokenizer import Tokenizer
from intone.errors import Damaged, UserError
from intone.paths import FolderLock, file_sha256, read_json, write_json

Progress = Callable[[int, int], None]  # (documents so far, bytes of text so far)

FORMAT = 1
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
        """Maps a complete token set; sizes are always checked, contents (SHA-256) where verify is True.

        Raises UserError where the folder is missing or was not finished, Damaged (naming the file) where a file is
        not what the manifest says.
        """
        path = folder / "manifest.json"
        if not path.exists():
            raise UserError(
                f"{folder} is not a complete token set: it has no manifest.json",
                value=str(folder),
                fix="tokenise the text again; the same command that made the folder goes on by itself",
            )
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise _damaged(folder, path, f"has format {manifest.get('format') if isinstance(manifest, dict) else None}")
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
    sources: list[dict[str, Any]] | None = None,
    options: dict[str, Any] | None = None,
    report: ReadReport | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenSet:
    """Tokenises a stream of texts (kind documents) or message lists (kind conversations) into folder.

    Memory stays flat: one batch of text and one write buffer. What was in the folder is replaced; a reader that has
    it mapped keeps the old files. Empty texts are left out and counted. After an error, a full disk included, no
    half-written shard is left. report, filled while documents is read, is kept in the manifest.
    Raises UserError where there is not one document, or a document has the wrong kind; DiskFull.
    """
    writer = ShardWriter(folder, vocab_size=tokenizer.vocab_size, kind=kind, shard_tokens=shard_tokens)
    totals = _Totals()
    try:
        for encoded in _encoded(_batches(documents, totals), tokenizer, kind):
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
        shards = writer.finish()
    except BaseException:
        writer.discard()
        raise
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
        "sources": sources or [],
        "report": report.as_json() if report else None,
        "shards": shards,
    }
    write_json(folder / "manifest.json", manifest)
    return TokenSet.open(folder)


def ensure_token_set(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    kind: Kind,
    documents: Callable[[ReadReport], Iterable[Document]],
    files: Sequence[Path] = (),
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[TokenSet, str]:
    """The token set in folder, made by documents(report) only where it is missing or no longer fits.

    It fits if the tokenizer, the kind, the options (whatever else determines the text, such as a generator's seed)
    and the contents of files are those of the manifest. Returns the set and a reason to show: "reused", or why it
    was made. One process at a time makes it, others wait.
    """
    with FolderLock(folder / "lock", wait=True, what=f"the token set {folder.name}"):
        reason = _why_not_reusable(folder, tokenizer, kind=kind, files=files, options=options or {})
        if reason is None:
            return TokenSet.open(folder), "reused"
        sources = [source_facts(path) for path in files]
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


def source_facts(path: Path) -> dict[str, Any]:
    """What tells later whether a text file changed: where it is, its state on disk, and the hash of its content."""
    state = path.stat()
    return {"path": str(path.absolute()), **_disk_state(state), "sha256": file_sha256(path)}


# --- reuse ------------------------------------------------------------------------------------------------------


def _disk_state(state: os.stat_result) -> dict[str, int]:
    # the change time also moves when somebody sets the modification time back
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns, "inode": state.st_ino}


def _why_not_reusable(
    folder: Path, tokenizer: Tokenizer, *, kind: Kind, files: Sequence[Path], options: dict[str, Any]
) -> str | None:
    """None where the set in folder may be used as it is, otherwise the reason to make it again."""
    if not (folder / "manifest.json").exists():
        return "made for the first time"
    try:
        manifest = TokenSet.open(folder).manifest
    except Damaged as error:
        return f"made again: {error.message}"
    if manifest["tokenizer"] != tokenizer.hash:
        return "made again: the tokenizer changed"
    if manifest["kind"] != kind or manifest["options"] != json.loads(json.dumps(options)):
        return "made again: it was made with other settings"
    return _changed_source(folder, manifest, files)


def _changed_source(folder: Path, manifest: dict[str, Any], files: Sequence[Path]) -> str | None:
    """A file that is new, gone or changed; a file only touched or copied is recognised by its hash and noted."""
    before = {entry["path"]: entry for entry in manifest["sources"]}
    now = [str(path.absolute()) for path in files]
    for path in now:
        if path not in before:
            return f"made again: {path} is new"
    for path in before:
        if path not in now:
            return f"made again: {path} is no longer among the files"
    if now != list(before):
        return "made again: the files come in another order"
    touched = False
    for path in now:
        entry, state = before[path], _disk_state(os.stat(path))
        if state["size"] != entry["size"]:
            return f"made again: {path} changed"
        if any(entry[key] != state[key] for key in state):
            if file_sha256(Path(path)) != entry["sha256"]:
                return f"made again: {path} changed"
            entry.update(state)
            touched = True
    if touched:
        write_json(folder / "manifest.json", manifest)
    return None


# --- opening ----------------------------------------------------------------------------------------------------


def _damaged(folder: Path, path: Path, what: str) -> Damaged:
    return Damaged(
        f"{path} {what}", value=str(path), fix=f"delete {folder}; it is made again from the text it came from"
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
            if verify and file_sha256(path) != facts["sha256"]:
                raise _damaged(folder, path, "does not have the SHA-256 of the manifest")


def _map_shard(folder: Path, entry: dict[str, Any], first_document: int, dtype: str, kind: Kind) -> Shard:
    name = entry["name"]
    mask = np.memmap(folder / f"{name}.mask", dtype=np.uint8, mode="r") if kind == "conversations" else None
    return Shard(
        first_document=first_document,
        num_documents=entry["num_documents"],
        ids=np.memmap(folder / f"{name}.ids", dtype=np.dtype(dtype).newbyteorder("<"), mode="r"),
        offsets=np.memmap(folder / f"{name}.offsets", dtype="<i8", mode="r"),
        mask_bits=mask,
    )


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


def _encoded(batches: Iterable[list[Document]], tokenizer: Tokenizer, kind: Kind) -> Iterator[Encoded]:
    """The batches encoded one ahead, in the background: meanwhile the caller reads and writes."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Encoded]] = deque()
        for batch in batches:
            pending.append(pool.submit(_encode, batch, tokenizer, kind))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode(batch: list[Document], tokenizer: Tokenizer, kind: Kind) -> Encoded:
    wrong = [document for document in batch if isinstance(document, str) != (kind == "documents")]
    if wrong:
        found, wanted = ("text", "messages") if kind == "conversations" else ("messages", "text")
        raise UserError(
            f"{len(wrong):,} of {len(batch):,} rows hold {found!r} where {wanted!r} is expected",
            value=found,
            fix="give text to --data and conversations to --sft",
        )
    if kind == "documents":
        bodies = tokenizer.encode_batch([text for text in batch if isinstance(text, str)])
        lengths = np.array([1 + len(body) for body in bodies], dtype=np.int64)
        stream = itertools.chain.from_iterable(itertools.chain((tokenizer.bos,), body) for body in bodies)
        return Encoded(np.fromiter(stream, dtype=np.uint32, count=int(lengths.sum())), lengths, None)
    rendered = [render(messages, tokenizer) for messages in batch if isinstance(messages, list)]
    lengths = np.array([len(ids) for ids, _ in rendered], dtype=np.int64)
    total = int(lengths.sum())
    ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in rendered), dtype=np.uint32, count=total)
    mask = np.fromiter(itertools.chain.from_iterable(mask for _, mask in rendered), dtype=np.uint8, count=total)
    return Encoded(ids, lengths, mask)
