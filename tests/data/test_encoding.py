"""Encoding in threads: the ids of encoding one after the other, in order, and errors where they belong."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.data import encoding
from intone.data.chat import Message, render
from intone.data.encoding import encode, encode_stream
from intone.data.text import Document
from intone.data.tokenizer import Tokenizer, train_tokenizer
from intone.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The river ran past the mill and the old bridge. " * 9], 300)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=9), max_size=20))
def test_batches_come_in_their_order_with_the_ids_of_each_text(tokenizer: Tokenizer, batches: list[list[str]]) -> None:
    found = list(encode_stream((list[Document](batch) for batch in batches), tokenizer, "documents"))
    assert len(found) == len(batches)
    for batch, encoded in zip(batches, found, strict=True):
        expected = [[tokenizer.bos, *tokenizer.encode(text)] for text in batch]
        assert encoded.ids.tolist() == [token for ids in expected for token in ids]
        assert encoded.lengths.tolist() == list(map(len, expected))
        assert (encoded.ids.dtype, encoded.lengths.dtype, encoded.mask) == (np.uint32, np.int64, None)


def test_conversations_keep_their_masks(tokenizer: Tokenizer) -> None:
    chats = [[Message("user", f"Where is {n}?"), Message("assistant", "At the mill. " * n)] for n in range(1, 9)]
    encoded = encode(list[Document](chats), tokenizer, "conversations")
    rendered = [render(chat, tokenizer) for chat in chats]
    assert encoded.ids.tolist() == [token for ids, _ in rendered for token in ids]
    assert encoded.mask is not None
    assert encoded.mask.tolist() == [bit for _, mask in rendered for bit in mask]


def test_no_more_batches_are_read_ahead_than_there_are_threads(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "count_cores", lambda *_: (3, 3))
    num_read = 0

    def batches() -> Iterator[list[Document]]:
        nonlocal num_read
        for number in range(50):
            num_read += 1
            yield [f"text {number}"]

    for number, _ in enumerate(encode_stream(batches(), tokenizer, "documents"), 1):
        assert num_read <= number + 3


def test_an_error_while_reading_ends_the_stream_with_that_error(tokenizer: Tokenizer) -> None:
    def batches() -> Iterator[list[Document]]:
        yield ["fine"]
        raise UserError("the disk went away")

    with pytest.raises(UserError, match="the disk went away"):
        list(encode_stream(batches(), tokenizer, "documents"))
    with pytest.raises(UserError, match="1 of 1 rows hold 'text' where 'messages' is expected"):
        list(encode_stream([["text"]], tokenizer, "conversations"))
