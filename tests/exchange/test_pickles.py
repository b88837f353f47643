"""nanochat's tokenizer.pkl is read, and nothing that a hostile one asks for ever happens."""

import functools
import os
import pickle
import random
import struct

import pytest
from tests.exchange.reference import MERGES, PATTERN, SPECIALS, encoding

from intone.errors import Damaged, UserError
from intone.exchange.pickles import LARGEST_BYTES, read_encoding


@pytest.fixture
def written(tmp_path):
    """Writes bytes as a tokenizer.pkl -> its path."""

    def write(content):
        path = tmp_path / "tokenizer.pkl"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_nanochat_pickles_is_read_whole(written, protocol):
    """4 is Python's default up to 3.13, 5 from 3.14 on."""
    read = read_encoding(written(pickle.dumps(encoding(), protocol)))
    assert read.pattern == PATTERN
    assert read.ranks == {**{bytes([n]): n for n in range(256)}, **{m: 256 + n for n, m in enumerate(MERGES)}}
    assert read.specials == {name: 261 + number for number, name in enumerate(SPECIALS)}


class Calls:
    """Pickles to a call of function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def state_with(**changes):
    """The pickle of an Encoding whose state holds these values."""
    made = encoding()
    state = {**made.__getstate__(), **changes}
    return pickle.dumps(Stated(state)).replace(
        b"\x8c" + bytes([len(Stated.__module__)]) + Stated.__module__.encode() + b"\x94\x8c\x06Stated",
        b"\x8c\x0dtiktoken.core\x94\x8c\x08Encoding",
    )


class Stated:
    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state


def test_the_forged_pickles_below_are_of_the_form_that_is_read(written):
    assert read_encoding(written(state_with(pat_str="x+"))).pattern == "x+"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (getattr, "builtins.getattr"),
        (os.unlink, "posix.unlink"),
        (functools.partial, "functools.partial"),
    ],
)
def test_a_call_is_refused_by_its_name_and_not_made(written, tmp_path, function, name, protocol):
    victim = tmp_path / "victim"
    victim.write_text("here")
    argument = str(victim) if function is os.unlink else f"rm {victim}"
    path = written(pickle.dumps(Calls(function, argument), protocol))
    refused = name.replace("builtins", "__builtin__") if protocol < 3 else name
    with pytest.raises(UserError, match="is not only a tokenizer") as caught:
        read_encoding(path)
    assert f"asks for {refused};" in caught.value.message
    assert "do not open this file with other programs" in caught.value.fix
    assert victim.exists()


@pytest.mark.parametrize("place", ["name", "pat_str", "mergeable_ranks", "special_tokens"])
def test_a_call_inside_the_state_of_an_encoding_is_refused(written, tmp_path, place):
    content = state_with(**{place: Calls(os.system, f"touch {tmp_path / 'ran'}")})
    with pytest.raises(UserError, match=r"asks for posix\.system"):
        read_encoding(written(content))
    assert not (tmp_path / "ran").exists()


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


ENCODING = text("tiktoken.core") + text("Encoding") + b"\x93"
START, END = b"\x80\x04", b"."
HOSTILE = {
    "a dotted path behind the class": text("tiktoken.core") + text("Encoding.__init__.__globals__") + b"\x93",
    "another class of tiktoken": b"ctiktoken.load\nread_file\n",
    "a call of the class": ENCODING + b")R",
    "a call of the class with keywords": ENCODING + b")}\x92",
    "an object with arguments": ENCODING + text("x") + b"\x85\x81",
    "an object of something else": text("x") + b")\x81",
    "a state for the class itself": ENCODING + b"}" + text("decode") + text("x") + b"sb",
    "attributes for the class itself": ENCODING + b"N}" + text("decode") + text("x") + b"s\x86b",
    "two states": ENCODING + b")\x81}b}b",
    "a state for a dictionary": b"}}b",
    "an instance in the old way": b"(itiktoken.core\nEncoding\n",
    "an instance by its arguments": b"(" + ENCODING + b"o",
    "a persistent object": b"Pfile:///etc/passwd\n",
    "a persistent object by id": text("x") + b"Q",
    "the extension registry": b"\x82\x01",
    "a name that is a number": b"K\x01" + text("x") + b"\x93",
    "a name that is a dictionary": b"}" + text("x") + b"\x93",
    "a list": b"]",
    "a set": b"\x8f",
    "a bytearray": b"\x96" + struct.pack("<Q", 1) + b"x",
    "a float": b"G" + struct.pack(">d", 1.0),
    "nothing at all": b"N",
    "keys that are numbers": b"}K\x01K\x01s",
    "keys that are dictionaries": b"}}K\x01s",
    "items of a text": text("x") + text("a") + text("b") + b"s",
    "the encoding without a state": ENCODING + b")\x81",
    "only the class": ENCODING,
    "a dictionary inside itself as the state": ENCODING + b")\x81}\x94" + text("name") + b"h\x00sb",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=list(HOSTILE))
def test_whatever_else_a_pickle_can_do_is_refused(written, content):
    with pytest.raises(UserError, match="is not only a tokenizer"):
        read_encoding(written(START + content + END))


def test_the_ordinary_unpickler_would_follow_a_dotted_path_to_everything():
    """The forgeries above are words that work: with pickle.loads this one reaches the modules that tiktoken uses."""
    reached = pickle.loads(START + HOSTILE["a dotted path behind the class"] + END)
    assert "__builtins__" in reached


@pytest.mark.parametrize(
    "content",
    [
        b"r" + struct.pack("<I", 2**32 - 1),  # LONG_BINPUT on an empty stack
        text("x") + b"r" + struct.pack("<I", 2**32 - 1),  # the C unpickler would want 64 GB for this memo
        b"j" + struct.pack("<I", 77),
        b"h\x07",
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8d" + struct.pack("<Q", 2**63),
        b"B" + struct.pack("<I", 2**31),
        b"\x95" + struct.pack("<Q", 2**60) + b"N",
        b"\x8b" + struct.pack("<i", -5),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"I" + b"9" * 5000 + b"\n",
        b"u", b"s", b"b", b"\x93", b"\x94", b"\x81", b"", b"\xff",
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_sizes_places_and_stacks_that_are_not_there_are_errors_at_once(written, content):
    with pytest.raises(UserError):
        read_encoding(written(START + content + END))


def test_a_chain_of_dictionaries_costs_its_own_length(written):
    """Each holds the one before twice: unfolded, 2 ** 5,000 entries."""
    chain = b"}\x94"
    for number in range(5000):
        get = b"j" + struct.pack("<I", number)
        chain += b"}\x94" + text("a") + get + b"s" + text("b") + get + b"s"
    with pytest.raises(UserError, match="is not only a tokenizer"):
        read_encoding(written(START + ENCODING + b")\x81" + chain + b"b" + END))


def test_a_file_that_is_far_too_large_is_not_read(written):
    path = written(b"")
    os.truncate(path, LARGEST_BYTES + 1)
    with pytest.raises(UserError, match=r"has 0\.0625 GiB|has 64 MiB"):
        read_encoding(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"pat_str": 5},
        {"mergeable_ranks": {b"a": True}},
        {"mergeable_ranks": {"a": 1}},
        {"special_tokens": {b"a": 1}},
        {"special_tokens": {"a": "1"}},
        {"explicit_n_vocab": 3},
    ],
    ids=str,
)
def test_an_encoding_of_other_kinds_of_values_is_refused(written, changes):
    with pytest.raises(UserError, match="is not only a tokenizer"):
        read_encoding(written(state_with(**changes)))


def test_an_encoding_by_name_is_explained(written):
    content = START + ENCODING + b")\x81" + text("cl100k_base") + b"b" + END
    with pytest.raises(UserError, match="only names tiktoken's encoding 'cl100k_base'"):
        read_encoding(written(content))


def test_a_pickle_cut_off_anywhere_is_damaged(written):
    whole = pickle.dumps(encoding())
    for length in [*range(60), *range(60, len(whole), 97), len(whole) - 1]:
        with pytest.raises(Damaged, match="is not a whole pickle"):
            read_encoding(written(whole[:length]))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, about changed text
def test_a_pickle_with_changed_bytes_is_read_or_refused_and_nothing_else(written):
    whole = pickle.dumps(encoding())
    draw = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            changed[draw.randrange(len(whole))] = draw.randrange(256)
        try:
            read_encoding(written(bytes(changed)))
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20
