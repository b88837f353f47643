"""Streams of text: how much of it is read, and what is known about its size before."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intone.data.streams import SetPlan, Stream, ensure_set, plain_text, share_for, text_bytes
from intone.data.text import ReadReport
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import UserError

BYTES = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)


def put(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), sink, compression="zstd")
        path.write_bytes(sink.getvalue())
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_the_size_of_text_is_known_before_it_is_read(tmp_path: Path) -> None:
    texts = [f"{number} " + "some words of a text " * 20 for number in range(500)]
    size = sum(map(len, texts))
    assert text_bytes([put(tmp_path / "a.jsonl", texts)]) == pytest.approx(size, rel=0.05)
    assert text_bytes([put(tmp_path / "a.parquet", texts)]) == pytest.approx(size, rel=0.05)
    packed = put(tmp_path / "a.jsonl.gz", texts)
    assert text_bytes([packed]) == 4 * packed.stat().st_size, "a guess"
    (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
    assert text_bytes([tmp_path / "b.parquet"]) == 17


@pytest.mark.parametrize(
    ("wanted", "share"), [(10**9, 1.0), (99_999, 1.0), (50_000, 0.5), (49_999, 0.5), (24_999, 0.25)]
)
def test_a_share_is_the_smallest_power_of_a_half_that_is_enough(tmp_path: Path, wanted: int, share: float) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100_000)
    assert share_for([tmp_path / "a.txt"], wanted) == share


def test_a_limit_of_bytes_ends_with_the_document_that_reaches_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", ["0123456789"] * 20)
    assert len(list(Stream((path,), max_bytes=31).documents("documents", ReadReport()))) == 4
    assert len(list(Stream((path,)).documents("documents", ReadReport()))) == 20


def test_streams_of_one_set_follow_each_other(tmp_path: Path, home: Path) -> None:
    one, two = put(tmp_path / "a.jsonl", ["one"] * 3), put(tmp_path / "b.jsonl", ["two"] * 3)
    plan = SetPlan("both", "documents", (Stream((two,), max_bytes=4), Stream((one,))), tmp_path)
    made, reason = ensure_set(plan, BYTES)
    assert reason == "made for the first time" and made.folder.parent == home / "text"
    assert [BYTES.decode(made.tokens(number)[1:].tolist()) for number in range(5)] == [
        "two",
        "two",
        "one",
        "one",
        "one",
    ]
    assert ensure_set(plan, BYTES)[1] == "reused"


def test_a_set_whose_text_vanished_is_the_persons_affair(tmp_path: Path, home: Path) -> None:
    path = put(tmp_path / "a.jsonl", ["one"] * 3)
    plan = SetPlan("base", "documents", (Stream((path,)),), tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path}: No such file or directory"):
        ensure_set(plan, BYTES)


def test_a_text_is_its_own_plain_text() -> None:
    assert plain_text("as it is") == "as it is"
