"""`intone data` and `intone tokenizer`, on small files."""

import json

import pytest

from intone import cli

TEXT = "The cat sat on the mat, and the dog lay in the sun. Numbers: 12 and 345.\n\n"


def run(words, capsys):
    """(exit code, result or error message, stdout without --json)."""
    code = cli.main([*words, "--json"])
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, value.get("result") or value["error"]["message"]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = [json.dumps({"text": f"{number}: {TEXT}"}) for number in range(301)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.txt").write_text(TEXT)
    return folder


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = ([{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Hello!"}] for n in range(203))
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    return path


def test_good_data_passes_the_check_with_its_counts(home, texts, chats, capsys):
    code, result = run(["data", "check", str(texts), str(chats)], capsys)
    assert code == 0
    assert (result["num_files"], result["num_documents"], result["num_conversations"]) == (3, 302, 203)
    assert result["report"]["num_damaged"] == 0
    assert cli.main(["data", "check", str(texts)]) == 0
    assert capsys.readouterr().out.endswith("every row can be used\n")


def test_damaged_rows_fail_the_check_and_are_named(home, texts, capsys):
    with open(texts / "a.jsonl", "a") as file:
        file.write('\n{"txt": "x"}\n[1]\n')
    assert cli.main(["data", "check", str(texts)]) == 1
    out = capsys.readouterr().out
    assert f"damaged: {texts / 'a.jsonl'}:302: it has no `messages` or `text`, columns found: txt" in out
    assert "2 of 30" in out


def test_data_that_is_not_there_is_the_persons_affair(home, texts, capsys):
    code, message = run(["data", "check", str(texts / "a.jsnl")], capsys)
    assert (code, message) == (2, f"{texts / 'a.jsnl'} does not exist")
    code, message = run(["data", "check", "starter"], capsys)
    assert (code, message) == (2, "starter is made during a run, not read from files")
    code, message = run(["data", "check"], capsys)
    assert (code, message) == (2, "DATA is missing after intone data")


def test_a_tokenizer_is_trained_looked_at_and_used(home, texts, chats, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    code, result = run(["tokenizer", "train", "--data", str(texts), "--vocab-size", "290", "--out", str(out)], capsys)
    assert (code, result["vocab_size"], result["folder"]) == (0, 290, str(out))

    code, result = run(["tokenizer", "inspect", "--from", str(out), "--text", "the cat <|bos|>"], capsys)
    assert "".join(token["text"] for token in result["tokens"]) == "the cat <|bos|>"
    assert max(token["id"] for token in result["tokens"]) < 290 - 9

    code, result = run(["tokenizer", "inspect", "--from", str(out), "--data", str(texts)], capsys)
    assert result["bytes_per_token"] == result["num_bytes"] / result["num_tokens"] > 1.5

    code, result = run(["data", "prepare", str(texts), "--tokenizer", str(out)], capsys)
    assert (code, result["kind"]) == (0, "documents")
    assert result["train"]["num_documents"] + result["validation"]["num_documents"] == 302
    assert (home / "text").is_dir()

    code, result = run(["data", "prepare", str(chats), "--tokenizer", str(out)], capsys)
    assert (code, result["kind"]) == (0, "conversations")


def test_a_tokenizer_without_a_folder_is_kept_under_the_home(home, texts, capsys):
    words = ["tokenizer", "train", "--data", str(texts), "--vocab-size", "280"]
    first, second = run(words, capsys)[1], run(words, capsys)[1]
    assert first == second
    assert first["folder"].startswith(str(home / "tokenizers"))


def test_starter_and_files_are_not_mixed(home, texts, capsys):
    code, message = run(["tokenizer", "train", "--data", "starter", str(texts)], capsys)
    assert (code, message) == (2, "starter cannot be mixed with files here")
