"""From the data a person names to a tokenizer and token sets on disk, each made once and reused while unchanged."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.data import starter
from intone.data.contents import KnownHashes
from intone.data.files import find_files
from intone.data.shards import TokenSet, read_manifest
from intone.data.sources import PUBLIC_SETS, PublicSet, fetch
from intone.data.streams import (
    SetPlan,
    Stream,
    ensure_set,
    is_remembered,
    plain_text,
    remake,
    share_for,
    short_hash,
    starter_fingerprint,
)
from intone.data.text import Kind, ReadReport, read_documents, read_rows
from intone.data.tokenizer import Tokenizer, train_tokenizer
from intone.errors import Damaged, UserError
from intone.log import human_count, say, three_digits
from intone.mixture import STARTER, Mixture, parse_mixture
from intone.paths import FolderLock, text_folder, tokenizers_folder

SAMPLE_BYTES = 32 * 2**20  # of text for the tokenizer; BPE merges hardly move beyond it (guess)
STARTER_SAMPLE = 8_000  # documents and conversations each for the tokenizer: 2 MB, a second
# every number of two digits becomes one token: sorting, dates and sums then see the same token wherever it stands
NUMBERS = " ".join(f"{number:02}" for number in range(100))
NUMBER_REPEATS = 600
STARTER_VAL = 2_000  # documents or conversations of a validation set
# seeds of the generator, apart from each other so that no stream repeats another
SEEDS = {"tokenizer": 11, "base": 1, "base val": 2, "sft": 3, "sft val": 4}

# more than a token of any tokenizer here holds on average (4.5 at 32,768 entries), so that a run does not run out
BYTES_PER_TOKEN = 6
# less text is never divided: it is tokenised in seconds, and then serves longer runs too
LEAST_TEXT_BYTES = 64 * 2**20
# of files or by hash (1 % of so much more); a stage measures itself on 65,536 tokens
VAL_BYTES = 4 * 2**20
# an epoch takes at least so many documents of every set, so that shares of tokens come out within a percent
LEAST_DOCUMENTS = 64
# times that a text is seen: repeating is nearly as good as new text up to 4 times (Muennighoff et al. 2023, abstract)
MANY_EPOCHS = 4
MAX_EPOCHS = 100  # guess: by then nothing but the text itself is learned
MOST_DOCUMENTS = 20_000_000  # of an epoch, for the sake of that: 80 MB of numbers


@dataclass(frozen=True)
class Part:
    """One set of a source: the generator, a public set, or files."""

    name: str  # starter, the name of a public set, or the first path
    share: float  # of the source's tokens
    files: tuple[Path, ...] = ()
    val_files: tuple[Path, ...] = ()

    @property
    def is_starter(self) -> bool:
        return self.name == STARTER

    @property
    def public(self) -> PublicSet | None:
        return PUBLIC_SETS.get(self.name)

    @property
    def slug(self) -> str:
        """The name as a part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.name).name or "files")[:40]


@dataclass(frozen=True)
class Source:
    """Where the data of one kind comes from; files of public sets are there after fetched()."""

    kind: Kind
    parts: tuple[Part, ...]
    val: tuple[Part, ...] = ()  # what --val names: then nothing else is used for validation
    note: str | None = None  # how weights were understood, where that must be said

    @property
    def is_starter(self) -> bool:
        """Whether everything comes from the generator: the recipe for its closed world then holds."""
        return all(part.is_starter for part in self.parts)

    @property
    def has_starter(self) -> bool:
        return any(part.is_starter for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part.files)


