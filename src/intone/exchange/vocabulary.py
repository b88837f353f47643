"""The tokenizer that belongs to a foreign checkpoint: where it is, how it is read, and whether it is the right one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Tokenizer as LibraryTokenizer

from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer, tokenizer_from_ranks
from intone.errors import Damaged, UserError
from intone.exchange.pickles import read_encoding

FILES = ("tokenizer.json", "tokenizer.pkl")  # the first that is there; json is what intone and transformers write
# where two ways to split text would differ: contractions, digits, blanks, line ends, scripts, signs, emoji
CHECK_TEXT = (
    "It's WE'LL they'd I'M 'tis\n\n  12345 3.14159\t\tx=y+1;\r\n\r\n   def f(a,b):\n        return a\n"
    "Übergrößenträger naïve e\u0301a  Съешь ещё 我能吞下玻璃 한국어 日本語。 العربية हिन्दी ١٢٣ Ⅻ½\u00a0\u3000x "
    "👩‍👩‍👧‍👦👍🏽 <|bos |> -- ... !!! https://a.b/c?d=e&f#g __init__ 's'S \u200b end   "
)


def nanochat_home() -> Path:
    """Where nanochat keeps its files: NANOCHAT_BASE_DIR, by default ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()


def find_tokenizer(asked: str | None, folders: Sequence[Path]) -> Path:
    """The file of --tokenizer, or the first tokenizer.json or tokenizer.pkl in these folders. Raises UserError."""
    if asked is not None:
        path = Path(asked).expanduser().absolute()
        if path.is_file():
            return path
        folders = (path, path / "tokenizer")
    for folder in folders:
        for name in FILES:
            if (folder / name).is_file():
                return folder / name
    looked = ", ".join(map(str, dict.fromkeys(folders)))
    raise UserError(
        f"there is no tokenizer.pkl or tokenizer.json in {looked}",
        value=asked,
        fix="name the tokenizer this checkpoint was trained with: --tokenizer FILE or FOLDER",
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.pkl or tokenizer.json, checked against the library that wrote it.

    Raises UserError where it is another kind than byte-level BPE with nanochat's nine special tokens behind the rest,
    or where ours would split text differently.
    """
    if path.name == "tokenizer.json":
        reader = _from_library
    elif path.suffix == ".pkl":
        reader = _from_pickle
    else:
        raise UserError(
            f"{path.name} is no known tokenizer file", value=str(path), fix=f"name one of {' or '.join(FILES)}"
        )
    try:
        return reader(path)
    except (ValueError, OverflowError) as error:  # a pattern that is none, a rank beyond 32 bits
        raise _unusable(path, str(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how both libraries fail on a pattern that never ends
            raise
        raise _unusable(path, str(error)) from None


def _unusable(path: Path, why: str) -> UserError:
    return UserError(
        f"the tokenizer {path} cannot be used: {why[:200]}",
        value=str(path),
        fix="name the tokenizer this checkpoint was trained with: --tokenizer FILE or FOLDER",
    )


def _from_pickle(path: Path) -> Tokenizer:
    """nanochat's tokenizer.pkl."""
    encoding = read_encoding(path)
    specials = {name: len(encoding.ranks) + number for number, name in enumerate(SPECIALS)}
    if encoding.specials != specials:
        raise _other_specials(path, encoding.specials)
    tokenizer = tokenizer_from_ranks(encoding.ranks, encoding.pattern)
    original = tiktoken.Encoding("check", pat_str=encoding.pattern, mergeable_ranks=encoding.ranks, special_tokens={})
    check_same(path, tokenizer, lambda texts: [original.encode_ordinary(text) for text in texts])
    return tokenizer


def _from_library(path: Path) -> Tokenizer:
    """A tokenizer.json of the tokenizers library, ours or transformers'."""
    try:
        library: Any = LibraryTokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise Damaged(
            f"{path} is not a tokenizer of the tokenizers library: {str(error)[:200]}",
            value=str(path),
            fix="copy it again from where it was saved",
        ) from None
    specials = {name: library.token_to_id(name) for name in SPECIALS}
    size = library.get_vocab_size()
    if list(specials.values()) != list(range(size - len(SPECIALS), size)):
        added = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
        raise _other_specials(path, added)
    try:
        tokenizer = Tokenizer.load(path.parent)
    except UserError as error:
        raise UserError(
            f"the tokenizer {path} is not byte-level BPE as nanochat's: {error.message}",
            value=str(path),
            fix="name the tokenizer this checkpoint was trained with: --tokenizer FILE or FOLDER",
        ) from None

    def encode(texts: list[str]) -> list[list[int]]:
        return [entry.ids for entry in library.encode_batch(texts, add_special_tokens=False)]

    check_same(path, tokenizer, encode)
    return tokenizer


def _other_specials(path: Path, found: dict[str, int]) -> UserError:
    first = ", ".join(f"{name} {number}" for name, number in list(found.items())[:12])
    return UserError(
        f"the special tokens of {path} are not nanochat's nine behind all others, but: {first or 'none'}",
        value=str(path),
        fix="the chat format needs them; name the tokenizer this checkpoint was trained with: --tokenizer PATH",
    )


def check_same(path: Path, tokenizer: Tokenizer, original: Callable[[list[str]], list[list[int]]]) -> None:
    """Raises UserError where a text becomes other ids than by the library that wrote the tokenizer, or is lost.

    The texts: one with everything that split patterns disagree about, and every token that is text by itself.
    """
    if tokenizer.decode(tokenizer.encode(CHECK_TEXT)) != CHECK_TEXT:
        raise UserError(
            f"the tokenizer {path} loses parts of a text: its pattern does not match everything",
            value=tokenizer.pattern[:200],
            fix="name nanochat's own tokenizer.pkl: --tokenizer PATH",
        )
    texts = [CHECK_TEXT]
    for number in range(tokenizer.vocab_size - len(SPECIALS)):
        try:
            texts.append(tokenizer.decode_bytes([number]).decode())
        except UnicodeDecodeError:
            continue  # a part of a character: no text becomes this token alone
    for text, theirs, ours in zip(texts, original(texts), tokenizer.encode_batch(texts), strict=True):
        if theirs != ours:
            raise UserError(
                f"the tokenizer {path} splits {text[:40]!r} into {theirs[:8]}, by its merges in order of rank it is "
                f"{ours[:8]}",
                value=str(path),
                fix="it is not byte-level BPE by rank; name nanochat's own tokenizer.pkl: --tokenizer PATH",
            )


def check_vocabulary(tokenizer: Tokenizer, path: Path, vocab_size: int, checkpoint: Path) -> None:
    """Raises UserError where the tokenizer has another number of entries than the model."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer {path} has {tokenizer.vocab_size:,} entries, the model in {checkpoint} {vocab_size:,}",
            value=tokenizer.vocab_size,
            fix="nanochat keeps one tokenizer for all its models and this one was trained anew since: name the one "
            "of this checkpoint with --tokenizer PATH",
        )
