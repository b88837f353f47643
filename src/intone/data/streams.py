"""Where a token set's text comes from, in a form that finds the set again, notices changes, and makes it anew."""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone.data import starter
from intone.data.contents import KnownHashes
from intone.data.files import file_type
from intone.data.progress import Progress
from intone.data.shards import MANIFEST, SourceFile, TokenSet, changed_source, ensure_token_set
from intone.data.text import Document, Kind, ReadReport, read_documents, read_part
from intone.data.tokenizer import Tokenizer
from intone.data.unpack import COMPRESSIONS
from intone.errors import Damaged, DiskFull, UserError
from intone.log import human_bytes, say
from intone.paths import home, read_json, runs_folder, text_folder, write_json

FORMAT = 1
Part = Literal["whole", "train", "validation"]
# text behind a byte of a file: parquet says it itself, the others are guesses for English text
UNPACKED = 4.0
# bytes of a token set for a byte of text: 2 bytes a token, 2.5 to 4.5 bytes of text a token, offsets and masks
TOKEN_BYTES_PER_TEXT_BYTE = 0.85


@dataclass(frozen=True)
class Stream:
    """One stretch of text: files, or the generator where num is not None."""

    files: tuple[Path, ...] = ()
    part: Part = "whole"  # of the files' documents, by their content
    share: float = 1.0  # of every file that is read, a power of 1/2
    seed: int | None = None  # of the generator
    num: int | None = None  # documents or conversations that the generator makes
    max_bytes: int | None = None  # of text, where the rest is not wanted

    def documents(self, kind: Kind, report: ReadReport) -> Iterator[Document]:
        """The text, in an order that never changes. Raises UserError as read_documents."""
        taken = 0
        for document in self._everything(kind, report):
            yield document
            taken += len(plain_text(document).encode("utf-8", "replace")) if self.max_bytes is not None else 0
            if self.max_bytes is not None and taken >= self.max_bytes:
                return

    def _everything(self, kind: Kind, report: ReadReport) -> Iterable[Document]:
        if self.num is not None:
            make = starter.documents if kind == "documents" else starter.conversations
            return make(self.seed or 0, self.num)
        if self.part == "whole":
            return read_documents(self.files, report, kind=kind, share=self.share)
        return read_part(self.files, self.part, report, kind=kind, share=self.share)

    def options(self) -> dict[str, Any]:
        """Everything that determines the text besides the contents of files."""
        limit = {} if self.max_bytes is None else {"max_bytes": self.max_bytes}
        if self.num is not None:
            return {"generator": starter_fingerprint(), "seed": self.seed, "num": self.num, **limit}
        return {"part": self.part, "share": self.share, **limit}

    @property
    def file_bytes(self) -> int:
        """Bytes of the files as they are on disk that will be read."""
        return round(self.share * sum(path.stat().st_size for path in self.files))


@dataclass(frozen=True)
class SetPlan:
    """How one token set is made."""

    name: str  # what people and the folder call it: base, sft, base val, tinystories
    kind: Kind
    streams: tuple[Stream, ...]
    tokenizer: Path


@dataclass(frozen=True)
class _Facts:
    """A plan with what its files hold today."""

    plan: SetPlan
    tokenizer_hash: str
    sources: tuple[tuple[SourceFile, ...], ...]  # one entry per stream

    @classmethod
    def of(cls, plan: SetPlan, tokenizer: Tokenizer) -> "_Facts":
        known = KnownHashes(text_folder() / "contents.json")
        return cls(plan, tokenizer.hash, tuple(SourceFile.read(stream.files, known) for stream in plan.streams))

    @property
    def folder(self) -> Path:
        """Named after the contents: other text, other folder, wherever the files lie."""
        return text_folder() / f"{self.plan.name.replace(' ', '-')}-{short_hash(self._identity('sha256'))}"

    @property
    def place(self) -> str:
        """The same for the same command, whatever the files hold."""
        return short_hash([self.plan.name, self._identity("path")])

    def _identity(self, key: str) -> list[Any]:
        streams = [
            {**stream.options(), "files": [source.as_json()[key] for source in sources]}
            for stream, sources in zip(self.plan.streams, self.sources, strict=True)
        ]
        return [self.plan.kind, self.tokenizer_hash, streams]

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.plan.name,
            "kind": self.plan.kind,
            "tokenizer": str(self.plan.tokenizer),
            "tokenizer_hash": self.tokenizer_hash,
            "place": self.place,
            "streams": [
                {**stream.options(), "files": [source.as_json() for source in sources]}
                for stream, sources in zip(self.plan.streams, self.sources, strict=True)
            ],
        }


