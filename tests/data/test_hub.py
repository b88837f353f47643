"""Fetching from a hub that drops, stalls, lies and refuses: each ends in one defined way, and nothing is lost."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub_stand_in import COMMIT, Fault, Hub, serve

from intone.data import hub
from intone.data.hub import RemoteFile, Unreachable, download, list_repository, partial_path
from intone.data.progress import Progress
from intone.errors import Damaged, DiskFull, UserError

REPO = "somebody/words"
NAME = "train.parquet"
CONTENT = bytes(range(256)) * 777
FILES = {REPO: {NAME: CONTENT, "notes.txt": b"small, and not in large file storage", "more.parquet": CONTENT[::-1]}}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that is ours, waits that take no time, and time limits that suit a machine of our own."""
    from huggingface_hub import constants

    with serve({repo: dict(files) for repo, files in FILES.items()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
        monkeypatch.setattr(hub, "CHUNK_BYTES", 1000)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield server


def remote(name: str = NAME) -> RemoteFile:
    return next(file for file in list_repository(REPO, None)[1] if file.path == name)


def fetch(place: Path, *files: RemoteFile) -> Progress:
    """Brings files beside place -> how many bytes were counted."""
    progress = Progress("words", sum(file.size for file in files))
    download(REPO, COMMIT, [(file, place.with_name(file.path)) for file in files], progress)
    return progress


def test_a_listing_has_sizes_and_checksums_over_all_its_pages(stand_in: Hub) -> None:
    stand_in.files[REPO].update({f"part{n}.parquet": b"x" * n for n in range(7)})
    commit, files = list_repository(REPO, None)
    assert commit == COMMIT
    assert {file.path: file.size for file in files} == {n: len(c) for n, c in stand_in.files[REPO].items()}
    assert remote().sha256 and remote("notes.txt").sha256 is None


def test_files_come_whole_and_checked_whatever_their_kind(stand_in: Hub, tmp_path: Path) -> None:
    files = list_repository(REPO, None)[1]
    progress = fetch(tmp_path / "x", *files)
    for name, content in FILES[REPO].items():
        assert (tmp_path / name).read_bytes() == content
    assert progress.done_bytes == sum(map(len, FILES[REPO].values()))
    assert not list(tmp_path.glob("*.part"))


def test_a_connection_that_drops_goes_on_where_it_was(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.break_next(NAME, Fault("drop", at=50_000), Fault("drop", at=70_000), Fault("drop"))
    progress = fetch(tmp_path / NAME, remote())
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert stand_in.ranges(NAME) == [None, "bytes=50000-", "bytes=120000-", "bytes=120000-"]
    assert progress.done_bytes == len(CONTENT)


def test_a_server_that_stops_sending_is_asked_again_for_the_rest(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.break_next(NAME, Fault("stall", at=60_000))
    fetch(tmp_path / NAME, remote())
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert stand_in.ranges(NAME) == [None, "bytes=60000-"]


def test_a_download_that_was_cut_goes_on_in_the_next_process(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.break_next(NAME, Fault("drop", at=50_000), Fault("status", status=403))
    with pytest.raises(UserError, match="does not let us read"):
        fetch(tmp_path / NAME, remote())
    part = partial_path(tmp_path / NAME)
    assert part.read_bytes() == CONTENT[:50_000] and not (tmp_path / NAME).exists()
    fetch(tmp_path / NAME, remote())
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert stand_in.ranges(NAME)[-1] == "bytes=50000-"


def test_a_download_that_was_whole_but_not_yet_in_its_place_needs_no_network(stand_in: Hub, tmp_path: Path) -> None:
    file = remote()
    partial_path(tmp_path / NAME).write_bytes(CONTENT)
    fetch(tmp_path / NAME, file)
    assert (tmp_path / NAME).read_bytes() == CONTENT and stand_in.ranges(NAME) == []


def test_a_server_that_ignores_ranges_does_not_spoil_the_file(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.break_next(NAME, Fault("drop", at=50_000), Fault("whole"))
    progress = fetch(tmp_path / NAME, remote())
    assert (tmp_path / NAME).read_bytes() == CONTENT and progress.done_bytes == len(CONTENT)


@pytest.mark.parametrize("left", [b"x" * 999, CONTENT + b"too much"], ids=["other bytes", "too long"])
def test_a_part_that_belongs_to_another_file_is_thrown_away(stand_in: Hub, tmp_path: Path, left: bytes) -> None:
    file = remote()
    partial_path(tmp_path / NAME).write_bytes(left)
    fetch(tmp_path / NAME, file)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("name", [NAME, "notes.txt"])
def test_a_file_with_a_wrong_byte_is_fetched_again(stand_in: Hub, tmp_path: Path, name: str) -> None:
    stand_in.break_next(name, Fault("corrupt", at=7))
    fetch(tmp_path / name, remote(name))
    assert (tmp_path / name).read_bytes() == FILES[REPO][name]
    assert stand_in.ranges(name) == [None, None]


def test_a_file_that_is_wrong_twice_is_named_and_not_kept(stand_in: Hub, tmp_path: Path) -> None:
    stand_in.break_next(NAME, Fault("corrupt", at=7), Fault("corrupt", at=8))
    with pytest.raises(Damaged) as caught:
        fetch(tmp_path / NAME, remote())
    assert caught.value.message == f"{NAME} of {REPO} came twice with other bytes than its checksum says"
    assert stand_in.address in str(caught.value.fix)
    assert list(tmp_path.glob(f"{NAME}*")) == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_is_busy_for_a_while_is_asked_again(stand_in: Hub, tmp_path: Path, status: int) -> None:
    fault = Fault("status", status=status, headers=(("Retry-After", "3"),))
    stand_in.break_next("listing", fault)
    stand_in.break_next(NAME, fault, fault)
    fetch(tmp_path / NAME, remote())
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "kind", "message", "fix"),
    [
        (500, Unreachable, "HUB fails with status 500", "what has come is kept; or use a mirror: HF_ENDPOINT="),
        (503, Unreachable, "HUB fails with status 503", "give the command again later"),
        (429, Unreachable, "HUB asks us to come back later (status 429)", "a login (HF_TOKEN=...) raises the limit"),
        (401, UserError, f"HUB does not let us read {REPO} (status 401)", "log in: hf auth login, or HF_TOKEN=..."),
        (403, UserError, f"HUB does not let us read {REPO} (status 403)", f"open HUB/datasets/{REPO}"),
        (404, UserError, f"HUB has no such file or repository any more: {REPO} (status 404)", "delete its folder"),
        (418, UserError, f"HUB answers {REPO} with status 418", "try another mirror"),
    ],
)
def test_a_refusal_ends_with_its_reason_and_a_fix(
    stand_in: Hub, tmp_path: Path, status: int, kind: type, message: str, fix: str
) -> None:
    file = remote()
    for name in (NAME, "listing"):
        stand_in.break_next(name, *[Fault("status", status=status)] * 99)
    for attempt in (lambda: fetch(tmp_path / NAME, file), lambda: list_repository(REPO, None)):
        with pytest.raises(UserError) as caught:
            attempt()  # type: ignore[no-untyped-call]
        assert type(caught.value) is kind
        assert caught.value.message.replace(stand_in.address, "HUB") == message
        assert fix in str(caught.value.fix).replace(stand_in.address, "HUB")


def test_a_repository_that_is_not_there_is_named(stand_in: Hub) -> None:
    with pytest.raises(UserError, match="does not let us read nobody/nothing"):
        list_repository("nobody/nothing", None)  # the hub does not tell strangers what is missing and what is closed


def test_without_a_network_the_address_is_named(stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remote()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for attempt in (lambda: fetch(tmp_path / NAME, file), lambda: list_repository(REPO, None)):
        with pytest.raises(Unreachable) as caught:
            attempt()  # type: ignore[no-untyped-call]
        assert caught.value.message.startswith(f"cannot fetch {REPO} from http://127.0.0.1:9: ")
        assert "--data starter needs no network" in str(caught.value.fix)


def test_offline_by_request_is_said_at_once(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE forbids to fetch it\n  fix: unset HF_HUB_OFFLINE"):
        list_repository(REPO, None)


def test_a_listing_that_never_comes_is_given_up(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LISTING_S", 0.05)
    stand_in.break_next("listing", *[Fault("stall")] * 9)
    with pytest.raises(Unreachable, match=r"cannot fetch .*: no answer within 0\.05 s"):
        list_repository(REPO, None)


def test_a_login_page_instead_of_an_answer_is_no_crash(stand_in: Hub) -> None:
    stand_in.break_next("listing", *[Fault("corrupt", at=0)] * 9)  # not JSON
    with pytest.raises(Unreachable, match=f"cannot fetch {REPO} from {stand_in.address}: "):
        list_repository(REPO, None)


def test_one_refused_file_stops_the_others_and_keeps_what_they_have(stand_in: Hub, tmp_path: Path) -> None:
    files = list_repository(REPO, None)[1]
    stand_in.break_next(NAME, Fault("status", status=403))
    stand_in.break_next("more.parquet", Fault("stall", at=1000), Fault("stall"), Fault("stall"))
    with pytest.raises(UserError, match="does not let us read"):
        fetch(tmp_path / NAME, *[file for file in files if file.path != "notes.txt"])
    assert not (tmp_path / NAME).exists()
    fetch(tmp_path / NAME, *files)
    assert (tmp_path / "more.parquet").read_bytes() == CONTENT[::-1]


def test_a_disk_that_fills_while_bytes_come_keeps_them(stand_in: Hub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        file = remote()
        with pytest.raises(DiskFull, match=f"no space left on the disk of {disk}"):
            fetch(disk / NAME, file)
        assert not (disk / NAME).exists()
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        fetch(disk / NAME, file)
        assert (disk / NAME).read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", disk], check=True)


def test_ctrl_c_stops_every_file_at_once(stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remote()
    stand_in.break_next(NAME, *[Fault("stall", at=1000)] * 3)

    class Interrupted:
        """A future whose result is waited for when the person presses Ctrl-C."""

        def exception(self) -> None:
            raise KeyboardInterrupt

    submit = hub.ThreadPoolExecutor.submit

    def submitted(pool, *arguments):  # type: ignore[no-untyped-def]
        submit(pool, *arguments)
        return Interrupted()

    monkeypatch.setattr(hub.ThreadPoolExecutor, "submit", submitted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / NAME, file)
    assert not (tmp_path / NAME).exists()
    assert threading.active_count() <= before + 1  # the server's thread for the connection that was left
