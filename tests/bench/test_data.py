"""The measurement of the data path: rows with intervals, on a small scale."""

import contextlib
import json

import pytest

from intone.bench import data
from intone.paths import read_lines


@pytest.fixture
def small(home, tmp_path, monkeypatch):
    """A text, conversations, and everything that makes the real measurement long turned down."""
    rows = [{"text": f"Ship {n} sails past island {n * 7 % 31} to the north. " * 9} for n in range(90)]
    talk = [
        {"messages": [{"role": "user", "content": f"Where is ship {n}?"}, {"role": "assistant", "content": "At sea."}]}
        for n in range(90)
    ]
    for name, content in (("text", rows), ("talk", talk)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    changes = {
        "VOCAB": 300, "REPEATS": 5, "ENCODE_BYTES": 100_000, "CONTEXT": 64, "ROWS_PER_STEP": 8, "LOADER_TOKENS": 40_960
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(data, "limit_cores", lambda: None)
    monkeypatch.setattr(data, "load_facts", lambda: type("Facts", (), {"folder": home}))
    monkeypatch.setattr(data, "quiet", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr("intone.bench.rows.load_facts", lambda: object(), raising=True)
    monkeypatch.setattr("intone.bench.rows.FACTS", ())
    return tmp_path


def test_both_rates_are_measured_with_their_intervals_and_nothing_is_left(small, home, capsys):
    out = small / "rows.jsonl"
    words = ["--data", str(small / "text.jsonl"), "--sft", str(small / "talk.jsonl"), "--out", str(out)]
    assert data.main(words) == 0
    rows = read_lines(out)
    assert [row["id"] for row in rows] == ["cpu.data.encode_mb_per_s", "cpu.data.loader_tokens_per_s"]
    assert [(row["n"], row["unit"]) for row in rows] == [(5, "MB/s"), (5, "tokens/s")]
    assert all(0 < row["low"] <= row["value"] <= row["high"] for row in rows)
    assert rows[0]["command"] == "python -m intone.bench.data --data text.jsonl --sft talk.jsonl"
    assert capsys.readouterr().out.count("n=5") == 2
    assert list(home.glob("bench-*")) == []


def test_growth_is_counted_from_the_settled_memory_on(small, monkeypatch, capsys):
    monkeypatch.setattr(data, "SETTLED_MB", 2)
    monkeypatch.setattr(data, "SAMPLE_EVERY_MB", 0.5)
    out = small / "rows.jsonl"
    assert data.main(["--gigabyte", str(small / "text.jsonl"), "--megabytes", "7", "--out", str(out)]) == 0
    (row,) = read_lines(out)
    assert (row["id"], row["unit"]) == ("cpu.data.tokenise_growth_mib", "MiB")
    assert row["low"] <= row["value"] == row["high"] < 100 and row["n"] >= 3
    assert "slope " in capsys.readouterr().err
    assert data.main(["--gigabyte", str(small / "text.jsonl"), "--megabytes", "1", "--out", str(out)]) == 2


def test_memory_that_grows_is_seen(monkeypatch):
    memory = iter([100, 130, 180])
    monkeypatch.setattr(data, "process_tree", lambda pid: [pid])
    monkeypatch.setattr(data, "resident", lambda pid: next(memory))
    monkeypatch.setattr(data, "proportional_bytes", lambda pid: 0)
    samples: list[data.Sample] = []
    note = data.sampler(samples)
    for megabytes in (1, 5, 11, 12, 30):
        note(0, megabytes * 10**6)
    assert [(sample.megabytes, sample.rss_bytes) for sample in samples] == [(1, 100), (11, 130), (30, 180)]
