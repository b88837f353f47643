"""`intone data` and `intone tokenizer`, on small files."""

import json
import os
import subprocess
import sys
import time

import pytest

from intone import cli, planning
from intone.pipeline import claim
from tests.hub_stand_in import COMMIT, all_sets, serve
from tests.test_bad_input import FACTS

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
    assert (code, message) == (2, "DATA is missing after intone data check")


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
    train, validation = result["sets"]
    assert (train["part"], validation["part"]) == ("train", "validation")
    assert train["num_documents"] + validation["num_documents"] == 302
    assert (home / "text").is_dir()

    code, result = run(["data", "prepare", str(chats), "--tokenizer", str(out)], capsys)
    assert (code, result["kind"]) == (0, "conversations")


def test_a_tokenizer_without_a_folder_is_kept_under_the_home(home, texts, capsys):
    words = ["tokenizer", "train", "--data", str(texts), "--vocab-size", "280"]
    first, second = run(words, capsys)[1], run(words, capsys)[1]
    assert first == second
    assert first["folder"].startswith(str(home / "tokenizers"))


def test_starter_and_files_make_one_tokenizer_together(home, texts, monkeypatch, capsys):
    monkeypatch.setattr("intone.prepare.STARTER_SAMPLE", 50)
    words = ["tokenizer", "train", "--data", f"starter:1,{texts}:1", "--vocab-size", "280"]
    assert run(words, capsys)[0] == 0
    said = capsys.readouterr()
    assert cli.main([*words[:-1], "290"]) == 0
    assert "training a tokenizer of 290 entries" in capsys.readouterr().err, said


def test_token_sets_are_checked_to_the_last_byte(home, texts, tmp_path, capsys):
    out = str(tmp_path / "tokenizer")
    run(["tokenizer", "train", "--data", str(texts), "--vocab-size", "290", "--out", out], capsys)
    folder = run(["data", "prepare", str(texts), "--tokenizer", out], capsys)[1]["sets"][0]["folder"]
    assert cli.main(["data", "check", folder]) == 0
    assert capsys.readouterr().out == "1 token sets\nevery byte is as it was written\n"
    with open(f"{folder}/shard_00000.ids", "r+b") as file:
        file.write(b"\xff\xff")
    code, result = run(["data", "check", folder], capsys)
    assert (code, result["damaged_files"]) == (1, [f"{folder}/shard_00000.ids"])
    run(["data", "prepare", str(texts), "--tokenizer", out], capsys)
    assert run(["data", "check", folder], capsys)[0] == 0


# --- public sets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    with serve(all_sets()) as server:
        yield server


def command(words, home, hub):
    """(exit code, JSON line, stderr) of `intone WORDS --json` in a process of its own that knows our hub."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"INTONE_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "intone", *words.split(), "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_public_set_is_listed_fetched_checked_and_damage_is_found(home, hub):
    code, answer, _ = command("data list", home, hub.address)
    assert code == 0 and [entry["name"] for entry in answer["result"]["sets"]] == [
        "climbmix", "fineweb-edu", "tinystories", "smoltalk"
    ]  # fmt: skip
    code, answer, err = command("data check tinystories", home, hub.address)
    assert (code, answer["error"]["fix"]) == (2, "intone data fetch tinystories")

    code, answer, err = command("data fetch tinystories", home, hub.address)
    (entry,) = answer["result"]["sets"]
    assert (code, entry["num_files"], entry["num_fetched"], entry["commit"]) == (0, 2, 2, COMMIT)
    assert f"tinystories: asking {hub.address} for the files of roneneldan/TinyStories; licence: CDLA" in err
    assert "tinystories: fetching 2 files, " in err
    assert command("data fetch tinystories --all", home, hub.address)[1]["result"]["sets"][0]["num_fetched"] == 3

    nobody = "http://127.0.0.1:9"
    code, answer, _ = command("data check tinystories", home, nobody)
    assert (code, answer["result"]["num_documents"]) == (0, 4 * 300 + 60)
    listed = command("data list", home, nobody)[1]["result"]["sets"][2]
    assert listed["files_here"] == 5 and listed["bytes_here"] > 0

    (path,) = (home / "sets" / "tinystories").glob("train-00002*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, answer, _ = command("data check tinystories", home, nobody)
    assert (code, answer["result"]["damaged_files"]) == (1, [str(path)])
    assert command("data fetch tinystories --all", home, hub.address)[1]["result"]["sets"][0]["num_fetched"] == 1
    assert command("data check tinystories", home, nobody)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data fetch tinystores", "unknown public set 'tinystores'"),
        ("data fetch", "DATA is missing after intone data fetch"),
        ("data check x --all", "--all is for intone data fetch"),
        ("data check x --tokens 5", "--tokens is for intone data fetch and prepare"),
        ("data fetch smoltalk --all --tokens 5", "both --all and --tokens are given"),
        ("data list x", "intone data list takes no DATA"),
    ],
)
def test_what_cannot_be_fetched_is_said(home, capsys, words, message):
    assert run(words.split(), capsys) == (2, message)


SMALL = "--depth 1 --context 64 --vocab-size 300 --dtype fp32 --threads 1 --compile off --batch-tokens 256"


@pytest.mark.long
def test_a_run_on_public_sets_goes_from_nothing_to_a_chat(home, hub):
    """Text of a mixture, conversations of another set; what was fetched then serves without a network."""
    words = f"run {SMALL} --minutes 0.05 --data tinystories:7,climbmix:3 --sft smoltalk"
    code, answer, err = command(words, home, hub.address)
    assert (code, answer["outcome"]) == (0, "done"), err
    assert "the weights add up to 10, not to 1: tinystories 70%, climbmix 30% of the tokens" in err
    base = answer["result"]["stages"][0]["data"]
    assert [entry["set"].rsplit("-", 1)[0] for entry in base] == ["base-tinystories", "base-climbmix"]
    assert [entry["share"] for entry in base] == pytest.approx([0.7, 0.3])
    assert all(0 < entry["epochs"] < 100 for entry in base)

    code, answer, err = command("data prepare tinystories", home, "http://127.0.0.1:9")
    assert (code, answer["outcome"]) == (0, "done"), err
    assert "fetching" not in err


def test_a_run_on_a_public_set_without_a_network_leaves_no_run_behind(home, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for module in (planning, claim):
        monkeypatch.setattr(module, "load_facts", lambda: FACTS)
    assert cli.main(f"run {SMALL} --data tinystories --json".split()) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error["message"].startswith("cannot fetch roneneldan/TinyStories from http://127.0.0.1:9: ")
    assert error["fix"].startswith("check the network, or use a mirror: HF_ENDPOINT=https://...; --data starter")
    assert list((home / "runs").iterdir()) == []
