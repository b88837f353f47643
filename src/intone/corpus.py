"""`intone data` and `intone tokenizer`: look at text and tokenizers before training, or make them ahead of time."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.data.files import find_files
from intone.data.shards import MANIFEST, TokenSet
from intone.data.sources import (
    PUBLIC_SETS,
    PublicSet,
    damaged_files,
    fetch,
    is_here,
    known_listing,
    place_of,
    set_folder,
)
from intone.data.streams import plain_text
from intone.data.text import Document, Kind, ReadReport, read_documents, read_rows
from intone.data.tokenizer import Tokenizer
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, Damaged, UserError, unknown_name
from intone.log import human_bytes, human_count, say, table, three_digits
from intone.mixture import STARTER, parse_mixture
from intone.paths import read_json
from intone.prepare import (
    Source,
    ensure_mix,
    ensure_tokenizer,
    ensure_val,
    fetched,
    find_source,
    tokenizer_sample,
    wanted_bytes,
)
from intone.records import Answer
from intone.runs import find_stage
from intone.settings import DataSettings, TokenizerSettings

EVERYTHING = 10**15  # tokens: more than any files here hold
INSPECTED_BYTES = 2_000_000  # of text for bytes per token: a second of encoding (guess)


def data_verb(settings: DataSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone data list|fetch|check|prepare`; check exits 1 where something is damaged, prepare leaves it out."""
    if any(portion.name == STARTER for portion in parse_mixture(settings.data or ("-",)).portions):
        raise UserError(
            "starter is made during a run, not read from files",
            value=STARTER,
            fix=f"intone data {settings.action} PATH; `intone run` makes starter by itself",
        )
    if settings.action == "list":
        return list_sets()
    if settings.action == "fetch":
        return fetch_sets(settings)
    return check_data(settings.data) if settings.action == "check" else prepare_data(settings)


# --- public sets ----------------------------------------------------------------------------------------------------


def list_sets() -> Answer:
    """The public sets, and what of them is on this disk."""
    result, rows = [], []
    for public in PUBLIC_SETS.values():
        listing = known_listing(public)
        here = [file for file in (*listing.validation, *listing.train) if is_here(public, file)] if listing else []
        num_bytes = sum(file.size for file in here)
        result.append(
            {
                "name": public.name, "repo": public.repo, "kind": public.kind, "size": public.size,
                "licence": public.licence, "what": public.what, "files_here": len(here), "bytes_here": num_bytes,
            }
        )  # fmt: skip
        rows.append([public.name, public.kind, public.size, human_bytes(num_bytes) if here else "-"])
    lines = [
        table(rows, header=["set", "kind", "size", "on this disk"], left=3),
        "",
        *(f"{public.name}: {public.what}; {public.repo}, {public.licence}" for public in PUBLIC_SETS.values()),
        "next: intone data fetch NAME, or just intone run --data NAME",
    ]
    return Answer({"sets": result}, "\n".join(lines))


def fetch_sets(settings: DataSettings) -> Answer:
    """Brings files of public sets here: the first, as many as --tokens need, or --all."""
    result, lines = [], []
    for name in settings.data:
        if name not in PUBLIC_SETS:
            raise unknown_name("public set", name, PUBLIC_SETS)
    for name in settings.data:
        public = PUBLIC_SETS[name]
        found = fetch(public, None if settings.all else wanted_bytes(settings.tokens) if settings.tokens else 0)
        files = [*found.validation, *found.train]
        num_bytes = sum(path.stat().st_size for path in files)
        result.append(
            {
                "name": name, "repo": public.repo, "commit": found.commit, "num_files": len(files),
                "num_fetched": found.num_fetched, "num_bytes": num_bytes, "folder": str(set_folder(public)),
            }
        )  # fmt: skip
        lines.append(
            f"{name}: {len(files):,} files, {human_bytes(num_bytes)}, {found.num_fetched:,} of them fetched now, "
            f"in {set_folder(public)}"
        )
    flag = "--sft" if PUBLIC_SETS[settings.data[0]].kind == "conversations" else "--data"
    lines.append(f"next: intone run {flag} {settings.data[0]}")
    return Answer({"sets": result}, "\n".join(lines), path=str(set_folder(PUBLIC_SETS[settings.data[0]])))


# --- checking and tokenising ----------------------------------------------------------------------------------------


def check_data(words: Sequence[str]) -> Answer:
    """Reads everything once -> what there is and what cannot be used: files, public sets, folders of token sets."""
    names = [name for portion in parse_mixture(words).portions for name in portion.names]
    token_sets = [name for name in names if (Path(name).expanduser() / MANIFEST).exists()]
    publics = [PUBLIC_SETS[name] for name in names if name in PUBLIC_SETS]
    damaged = [*_check_token_sets(token_sets), *_check_publics(publics)]
    paths = [name for name in names if name not in token_sets and name not in PUBLIC_SETS]
    train, val = find_files(paths) if paths else ([], [])
    for public in publics:
        listing = known_listing(public)
        assert listing is not None, "checked above"
        files = [file for file in (*listing.train, *listing.validation) if place_of(public, file).exists()]
        train += [place_of(public, file) for file in files if str(place_of(public, file)) not in damaged]
    report = ReadReport()
    counts = {"documents": 0, "conversations": 0}
    num_bytes = 0
    for document in read_documents([*train, *val], report) if train or val else ():
        counts["documents" if isinstance(document, str) else "conversations"] += 1
        num_bytes += len(plain_text(document).encode("utf-8", "replace"))
    result: dict[str, Any] = {
        "num_files": len(train) + len(val),
        "num_validation_files": len(val),
        **{f"num_{name}": count for name, count in counts.items()},
        "num_bytes": num_bytes,
        "num_token_sets": len(token_sets),
        "damaged_files": damaged,
        "report": report.as_json(),
    }
    is_bad = bool(report.num_damaged or damaged)
    return Answer(result, _checked_text(result, report), exit=EXIT_CHECK_FAILED if is_bad else EXIT_DONE)


