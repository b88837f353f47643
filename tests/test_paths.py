"""Files on disk: old or new but never half, and errors of the disk in words."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from intone.errors import Damaged, DiskFull, UserError
from intone.paths import (
    FolderLock,
    append_line,
    disk_errors,
    file_sha256,
    home,
    machine_folder,
    read_json,
    read_lines,
    runs_folder,
    write_atomic,
    write_json,
)

NOBODY = 54321  # an unused uid: root is not stopped by file modes


def test_the_home_is_the_variable_or_a_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path))
    assert runs_folder() == tmp_path / "runs"
    assert machine_folder("abc") == tmp_path / "machine" / "abc"
    monkeypatch.setenv("INTONE_HOME", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(home()) == "/somewhere/.cache/intone"


def test_a_relative_home_does_not_move_with_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTONE_HOME", "here")
    assert home() == tmp_path / "here"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_json(path, {"depth": 3})

    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DiskFull):
        write_json(path, {"depth": 4})
    assert read_json(path) == {"depth": 3}
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_says_what_to_do():
    with (
        pytest.raises(DiskFull, match="no space left on the disk of x/log") as caught,
        disk_errors(Path("x/log")),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert "INTONE_HOME" in caught.value.fix


@pytest.mark.skipif(os.getuid() != 0, reason="dropping to an unused uid needs root")
def test_a_folder_that_may_not_be_written_is_the_persons_affair(tmp_path):
    code = f"""
import os
from pathlib import Path
from intone.errors import UserError
from intone.paths import write_json
os.setuid({NOBODY})
try:
    write_json(Path({str(tmp_path)!r}) / "runs" / "x.json", 1)
except UserError as error:
    print(error)
"""
    os.chmod(tmp_path, 0o700)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot write" in done.stdout, done.stderr
    assert "choose a writable folder" in done.stdout


def test_another_error_of_the_system_stays_what_it_is(tmp_path):
    with pytest.raises(IsADirectoryError), disk_errors(tmp_path):
        open(tmp_path, "wb")  # noqa: SIM115  fails


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_missing_and_a_damaged_json_file_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_json(tmp_path)
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "half.json" / "inside.json")
    with pytest.raises(Damaged, match="is not valid JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Damaged, match="is not valid JSON"):
        read_json(tmp_path / "bytes.json")


def test_a_torn_last_line_is_left_out_and_a_torn_middle_line_raises(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    for step in (1, 2):
        append_line(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    with open(path, "ab") as file:
        file.write(b'\n{"step": 4}\n')
    with pytest.raises(Damaged, match="log.jsonl:3"):
        read_lines(path)


def test_lines_of_many_writers_do_not_mix(tmp_path):
    path = tmp_path / "log.jsonl"
    code = f"""
from pathlib import Path
from intone.paths import append_line
import sys
for i in range(50):
    append_line(Path({str(path)!r}), {{"who": sys.argv[1], "text": sys.argv[1] * 3000}})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    rows = read_lines(path)
    assert len(rows) == 150
    assert all(row["text"] == row["who"] * 3000 for row in rows)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    write_atomic(tmp_path / "x", "abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_a_lock_is_held_until_it_is_closed_or_its_process_ends(tmp_path):
    path = tmp_path / "job" / "lock"
    lock = FolderLock(path, what="run d3-1")
    with pytest.raises(UserError, match="another process is already using run d3-1"):
        FolderLock(path, what="run d3-1")
    lock.close()
    lock.close()
    code = f"from pathlib import Path; from intone.paths import FolderLock; l = FolderLock(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    with FolderLock(path):
        pass
