"""Reading text: every format gives the same documents, and nothing that is wrong passes unsaid."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intone.data import text as text_module
from intone.data.chat import Message
from intone.data.text import (
    Document,
    Kind,
    ReadReport,
    is_validation,
    read_documents,
    read_part,
    split_rule,
)
from intone.errors import Damaged, UserError

DATA = os.environ.get("INTONE_TEST_DATA")
DOCUMENTS = ["one", "größer 我👍\nsecond line", "", "three\u2028still three"]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return bytes(sink.getvalue())


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(*paths: Path, kind: Kind | None = None) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    return list(read_documents(paths, report, kind=kind)), report


def put(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "a.MD"])
def test_every_format_gives_the_documents_compressed_or_not(tmp_path: Path, name: str, compression: str) -> None:
    contents = {
        "a.jsonl": jsonl([{"text": text, "id": 5} for text in DOCUMENTS]),
        "a.parquet": parquet({"id": range(4), "text": DOCUMENTS}),
        "a.txt": DOCUMENTS[1].encode(),
        "a.MD": DOCUMENTS[1].encode(),
    }
    documents, report = read(put(tmp_path, name + compression, COMPRESSORS[compression](contents[name])))
    assert documents == (DOCUMENTS if name in ("a.jsonl", "a.parquet") else [DOCUMENTS[1]])
    assert report.summary() is None and report.num_rows == len(documents)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_files_put_behind_each_other_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    parts = [COMPRESSORS[compression](jsonl([{"text": text}])) for text in ("one", "two")]
    assert read(put(tmp_path, f"a.jsonl{compression}", b"".join(parts)))[0] == ["one", "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_with_messages_are_conversations(tmp_path: Path, name: str) -> None:
    chat = [Message("user", "Hi"), Message("assistant", "Hello")]
    content = jsonl([{"messages": CHAT}] * 2) if name == "a.jsonl" else parquet({"messages": [CHAT] * 2})
    assert read(put(tmp_path, name, content))[0] == [chat] * 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_kind_decides_where_a_row_has_both_columns(tmp_path: Path, name: str) -> None:
    both = {"text": "as text", "messages": CHAT}
    path = put(tmp_path, name, jsonl([both]) if name == "a.jsonl" else parquet({key: [v] for key, v in both.items()}))
    assert read(path, kind="documents")[0] == ["as text"]
    assert isinstance(read(path, kind="conversations")[0][0], list)
    assert isinstance(read(path)[0][0], list)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    text = DOCUMENTS[1]
    content = text if name == "a.txt" else json.dumps({"text": text}, ensure_ascii=False) + "\n"
    assert read(put(tmp_path, name, content.encode(encoding)))[0] == [text]


def test_big_endian_utf16_is_read(tmp_path: Path) -> None:
    assert read(put(tmp_path, "a.txt", b"\xfe\xff" + "größer".encode("utf-16-be")))[0] == ["größer"]


def test_a_large_text_file_becomes_pieces_that_end_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "words " * (number % 300) + "\n\n" for number in range(999)]
    text = "".join(paragraphs)
    pieces = read(put(tmp_path, "book.txt", text))[0]
    assert "".join(str(piece) for piece in pieces) == text
    assert len(pieces) > 20 and all(str(piece).endswith("\n\n") for piece in pieces)
    assert all(16_384 <= len(str(piece)) < 20_000 for piece in pieces[:-1])


@pytest.mark.parametrize("unit", ["no blank lines here\n", "onlywords ", "ä", "我"])
def test_a_large_text_without_blank_lines_is_cut_between_characters(tmp_path: Path, unit: str) -> None:
    text = unit * (3_000_000 // len(unit.encode()))
    pieces, report = read(put(tmp_path, "book.txt", text))
    assert "".join(str(piece) for piece in pieces) == text and report.num_damaged == 0
    assert all(len(str(piece).encode()) <= 1 << 20 + 1 for piece in pieces)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_text_file_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp(), "any.txt", content)
    try:
        documents, _ = read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(documents) == 1


def test_memory_stays_flat_while_reading(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl.gz", gzip.compress(jsonl([{"text": "some words " * 100}]) * 20_000, 1))
    tracemalloc.start()
    num_documents = sum(1 for _ in read_documents([path], ReadReport()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_documents == 20_000 and peak < 2e6


# --- damage -----------------------------------------------------------------------------------------------------

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "json": (b'{"text": "torn', "it is not valid JSON"),
    "utf-8": (b'{"text": "\xe9t\xe9"}', "it is not valid UTF-8"),
    "null": (b'{"text": null}', "`text` is null, not a string"),
    "number": (b'{"text": 12}', "`text` is a number, not a string"),
    "list": (b'["text"]', "it is a list, not an object"),
    "columns": (b'{"content": "x", "title": "y"}', "it has no `messages` or `text`, columns found: content, title"),
    "no columns": (b"{}", "it has no `messages` or `text`, columns found: none"),
    "roles": (b'{"messages": [{"role": "bot", "content": "x"}]}', "`messages`: unknown role 'bot'"),
    "messages": (b'{"messages": "hi"}', "`messages`: messages must be a non-empty list"),
    "null messages": (b'{"messages": null}', "`messages` is null"),
    "deep": (b"[" * 100_000, "it is not valid JSON"),
    "long number": (b'{"text": ' + b"9" * 10_000 + b"}", "it is not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_damaged_line_is_left_out_counted_and_named(tmp_path: Path, name: str) -> None:
    line, reason = BAD_LINES[name]
    path = put(tmp_path, "a.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}')
    documents, report = read(path)
    assert documents == ["a", "b"]
    assert report.as_json() == {
        "num_rows": 3,
        "num_damaged": 1,
        "num_empty_files": 0,
        "reasons": {reason: 1},
        "first": [f"{path}:3: {reason}"],
    }
    assert report.summary() == f"1 of 3 rows are damaged and were left out, the first: {path}:3: {reason}"


def test_only_the_first_damaged_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "fine"}] * 30 + [{"text": number} for number in range(7)]
    report = read(put(tmp_path, "a.jsonl", jsonl(rows)))[1]
    assert report.num_damaged == 7 and len(report.first) == 5 and report.reasons.total() == 7


@pytest.mark.parametrize("name", ["columns", "roles", "json"])
def test_a_mostly_damaged_file_is_refused_with_count_and_reason(tmp_path: Path, name: str) -> None:
    line, reason = BAD_LINES[name]
    path = put(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b"\n" + line + b"\n")
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"2 of 3 rows of {path} cannot be used, mostly: {reason}" in str(caught.value)
    assert caught.value.fix and caught.value.value == reason


@pytest.mark.parametrize(
    ("good", "bad", "is_read"), [(181, 20, True), (179, 21, False), (11, 10, True), (9, 10, False)]
)
def test_more_than_a_tenth_of_damaged_rows_ends_the_reading(tmp_path: Path, good: int, bad: int, is_read: bool) -> None:
    path = put(tmp_path, "a.jsonl", jsonl([{"text": "fine"}] * good + [{"text": None}] * bad))
    if is_read:
        documents, report = read(path)
        assert (len(documents), report.num_damaged) == (good, bad)
        return
    with pytest.raises(UserError, match=f"{bad} of {good + bad} rows of {path} cannot be used"):
        read(path)


def test_a_share_of_damage_over_all_files_ends_the_reading_too(tmp_path: Path) -> None:
    rows = [{"text": "fine"}] * 11 + [{"text": None}] * 10
    paths = [put(tmp_path, f"{number}.jsonl", jsonl(rows)) for number in range(3)]
    assert read(paths[0])[1].num_damaged == 10
    with pytest.raises(UserError, match=f"30 of 63 rows of {paths[0]}, "):
        read(*paths)


@pytest.mark.parametrize("share", [0.5, 0.125])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet", "b.parquet", "a.txt"])
def test_a_share_of_a_file_is_about_that_part_of_it_and_always_the_same(
    tmp_path: Path, name: str, share: float
) -> None:
    noise = Random(3)
    texts = [f"text number {number}\n\n{noise.randbytes(600).hex()}" for number in range(4000)]
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts}), sink, row_group_size=50 if name[0] == "a" else 4000)
        content = bytes(sink.getvalue())
    else:
        content = "\n\n".join(texts).encode() if name == "a.txt" else jsonl([{"text": text} for text in texts])
    path = put(tmp_path, name, zstd(content) if name.endswith("zst") else content)
    reports = [ReadReport(), ReadReport()]
    first, second = (list(read_documents([path], report, share=share)) for report in reports)
    assert first == second
    whole = sum(map(len, map(str, read_documents([path], ReadReport()))))
    taken = sum(map(len, map(str, first))) / whole
    assert share - 0.01 <= taken <= share + (0.15 if name.endswith("zst") else 0.06), "decoders read ahead"
    assert reports[0].file_bytes == pytest.approx(share * path.stat().st_size, abs=1)
    if name == "a.parquet":
        assert texts.index(str(first[-1])) > 3000, "row groups from all over the file"


def test_of_a_small_compressed_file_any_share_is_all_of_it(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl.gz", gzip.compress(jsonl([{"text": "some words"}] * 4000)))
    assert len(list(read_documents([path], ReadReport(), share=0.125))) == 4000


def test_rows_of_a_share_are_named_by_their_place_in_the_whole_file(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    texts = [None if number == 3205 else "fine" for number in range(4000)]
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=50)
    path = put(tmp_path, "a.parquet", bytes(sink.getvalue()))
    report = ReadReport()
    assert len(list(read_documents([path], report, share=0.25))) == 999
    assert report.first == [f"{path}:3206: `text` is null, not a string"]


def test_a_hopeless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1,000 of 1,000 rows"):
        read(put(tmp_path, "a.jsonl", jsonl([{"content": "x"}] * 5000)))


def test_a_parquet_file_without_the_columns_is_refused_with_the_names_found(tmp_path: Path) -> None:
    path = put(tmp_path, "a.parquet", parquet({"content": ["x"] * 7, "url": ["y"] * 7}))
    with pytest.raises(
        UserError, match="all 7 rows of .* lack a column `text` or `messages`, columns found: content, url"
    ):
        read(path)


def test_damaged_parquet_rows_are_left_out(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe bad", b"fine", b"more"], pa.binary()).view(pa.string())
    documents, report = read(put(tmp_path, "a.parquet", parquet({"text": bad})))
    assert documents == ["good", "fine", "more"]
    assert report.reasons == {"it is not valid UTF-8": 1} and ":2: " in report.first[0]
    documents, report = read(put(tmp_path, "b.parquet", parquet({"text": ["x", None, "y"]})))
    assert documents == ["x", "y"] and report.reasons == {"`text` is null, not a string": 1}
    path = put(tmp_path, "c.parquet", parquet({"text": [1, 2]}))
    with pytest.raises(UserError, match="2 of 2 rows .* `text` is a number"):
        read(path)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz", ".parquet"])
def test_a_truncated_file_is_named(tmp_path: Path, compression: str) -> None:
    if compression == ".parquet":
        content, name = parquet({"text": DOCUMENTS}), "a.parquet"
    else:
        lines = jsonl([{"text": os.urandom(100).hex()} for _ in range(1000)])
        content, name = COMPRESSORS[compression](lines), f"a.jsonl{compression}"
    for path in (put(tmp_path, name, content[: len(content) * 2 // 3]), put(tmp_path, name, b"nonsense" * 9)):
        with pytest.raises(Damaged, match="is damaged") as caught:
            read(path)
        assert str(path) in str(caught.value) and caught.value.fix


def test_a_latin1_or_binary_text_file_is_damaged(tmp_path: Path) -> None:
    good = [put(tmp_path, f"good{number}.txt", "text") for number in range(3)]
    bad = [put(tmp_path, "latin.txt", "größer".encode("latin1")), put(tmp_path, "zero.txt", "ab".encode("utf-16-le"))]
    documents, report = read(*good, *bad)
    assert documents == ["text"] * 3 and report.num_damaged == 2
    with pytest.raises(UserError, match="1 of 1 rows of .*latin.txt cannot be used: it is not valid UTF-8"):
        read(bad[0])


def test_empty_files_are_counted_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    empty = [put(tmp_path, name, b"") for name in ("a.txt", "b.jsonl", "c.parquet", "d.txt.gz")]
    documents, report = read(*empty, put(tmp_path, "e.txt", "text"))
    assert documents == ["text"] and report.num_empty_files == 4 and report.summary() == "4 files are empty"
    with pytest.raises(UserError, match="there is no text in .* and 1 more files"):
        read(*empty)
    with pytest.raises(UserError, match="there is no text"):
        read(put(tmp_path, "f.jsonl", b"\n \n"))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a.txt"
    folder.mkdir()
    (folder / "x").touch()
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Is a directory"):
        read(folder)


# --- splitting --------------------------------------------------------------------------------------------------


def test_one_percent_of_the_documents_is_validation_by_content(tmp_path: Path) -> None:
    texts = [f"document number {number}" for number in range(5000)]
    path = put(tmp_path, "a.jsonl", jsonl([{"text": text} for text in texts]))
    train, validation = (list(read_part([path], part, ReadReport())) for part in ("train", "validation"))
    assert sorted([*train, *validation], key=str) == sorted(texts)
    assert 25 < len(validation) < 80
    assert validation == [text for text in texts if is_validation(text)], "whatever else is in the file"


@pytest.mark.parametrize("count", [2, 3, 50])
def test_few_documents_still_give_both_sides_something(tmp_path: Path, count: int) -> None:
    path = put(tmp_path, "a.jsonl", jsonl([{"text": f"text {number}"} for number in range(count)]))
    train, validation = (list(read_part([path], part, ReadReport())) for part in ("train", "validation"))
    assert len(train) + len(validation) == count and train and validation


def test_equal_documents_are_on_one_side_and_one_alone_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", jsonl([{"text": "same"}] * 9))
    assert len(list(read_part([path], "train", ReadReport()))) == 9
    with pytest.raises(UserError, match="only one document: nothing is left for validation"):
        list(read_part([path], "validation", ReadReport()))


def test_documents_that_all_hash_to_validation_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "VALIDATION_SHARE", 1.0)
    rule = split_rule(["a", "b", "c"])
    assert sorted(rule(text) for text in "abc") == [False, False, True]


def test_conversations_are_split_by_their_content() -> None:
    chats: list[Document] = [[Message("user", str(number)), Message("assistant", "ok")] for number in range(2000)]
    assert 5 < sum(is_validation(chat) for chat in chats) < 50


def test_half_a_surrogate_pair_in_a_json_string_is_no_obstacle(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "half \\ud83d"}\n{"text": "whole"}\n')
    found = [list(read_part([path], part, ReadReport())) for part in ("train", "validation")]
    assert sorted(map(str, found[0] + found[1])) == ["half \ud83d", "whole"]


def test_a_split_does_not_depend_on_the_process(tmp_path: Path) -> None:
    code = "from intone.data.text import *; print([n for n in range(2000) if is_validation([Message('user', str(n))])])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 10


@pytest.mark.skipif(not DATA, reason="INTONE_TEST_DATA is not set: no real files")
def test_real_files_are_read() -> None:
    folder = Path(str(DATA))
    documents, report = read(folder / "pretrain" / "val.parquet", kind="documents")
    assert len(documents) == 391 and report.summary() is None
    documents, report = read(folder / "sft" / "val.jsonl", kind="conversations")
    assert len(documents) == 738 and report.summary() is None
    with pytest.raises(UserError, match="of 300 rows .* unknown role 'function_call'"):
        read(folder / "sft" / "toolcalls_glaive300.jsonl")