def ensure_set(plan: SetPlan, tokenizer: Tokenizer) -> tuple[TokenSet, str]:
    """The token set of a plan, made or reused -> (set, "reused" or why it was made). Raises UserError, DiskFull."""
    facts = _Facts.of(plan, tokenizer)
    folder = facts.folder
    change = None
    if not (folder / MANIFEST).exists():
        check_disk(plan.streams)
        change = _change_since(facts)
        write_json(_plan_path(folder), facts.as_json())
    files = [path for stream in plan.streams for path in stream.files]
    ticker = Progress(f"tokenising {plan.name}", sum(stream.file_bytes for stream in plan.streams))
    reports: list[ReadReport] = []

    def documents(report: ReadReport) -> Iterator[Document]:
        reports.append(report)
        return itertools.chain.from_iterable(stream.documents(plan.kind, report) for stream in plan.streams)

    made, reason = ensure_token_set(
        folder,
        tokenizer,
        kind=plan.kind,
        documents=documents,
        sources=list(itertools.chain.from_iterable(facts.sources)),
        options={"streams": [stream.options() for stream in plan.streams]},
        progress=(lambda *_: ticker.reach(reports[0].file_bytes)) if files else None,
    )
    if change is not None and reason == "made for the first time":
        reason = f"made again: {change}"
        _forget_older(facts)
    return made, reason


def is_remembered(folder: Path) -> bool:
    """Whether it is known how the token set in folder was made, also where the folder is gone."""
    return _plan_path(folder).exists()


def remake(folder: Path) -> TokenSet:
    """Makes a token set that is missing or damaged again, from the text it was made from; is_remembered must hold.

    Raises UserError where nothing is known about it, or its text or tokenizer is no longer the same: then another
    set would come out, and a run that goes on with it would not be the same run.
    """
    path = _plan_path(folder)
    start_anew = "restore it, or start a new run with --new"
    value = read_json(path)
    try:
        tokenizer_folder = Path(value["tokenizer"])
        plan = SetPlan(value["name"], value["kind"], tuple(map(_read_stream, value["streams"])), tokenizer_folder)
        known_hash = value["tokenizer_hash"]
    except (KeyError, TypeError) as error:
        raise Damaged(f"{path} lacks {error}", value=str(path), fix="start a new run with --new") from None
    tokenizer = Tokenizer.load(tokenizer_folder)
    if tokenizer.hash != known_hash:
        raise UserError(
            f"the tokenizer in {tokenizer_folder} is no longer that of {folder.name}",
            value=str(tokenizer_folder),
            fix=start_anew,
        )
    facts = _Facts.of(plan, tokenizer)
    if facts.folder.name != folder.name:
        now = facts.as_json()["streams"]
        change = next(filter(None, map(_stream_change, value["streams"], now)), "the generator of starter changed")
        raise UserError(f"{folder.name} cannot be made again as it was: {change}", value=str(folder), fix=start_anew)
    return ensure_set(plan, tokenizer)[0]


def _read_stream(value: dict[str, Any]) -> Stream:
    return Stream(
        files=tuple(Path(entry["path"]) for entry in value["files"]),
        part=value.get("part", "whole"),
        share=value.get("share", 1.0),
        seed=value.get("seed"),
        num=value.get("num"),
        max_bytes=value.get("max_bytes"),
    )


def _stream_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    return changed_source(before["files"], now["files"])


# --- older versions ---------------------------------------------------------------------------------------------


