"""The named public sets: the right files, no more than a run needs, and what is on disk serves without a network."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub_stand_in import COMMIT, Fault, Hub, all_sets, serve

from intone.data import sources
from intone.data.hub import Unreachable, partial_path
from intone.data.sources import (
    PUBLIC_SETS,
    PublicSet,
    damaged_files,
    fetch,
    known_listing,
    set_folder,
)
from intone.data.text import ReadReport, read_documents
from intone.errors import DiskFull, UserError
from intone.paths import FolderLock

TINY = PUBLIC_SETS["tinystories"]
CLIMB = PUBLIC_SETS["climbmix"]


@pytest.fixture
def stand_in(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with small copies of the public sets, and an INTONE_HOME of this test alone."""
    from huggingface_hub import constants

    with serve(all_sets()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield server


def text_in(stand_in: Hub, public: PublicSet, num_files: int) -> int:
    """So many bytes of text that this number of training files is needed for it."""
    listing = known_listing(public)
    assert listing is not None
    return round(sources.TEXT_PER_BYTE * sum(file.size for file in listing.train[:num_files]))


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_every_public_set_gives_rows_of_its_kind_and_validation_apart(stand_in: Hub, name: str) -> None:
    public = PUBLIC_SETS[name]
    found = fetch(public, 0)
    assert len(found.train) == len(found.validation) == 1 and found.commit == COMMIT and found.num_fetched == 2
    documents = [
        list(read_documents(paths, ReadReport(), kind=public.kind)) for paths in (found.train, found.validation)
    ]
    assert all(documents)
    seen = {str(document) for document in documents[0]} & {str(document) for document in documents[1]}
    assert seen == set()


def test_the_last_shard_is_validation_where_the_set_has_no_file_for_it(stand_in: Hub) -> None:
    found = fetch(CLIMB, None)
    assert [path.name for path in found.train] == [f"shard_{n:05d}.parquet" for n in range(4)]
    assert [path.name for path in found.validation] == ["shard_00004.parquet"]


def test_only_as_many_files_come_as_the_text_is_wanted(stand_in: Hub) -> None:
    assert len(fetch(TINY, 0).train) == 1
    for count in (2, 3):
        found = fetch(TINY, text_in(stand_in, TINY, count))
        assert (len(found.train), found.num_fetched) == (count, 1)
    assert len(fetch(TINY, 10**12).train) == 4
    asked = [path for path, _ in stand_in.asked if path.startswith("/cdn/")]
    assert len(asked) == len(set(asked)) == 5, "no file came twice"


def test_a_shorter_run_takes_the_same_first_files_although_more_are_here(stand_in: Hub) -> None:
    first = fetch(TINY, 0).train
    fetch(TINY, None)
    assert fetch(TINY, 0).train == first


def test_what_is_here_is_used_without_asking_anybody(stand_in: Hub) -> None:
    before = fetch(TINY, 0)
    asked = len(stand_in.asked)
    after = fetch(TINY, 0)
    assert (after.train, after.num_fetched, len(stand_in.asked)) == (before.train, 0, asked)


def test_without_a_network_less_than_was_wanted_will_do_and_it_is_said(
    stand_in: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fetch(TINY, 0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    assert fetch(TINY, None).train == before.train
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tinystories: cannot fetch roneneldan/TinyStories from http://127.0.0.1:9: ")
    assert said.endswith("; going on with 2 of 5 files that are here")
    with pytest.raises(Unreachable, match="cannot fetch karpathy/climbmix-400b-shuffle"):
        fetch(CLIMB, 0)


def test_a_refusal_is_not_taken_for_a_missing_network(stand_in: Hub) -> None:
    fetch(TINY, 0)
    stand_in.break_next("train-00001-of-00004-2d5a1467fff1081b.parquet", Fault("status", status=403))
    with pytest.raises(UserError, match="does not let us read"):
        fetch(TINY, None)


def test_the_commit_that_was_first_seen_is_kept(stand_in: Hub) -> None:
    fetch(TINY, 0)
    newer = stand_in.files[TINY.repo]
    newer["data/train-00000-of-00009-new.parquet"] = b"of another commit"
    found = fetch(TINY, None)
    assert len(found.train) == 4 and "new" not in str(found.train)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "repo": "x/y"}'])
def test_a_damaged_listing_is_asked_for_again(stand_in: Hub, content: str) -> None:
    before = fetch(TINY, 0)
    (set_folder(TINY) / "listing.json").write_text(content)
    after = fetch(TINY, 0)
    assert after.train == before.train and after.num_fetched == 0


@pytest.mark.parametrize("damage", ["cut", "byte", "gone"])
def test_a_file_that_was_damaged_on_this_disk_comes_again(stand_in: Hub, damage: str) -> None:
    path = fetch(TINY, 0).train[0]
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] if damage == "cut" else content[:-9] + b"somewhere")
    assert damaged_files(TINY) == ((1, []) if damage == "gone" else (2, [path]))
    assert fetch(TINY, 0).num_fetched == 1
    assert path.read_bytes() == content and damaged_files(TINY) == (2, [])


def test_what_will_not_fit_on_the_disk_is_said_before_it_is_fetched(
    stand_in: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 9000}))
    with pytest.raises(DiskFull) as caught:
        fetch(TINY, 0)
    assert "of tinystories and the tokens made of them need" in caught.value.message
    assert caught.value.message.endswith(f"on the disk of {home}, 0.00858 MiB are free")
    assert not [path for path, _ in stand_in.asked if path.startswith("/cdn/")]


def test_what_a_cut_left_counts_as_fetched(stand_in: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(TINY, 0).train[0]
    content = path.read_bytes()
    path.unlink()
    partial_path(path).write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    fetch(TINY, 0)
    assert "of them are here already" in capsys.readouterr().err
    assert stand_in.asked[-1][1] == f"bytes={len(content) // 2}-"


def test_a_set_without_its_files_at_a_mirror_is_refused(stand_in: Hub) -> None:
    stand_in.files[TINY.repo] = {"data/README.md": b"nothing else"}
    with pytest.raises(UserError, match=r"roneneldan/TinyStories at http.* has no files train-\*\.parquet"):
        fetch(TINY, 0)


def test_a_second_process_waits_and_takes_what_the_first_fetched(stand_in: Hub) -> None:
    fetch(TINY, 0)
    asked = len(stand_in.asked)
    code = "from intone.data.sources import *; print(fetch(PUBLIC_SETS['tinystories'], 0).num_fetched)"
    with FolderLock(set_folder(TINY) / "lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert other.stderr is not None
        assert other.stderr.readline() == "waiting for another process that is at work on the set tinystories\n"
    assert other.communicate()[0] == "0\n"
    assert len(stand_in.asked) == asked


def test_the_listing_on_disk_names_the_commit_and_every_checksum(stand_in: Hub) -> None:
    fetch(TINY, 0)
    listing = json.loads((set_folder(TINY) / "listing.json").read_text())
    assert (listing["repo"], listing["commit"], len(listing["files"])) == (TINY.repo, COMMIT, 5)
    assert all(len(file["sha256"]) == 64 and file["size"] > 0 for file in listing["files"])
