"""From the data a person names to tokenizers and token sets, made once and reused while nothing changed."""

import json
import os

import pytest

from intone import prepare
from intone.data.chat import Message, Part
from intone.data.text import read_documents
from intone.errors import UserError
from intone.prepare import Source, ensure_part, ensure_sets, ensure_tokenizer, find_source, plain_text, tokenizer_sample

VOCAB = 300


@pytest.fixture
def texts(tmp_path):
    """A folder with two texts, an empty file and one for validation."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The river ran past the mill and the old bridge. " * 20)
    boats = [f"Boat {n} is on the river." for n in range(90)]
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": boat}) + "\n" for boat in boats))
    (folder / "empty.txt").write_text("")
    (folder / "val.txt").write_text("A boat at the bridge.")
    return folder


@pytest.fixture
def starter_of_nothing(monkeypatch):
    """The generator, with a short stream: making the real one takes seconds and is tested elsewhere."""

    def documents(seed, num):
        return (f"Story {seed} number {n} of a river." for n in range(min(num, 40)))

    monkeypatch.setattr(prepare.starter, "documents", documents)


def test_validation_files_come_from_the_names_or_from_val(texts):
    named = find_source("documents", [str(texts)], [])
    assert [path.name for path in named.files] == ["a.txt", "b.jsonl", "empty.txt"]
    assert [path.name for path in named.val_files] == ["val.txt"]
    asked = find_source("documents", [str(texts)], [str(texts / "b.jsonl")])
    assert [path.name for path in asked.val_files] == ["b.jsonl"]
    assert find_source("documents", ["starter"], []) == Source("documents")
    assert find_source("documents", ["starter"], []).is_starter
    assert not named.is_starter


@pytest.mark.parametrize(("data", "val"), [(["starter", "FOLDER"], []), (["starter"], ["FOLDER"])])
def test_starter_is_not_mixed_with_files(texts, data, val):
    with pytest.raises(UserError, match="starter cannot be mixed with files here"):
        find_source("documents", *([word.replace("FOLDER", str(texts)) for word in words] for words in (data, val)))


def test_a_tokenizer_is_trained_once_and_again_when_the_text_changes(texts, home, capsys):
    source = find_source("documents", [str(texts)], [])
    folder, tokenizer = ensure_tokenizer([source], VOCAB)
    assert tokenizer.vocab_size == VOCAB
    assert folder.name.startswith("text-300-")
    assert ensure_tokenizer([source], VOCAB)[0] == folder
    assert capsys.readouterr().err.count("training a tokenizer of 300 entries") == 1
    (texts / "a.txt").write_text("Quite another text about a railway station. " * 20)
    changed, other = ensure_tokenizer([source], VOCAB)
    assert (changed, other.hash) != (folder, tokenizer.hash)


def test_a_tokenizer_that_was_saved_by_half_is_trained_again(texts, home):
    source = find_source("documents", [str(texts)], [])
    folder, tokenizer = ensure_tokenizer([source], VOCAB)
    (folder / "tokenizer_config.json").unlink()  # what a kill between the two files leaves
    assert ensure_tokenizer([source], VOCAB)[1].hash == tokenizer.hash
    assert (folder / "tokenizer_config.json").exists()


def test_a_text_too_short_for_the_vocabulary_gives_a_smaller_one_and_says_so(tmp_path, home, capsys):
    (tmp_path / "short.txt").write_text("abc abc abc")
    _, tokenizer = ensure_tokenizer([find_source("documents", [str(tmp_path / "short.txt")], [])], VOCAB)
    assert 265 <= tokenizer.vocab_size < VOCAB
    assert f"the text gave only {tokenizer.vocab_size} entries" in capsys.readouterr().err


def test_the_sample_takes_an_equal_share_of_every_file_and_skips_empty_ones(texts, monkeypatch):
    monkeypatch.setattr(prepare, "SAMPLE_BYTES", 300)
    sample = list(tokenizer_sample([find_source("documents", [str(texts)], [])]))
    assert sample[0].startswith("The river")
    assert sample[1:] == [f"Boat {n} is on the river." for n in range(5)]  # 100 bytes of 23 or 24 each, the last whole


def test_files_without_any_text_are_named(texts):
    with pytest.raises(UserError, match=f"there is no text in {texts / 'empty.txt'}"):
        list(tokenizer_sample([Source("documents", (texts / "empty.txt",))]))


def test_a_conversation_is_sampled_with_its_tool_calls():
    parts = Part("text", "It is "), Part("call", "3+4"), Part("output", "7"), Part("text", "7.")
    answer = Message("assistant", parts)
    assert plain_text([Message("user", "3+4?"), answer]) == "3+4?\nIt is \n3+4\n7\n7."
    assert plain_text("as it is") == "as it is"


def test_token_sets_are_made_once_and_again_when_a_file_changes(texts, home, capsys):
    source = find_source("documents", [str(texts)], [])
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    train, val = ensure_sets(source, tokenizer, num_starter=0, name="base")
    assert (train.num_documents, val.num_documents) == (91, 1)
    said = capsys.readouterr().err
    assert "base: " in said and "tokens in 91 documents, made for the first time" in said
    again, _ = ensure_sets(source, tokenizer, num_starter=0, name="base")
    assert again.folder == train.folder
    assert capsys.readouterr().err == ""
    (texts / "val.txt").write_text("Two boats at the bridge.")
    _, val = ensure_sets(source, tokenizer, num_starter=0, name="base")
    reason = f"made again: {texts / 'val.txt'} changed\n"
    assert capsys.readouterr().err == f"base val: {val.num_tokens} tokens in 1 documents, {reason}"


def test_without_validation_files_one_document_in_a_hundred_is_kept_apart(texts, home):
    source = find_source("documents", [str(texts / "b.jsonl")], [])
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    train, val = ensure_sets(source, tokenizer, num_starter=0, name="base")
    assert train.num_documents + val.num_documents == 90
    assert 1 <= val.num_documents <= 4
    assert sum(1 for _ in read_documents(source.files, prepare.ReadReport())) == 90


def test_damaged_rows_are_counted_and_the_first_is_named(texts, home, capsys):
    with open(texts / "b.jsonl", "a") as file:
        file.write('{"text": 3}\n{"text": "cut\n')
    source = find_source("documents", [str(texts)], [])
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    ensure_part(source, tokenizer, part="train", num_starter=0, name="base")
    first = f"{texts / 'b.jsonl'}:91: `text` is a number, not a string"
    assert capsys.readouterr().err.splitlines()[-1] == f"base: 2 damaged rows were left out, the first: {first}"


def test_more_starter_text_is_another_set_and_more_of_the_same_is_not(home, starter_of_nothing, capsys):
    source = Source("documents")
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    small = ensure_part(source, tokenizer, part="train", num_starter=10, name="base")
    large = ensure_part(source, tokenizer, part="train", num_starter=20, name="base")
    assert (small.num_documents, large.num_documents) == (10, 20)
    assert small.folder != large.folder
    capsys.readouterr()
    ensure_part(source, tokenizer, part="train", num_starter=20, name="base")
    assert capsys.readouterr().err == ""
    val = ensure_part(source, tokenizer, part="validation", num_starter=20, name="base val")
    assert val.tokens(0).tolist() != large.tokens(0).tolist()  # another seed


def test_text_that_cannot_fit_on_the_disk_is_said_before_it_is_tokenised(texts, home, monkeypatch):
    free = os.path.getsize(texts / "a.txt") - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(UserError) as caught:
        prepare.check_disk([texts / "a.txt"])
    assert caught.value.message == f"0.000916 MiB of text will not fit on the disk of {home}: 0.000915 MiB are free"
    assert caught.value.fix == "free some space, or set INTONE_HOME to a larger disk"
