"""The tokenizer of a checkpoint is found, read, and made sure to be the same one."""

import json
import pickle

import pytest
import tiktoken
from tests.exchange.reference import PATTERN, encoding
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models

from intone.data.tokenizer import Tokenizer, train_tokenizer
from intone.errors import Damaged, UserError
from intone.exchange.vocabulary import CHECK_TEXT, check_vocabulary, find_tokenizer, read_tokenizer


@pytest.fixture
def pickled(tmp_path):
    """Writes an Encoding with these changes as a tokenizer.pkl -> its path."""

    def write(**changes):
        state = {**encoding().__getstate__(), **changes}
        path = tmp_path / "tokenizer.pkl"
        path.write_bytes(pickle.dumps(tiktoken.Encoding(**state)))
        return path

    return write


@pytest.fixture
def saved(tmp_path):
    """A trained tokenizer of ours on disk, and a way to change its tokenizer.json."""
    tokenizer = train_tokenizer(["the thin thing thinks that this is the other thing " * 3], 290)
    tokenizer.save(tmp_path)

    def change(edit):
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return path

    return tokenizer, change


def test_a_pickled_tokenizer_encodes_as_tiktoken_does(pickled):
    tokenizer = read_tokenizer(pickled())
    assert tokenizer.vocab_size == 270
    assert [tokenizer.special("<|bos|>"), tokenizer.special("<|output_end|>")] == [261, 269]
    text = f"{CHECK_TEXT} the then in thing 12345"
    assert tokenizer.encode(text) == encoding().encode_ordinary(text)


def test_saved_as_json_it_is_the_same_tokenizer(pickled, tmp_path):
    tokenizer = read_tokenizer(pickled())
    tokenizer.save(tmp_path / "saved")
    again = read_tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert again.hash == tokenizer.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"special_tokens": {"<|endoftext|>": 261}}, r"are not nanochat's nine behind all others, but: <\|endoftext"),
        ({"special_tokens": {}}, "but: none"),
        ({"pat_str": r"\p{L}+|\s+"}, "loses parts of a text"),
        ({"mergeable_ranks": {bytes([n]): n for n in range(255)}}, "nanochat's nine"),
    ],
)
def test_another_kind_of_pickled_tokenizer_is_refused(pickled, changes, message):
    with pytest.raises(UserError, match=message):
        read_tokenizer(pickled(**changes))


def test_a_tokenizer_without_all_bytes_is_refused(pickled):
    ranks = {bytes([n]): n for n in range(255)}
    specials = {name: 255 + n for n, name in enumerate(encoding().__getstate__()["special_tokens"])}
    with pytest.raises(UserError, match="lack 1 of the 256 bytes"):
        read_tokenizer(pickled(mergeable_ranks=ranks, special_tokens=specials))


def test_a_pattern_that_is_none_is_refused(pickled):
    path = pickled()
    path.write_bytes(path.read_bytes().replace(PATTERN.encode(), b"(" * len(PATTERN)))
    with pytest.raises(UserError, match="cannot be used"):
        read_tokenizer(path)


def test_a_pattern_without_an_end_is_refused(pickled):
    """tiktoken gives up on it in a way that is no Exception."""
    with pytest.raises(UserError, match="cannot be used"):
        read_tokenizer(pickled(pat_str=r"(?:(?:\w|\s|\S)+)+(?=\x00)|[\s\S]"))


def test_our_own_tokenizer_and_what_transformers_makes_of_it_are_read(saved, tmp_path):
    tokenizer, _ = saved
    assert read_tokenizer(tmp_path / "tokenizer.json").hash == tokenizer.hash
    transformers = pytest.importorskip("transformers", reason="transformers writes its own tokenizer.json")
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert read_tokenizer(tmp_path / "theirs" / "tokenizer.json").hash == tokenizer.hash


def test_a_library_tokenizer_with_other_merges_is_refused(saved):
    _, change = saved

    def drop_a_merge(content):
        content["model"]["merges"] = content["model"]["merges"][1:]
        content["model"]["ignore_merges"] = False

    path = change(drop_a_merge)
    with pytest.raises(UserError, match="splits .* by its merges in order of rank it is"):
        read_tokenizer(path)


def test_a_library_tokenizer_that_changes_text_first_is_refused(saved):
    _, change = saved
    path = change(lambda content: content.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(UserError, match="splits "):
        read_tokenizer(path)


def test_a_library_tokenizer_of_another_kind_is_refused(tmp_path):
    LibraryTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="are not nanochat's nine behind all others, but: none"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_file_that_is_no_tokenizer_is_damaged(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(Damaged, match="is not a tokenizer of the tokenizers library"):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="vocab.bpe is no known tokenizer file"):
        read_tokenizer(tmp_path / "vocab.bpe")


def test_the_tokenizer_is_looked_for_where_the_flag_says_and_nowhere_else(tmp_path):
    for name in ("beside", "asked/tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    beside, asked = tmp_path / "beside" / "tokenizer.pkl", tmp_path / "asked" / "tokenizer" / "tokenizer.pkl"
    beside.touch()
    asked.touch()
    folders = [tmp_path / "empty", tmp_path / "beside"]
    assert find_tokenizer(None, folders) == beside
    for flag in (asked, asked.parent, asked.parent.parent):
        assert find_tokenizer(str(flag), folders) == asked
    with pytest.raises(UserError, match=r"no tokenizer\.pkl or tokenizer\.json in .*empty"):
        find_tokenizer(str(tmp_path / "empty"), folders)


def test_a_tokenizer_of_another_size_than_the_model_is_refused(pickled, tmp_path):
    tokenizer: Tokenizer = read_tokenizer(pickled())
    check_vocabulary(tokenizer, tmp_path, 270, tmp_path)
    with pytest.raises(UserError, match="has 270 entries, the model in .* 320") as caught:
        check_vocabulary(tokenizer, tmp_path, 320, tmp_path)
    assert "--tokenizer PATH" in caught.value.fix