@dataclass(frozen=True)
class Mix:
    """Token sets with the share of the tokens that each shall have; the shares add up to 1."""

    sets: tuple[TokenSet, ...]
    shares: tuple[float, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(str(token_set.folder) for token_set in self.sets)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """How often each set's documents come in an epoch, as the loader takes it; None for a single set."""
        if len(self.sets) == 1:
            return None
        raw = [share / token_set.num_tokens for share, token_set in zip(self.shares, self.sets, strict=True)]
        weights = [weight / max(raw) for weight in raw]
        documents = [weight * token_set.num_documents for weight, token_set in zip(weights, self.sets, strict=True)]
        scale = min(LEAST_DOCUMENTS / min(documents), MOST_DOCUMENTS / sum(documents))
        return tuple(max(scale, 1.0) * weight for weight in weights)

    def times_over(self, tokens: float) -> list[float]:
        """How often each set is gone over in so many tokens of the mix."""
        return [tokens * share / token_set.num_tokens for share, token_set in zip(self.shares, self.sets, strict=True)]

    def halves(self, other: "Mix") -> "Mix":
        """Both mixes together, each with half of the tokens."""
        return Mix((*self.sets, *other.sets), tuple(share / 2 for share in (*self.shares, *other.shares)))


# --- sources --------------------------------------------------------------------------------------------------------


def find_source(kind: Kind, data: Sequence[str], val: Sequence[str]) -> Source:
    """The source that --data/--val (or --sft/--sft-val) name; nothing is fetched or read.

    Raises UserError for paths that are not there, public sets of the other kind, and words that mean nothing.
    """
    mixture = parse_mixture(data)
    return Source(kind, _parts(kind, mixture), _val_parts(kind, val) if val else (), mixture.note)


def _parts(kind: Kind, mixture: Mixture) -> tuple[Part, ...]:
    parts = []
    for portion in mixture.portions:
        if portion.name is None:
            train, val = find_files(list(portion.names))
            parts.append(Part(portion.names[0], portion.share, tuple(train), tuple(val)))
            continue
        part = Part(portion.name, portion.share)
        if part.public is not None and part.public.kind != kind:
            flags = {"documents": "--data", "conversations": "--sft"}
            raise UserError(
                f"{part.name} holds {part.public.kind}, not {kind}",
                value=part.name,
                fix=f"give it to {flags[part.public.kind]}",
            )
        parts.append(part)
    return tuple(parts)


def _val_parts(kind: Kind, val: Sequence[str]) -> tuple[Part, ...]:
    """What --val names: all files of a path, the validation files of a public set, the generator's own."""
    parts = _parts(kind, parse_mixture(val))
    return tuple(replace(part, files=(), val_files=(*part.files, *part.val_files)) for part in parts)


def fetched(source: Source, tokens: float) -> Source:
    """The source with the files of its public sets on this disk, for a run of so many tokens.

    Nothing is asked of the network where they are here already. Raises as sources.fetch.
    """
    parts = tuple(_fetched(part, wanted_bytes(tokens * part.share)) for part in source.parts)
    return replace(source, parts=parts, val=tuple(_fetched(part, 0) for part in source.val))


def _fetched(part: Part, wanted: int) -> Part:
    if part.public is None:
        return part
    found = fetch(part.public, wanted)
    return replace(part, files=found.train, val_files=found.validation)


def wanted_bytes(tokens: float) -> int:
    """Bytes of text that surely hold so many tokens."""
    return max(LEAST_TEXT_BYTES, round(tokens * BYTES_PER_TOKEN))


# --- tokenizer ------------------------------------------------------------------------------------------------------


def ensure_tokenizer(sources: Sequence[Source], vocab_size: int) -> tuple[Path, Tokenizer]:
    """The tokenizer for this text and size: trained once, found again by the contents of what it was trained on."""
    known = KnownHashes(text_folder() / "contents.json")
    facts = {
        "vocab_size": vocab_size,
        "starter": starter_fingerprint() if any(source.has_starter for source in sources) else None,
        "text": [
            [part.share, known.of(_sample_files(part))] for source in sources for part in source.parts if part.files
        ],
    }
    folder = tokenizers_folder() / f"{'text' if facts['text'] else 'starter'}-{vocab_size}-{short_hash(facts)}"
    with FolderLock(folder / "lock", wait=True, what="this tokenizer"):
        if (folder / "tokenizer_config.json").exists():  # written last
            try:
                return folder, Tokenizer.load(folder)
            except Damaged as error:
                say(f"{error.message}: it is trained again")
        say(f"training a tokenizer of {vocab_size:,} entries")
        tokenizer = train_tokenizer(tokenizer_sample(sources), vocab_size)
        tokenizer.save(folder)
    if tokenizer.vocab_size < vocab_size:
        say(f"the text gave only {tokenizer.vocab_size:,} entries")
    return folder, tokenizer


def _sample_files(part: Part) -> tuple[Path, ...]:
    """Of a public set the first file: a longer run, which needs more of them, then has the same tokenizer."""
    return part.files[:1] if part.public is not None else part.files


def tokenizer_sample(sources: Sequence[Source]) -> Iterator[str]:
    """Text for the tokenizer: of every part its share, an equal number of bytes of each file; and of the generator.

    Raises UserError where the files of a part have no text at all; single ones may be empty.
    """
    for source in sources:
        for part in source.parts:
            if part.is_starter:
                yield from map(plain_text, starter_stream(source.kind, SEEDS["tokenizer"], STARTER_SAMPLE))
                yield from [NUMBERS] * NUMBER_REPEATS
            else:
                yield from _files_sample(source.kind, part, round(SAMPLE_BYTES * part.share / len(sources)))


def _files_sample(kind: Kind, part: Part, num_bytes: int) -> Iterator[str]:
    files = _sample_files(part)
    next(read_documents(files, ReadReport(), kind=kind))  # raises where there is no text at all
    for path in files:
        taken = 0
        for document in read_rows(path, ReadReport(), kind=kind):
            text = plain_text(document)
            yield text
            taken += len(text.encode("utf-8", "replace"))
            if taken >= num_bytes // len(files):
                break


def starter_stream(kind: Kind, seed: int, num: int | None = None) -> Iterator[Any]:
    """Documents or conversations of the generator."""
    return starter.documents(seed, num) if kind == "documents" else starter.conversations(seed, num)


# --- token sets -----------------------------------------------------------------------------------------------------


def enough(tokens: float) -> int:
    """Documents or conversations the generator should make for this many tokens, in steps so that sets are reused.

    A document has about 97 tokens and a conversation 90 at 1,024 entries; repeated text is worse than new text.
    """
    wanted = tokens / 60
    size = 10_000
    while size < wanted:
        size *= 2
    return size


def ensure_mix(source: Source, folder: Path, tokenizer: Tokenizer, *, tokens: float, name: str) -> Mix:
    """The training sets of a source for a run of so many tokens, made or reused. folder: of the tokenizer.

    name: base or sft. Of very much more text than the run can see, only a share of every file is tokenised.
    """
    sets = []
    for part in source.parts:
        wanted = tokens * part.share
        if part.is_starter:
            stream = Stream(seed=SEEDS[name], num=enough(wanted))
        else:
            share = share_for(part.files, wanted_bytes(wanted))
            stream = Stream(part.files, "whole" if part.val_files or source.val else "train", share)
            if share < 1:
                say(f"{name}: {100 * share:.3g}% of every file of {part.name} is enough for this run")
        label = name if len(source.parts) == 1 and part.public is None else f"{name} {part.slug}"
        sets.append(_ensure(SetPlan(label, source.kind, (stream,), folder), tokenizer))
    return Mix(tuple(sets), tuple(part.share for part in source.parts))


def ensure_val(source: Source, folder: Path, tokenizer: Tokenizer, *, name: str) -> TokenSet:
    """The validation set of a source, made or reused: of a mixture, text of every part by its share."""
    parts = source.val or source.parts
    streams = []
    for part in parts:
        # of one part everything that is there; of several so much that the shares come out
        limit = None if len(parts) == 1 else round(part.share * VAL_BYTES)
        if part.is_starter:
            streams.append(Stream(seed=SEEDS[f"{name} val"], num=STARTER_VAL, max_bytes=limit))
        elif part.val_files:
            share = share_for(part.val_files, 2 * VAL_BYTES)
            streams.append(Stream(part.val_files, "whole", share, max_bytes=limit))
        else:
            share = share_for(part.files, 100 * VAL_BYTES)
            streams.append(Stream(part.files, "validation", share, max_bytes=limit))
    return _ensure(SetPlan(f"{name} val", source.kind, tuple(streams), folder), tokenizer)


def tokenise_ahead(sources: Sequence[tuple[Source, str]], folder: Path, tokenizer: Tokenizer, *, tokens: float) -> None:
    """Tokenises files before the steps of a run are counted: the time it takes is part of the run's minutes.

    The generator is left out: how much it must make is known only with the number of steps.
    """
    for source, name in sources:
        if not source.has_starter:
            ensure_mix(source, folder, tokenizer, tokens=tokens, name=name)


def check_mix(mix: Mix, tokens: float) -> None:
    """Says how often each of several sets is gone over; warns and raises as check_enough."""
    if len(mix.sets) > 1:
        for token_set, share, times in zip(mix.sets, mix.shares, mix.times_over(tokens), strict=True):
            say(f"{token_set.folder.name}: {100 * share:.3g}% of the tokens, {three_digits(times)} times over")
    for token_set, share in zip(mix.sets, mix.shares, strict=True):
        check_enough(token_set, tokens * share)


def check_enough(data: TokenSet, tokens: float) -> None:
    """Warns of many epochs; raises UserError where the data is far too little for the run that was asked for."""
    epochs = tokens / data.num_tokens
    what = "text" if data.kind == "documents" else "conversations"
    if epochs > MAX_EPOCHS:
        raise UserError(
            f"{data.num_tokens:,} tokens of {what} would be seen {epochs:,.0f} times in this run",
            value=data.num_tokens,
            fix=f"give more {what}, or fewer --minutes",
        )
    if epochs > MANY_EPOCHS:
        say(f"the {what} would be seen {epochs:.1f} times: beyond {MANY_EPOCHS} a model starts to learn by heart")


def epochs_of(config: Mapping[str, Any], tokens: float) -> list[dict[str, Any]]:
    """How often a training job that saw so many tokens went over each of its sets: {set, share, epochs}.

    Empty where a set is no longer on disk.
    """
    sets = []
    for folder in config["data"]:
        try:
            sets.append(read_manifest(Path(folder)))
        except UserError:
            return []
    weights = config.get("weights") or [1.0] * len(sets)
    total = sum(weight * manifest["num_tokens"] for weight, manifest in zip(weights, sets, strict=True))
    return [
        {"set": Path(folder).name, "share": weight * manifest["num_tokens"] / total, "epochs": tokens * weight / total}
        for folder, weight, manifest in zip(config["data"], weights, sets, strict=True)
    ]


def ensure_data_of(config: Mapping[str, Any]) -> bool:
    """Token sets that a job's config.json names and that are damaged or gone are made again from their text.

    True where there was one. Raises UserError where that is not possible, with what to do.
    """
    is_remade = False
    for folder in map(Path, [*config.get("data", ()), *filter(None, [config.get("val")])]):
        try:
            TokenSet.open(folder)
        except UserError as error:
            if not is_remembered(folder):
                raise
            say(f"{error.message}: it is made again from its text")
            made = remake(folder)
            say(f"{folder.name}: {human_count(made.num_tokens)} tokens, made again")
            is_remade = True
    return is_remade


def _ensure(plan: SetPlan, tokenizer: Tokenizer) -> TokenSet:
    """One token set, with a line about what was done and every damaged row counted."""
    made, reason = ensure_set(plan, tokenizer)
    if reason != "reused":
        size = f"{human_count(made.num_tokens)} tokens in {human_count(made.num_documents)} {plan.kind}"
        say(f"{plan.name}: {size}, {reason}")
    report = made.manifest.get("report") or {}
    if report.get("num_damaged"):
        rows = "damaged row was" if report["num_damaged"] == 1 else "damaged rows were"
        say(f"{plan.name}: {report['num_damaged']:,} {rows} left out, the first: {report['first'][0]}")
    return made
