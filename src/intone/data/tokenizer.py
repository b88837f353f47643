"""Text to token ids and back: trains, saves and loads the byte-level BPE that a model's vocabulary is."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from intone.data.chat import BOS, CHAT_TEMPLATE, SPECIALS
from intone.errors import Damaged, UserError, unknown_name
from intone.paths import read_json, write_atomic, write_json

# GPT-4's way to split text, with numbers in pairs of digits: at 32k entries pairs gave the lowest bits per byte
# (reference: nanochat, 0.965 against 0.969 and 0.972 for single digits and triples).
# Written without (?i) and possessive {m,n}+, which the two regex engines below understand differently.
SPLIT_PATTERN = "|".join(
    (
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    )
)
MIN_VOCAB = 256 + len(SPECIALS)
# tiktoken's regex engine panics on runs of a million blanks and is fine with 10,000 [measured]
LONGEST_BLANK_RUN = 10_000
BLANK_RUN = re.compile(rf"\s{{{LONGEST_BLANK_RUN}}}")


class Tokenizer:
    """A fixed vocabulary: ids below 256 are the bytes, then merged tokens by rank, then chat.SPECIALS.

    Ordinary encoding never makes a special id, whatever the text says. Lone surrogates, which no UTF-8 file can
    hold, are encoded as U+FFFD. Safe to use from several threads.
    """

    def __init__(self, tokens: list[bytes], pattern: str) -> None:
        """tokens in the order of their ids, without the specials; pattern splits text before merging."""
        self._tokens = tokens
        self.pattern = pattern
        self._specials = {name: len(tokens) + number for number, name in enumerate(SPECIALS)}
        self._all_bytes = [*tokens, *(name.encode() for name in SPECIALS)]
        self.vocab_size = len(self._all_bytes)
        self.bos = self._specials[BOS]
        sizes = [*(len(token) for token in tokens), *(0 for _ in SPECIALS)]
        self.token_bytes = np.array(sizes, dtype=np.int32)
        self.token_bytes.setflags(write=False)
        self.hash = _content_hash(tokens, pattern)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self._encoding = tiktoken.Encoding("intone", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def special(self, name: str) -> int:
        """The id of a special token. Raises UserError for a name that is not in chat.SPECIALS."""
        if name not in self._specials:
            raise unknown_name("special token", name, self._specials)
        return self._specials[name]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, without a BOS in front; "<|bos|>" in the text is just seven characters."""
        ids: list[int] = []
        for piece in _safe_pieces(text):
            ids.extend(self._encoding.encode_ordinary(piece))
        return ids

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """encode() of every text, in threads (None: one per core this process may use)."""
        threads = min(num_threads or _num_cores(), len(texts))
        if threads <= 1:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; specials appear as their names, bytes that are not UTF-8 as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids; specials appear as their names. Raises UserError for an id that does not exist."""
        table, size = self._all_bytes, self.vocab_size
        pieces = []
        for token in ids:
            if not 0 <= token < size:
                raise UserError(f"token id {token} does not exist", value=int(token), fix=f"ids are 0 to {size - 1:,}")
            pieces.append(table[token])
        return b"".join(pieces)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers.AutoTokenizer loads as they are.

        There the strings of special tokens inside a text do become special ids: that is how it works for every model.
        """
        write_atomic(folder / "tokenizer.json", _library_form(self._tokens, self.pattern, self._specials))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": "<|assistant_end|>",
            "pad_token": BOS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        write_json(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that save() wrote. Raises UserError where it is missing, Damaged where it is another kind."""
        path = folder / "tokenizer.json"
        try:
            tokens, pattern, specials = _parse_library_form(read_json(path))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _foreign(path, f"{type(error).__name__}: {error}") from None
        tokenizer = cls(tokens, pattern)
        if specials != tokenizer._specials:
            raise _foreign(path, f"its special tokens are {sorted(specials)}")
        return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A vocabulary of vocab_size entries, specials included, learned from texts (read once, as a stream).

    Where the texts hold fewer pairs that occur twice, the vocabulary is smaller: see Tokenizer.vocab_size.
    Equal texts in equal order give equal vocabularies. Memory grows with the number of different words.
    Raises UserError if vocab_size is below 265 (bytes and specials) or above 2**31, or there is no text at all.
    """
    if not MIN_VOCAB <= vocab_size < 2**31:
        raise UserError(
            f"vocab_size {vocab_size:,} is too {'small' if vocab_size < MIN_VOCAB else 'large'}: "
            f"256 bytes and {len(SPECIALS)} special tokens need {MIN_VOCAB}",
            value=vocab_size,
            fix="use 32768, or 4096 for very small models",
        )
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = _pre_tokenizer(SPLIT_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        min_frequency=2,  # a pair seen once is memory, not a regularity
        initial_alphabet=list(_BYTE_TO_LETTER.values()),
        show_progress=False,
    )
    num_chars = 0

    def counted() -> Iterator[str]:
        nonlocal num_chars
        for text in texts:
            num_chars += len(text)
            yield from _safe_pieces(_without_surrogates(text))

    library.train_from_iterator(counted(), trainer)
    if not num_chars:
        raise UserError("there is no text to train a tokenizer on", value=0, fix="check that the files are not empty")
    vocab = library.get_vocab(with_added_tokens=False)
    merged = [_letters_to_bytes(letters) for letters in sorted(vocab, key=vocab.__getitem__) if len(letters) > 1]
    return Tokenizer([*(bytes([value]) for value in range(256)), *merged], SPLIT_PATTERN)


def tokenizer_from_ranks(ranks: dict[bytes, int], pattern: str) -> Tokenizer:
    """A tokenizer with somebody else's merges (tiktoken's form: bytes -> rank) and split pattern.

    The ranks keep their ids; chat.SPECIALS follow behind them. The pattern is rewritten, where needed, into a form
    that also the tokenizers library reads in the same way.
    Raises UserError unless the ranks are 0..n-1 and contain all 256 bytes.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError("the ranks are not 0, 1, 2, ... without a gap", value=len(ranks))
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise UserError(f"the ranks lack {len(missing)} of the 256 bytes, first {missing[0]}", value=missing[0])
    return Tokenizer(tokens, _portable(pattern))


# --- internals --------------------------------------------------------------------------------------------------


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes, the form in which tokenizer.json writes tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters = {value: chr(value) for value in printable}
    for value in range(256):
        if value not in letters:
            letters[value] = chr(256 + len(letters) - len(printable))
    return letters


_BYTE_TO_LETTER = _byte_letters()
_LETTER_TO_BYTE = {letter: value for value, letter in _BYTE_TO_LETTER.items()}


def _bytes_to_letters(token: bytes) -> str:
    return "".join(_BYTE_TO_LETTER[value] for value in token)


def _letters_to_bytes(letters: str) -> bytes:
    return bytes(_LETTER_TO_BYTE[letter] for letter in letters)


def _content_hash(tokens: list[bytes], pattern: str) -> str:
    digest = hashlib.sha256(json.dumps(["intone tokenizer 1", pattern, SPECIALS]).encode())
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def _without_surrogates(text: str) -> str:
    """Surrogate pairs joined, lone ones replaced by U+FFFD; other text is returned as it is."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _safe_pieces(text: str) -> Iterator[str]:
    """The text whole, unless it has a run of blanks that the regex engine could not split: cut inside that run."""
    begin = 0
    while len(text) - begin >= LONGEST_BLANK_RUN and (run := BLANK_RUN.search(text, begin)):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]


