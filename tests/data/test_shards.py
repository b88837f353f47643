"""Token sets on disk: exact content, honest manifests, made again exactly when something changed."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.data import contents
from intone.data.chat import Message, render
from intone.data.contents import KnownHashes, SourceFile
from intone.data.loader import Rows
from intone.data.shards import TokenSet, ensure_token_set, write_token_set
from intone.data.text import Document, Kind, ReadReport, read_documents
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer, tokenizer_from_ranks
from intone.errors import Damaged, DiskFull, UserError

BYTES = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
TEXTS = ["first text", "größer 我👍", "x", "a longer text with <|bos|> inside, which is only text\n" * 3]
CHATS = [
    [Message("user", "Hi"), Message("assistant", "Hello")],
    [Message("user", "a" * 21), Message("assistant", "b")],
    [Message("user", "?"), Message("assistant", "!")] * 3,
]


def write(folder: Path, documents: list[Any], **options: Any) -> TokenSet:
    kind: Kind = "documents" if isinstance(documents[0], str) else "conversations"
    return write_token_set(folder, documents, BYTES, kind=kind, **options)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=30), st.sampled_from([7, 40, 10**9]))
def test_every_text_is_stored_whole_behind_a_bos(texts: list[str], shard_tokens: int) -> None:
    stored = [text for text in texts if text]
    with tempfile.TemporaryDirectory() as folder:
        if not stored:
            with pytest.raises(UserError, match="there is no text"):
                write(Path(folder), texts)
            return
        token_set = TokenSet.open(write(Path(folder), texts, shard_tokens=shard_tokens).folder, verify=True)
        assert token_set.num_documents == len(stored)
        for number, text in enumerate(stored):
            assert token_set.tokens(number).tolist() == [BYTES.bos, *BYTES.encode(text)]
            assert token_set.mask(number) is None
        assert token_set.lengths.tolist() == [len(BYTES.encode(text)) + 1 for text in stored]
        assert token_set.num_tokens == token_set.lengths.sum()
        assert token_set.num_bytes == sum(len(text.encode()) for text in stored)
        assert token_set.manifest["num_empty"] == len(texts) - len(stored)
        longest = max(shard_tokens, int(token_set.lengths.max()))
        assert all(len(shard.ids) <= longest for shard in token_set.shards)


@pytest.mark.parametrize("shard_tokens", [1, 20, 10**9])
def test_conversations_are_stored_with_their_masks(tmp_path: Path, shard_tokens: int) -> None:
    token_set = write(tmp_path, CHATS, shard_tokens=shard_tokens)
    for number, messages in enumerate(CHATS):
        ids, mask = render(messages, BYTES)
        assert token_set.tokens(number).tolist() == ids
        stored = token_set.mask(number)
        assert stored is not None and stored.dtype == np.uint8 and stored.tolist() == mask
    assert token_set.manifest["num_supervised"] == sum(sum(render(chat, BYTES)[1]) for chat in CHATS)


def test_ids_take_two_bytes_unless_the_vocabulary_is_large(tmp_path: Path) -> None:
    assert write(tmp_path / "small", TEXTS).tokens(0).dtype == np.uint16
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {b"%06d" % number: 256 + number for number in range(66_000)}
    large = write_token_set(tmp_path / "large", ["065999 9"], tokenizer_from_ranks(ranks, r"\d+|\D+"), kind="documents")
    assert large.tokens(0).dtype == np.uint32
    assert large.tokens(0).tolist() == [large.bos, 256 + 65_999, ord(" "), ord("9")]


def test_a_document_that_does_not_exist_is_an_index_error(tmp_path: Path) -> None:
    token_set = write(tmp_path, TEXTS)
    for number in (-1, len(TEXTS)):
        with pytest.raises(IndexError):
            token_set.tokens(number)


def test_a_row_of_the_wrong_kind_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 2 rows hold 'messages' where 'text' is expected"):
        write_token_set(tmp_path, ["text", CHATS[0]], BYTES, kind="documents")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_no_half_written_shard(tmp_path: Path) -> None:
    def failing() -> Iterator[Document]:
        yield from ["some text"] * 10_000
        raise UserError("the text ended badly")

    write(tmp_path, TEXTS)
    with pytest.raises(UserError, match="ended badly"):
        write_token_set(tmp_path, failing(), BYTES, kind="documents")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_manifest_is_not_a_token_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TEXTS).folder
    (folder / "manifest.json").unlink()
    for path in (folder, tmp_path / "nothing"):
        with pytest.raises(UserError, match="is not a complete token set"):
            TokenSet.open(path)


def damage_size(folder: Path) -> None:
    with open(folder / "shard_00000.ids", "ab") as file:
        file.write(b"\0")


def damage_missing(folder: Path) -> None:
    (folder / "shard_00000.offsets").unlink()


def damage_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


def damage_key(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][0]["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage_byte(folder: Path) -> None:
    path = folder / "shard_00000.ids"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def damage_number(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"num_documents": 4', '"num_documents": 5', 1))


def damage_kind(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def damage_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


DAMAGES = {
    damage_size: "shard_00000.ids has [0-9,]+ bytes where the manifest says",
    damage_missing: "shard_00000.offsets is missing",
    damage_byte: r"shard_00000\.ids does not have the SHA-256 of the manifest",
    damage_key: "manifest.json does not have its own checksum",
    damage_number: "manifest.json does not have its own checksum",
    damage_format: "manifest.json has format 99",
    damage_json: "manifest.json is not valid JSON",
    damage_kind: "manifest.json has format None",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_names_its_file_and_is_made_again(tmp_path: Path, damage: Any) -> None:
    folder = write(tmp_path / "set", TEXTS).folder
    damage(folder)
    with pytest.raises(Damaged, match=DAMAGES[damage]) as caught:
        TokenSet.open(folder)
    assert caught.value.fix
    made, reason = ensure_token_set(folder, BYTES, kind="documents", documents=lambda report: TEXTS)
    assert made.num_documents == len(TEXTS) and reason.startswith("made again: ")


def test_a_byte_that_changed_behind_the_file_systems_back_is_found_by_verifying(tmp_path: Path) -> None:
    folder = write(tmp_path, TEXTS).folder
    damage_byte(folder)
    path = folder / "shard_00000.ids"
    facts = json.loads((folder / "manifest.json").read_text())["shards"][0]["files"][path.name]
    KnownHashes(folder / "states.json").note({path: facts["sha256"]})  # as if its times had not moved
    TokenSet.open(folder)
    with pytest.raises(Damaged, match=r"shard_00000\.ids does not have the SHA-256"):
        TokenSet.open(folder, verify=True)


def test_an_untouched_set_is_opened_without_reading_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, TEXTS).folder
    monkeypatch.setattr(contents, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    TokenSet.open(folder)


def test_a_mapped_set_survives_its_shards_being_deleted(tmp_path: Path) -> None:
    token_set = write(tmp_path, TEXTS)
    rows = Rows([token_set], 8, 0)
    before = rows.rows(0, 3)
    for path in tmp_path.glob("shard_*"):
        path.unlink()
    assert np.array_equal(rows.rows(0, 3).ids, before.ids)
    assert rows.rows(3, 9).ids.shape == (9, 8)


def test_a_mapped_set_survives_being_replaced(tmp_path: Path) -> None:
    before = write(tmp_path, TEXTS)
    write(tmp_path, ["something else entirely"])
    assert before.tokens(3).tolist() == [BYTES.bos, *BYTES.encode(TEXTS[3])]


# --- reuse ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(f"text of {path.name}")
    return paths


def ensure(folder: Path, files: list[Path], **changes: Any) -> tuple[TokenSet, str]:
    options = {"part": "train", "seeds": (1, 2)}
    settings: dict[str, Any] = {"tokenizer": BYTES, "kind": "documents", "options": options, **changes}
    tokenizer = settings.pop("tokenizer")
    sources = SourceFile.read(files, KnownHashes(folder / "known.json"))
    return ensure_token_set(
        folder / "set", tokenizer, documents=lambda report: read_documents(files, report), sources=sources, **settings
    )


def test_an_unchanged_set_is_reused(tmp_path: Path, files: list[Path]) -> None:
    _, reason = ensure(tmp_path, files)
    assert reason == "made for the first time"
    token_set, reason = ensure(tmp_path, files)
    assert reason == "reused" and token_set.num_documents == 2


def test_a_changed_file_is_noticed_even_with_its_size_and_time_set_back(tmp_path: Path, files: list[Path]) -> None:
    ensure(tmp_path, files)
    state = files[0].stat()
    files[0].write_text("text of A.txt")
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    token_set, reason = ensure(tmp_path, files)
    assert reason == f"made again: {files[0]} changed"
    assert BYTES.decode(token_set.tokens(0)[1:].tolist()) == "text of A.txt"
    files[1].write_text("longer than before")
    assert ensure(tmp_path, files)[1] == f"made again: {files[1]} changed"


@pytest.mark.parametrize("years", [-30, 30])
def test_a_file_that_was_only_touched_does_not_cost_a_new_set_however_the_clock_stands(
    tmp_path: Path, files: list[Path], years: int
) -> None:
    ensure(tmp_path, files)
    then_ns = time.time_ns() + years * 365 * 86_400 * 10**9
    for _ in range(2):
        os.utime(files[0], ns=(then_ns, then_ns))
        assert ensure(tmp_path, files)[1] == "reused"
    files[0].write_text("text of A.txt")
    os.utime(files[0], ns=(then_ns, then_ns))
    assert ensure(tmp_path, files)[1] == f"made again: {files[0]} changed"


def test_a_moved_file_does_not_cost_a_new_set(tmp_path: Path, files: list[Path]) -> None:
    ensure(tmp_path, files)
    moved = files[0].rename(tmp_path / "c.txt")
    assert ensure(tmp_path, [moved, files[1]])[1] == "reused"


def test_new_missing_and_reordered_files_are_noticed(tmp_path: Path, files: list[Path]) -> None:
    ensure(tmp_path, files[:1])
    assert ensure(tmp_path, files)[1] == f"made again: {files[1]} is new"
    assert ensure(tmp_path, files[::-1])[1] == "made again: the files come in another order"
    assert ensure(tmp_path, files[:1])[1] == f"made again: {files[1]} is no longer among the files"


def test_another_tokenizer_kind_or_option_makes_the_set_again(tmp_path: Path, files: list[Path]) -> None:
    ensure(tmp_path, files)
    other = Tokenizer([*(bytes([value]) for value in range(256)), b"te"], SPLIT_PATTERN)
    assert ensure(tmp_path, files, tokenizer=other)[1] == "made again: the tokenizer changed"
    changed = {"part": "validation"}
    assert ensure(tmp_path, files, tokenizer=other, options=changed)[1] == "made again: it was made with other settings"
    assert ensure(tmp_path, files, tokenizer=other, options=changed)[1] == "reused"


def test_a_file_that_changes_while_it_is_read_leaves_no_set(tmp_path: Path, files: list[Path]) -> None:
    def growing(report: ReadReport) -> Iterator[Document]:
        yield from read_documents(files, report)
        files[1].write_text("something else meanwhile")

    sources = SourceFile.read(files, KnownHashes(tmp_path / "known.json"))
    with pytest.raises(UserError, match=rf"{files[1]} changed while it was read") as caught:
        ensure_token_set(tmp_path / "set", BYTES, kind="documents", documents=growing, sources=sources)
    assert caught.value.fix
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["lock"]


def test_of_two_processes_one_makes_the_set_and_the_other_takes_it(tmp_path: Path) -> None:
    # each says "made" or "reused"; the one that makes it does so slowly enough for the other to come meanwhile
    script = f"""
