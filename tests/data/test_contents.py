"""Hashes of files: right whatever happens to the files and the clock, and cheap while nothing happens."""

import os
import time
from pathlib import Path

import pytest

from intone.data import contents
from intone.data.contents import KnownHashes
from intone.errors import UserError
from intone.paths import file_sha256

OLD_NS = 1_600_000_000 * 10**9


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to hash them."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(contents, "file_sha256", counted)
    return names


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock an hour ahead: files of this test look as if they had been left alone for that long."""
    now = time.time_ns
    monkeypatch.setattr(contents.time, "time_ns", lambda: now() + 3600 * 10**9)


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str], settled: None) -> None:
    paths = [put(tmp_path / "a", "one"), put(tmp_path / "b", "two")]
    known = KnownHashes(tmp_path / "known.json")
    assert known.of(paths) == [file_sha256(path) for path in paths]
    assert KnownHashes(tmp_path / "known.json").of(paths) == known.of(paths)
    assert sorted(reads) == ["a", "b"]


def test_a_changed_file_is_read_again_with_its_size_and_time_set_back(tmp_path: Path, settled: None) -> None:
    path = put(tmp_path / "a", "one")
    known = KnownHashes(tmp_path / "known.json")
    before, state = known.of([path]), path.stat()
    put(path, "eno")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert known.of([path]) == [file_sha256(path)] != before


def test_a_file_that_changed_just_now_is_not_trusted_the_next_time(tmp_path: Path, reads: list[str]) -> None:
    path = put(tmp_path / "a", "one")
    known = KnownHashes(tmp_path / "known.json")
    known.of([path])
    known.of([path])
    assert reads == ["a", "a"]


def test_a_time_in_the_future_costs_another_reading_and_never_a_wrong_hash(
    tmp_path: Path, reads: list[str], settled: None
) -> None:
    path = put(tmp_path / "a", "one")
    future_ns = time.time_ns() + 10 * 365 * 86_400 * 10**9
    os.utime(path, ns=(future_ns, future_ns))
    known = KnownHashes(tmp_path / "known.json")
    assert known.of([path]) == known.of([path]) == [file_sha256(path)]
    assert reads == ["a", "a"]
    put(path, "eno")
    os.utime(path, ns=(future_ns, future_ns))
    assert known.of([path]) == [file_sha256(path)]


def test_what_was_just_written_by_us_need_not_be_read(tmp_path: Path, reads: list[str]) -> None:
    path = put(tmp_path / "a", "one")
    known = KnownHashes(tmp_path / "known.json")
    known.note({path: "its hash"})
    assert known.of([path]) == ["its hash"] and reads == []
    put(path, "two")
    assert known.of([path]) == [file_sha256(path)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 9, "files": {}}', '{"format": 1, "files": {"A": 3}}'])
def test_a_damaged_memory_costs_another_reading(tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "a", "one")
    put(tmp_path / "known.json", content.replace("A", str(path)))
    assert KnownHashes(tmp_path / "known.json").of([path]) == [file_sha256(path)]


def test_files_that_are_gone_are_forgotten_and_cannot_be_hashed(tmp_path: Path, settled: None) -> None:
    paths = [put(tmp_path / name, name) for name in "ab"]
    known = KnownHashes(tmp_path / "known.json")
    known.of(paths)
    paths[0].unlink()
    known.note({paths[1]: "new"})
    assert str(paths[0]) not in (tmp_path / "known.json").read_text()
    with pytest.raises(UserError, match=f"cannot read {paths[0]}: No such file"):
        known.of(paths)