def _checked_text(result: Mapping[str, Any], report: ReadReport) -> str:
    lines = []
    if result["num_files"]:
        counts = {name: result[f"num_{name}"] for name in ("documents", "conversations")}
        found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        val = result["num_validation_files"]
        lines += [
            f"{result['num_files']:,} files, {found}, {human_count(result['num_bytes'])} bytes of text",
            f"validation: {val:,} files" if val else "validation: no val* files, 1 % by hash will be used",
        ]
    if result["num_token_sets"]:
        lines.append(f"{result['num_token_sets']:,} token sets")
    lines += [f"damaged: {example}" for example in (*report.first, *result["damaged_files"])]
    if result["damaged_files"]:
        lines.append("next: the command that uses these files makes or fetches them again")
    elif result["num_files"]:
        lines.append(report.summary() or "every row can be used")
    else:
        lines.append("every byte is as it was written")
    return "\n".join(lines)


def _check_token_sets(folders: Sequence[str]) -> list[str]:
    """The first damaged file of each token set, every byte read."""
    damaged = []
    for folder in folders:
        try:
            TokenSet.open(Path(folder).expanduser(), verify=True)
        except Damaged as error:
            damaged.append(str(error.value))
    return damaged


def _check_publics(publics: Sequence[PublicSet]) -> list[str]:
    """The files of public sets whose content is not what the hub states. Raises UserError where none is here."""
    damaged: list[str] = []
    for public in publics:
        num_files, wrong = damaged_files(public)
        if not num_files:
            raise UserError(
                f"nothing of {public.name} is on this disk",
                value=public.name,
                fix=f"intone data fetch {public.name}",
            )
        damaged += map(str, wrong)
    return damaged


def prepare_data(settings: DataSettings) -> Answer:
    """Tokenises data into token sets under INTONE_HOME, where a run with the same tokenizer finds them."""
    folder, tokenizer = find_tokenizer(settings.tokenizer)
    kind = kind_of_words(settings.data)
    source = fetched(find_source(kind, settings.data, ()), settings.tokens or 0)
    if source.note:
        say(source.note)
    name = "base" if kind == "documents" else "sft"
    mix = ensure_mix(source, folder, tokenizer, tokens=settings.tokens or EVERYTHING, name=name)
    val = ensure_val(source, folder, tokenizer, name=name)
    result: dict[str, Any] = {"tokenizer": str(folder), "kind": kind, "sets": []}
    lines = []
    for part, made in [*(("train", made) for made in mix.sets), ("validation", val)]:
        numbers = {"num_documents": made.num_documents, "num_tokens": made.num_tokens, "num_bytes": made.num_bytes}
        result["sets"].append({"part": part, "folder": str(made.folder), **numbers})
        lines.append(f"{part}: {made.num_documents:,} {kind}, {human_count(made.num_tokens)} tokens, {made.folder}")
    return Answer(result, "\n".join(lines), path=str(mix.sets[0].folder))


# --- tokenizers -----------------------------------------------------------------------------------------------------


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
        f"{three_digits(num_bytes / num_tokens)} bytes per token on {human_count(num_bytes)} bytes of "
        f"{' '.join(settings.data)}"
    )
    return Answer(result, f"{head}\n{line}", path=str(folder))


def find_tokenizer(reference: str) -> tuple[Path, Tokenizer]:
    """The tokenizer of a folder, or of the run that RUN means, with its folder. Raises UserError."""
    folder = Path(reference).expanduser()
    if (folder / "tokenizer.json").exists():
        return folder.absolute(), Tokenizer.load(folder)
    place = find_stage(reference)
    folder = Path(TrainJob.from_json(read_json(place.folder / "config.json")).tokenizer)
    return folder, Tokenizer.load(folder)


def text_sources(data: Sequence[str]) -> list[Source]:
    """Where the text of a tokenizer comes from; of starter alone both kinds."""
    if list(data) == [STARTER]:
        return [find_source("documents", data, ()), find_source("conversations", data, ())]
    return [fetched(find_source(kind_of_words(data), data, ()), 0)]


def kind_of_words(data: Sequence[str]) -> Kind:
    """Whether data is documents or conversations, as its public sets or the first readable row of its files say."""
    portions = parse_mixture(data).portions
    public = next((PUBLIC_SETS[portion.name] for portion in portions if portion.name in PUBLIC_SETS), None)
    kind = public.kind if public is not None else None
    if kind is None:
        paths = [name for portion in portions if portion.name is None for name in portion.names]
        kind = kind_of(find_files(paths)[0]) if paths else "documents"
    say(f"reading {kind}")
    return kind


def kind_of(files: Sequence[Path]) -> Kind:
    """Whether files hold documents or conversations, by their first readable row. Raises UserError where none is."""
    report = ReadReport()
    first: Document | None = next(itertools.chain.from_iterable(read_rows(path, report) for path in files), None)
    if first is None:
        raise UserError("there is no text in these files", value=[str(path) for path in files], fix="check the files")
    return "documents" if isinstance(first, str) else "conversations"


def up_to_bytes(texts: Iterable[str], limit: int) -> Iterable[str]:
    """Texts until they are this many bytes together, the last one whole."""
    total = 0
    for text in texts:
        yield text
        total += len(text.encode("utf-8", "replace"))
        if total >= limit:
            return