def _num_cores() -> int:
    """Cores this process may run on; macOS has no affinity, there all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pre_tokenizer(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _portable(pattern: str) -> str:
    """Replaces what Oniguruma (tokenizers) reads differently from Rust: possessive {m,n}+, and $ as end of line."""
    pattern = re.sub(r"(\\p\{\w+\}|\[[^\]]*\]|\\?\w)(\{\d+,\d+\})\+", r"(?>\1\2)", pattern)
    return re.sub(r"(?<!\\)\$", r"\\z", pattern)


def _merges(tokens: list[bytes]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, by the id of the third: tiktoken's rule as a list of merges."""
    known = set(tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for token in tokens:
        pairs = [
            (token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in known and token[cut:] in known
        ]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((_bytes_to_letters(left), _bytes_to_letters(right)) for left, right in pairs)
    return merges


def _library_form(tokens: list[bytes], pattern: str, specials: dict[str, int]) -> str:
    vocab = {_bytes_to_letters(token): rank for rank, token in enumerate(tokens)}
    # ignore_merges: a word that is a token as a whole becomes that token at once, as in tiktoken
    library = LibraryTokenizer(models.BPE(vocab=vocab, merges=_merges(tokens), ignore_merges=True))
    library.pre_tokenizer = _pre_tokenizer(pattern)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return library.to_str(pretty=False)


def _parse_library_form(content: dict[str, Any]) -> tuple[list[bytes], str, dict[str, int]]:
    """(tokens by id, split pattern, specials); raises KeyError, TypeError, ValueError or IndexError if foreign."""
    vocab: dict[str, int] = content["model"]["vocab"]
    specials = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    letters = sorted((name for name in vocab if name not in specials), key=vocab.__getitem__)
    if [vocab[name] for name in letters] != list(range(len(letters))):
        raise ValueError("ids have gaps")
    split = content["pre_tokenizer"]["pretokenizers"][0]
    return [_letters_to_bytes(name) for name in letters], split["pattern"]["Regex"], specials


def _foreign(path: Path, detail: str) -> Damaged:
    return Damaged(
        f"{path} is not a tokenizer that intone wrote ({detail})",
        value=str(path),
        fix="train one with `intone tokenizer`, or restore the file from the run it came from",
    )
