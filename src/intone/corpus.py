"""`intone data` and `intone tokenizer`: look at text and tokenizers before training, or make them ahead of time."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.data.text import Document, Kind, ReadReport, find_files, read_documents, read_rows
from intone.data.tokenizer import Tokenizer
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.log import human_count, say, three_digits
from intone.paths import read_json
from intone.prepare import STARTER, Source, ensure_part, ensure_tokenizer, plain_text, tokenizer_sample
from intone.records import Answer
from intone.runs import find_stage
from intone.settings import DataSettings, TokenizerSettings

INSPECTED_BYTES = 2_000_000  # of text for bytes per token: a second of encoding (guess)


def data_verb(settings: DataSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone data check|prepare`. check exits 1 where rows are damaged, prepare leaves them out and counts them."""
    if STARTER in settings.data:
        raise UserError(
            "starter is made during a run, not read from files",
            value=STARTER,
            fix=f"intone data {settings.action} PATH; `intone run` makes starter by itself",
        )
    return check_data(settings.data) if settings.action == "check" else prepare_data(settings)


def check_data(paths: Sequence[str]) -> Answer:
    """Reads every row once -> what there is and what cannot be used."""
    train, val = find_files(paths)
    report = ReadReport()
    counts = {"documents": 0, "conversations": 0}
    num_bytes = 0
    for document in read_documents([*train, *val], report):
        counts["documents" if isinstance(document, str) else "conversations"] += 1
        num_bytes += len(plain_text(document).encode("utf-8", "replace"))
    result: dict[str, Any] = {
        "num_files": len(train) + len(val),
        "num_validation_files": len(val),
        **{f"num_{name}": count for name, count in counts.items()},
        "num_bytes": num_bytes,
        "report": report.as_json(),
    }
    found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    lines = [
        f"{len(train) + len(val):,} files, {found}, {human_count(num_bytes)} bytes of text",
        f"validation: {len(val):,} files" if val else "validation: no val* files, the last 1 % by hash will be used",
        *(f"damaged: {example}" for example in report.first),
        report.summary() or "every row can be used",
    ]
    return Answer(result, "\n".join(lines), exit=EXIT_CHECK_FAILED if report.num_damaged else EXIT_DONE)


def prepare_data(settings: DataSettings) -> Answer:
    """Tokenises files into token sets under INTONE_HOME, where a run with the same tokenizer finds them."""
    folder, tokenizer = find_tokenizer(settings.tokenizer)
    files, val_files = find_files(settings.data)
    source = Source(kind_of(files), tuple(files), tuple(val_files))
    name = "base" if source.kind == "documents" else "sft"
    sets = {
        "train": ensure_part(source, tokenizer, part="train", num_starter=0, name=name),
        "validation": ensure_part(source, tokenizer, part="validation", num_starter=0, name=f"{name} val"),
    }
    result: dict[str, Any] = {"tokenizer": str(folder), "kind": source.kind}
    lines = []
    for part, made in sets.items():
        numbers = {"num_documents": made.num_documents, "num_tokens": made.num_tokens, "num_bytes": made.num_bytes}
        result[part] = {"folder": str(made.folder), **numbers}
        lines.append(
            f"{part}: {made.num_documents:,} {source.kind}, {human_count(made.num_tokens)} tokens, {made.folder}"
        )
    return Answer(result, "\n".join(lines), path=str(sets["train"].folder))


def tokenizer_verb(settings: TokenizerSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone tokenizer train|inspect`."""
    return train_one(settings) if settings.action == "train" else inspect(settings)


def train_one(settings: TokenizerSettings) -> Answer:
    """Learns a tokenizer from the data, or finds the one that was learned from the same; copies it to --out."""
    folder, tokenizer = ensure_tokenizer(text_sources(settings.data), settings.vocab_size)
    if settings.out is not None:
        folder = Path(settings.out).expanduser().absolute()
        tokenizer.save(folder)
    result = {"vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash, "folder": str(folder)}
    text = f"{tokenizer.vocab_size:,} entries in {folder}\nnext: intone tokenizer inspect --from {folder} --text TEXT"
    return Answer(result, text, path=str(folder))


def inspect(settings: TokenizerSettings) -> Answer:
    """The tokens of --text; without a text the bytes per token on a sample of the data."""
    folder, tokenizer = find_tokenizer(settings.from_run)
    result: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash, "folder": str(folder)}
    head = f"{tokenizer.vocab_size:,} entries in {folder}"
    if settings.text is not None:
        ids = tokenizer.encode(settings.text)
        pieces = [tokenizer.decode([token]) for token in ids]
        result["tokens"] = [{"id": token, "text": piece} for token, piece in zip(ids, pieces, strict=True)]
        lines = [f"{token:>8}  {piece!r}" for token, piece in zip(ids, pieces, strict=True)]
        return Answer(result, "\n".join([head, *lines, f"{len(ids):,} tokens"]), path=str(folder))
    texts = list(up_to_bytes(tokenizer_sample(text_sources(settings.data)), INSPECTED_BYTES))
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    num_tokens = sum(map(len, tokenizer.encode_batch(texts)))
    result |= {"num_bytes": num_bytes, "num_tokens": num_tokens, "bytes_per_token": num_bytes / num_tokens}
    line = (
        f"{three_digits(num_bytes / num_tokens)} bytes per token on {human_count(num_bytes)} bytes of {shown(settings)}"
    )
    return Answer(result, f"{head}\n{line}", path=str(folder))


def shown(settings: TokenizerSettings) -> str:
    return " ".join(settings.data)


def find_tokenizer(reference: str) -> tuple[Path, Tokenizer]:
    """The tokenizer of a folder, or of the run that RUN means, with its folder. Raises UserError."""
    folder = Path(reference).expanduser()
    if (folder / "tokenizer.json").exists():
        return folder.absolute(), Tokenizer.load(folder)
    place = find_stage(reference)
    folder = Path(TrainJob.from_json(read_json(place.folder / "config.json")).tokenizer)
    return folder, Tokenizer.load(folder)


def text_sources(data: Sequence[str]) -> list[Source]:
    """Where the text of a tokenizer comes from: both kinds of starter, or files."""
    if STARTER not in data:
        files, _ = find_files(data)
        return [Source(kind_of(files), tuple(files))]
    if len(data) > 1:
        raise UserError(
            "starter cannot be mixed with files here",
            value=" ".join(data),
            fix="use either starter or files and folders",
        )
    return [Source("documents"), Source("conversations")]


def kind_of(files: Sequence[Path]) -> Kind:
    """Whether files hold documents or conversations, by their first readable row. Raises UserError where none is."""
    report = ReadReport()
    first: Document | None = next(itertools.chain.from_iterable(read_rows(path, report) for path in files), None)
    if first is None:
        raise UserError("there is no text in these files", value=[str(path) for path in files], fix="check the files")
    say(f"reading {'documents' if isinstance(first, str) else 'conversations'}")
    return "documents" if isinstance(first, str) else "conversations"


def up_to_bytes(texts: Iterable[str], limit: int) -> Iterable[str]:
    """Texts until they are this many bytes together, the last one whole."""
    total = 0
    for text in texts:
        yield text
        total += len(text.encode("utf-8", "replace"))
        if total >= limit:
            return
