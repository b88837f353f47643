"""From the data a person names to a tokenizer and token sets on disk, each made once and reused while unchanged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone.data import starter
from intone.data.chat import Message
from intone.data.shards import TokenSet, ensure_token_set
from intone.data.text import ReadReport, find_files, read_documents, read_part, read_rows
from intone.data.tokenizer import Tokenizer, train_tokenizer
from intone.errors import UserError
from intone.log import human_bytes, human_count, say
from intone.paths import home, text_folder, tokenizers_folder

Kind = Literal["documents", "conversations"]
Document = str | list[Message]

STARTER = "starter"
SAMPLE_BYTES = 32 * 2**20  # of text for the tokenizer; BPE merges hardly move beyond it (guess)
STARTER_SAMPLE = 8_000  # documents and conversations each for the tokenizer: 2 MB, a second
# every number of two digits becomes one token: sorting, dates and sums then see the same token wherever it stands
NUMBERS = " ".join(f"{number:02}" for number in range(100))
NUMBER_REPEATS = 600
STARTER_VAL = 2_000  # documents or conversations of a validation set
# seeds of the generator, apart from each other so that no stream repeats another
SEEDS = {"tokenizer": 11, "base": 1, "base val": 2, "sft": 3, "sft val": 4}


@dataclass(frozen=True)
class Source:
    """Where one kind of data comes from: the generator, or files with their validation part."""

    kind: Kind
    files: tuple[Path, ...] = ()
    val_files: tuple[Path, ...] = ()

    @property
    def is_starter(self) -> bool:
        return not self.files


def find_source(kind: Kind, data: Sequence[str], val: Sequence[str]) -> Source:
    """The source that --data/--val (or --sft/--sft-val) name. Raises UserError for paths that are not there."""
    if STARTER in data:
        if len(data) > 1 or val:
            raise UserError(
                "starter cannot be mixed with files here",
                value=", ".join([*data, *val]),
                fix="use either starter or files and folders",
            )
        return Source(kind)
    train, found_val = find_files(list(data))
    if val:
        more_train, more_val = find_files(list(val))
        return Source(kind, tuple(train), tuple([*more_train, *more_val]))
    return Source(kind, tuple(train), tuple(found_val))


def ensure_tokenizer(sources: Sequence[Source], vocab_size: int) -> tuple[Path, Tokenizer]:
    """The tokenizer for this text and size: trained once, found again by what it was trained on."""
    facts = {
        "vocab_size": vocab_size,
        "starter": starter_fingerprint() if any(source.is_starter for source in sources) else None,
        "files": [file_identity(path) for source in sources for path in source.files],
    }
    folder = tokenizers_folder() / f"{'starter' if not facts['files'] else 'text'}-{vocab_size}-{short_hash(facts)}"
    if (folder / "tokenizer_config.json").exists():  # written last
        return folder, Tokenizer.load(folder)
    say(f"training a tokenizer of {vocab_size:,} entries")
    tokenizer = train_tokenizer(tokenizer_sample(sources), vocab_size)
    tokenizer.save(folder)
    if tokenizer.vocab_size < vocab_size:
        say(f"the text gave only {tokenizer.vocab_size:,} entries")
    return folder, tokenizer


def tokenizer_sample(sources: Sequence[Source]) -> Iterator[str]:
    """Text for the tokenizer: an equal share of bytes of every file, and of the generator.

    Raises UserError where the files of a source have no text at all; single ones may be empty.
    """
    for source in sources:
        if source.is_starter:
            yield from map(plain_text, starter_stream(source.kind, SEEDS["tokenizer"], STARTER_SAMPLE))
            yield from [NUMBERS] * NUMBER_REPEATS
            continue
        next(read_documents(source.files, ReadReport(), kind=source.kind))  # raises where there is no text at all
        share = SAMPLE_BYTES // (len(source.files) * len(sources))
        for path in source.files:
            taken = 0
            for document in read_rows(path, ReadReport(), kind=source.kind):
                text = plain_text(document)
                yield text
                taken += len(text.encode("utf-8", "replace"))
                if taken >= share:
                    break


def plain_text(document: Document) -> str:
    """A document as text for the tokenizer; a conversation's turns with tool calls, one a line."""
    if isinstance(document, str):
        return document
    turns = (
        message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
        for message in document
    )
    return "\n".join(turns)


def starter_stream(kind: Kind, seed: int, num: int | None = None) -> Iterator[Document]:
    """Documents or conversations of the generator."""
    return starter.documents(seed, num) if kind == "documents" else starter.conversations(seed, num)


def ensure_sets(
    source: Source, tokenizer: Tokenizer, *, num_starter: int, name: Literal["base", "sft"]
) -> tuple[TokenSet, TokenSet]:
    """(training set, validation set) of a source, made or reused. num_starter: documents the generator makes."""
    train = ensure_part(source, tokenizer, part="train", num_starter=num_starter, name=name)
    val = ensure_part(source, tokenizer, part="validation", num_starter=STARTER_VAL, name=f"{name} val")
    return train, val


def ensure_part(
    source: Source, tokenizer: Tokenizer, *, part: Literal["train", "validation"], num_starter: int, name: str
) -> TokenSet:
    """One token set of a source under text/, with a line about what was done and every damaged row counted."""
    documents: Callable[[ReadReport], Iterable[Document]]
    options: dict[str, Any]
    if source.is_starter:
        seed = SEEDS[name]
        options = {"generator": starter_fingerprint(), "seed": seed, "num": num_starter}
        files: tuple[Path, ...] = ()

        def documents(_report: ReadReport) -> Iterable[Document]:
            return starter_stream(source.kind, seed, num_starter)
    elif source.val_files:
        files = source.files if part == "train" else source.val_files
        options = {"part": "whole files"}

        def documents(report: ReadReport) -> Iterable[Document]:
            return read_documents(files, report, kind=source.kind)
    else:
        files, options = source.files, {"part": part}

        def documents(report: ReadReport) -> Iterable[Document]:
            return read_part(files, part, report, kind=source.kind)

    identity = {"files": [str(path.absolute()) for path in files], "kind": source.kind, **options}
    folder = text_folder() / f"{name.replace(' ', '-')}-{short_hash([identity, tokenizer.hash])}"
    check_disk(files)
    made, reason = ensure_token_set(
        folder, tokenizer, kind=source.kind, documents=documents, files=files, options=options
    )
    if reason != "reused":
        size = f"{human_count(made.num_tokens)} tokens in {human_count(made.num_documents)} {source.kind}"
        say(f"{name}: {size}, {reason}")
    report = made.manifest.get("report") or {}
    if report.get("num_damaged"):
        say(f"{name}: {report['num_damaged']:,} damaged rows were left out, the first: {report['first'][0]}")
    return made


def check_disk(files: Sequence[Path]) -> None:
    """Raises UserError where the token sets of these files will not fit on the disk of INTONE_HOME."""
    import shutil

    text_bytes = sum(path.stat().st_size for path in files)
    parent = next(path for path in [home(), *home().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    if text_bytes > free:  # token sets take about 0.6 bytes per byte of text, compressed text more
        raise UserError(
            f"{human_bytes(text_bytes)} of text will not fit on the disk of {home()}: {human_bytes(free)} are free",
            value=text_bytes,
            fix="free some space, or set INTONE_HOME to a larger disk",
        )


def starter_fingerprint() -> str:
    """A short hash of the generator's code and word lists: other text, other fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(Path(starter.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def file_identity(path: Path) -> list[Any]:
    """What tells one state of a file from another, without reading it."""
    state = path.stat()
    return [str(path.absolute()), state.st_size, state.st_mtime_ns]


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
