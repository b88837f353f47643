"""The tokenizer: equal ids by every way in, exact round trips, and text that never becomes a special token."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer

from intone.data.chat import SPECIALS
from intone.data.tokenizer import MIN_VOCAB, Tokenizer, tokenizer_from_ranks, train_tokenizer
from intone.errors import Damaged, UserError

DATA = os.environ.get("INTONE_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="INTONE_TEST_DATA is not set: no reference vectors")

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it? We'll see 42 things.\n\n",
    "def add(a, b):\n    return a + b\n\n\n    # 3.14159   spaces   \t\ttabs\r\n",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. Съешь же ещё этих мягких французских булок.",
    "我能吞下玻璃而不伤身体。 これは日本語です。 한국어도 있습니다. 👩‍👩‍👧‍👦 emoji 👍🏽 and e\u0301 accents.",
    "aaaaaaaaaa bbbbbbbb the the the there then them these those thesis 2024 2025 2026",
] * 3


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_tokenizer(TRAINING_TEXT, 700)


@pytest.fixture(scope="module")
def library(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> LibraryTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    small.save(folder)
    return LibraryTokenizer.from_file(str(folder / "tokenizer.json"))


def library_ids(library: LibraryTokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


def test_bytes_come_first_and_specials_last(small: Tokenizer) -> None:
    assert [small.decode_bytes([value]) for value in range(256)] == [bytes([value]) for value in range(256)]
    assert small.vocab_size < 700, "so little text has too few pairs for 700 entries, and the tokenizer says so"
    assert [small.special(name) for name in SPECIALS] == list(range(small.vocab_size - 9, small.vocab_size))
    assert small.bos == small.special("<|bos|>")


def test_training_reaches_the_size_asked_for_where_the_text_is_enough() -> None:
    assert train_tokenizer(TRAINING_TEXT, 401).vocab_size == 401
    assert train_tokenizer(["nothing repeats"], MIN_VOCAB).vocab_size == MIN_VOCAB


def test_training_twice_gives_the_same_vocabulary(small: Tokenizer) -> None:
    again = train_tokenizer(iter(TRAINING_TEXT), 700)
    assert again.hash == small.hash
    assert train_tokenizer(TRAINING_TEXT[:-1], 700).hash != small.hash


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_at_all_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(texts, 300)


@pytest.mark.parametrize("vocab_size", [-1, 0, 264])
def test_a_vocabulary_without_room_for_bytes_and_specials_is_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match=re.escape(f"vocab_size {vocab_size}")):
        train_tokenizer(["abc"], vocab_size)


def test_the_split_keeps_pairs_of_digits_contractions_and_line_ends(small: Tokenizer) -> None:
    # GPT-4's split with \p{N}{1,2}: no token may reach over these borders
    for text, parts in {
        "12345": ["12", "34", "5"],
        "it's we'LL": ["it", "'s", " we", "'LL"],
        "a  b": ["a", " ", " b"],
        "x\n\n y": ["x", "\n\n", " y"],
        "f(x): \r\n": ["f", "(x", "):", " \r\n"],
    }.items():
        assert small.encode(text) == [i for part in parts for i in small.encode(part)], text


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80))
def test_any_text_comes_back_and_gives_the_same_ids_by_both_ways(
    small: Tokenizer, library: LibraryTokenizer, text: str
) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert small.encode_batch([text, text])[1] == ids
    assert "<|" in text or library_ids(library, text) == ids  # the library makes specials of their names


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="aabbth es'ré12\n\r\t 我👍.,(", max_size=200))
def test_text_like_the_training_text_gives_the_same_ids_by_both_ways(
    small: Tokenizer, library: LibraryTokenizer, text: str
) -> None:
    assert library_ids(library, text) == small.encode(text)


def test_every_character_is_split_alike_by_both_ways(small: Tokenizer, library: LibraryTokenizer) -> None:
    # two regex engines with their own Unicode tables; the planes left out here are equal too [checked once]
    for block in range(0, 0x20000, 64):
        text = "".join(f"a{chr(c)}b {chr(c)}1\n" for c in range(block, block + 64) if not 0xD800 <= c < 0xE000)
        assert library_ids(library, text) == small.encode(text), hex(block)


@pytest.mark.parametrize("name", SPECIALS)
def test_text_never_makes_a_special_token(small: Tokenizer, name: str) -> None:
    for text in (name, f"a{name}b", f" {name} {name}\n", name * 3):
        ids = small.encode(text)
        assert max(ids) < small.vocab_size - len(SPECIALS)
        assert small.encode_batch([text]) == [ids] and small.decode(ids) == text


def test_specials_are_decoded_as_their_names(small: Tokenizer) -> None:
    ids = [small.bos, *small.encode("hi"), small.special("<|user_end|>")]
    assert small.decode(ids) == "<|bos|>hi<|user_end|>"


def test_half_a_character_is_decoded_as_a_replacement_mark(small: Tokenizer) -> None:
    assert small.decode([0xF0, 0x9F]) == "\ufffd" and small.decode_bytes([0xF0, 0x9F]) == b"\xf0\x9f"


@pytest.mark.parametrize("token", [-1, 10_000])
def test_an_id_that_does_not_exist_is_refused(small: Tokenizer, token: int) -> None:
    with pytest.raises(UserError, match=f"token id {token} does not exist"):
        small.decode([1, token])


def test_an_unknown_special_name_is_refused_with_the_nearest(small: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"did you mean '<\|user_start\|>'"):
        small.special("<|user_strat|>")


def test_lone_surrogates_become_replacement_marks_and_pairs_their_character(small: Tokenizer) -> None:
    assert small.decode(small.encode("a\ud83db")) == "a\ufffdb"
    assert small.decode(small.encode("\ud83d\udc4d")) == "👍"
    assert small.encode_batch(["\udc80", "x"]) == [small.encode("\ufffd"), small.encode("x")]
    assert train_tokenizer(["a\ud83db a\ud83db"], 300).vocab_size > MIN_VOCAB


@pytest.mark.parametrize("char", [" ", "\t", "\u3000", "\n", "a", "1", "!"])
def test_a_million_equal_characters_can_be_encoded(small: Tokenizer, char: str) -> None:
    text = f"x{char * 1_000_003}y"
    assert small.decode(small.encode(text)) == text


def test_token_bytes_are_those_of_the_raw_tokens(small: Tokenizer) -> None:
    ids = small.encode("größer 我👍 the")
    assert small.token_bytes.shape == (small.vocab_size,) and small.token_bytes.dtype == np.int32
    assert small.token_bytes[ids].sum() == len("größer 我👍 the".encode())
    assert (small.token_bytes[-len(SPECIALS) :] == 0).all() and (small.token_bytes[: -len(SPECIALS)] > 0).all()


def test_a_saved_tokenizer_is_the_same_one(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.hash, loaded.vocab_size, loaded.bos) == (small.hash, small.vocab_size, small.bos)
    assert loaded.encode(TRAINING_TEXT[0]) == small.encode(TRAINING_TEXT[0])


def test_a_missing_or_foreign_tokenizer_file_is_named(tmp_path: Path, small: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        Tokenizer.load(tmp_path)
    for content in ("{}", "[]", '{"model": {"vocab": 3}, "added_tokens": []}', "not json"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(Damaged, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)
    small.save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<|bos|>", "<|sob|>"))
    with pytest.raises(Damaged, match="special tokens"):
        Tokenizer.load(tmp_path)


def test_transformers_loads_the_saved_files_and_gives_the_same_ids(small: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in [*TRAINING_TEXT[:5], "", " ", "it's 12345\r\n"]:
        assert theirs(text)["input_ids"] == small.encode(text)
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert len(theirs) == small.vocab_size
    assert theirs.convert_tokens_to_ids(list(SPECIALS)) == [small.special(name) for name in SPECIALS]
    assert theirs.bos_token_id == small.bos


def ranks_of(name: str) -> tuple[dict[bytes, int], str]:
    folder = Path(str(DATA)) / "tokenizer"
    lines = (folder / f"{name}.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    return ranks, json.loads((folder / "encodings.json").read_text())[name]["pat_str"]


@pytest.fixture(scope="module")
def cl100k() -> Tokenizer:
    return tokenizer_from_ranks(*ranks_of("cl100k_base"))


@needs_data
def test_cl100k_ranks_give_the_reference_ids(cl100k: Tokenizer, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (Path(str(DATA)) / "tokenizer" / "vectors.jsonl").open(encoding="utf-8")]
    assert len(rows) == 375
    encoded = cl100k.encode_batch([row["text"] for row in rows])
    assert encoded == [row["cl100k_base"] for row in rows]
    cl100k.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == cl100k.hash
    library = LibraryTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ordinary = [row for row in rows if "<|" not in row["text"]]
    assert [library_ids(library, row["text"]) for row in ordinary] == [row["cl100k_base"] for row in ordinary]


@needs_data
def test_naughty_strings_and_33_languages_come_back(cl100k: Tokenizer, small: Tokenizer) -> None:
    folder = Path(str(DATA)) / "tokenizer"
    texts = json.loads((folder / "blns.json").read_text(encoding="utf-8"))
    for row in (folder / "udhr_multilingual.jsonl").open(encoding="utf-8"):
        texts.extend(json.loads(row)["text"].splitlines(keepends=True))
    assert len(texts) > 1000
    for tokenizer in (cl100k, small):
        assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_ranks_with_gaps_or_without_all_bytes_are_refused() -> None:
    ranks = {bytes([value]): value for value in range(256)}
    with pytest.raises(UserError, match="without a gap"):
        tokenizer_from_ranks({**ranks, b"ab": 300}, r"\S+|\s+")
    with pytest.raises(UserError, match="lack 1 of the 256 bytes, first 255"):
        tokenizer_from_ranks({token: rank for token, rank in ranks.items() if rank < 255}, r"\S+|\s+")


def test_a_token_that_no_merge_reaches_is_found_by_both_ways(tmp_path: Path) -> None:
    ranks = {bytes([value]): value for value in range(256)} | {b"abcd": 256}
    tokenizer = tokenizer_from_ranks(ranks, r"\S+|\s+")
    tokenizer.save(tmp_path)
    library = LibraryTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in {"abcd": [256], "abcde": [*b"abcde"], "abcd abcd": [256, 32, 256]}.items():
        assert tokenizer.encode(text) == library_ids(library, text) == ids
