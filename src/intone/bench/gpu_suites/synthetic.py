"""Tokenizers and texts of any size without any data: where only speed is measured, the words do not matter."""

import itertools
from collections.abc import Iterator

import numpy as np

from intone.data.chat import SPECIALS, Message
from intone.data.tokenizer import MIN_VOCAB, SPLIT_PATTERN, Tokenizer
from intone.errors import UserError

# letters of three and four bytes in UTF-8: CJK ideographs, Hangul syllables, and the ideographs of extension B
LETTERS = tuple(itertools.chain(range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0x20000, 0x2A6E0)))
WORD_LETTERS = 4  # of a synthetic word; its space is one more token


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly this many entries, of which most are one letter each.

    Raises UserError for fewer than the 256 bytes and the special tokens, and for more than there are letters.
    """
    room = vocab_size - MIN_VOCAB
    if room < 0:
        raise UserError(f"vocab_size {vocab_size:,} is below {MIN_VOCAB}", value=vocab_size)
    tokens = [bytes([value]) for value in range(256)]
    known = set(tokens)
    for letter in LETTERS:
        if len(tokens) == vocab_size - len(SPECIALS):
            break
        whole = chr(letter).encode()
        # merging goes pair by pair: a letter needs its first bytes as tokens before it
        for token in (whole[:end] for end in range(2, len(whole) + 1)):
            if token not in known and len(tokens) < vocab_size - len(SPECIALS):
                tokens.append(token)
                known.add(token)
    if len(tokens) < vocab_size - len(SPECIALS):
        raise UserError(f"there are letters for {len(tokens) + len(SPECIALS):,} entries", value=vocab_size)
    return Tokenizer(tokens, SPLIT_PATTERN)


def synthetic_talks(tokenizer: Tokenizer, num: int, *, mean_tokens: int, seed: int) -> Iterator[list[Message]]:
    """Conversations of two messages, of which the answer is three quarters; lengths as those of documents."""
    for text in itertools.islice(synthetic_documents(tokenizer, 2**62, mean_tokens=mean_tokens, seed=seed), num):
        cut = max(1, len(text) // 4)
        yield [Message("user", text[:cut]), Message("assistant", text[cut:] or "x")]


def synthetic_documents(tokenizer: Tokenizer, num_tokens: int, *, mean_tokens: int, seed: int) -> Iterator[str]:
    """Documents of about num_tokens tokens in all, of log-normal length as web pages are, each letter one token."""
    rng = np.random.default_rng(seed)
    letters = [chr(letter) for letter in LETTERS if len(tokenizer.encode(chr(letter))) == 1]
    table = np.array(letters or list("abcdefghijklmnopqrstuvwxyz"))
    # Zipf's law, as languages have it: few tokens often, most of them seldom
    shares = 1 / np.arange(1, len(table) + 1)
    below = np.cumsum(shares[:-1]) / shares.sum()
    made = 0
    while made < num_tokens:
        # a spread of 0.8 around the mean: half of the documents are shorter than 0.7 of it
        length = max(2, int(rng.lognormal(np.log(mean_tokens) - 0.32, 0.8)))
        drawn = table[np.searchsorted(below, rng.random(length))]
        drawn[WORD_LETTERS :: WORD_LETTERS + 1] = " "
        made += length + 1
        yield "".join(drawn.tolist())
