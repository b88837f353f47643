"""However a text is cut into tokens: stop texts are found across them, and no letter is ever given in halves."""

import itertools

import pytest

from intone.data.chat import SPECIALS
from intone.engine.text import Specials, VisibleText


class Pieces:
    """A tokenizer whose tokens are the given pieces, in their order; special tokens behind them."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.bos = self.special(SPECIALS[0])
        self.vocab_size = len(pieces) + len(SPECIALS)

    def special(self, name):
        return len(self.pieces) + list(SPECIALS).index(name)

    def decode_bytes(self, ids):
        return b"".join(self.pieces[token] for token in ids)


def cuts(data):
    """Every way to cut bytes into pieces."""
    for places in itertools.product((False, True), repeat=len(data) - 1):
        ends = [place for place, is_cut in enumerate(places, 1) if is_cut]
        yield [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def streamed(pieces, stops=()):
    """What each token gives, until a stop text is found."""
    tokenizer = Pieces(pieces)
    visible = VisibleText(tokenizer, Specials.of(tokenizer), stops)
    given = []
    for token in range(len(pieces)):
        given.append(visible.push(token, may_stop=True)[0])
        if visible.is_stopped:
            return visible, given
    return visible, [*given, visible.finish()]


@pytest.mark.parametrize("text, stops, expected", [("abENDcE", ["END"], "ab"), ("aENENDx", ["NDx", "END"], "aEN")])
def test_a_stop_text_is_found_wherever_tokens_end(text, stops, expected):
    end = min(text.find(stop) + len(stop) for stop in stops)
    for pieces in cuts(text.encode()):
        visible, given = streamed(pieces, stops)
        assert visible.is_stopped and "".join(given) == visible.text == expected
        # by the token in which it is complete, not later
        assert sum(map(len, pieces[: len(given) - 1])) < end <= sum(map(len, pieces[: len(given)]))


def test_half_a_stop_text_is_held_back_and_given_at_the_end():
    for pieces in cuts(b"oneEN"):
        visible, given = streamed(pieces, ["END"])
        assert not visible.is_stopped and "".join(given) == visible.text == "oneEN"
        assert all("E" not in part for part in given[:-1])


def test_a_letter_is_given_whole_wherever_tokens_end():
    for pieces in cuts("é€😀".encode()):
        _, given = streamed(pieces)
        assert "".join(given) == "é€😀" and "\ufffd" not in "".join(given)