import sys
from pathlib import Path
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
def documents(report):
    print("making", flush=True)
    sys.stdin.readline()
    return ["some words"] * 9
print(ensure_token_set(Path({str(tmp_path / "set")!r}), tokenizer, kind="documents", documents=documents)[1])
"""
    command = [sys.executable, "-c", script]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert second.stderr.readline() == "waiting for another process that is at work on the token set set\n"
    assert first.communicate("go on\n")[0] == "made for the first time\n"
    assert second.communicate()[0] == "reused\n"


def test_a_set_that_a_killed_process_left_is_made_again(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from intone.data.shards import write_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
def documents():
    yield from ["some words"] * 90_000  # more than all threads hold in memory
    os.kill(os.getpid(), signal.SIGKILL)
write_token_set(Path({str(tmp_path / "set")!r}), documents(), tokenizer, kind="documents", shard_tokens=20_000)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    left = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert "shard_00000.ids" in left and "manifest.json" not in left
    with pytest.raises(UserError, match="is not a complete token set"):
        TokenSet.open(tmp_path / "set")
    made, reason = ensure_token_set(tmp_path / "set", BYTES, kind="documents", documents=lambda report: TEXTS)
    assert reason == "made for the first time" and len(made.shards) == 1
    assert not list((tmp_path / "set").glob("shard_00001*")), "what was left is gone"


def test_what_could_not_be_read_is_kept_in_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": 5}\n{"text": "fine"}\n')
    report = ReadReport()
    token_set = write_token_set(
        tmp_path / "set", read_documents([path], report), BYTES, kind="documents", report=report
    )
    assert token_set.manifest["report"]["num_damaged"] == 1
    assert "rows.jsonl:2" in token_set.manifest["report"]["first"][0]


def test_progress_counts_documents_and_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path, ["abc"] * 9001, progress=lambda documents, num_bytes: seen.append((documents, num_bytes)))
    assert seen[-1] == (9001, 27_003) and seen == sorted(seen) and len(seen) > 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the largest memory in the unit of Linux")
def test_memory_stays_flat_while_writing(tmp_path: Path) -> None:
    # a second set, five times larger, may not need more memory than the first: held, it would be 50 MB of ids
    script = f"""
import resource
from pathlib import Path
from intone.data.shards import write_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
write_token_set(Path({str(tmp_path)!r}) / "warm", ["some words here " * 4000] * 70, tokenizer, kind="documents")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
texts = (str(number) + " some words here" * 4000 for number in range(350))
write_token_set(Path({str(tmp_path)!r}) / "set", texts, tokenizer, kind="documents")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12e6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_with_a_fix_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(DiskFull, match="no space left on the disk") as caught:
        write(small_disk / "set", ["some words " * 2000] * 100)
    assert caught.value.fix
    assert list((small_disk / "set").iterdir()) == [], "what was written is given back"
    with pytest.raises(UserError, match="is not a complete token set"):
        TokenSet.open(small_disk / "set")
    assert write(small_disk / "set", TEXTS).num_documents == len(TEXTS)