def _plan_path(folder: Path) -> Path:
    """Beside the set, not in it: whatever happens to the folder, it can be made again."""
    return folder.parent / "plans" / f"{folder.name}.json"


def _older(facts: _Facts) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, plan) of the sets that the same command made while its files held something else."""
    for path in sorted(_plan_path(facts.folder).parent.glob("*.json")):
        folder = text_folder() / path.stem
        if folder == facts.folder or not (folder / MANIFEST).exists():
            continue
        with contextlib.suppress(UserError):
            value = read_json(path)
            if isinstance(value, dict) and value.get("place") == facts.place:
                yield folder, value


def _change_since(facts: _Facts) -> str | None:
    """Which file changed since an older version of this set was made; None where there is none."""
    now = facts.as_json()["streams"]
    for _, value in _older(facts):
        with contextlib.suppress(KeyError, TypeError):
            return next(filter(None, map(_stream_change, value["streams"], now)), None)
    return None


def _forget_older(facts: _Facts) -> None:
    """Removes older versions that no run names; how they were made stays known."""
    used = set()
    for path in runs_folder().glob("*/*/config.json"):
        with contextlib.suppress(UserError, AttributeError):
            config = read_json(path)
            used |= {*config.get("data", ()), config.get("val")}
    for folder, _ in _older(facts):
        if str(folder) not in used:
            shutil.rmtree(folder, ignore_errors=True)
            say(f"{folder.name} was made from what the files held before and no run names it: removed")


# --- sizes ------------------------------------------------------------------------------------------------------


def share_for(files: Sequence[Path], wanted_bytes: int) -> float:
    """The smallest power of 1/2 that still gives so much text, read from every file alike; 1.0 for all of it."""
    total, share = text_bytes(files), 1.0
    while total * share / 2 >= wanted_bytes:
        share /= 2
    return share


def text_bytes(files: Iterable[Path]) -> int:
    """About how many bytes of text the files hold."""
    return sum(map(_text_bytes, files))


def _text_bytes(path: Path) -> int:
    size = path.stat().st_size
    if path.suffix.lower() in COMPRESSIONS:
        return round(UNPACKED * size)
    return _parquet_bytes(path) or size if file_type(path) == ".parquet" else size


def _parquet_bytes(path: Path) -> int:
    """Unpacked bytes of the columns with text; 0 where the file says nothing (reading it will say why)."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.suppress(pyarrow.ArrowException, OSError):
        metadata = pyarrow.parquet.read_metadata(path)
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        columns = (group.column(number) for group in groups for number in range(group.num_columns))
        return sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema.split(".")[0] in ("text", "messages")
        )
    return 0


def check_disk(streams: Sequence[Stream]) -> None:
    """Raises DiskFull where the tokens of these streams will not fit on the disk of INTONE_HOME."""
    wanted = sum(min(round(stream.share * text_bytes(stream.files)), stream.max_bytes or 2**62) for stream in streams)
    require_space(round(TOKEN_BYTES_PER_TEXT_BYTE * wanted), f"the tokens of {human_bytes(wanted)} of text")


def require_space(wanted_bytes: int, what: str) -> None:
    """Raises DiskFull where so many bytes will not fit on the disk of INTONE_HOME."""
    parent = next(path for path in [home(), *home().parents] if path.exists())
    free_bytes = shutil.disk_usage(parent).free
    if wanted_bytes > free_bytes:
        raise DiskFull(
            f"{what} need {human_bytes(wanted_bytes)} on the disk of {home()}, {human_bytes(free_bytes)} are free",
            value=wanted_bytes,
            fix="free some space, set INTONE_HOME to a larger disk, or give less text",
        )


def plain_text(document: Document) -> str:
    """A document as text; a conversation's turns with tool calls, one a line."""
    if isinstance(document, str):
        return document
    turns = (
        message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
        for message in document
    )
    return "\n".join(turns)


def starter_fingerprint() -> str:
    """A short hash of the generator's code and word lists: other text, other fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(Path(starter.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
