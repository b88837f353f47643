"""From the data a person names to tokenizers and token sets, made once and reused while nothing changed."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from intone import prepare
from intone.data.chat import Message, Part
from intone.data.pack import EpochOrder
from intone.data.shards import TokenSet, write_token_set
from intone.data.streams import plain_text
from intone.data.text import ReadReport, read_documents
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import DiskFull, UserError
from intone.paths import write_json
from intone.prepare import (
    Mix,
    check_enough,
    check_mix,
    ensure_data_of,
    ensure_mix,
    ensure_tokenizer,
    ensure_val,
    epochs_of,
    find_source,
    tokenizer_sample,
)

VOCAB = 300
BYTES = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)


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
    monkeypatch.setattr(prepare, "STARTER_SAMPLE", 9)


def sets_of(data, val=(), *, kind="documents", tokens=1000, name="base"):
    """(mix, validation set) as a run would make them with a tokenizer trained on the same."""
    source = find_source(kind, data, val)
    folder, tokenizer = ensure_tokenizer([source], VOCAB)
    mix = ensure_mix(source, folder, tokenizer, tokens=tokens, name=name)
    return mix, ensure_val(source, folder, tokenizer, name=name)


def texts_of(token_set, tokenizer):
    return [tokenizer.decode(token_set.tokens(n)[1:].tolist()) for n in range(token_set.num_documents)]


# --- sources --------------------------------------------------------------------------------------------------------


def test_validation_files_come_from_the_names_or_from_val(texts):
    (named,) = find_source("documents", [str(texts)], []).parts
    assert [path.name for path in named.files] == ["a.txt", "b.jsonl", "empty.txt"]
    assert [path.name for path in named.val_files] == ["val.txt"]
    asked = find_source("documents", [str(texts)], [str(texts / "b.jsonl")])
    assert [path.name for path in asked.val[0].val_files] == ["b.jsonl"]


def test_starter_alone_and_in_a_mixture_are_told_apart(texts):
    alone = find_source("documents", ["starter"], [])
    assert alone.is_starter and alone.has_starter
    mixed = find_source("documents", [f"starter:0.25,{texts}:0.75"], [])
    assert not mixed.is_starter and mixed.has_starter
    assert [(part.name, part.share) for part in mixed.parts] == [("starter", 0.25), (str(texts), 0.75)]
    files = find_source("documents", [str(texts)], [])
    assert not files.is_starter and not files.has_starter


def test_a_public_set_of_the_other_kind_is_refused_with_the_flag_it_belongs_to():
    with pytest.raises(UserError) as caught:
        find_source("documents", ["smoltalk"], [])
    assert str(caught.value) == "smoltalk holds conversations, not documents\n  fix: give it to --sft"
    with pytest.raises(UserError, match="tinystories holds documents, not conversations\n  fix: give it to --data"):
        find_source("conversations", ["tinystories"], [])


# --- tokenizer ------------------------------------------------------------------------------------------------------


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


def test_a_damaged_tokenizer_is_trained_again_and_it_is_said(texts, home, capsys):
    source = find_source("documents", [str(texts)], [])
    folder, tokenizer = ensure_tokenizer([source], VOCAB)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:-100])
    assert ensure_tokenizer([source], VOCAB)[1].hash == tokenizer.hash
    assert f"{path} is not valid JSON" in capsys.readouterr().err
    assert Tokenizer.load(folder).hash == tokenizer.hash


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


def test_the_sample_of_a_mixture_follows_its_shares(texts, monkeypatch):
    monkeypatch.setattr(prepare, "SAMPLE_BYTES", 1000)
    words = [f"{texts / 'a.txt'}:0.1,{texts / 'b.jsonl'}:0.9"]
    sample = list(tokenizer_sample([find_source("documents", words, [])]))
    assert [text[:9] for text in sample[:2]] == ["The river", "Boat 0 is"], "a text is taken whole"
    assert 880 < sum(map(len, sample[1:])) < 925


def test_files_without_any_text_are_named(texts):
    with pytest.raises(UserError, match=f"there is no text in {texts / 'empty.txt'}"):
        list(tokenizer_sample([find_source("documents", [str(texts / "empty.txt")], [])]))


def test_a_conversation_is_sampled_with_its_tool_calls():
    parts = Part("text", "It is "), Part("call", "3+4"), Part("output", "7"), Part("text", "7.")
    answer = Message("assistant", parts)
    assert plain_text([Message("user", "3+4?"), answer]) == "3+4?\nIt is \n3+4\n7\n7."
    assert plain_text("as it is") == "as it is"


# --- token sets -----------------------------------------------------------------------------------------------------


def test_token_sets_are_made_once_and_again_when_a_file_changes(texts, home, capsys):
    mix, val = sets_of([str(texts)])
    assert (mix.sets[0].num_documents, val.num_documents) == (91, 1)
    assert mix.weights is None
    said = capsys.readouterr().err
    assert "base: " in said and "tokens in 91 documents, made for the first time" in said
    again, _ = sets_of([str(texts)])
    assert again.folders == mix.folders
    assert capsys.readouterr().err == ""
    (texts / "val.txt").write_text("Two boats at the bridge.")
    _, new = sets_of([str(texts)])
    size = f"base val: {new.num_tokens} tokens in 1 documents"
    assert capsys.readouterr().err.splitlines() == [
        f"{val.folder.name} was made from what the files held before and no run names it: removed",
        f"{size}, made again: {texts / 'val.txt'} changed",
    ]
    assert not val.folder.exists() and new.folder.exists()


def test_text_that_changed_and_changed_back_gives_the_same_set_as_before(texts, home):
    before, _ = sets_of([str(texts)])
    text = (texts / "b.jsonl").read_text()
    (texts / "b.jsonl").write_text(text.replace("Boat 7", "Ship 7"))
    changed, _ = sets_of([str(texts)])
    assert changed.folders != before.folders
    (texts / "b.jsonl").write_text(text)
    after, _ = sets_of([str(texts)])
    assert after.folders == before.folders


def test_a_set_that_a_run_names_is_kept_when_the_text_changes(texts, home):
    mix, val = sets_of([str(texts)])
    write_json(home / "runs" / "d1-1" / "base" / "config.json", {"data": mix.folders, "val": str(val.folder)})
    (texts / "b.jsonl").write_text('{"text": "Quite another text."}\n' * 3)
    sets_of([str(texts)])
    assert TokenSet.open(mix.sets[0].folder).num_documents == 91


def test_without_validation_files_one_document_in_a_hundred_is_kept_apart(texts, home):
    mix, val = sets_of([str(texts / "b.jsonl")])
    assert mix.sets[0].num_documents + val.num_documents == 90
    assert 1 <= val.num_documents <= 4


def test_damaged_rows_are_counted_and_the_first_is_named(texts, home, capsys):
    with open(texts / "b.jsonl", "a") as file:
        file.write('{"text": 3}\n{"text": "cut\n')
    sets_of([str(texts)])
    first = f"{texts / 'b.jsonl'}:91: `text` is a number, not a string"
    assert f"base: 2 damaged rows were left out, the first: {first}" in capsys.readouterr().err.splitlines()


def test_more_starter_text_is_another_set_and_more_of_the_same_is_not(home, starter_of_nothing, capsys):
    small, val = sets_of(["starter"], tokens=10)
    large, _ = sets_of(["starter"], tokens=60 * 10_001)
    assert small.folders != large.folders
    capsys.readouterr()
    assert sets_of(["starter"], tokens=60 * 20_000)[0].folders == large.folders
    assert capsys.readouterr().err == ""
    assert val.tokens(0).tolist() != large.sets[0].tokens(0).tolist()  # another seed


def test_of_much_text_only_a_share_of_every_file_is_tokenised(texts, home, monkeypatch, capsys):
    boats = [f"Boat {n} is on the river." for n in range(2000)]
    (texts / "b.jsonl").write_text("".join(json.dumps({"text": boat}) + "\n" for boat in boats))
    monkeypatch.setattr(prepare, "LEAST_TEXT_BYTES", 10_000)  # of 77,000
    mix, _ = sets_of([str(texts)])
    assert 500 <= mix.sets[0].num_documents <= 600
    assert f"base: 25% of every file of {texts} is enough for this run" in capsys.readouterr().err
    assert sets_of([str(texts)])[0].folders == mix.folders
    more, _ = sets_of([str(texts)], tokens=6000)  # 36,000 bytes
    assert 1000 <= more.sets[0].num_documents <= 1100
    everything, _ = sets_of([str(texts)], tokens=60_000)
    assert everything.sets[0].num_documents == 2001


def test_text_that_cannot_fit_on_the_disk_is_said_before_it_is_tokenised(texts, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    with pytest.raises(DiskFull) as caught:
        sets_of([str(texts)])
    assert caught.value.message == (
        f"the tokens of 0.00408 MiB of text need 0.00347 MiB on the disk of {home}, 0.00191 MiB are free"
    )
    assert caught.value.fix == "free some space, set INTONE_HOME to a larger disk, or give less text"
    assert list((home / "text").glob("base*")) == []


# --- mixtures -------------------------------------------------------------------------------------------------------


def test_a_mixture_has_a_set_of_every_part_and_its_shares(texts, home, starter_of_nothing):
    mix, val = sets_of([f"starter:0.2,{texts / 'b.jsonl'}:0.7,{texts / 'a.txt'}:0.1"], [str(texts / "val.txt")])
    assert [set_.folder.name.rsplit("-", 1)[0] for set_ in mix.sets] == ["base-starter", "base-b.jsonl", "base-a.txt"]
    assert mix.shares == pytest.approx((0.2, 0.7, 0.1))
    tokens = [weight * set_.num_tokens for weight, set_ in zip(mix.weights, mix.sets, strict=True)]
    assert [count / sum(tokens) for count in tokens] == pytest.approx([0.2, 0.7, 0.1])
    assert val.num_documents == 1


def test_validation_of_a_mixture_has_text_of_every_part_by_its_share(texts, home, starter_of_nothing, monkeypatch):
    monkeypatch.setattr(prepare, "VAL_BYTES", 600)
    (texts / "val.jsonl").write_text("".join(json.dumps({"text": f"Boat {n} waits."}) + "\n" for n in range(90)))
    source = find_source("documents", [f"starter:0.5,{texts}:0.5"], [])
    folder, tokenizer = ensure_tokenizer([source], VOCAB)
    found = texts_of(ensure_val(source, folder, tokenizer, name="base"), tokenizer)
    stories = [text for text in found if text.startswith("Story 2")]
    assert 300 <= sum(map(len, stories)) < 340
    assert 300 <= sum(map(len, found)) - sum(map(len, stories)) < 340


def token_set(folder, num_documents, length):
    """Documents of so many tokens each, BOS included."""
    return write_token_set(folder, ["x" * (length - 1)] * num_documents, BYTES, kind="documents")


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.01, 0.99)])
@pytest.mark.parametrize("shapes", [((500, 20), (90, 300)), ((3, 900), (999, 7)), ((1, 9), (1, 90))])
def test_rows_of_a_mix_hold_the_shares_of_tokens_that_were_asked_for(tmp_path, shares, shapes):
    sets = tuple(token_set(tmp_path / str(number), *shape) for number, shape in enumerate(shapes))
    mix = Mix(sets, shares)
    sizes = [set_.num_documents for set_ in sets]
    assert min(weight * size for weight, size in zip(mix.weights, sizes, strict=True)) >= 63.9
    lengths = np.concatenate([set_.lengths for set_ in sets])
    documents = EpochOrder(lengths, sizes, list(mix.weights), 3).documents(1)
    tokens = [int(lengths[documents[documents < sizes[0]]].sum()), int(lengths[documents[documents >= sizes[0]]].sum())]
    assert tokens[0] / sum(tokens) == pytest.approx(shares[0], abs=0.01)


def test_middle_training_sees_as_much_of_the_smaller_set_as_of_the_larger(tmp_path):
    few, many = token_set(tmp_path / "few", 200, 10), token_set(tmp_path / "many", 200, 30)
    for first, second in ((few, many), (many, few), (few, few)):
        mix = Mix((first,), (1.0,)).halves(Mix((second,), (1.0,)))
        one, two = mix.weights
        assert one * first.num_tokens == pytest.approx(two * second.num_tokens)
        assert max(one, two) == 1.0


@pytest.mark.parametrize("tokens", [0, 599_999, 600_001, 5_000_000])
def test_the_generator_makes_enough_in_steps_that_are_reused(tokens):
    size = prepare.enough(tokens)
    assert size * 60 >= tokens
    assert size == 10_000 or size * 30 < tokens
    assert (size // 10_000).bit_count() == 1


def test_text_that_would_be_seen_very_often_is_refused_and_often_is_said(tmp_path, capsys):
    few = token_set(tmp_path, 1, 100)
    check_enough(few, 400)
    assert capsys.readouterr().err == ""
    check_enough(few, 9_000)
    assert capsys.readouterr().err == "the text would be seen 90.0 times: beyond 4 a model starts to learn by heart\n"
    with pytest.raises(UserError) as caught:
        check_enough(few, 250_000)
    assert str(caught.value) == (
        "100 tokens of text would be seen 2,500 times in this run\n  fix: give more text, or fewer --minutes"
    )


def test_how_often_every_set_is_seen_is_said_before_and_known_after(tmp_path, capsys):
    mix = Mix((token_set(tmp_path / "a", 100, 10), token_set(tmp_path / "b", 100, 40)), (0.75, 0.25))
    check_mix(mix, 2000)
    assert capsys.readouterr().err.splitlines() == [
        "a: 75% of the tokens, 1.5 times over", "b: 25% of the tokens, 0.125 times over"
    ]  # fmt: skip
    config = {"data": list(mix.folders), "weights": list(mix.weights)}
    assert epochs_of(config, 2000) == [
        {"set": "a", "share": pytest.approx(0.75), "epochs": pytest.approx(1.5)},
        {"set": "b", "share": pytest.approx(0.25), "epochs": pytest.approx(0.125)},
    ]
    assert epochs_of({"data": [mix.folders[0]]}, 3000) == [{"set": "a", "share": 1.0, "epochs": 3.0}]
    (mix.sets[0].folder / "manifest.json").unlink()
    assert epochs_of(config, 2000) == []


# --- damage ---------------------------------------------------------------------------------------------------------


def content(folder):
    """Everything but the manifest and what only saves time."""
    return {path.name: path.read_bytes() for path in folder.glob("shard_*")}


def cut(folder):
    path = folder / "shard_00000.ids"
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder):
    path = folder / "shard_00000.ids"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def break_manifest(folder):
    (folder / "manifest.json").write_text("{")


def remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


DAMAGES = {
    cut: "FOLDER/shard_00000.ids has 2,083 bytes where the manifest says 2,090",
    flip: "FOLDER/shard_00000.ids does not have the SHA-256 of the manifest",
    break_manifest: "FOLDER/manifest.json is not valid JSON",
    remove: "FOLDER is not a complete token set: it has no manifest.json",
}


@pytest.fixture
def job(texts, home):
    """config.json of a job on the two token sets of the texts."""
    mix, val = sets_of([str(texts)])
    return {"data": list(mix.folders), "val": str(val.folder)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_of_a_job_is_named_and_made_again_as_it_was(job, texts, home, capsys, damage):
    folder = TokenSet.open(Path(job["data"][0])).folder
    before = content(folder)
    size = len(before["shard_00000.ids"])
    damage(folder)
    capsys.readouterr()
    ensure_data_of(job)
    assert content(folder) == before
    expected = DAMAGES[damage].replace("FOLDER", str(folder)).replace("2,090", f"{size:,}")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{expected.replace('2,083', f'{size - 7:,}')}: it is made again from its text"
    assert said[-1].endswith("tokens, made again")
    ensure_data_of(job)
    assert capsys.readouterr().err == ""


def test_a_damaged_set_whose_text_changed_or_is_gone_is_the_persons_affair(job, texts):
    folder = Path(job["data"][0])
    flip(folder)
    (texts / "a.txt").write_text("Another text. " * 50)
    with pytest.raises(UserError) as caught:
        ensure_data_of(job)
    assert str(caught.value) == (
        f"{folder.name} cannot be made again as it was: {texts / 'a.txt'} changed\n"
        "  fix: restore it, or start a new run with --new"
    )
    (texts / "a.txt").unlink()
    with pytest.raises(UserError, match=f"cannot read {texts / 'a.txt'}: No such file or directory"):
        ensure_data_of(job)


def test_a_damaged_set_of_unknown_origin_is_named(tmp_path):
    folder = token_set(tmp_path / "set", 9, 30).folder
    flip(folder)
    with pytest.raises(UserError, match="shard_00000.ids does not have the SHA-256") as caught:
        ensure_data_of({"data": [str(folder)]})
    assert caught.value.fix.startswith("give the command that made it again")


def test_a_set_of_the_generator_is_made_again_unless_the_generator_changed(home, starter_of_nothing, monkeypatch):
    mix, val = sets_of(["starter"])
    before = content(val.folder)
    flip(val.folder)
    ensure_data_of({"data": list(mix.folders), "val": str(val.folder)})
    assert content(val.folder) == before
    flip(val.folder)
    monkeypatch.setattr("intone.data.streams.starter_fingerprint", lambda: "another")
    with pytest.raises(UserError, match="cannot be made again as it was: the generator of starter changed"):
        ensure_data_of({"val": str(val.folder)})


def test_a_read_only_home_ends_with_a_fix_and_writes_nothing(texts, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a read-only file system here")
    try:
        monkeypatch.setenv("INTONE_HOME", str(disk / "home"))
        with pytest.raises(UserError) as caught:
            sets_of([str(texts)])
        assert caught.value.message.startswith(f"cannot write {disk}/home/tokenizers/text-300-")
        assert caught.value.message.endswith("Read-only file system")
        assert caught.value.fix == "choose a writable folder, for example INTONE_HOME=~/intone"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_equal_documents_of_a_file_are_read_as_often_as_they_stand_there(texts):
    assert len(list(read_documents([texts / "b.jsonl"] * 2, ReadReport()))) == 180
