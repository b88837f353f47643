"""Which files a path means: folders, globs, validation names, and what is said where there is nothing."""

import re
from pathlib import Path

import pytest

from intone.data.files import file_type, find_files
from intone.errors import UserError
from intone.mixture import NAMED


def put(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = ["b.txt", "a/x.jsonl", "a/y.parquet", "a/z.txt.zst", "notes.csv", ".hidden.txt", ".git/c.txt", "values.txt"]
    for name in [*names, "val.parquet", "valid_00.jsonl", "a/validation-2.txt", "val/deep.md"]:
        put(tmp_path, name, "x")
    return tmp_path


def test_a_folder_gives_its_known_files_and_sets_validation_apart(tree: Path) -> None:
    train, validation = find_files([str(tree)])
    assert [str(path.relative_to(tree)) for path in train] == [
        "a/x.jsonl",
        "a/y.parquet",
        "a/z.txt.zst",
        "b.txt",
        "values.txt",
    ]
    assert [str(path.relative_to(tree)) for path in validation] == [
        "a/validation-2.txt",
        "val/deep.md",
        "val.parquet",
        "valid_00.jsonl",
    ]


def test_globs_and_files_the_shell_expanded_are_split_too(tree: Path) -> None:
    assert find_files([str(tree / "*.txt"), str(tree / "*.parquet")]) == (
        [tree / "b.txt", tree / "values.txt"],
        [tree / "val.parquet"],
    )
    assert find_files([str(tree / "b.txt"), str(tree / "val.parquet")]) == ([tree / "b.txt"], [tree / "val.parquet"])
    assert [path.name for path in find_files([str(tree / "**" / "*.txt")])[0]] == ["b.txt", "values.txt"]


def test_a_validation_file_named_alone_is_for_training(tree: Path) -> None:
    assert find_files([str(tree / "val.parquet")]) == ([tree / "val.parquet"], [])


def test_a_file_named_twice_is_read_once(tree: Path) -> None:
    assert find_files([str(tree / "b.txt"), str(tree / "b*.txt")])[0] == [tree / "b.txt"]


def test_names_with_glob_characters_are_taken_literally_where_they_exist(tmp_path: Path) -> None:
    path = put(tmp_path, "a[1].txt", "x")
    assert find_files([str(path)]) == ([path], [])


@pytest.mark.parametrize(
    ("pattern", "message", "fix"),
    [
        ("b.txtt", "b.txtt does not exist", "did you mean .*b.txt"),
        ("nofolder/q.txt", "nofolder does not exist", "nothing in .* has a similar name$"),
        ("notes.csv", "notes.csv has an unknown type", r"known: \.txt, \.md, \.jsonl, \.parquet"),
        ("*.csv", r"\*\.csv matches no file of a known type", "known: "),
        (".git/objects", "objects does not exist", ""),
    ],
)
def test_a_path_that_gives_nothing_is_refused_with_a_fix(tree: Path, pattern: str, message: str, fix: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_files([f"{tree}/{pattern}"])
    assert caught.value.fix is not None
    assert re.search(fix, caught.value.fix)


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("tinystorie", "did you mean tinystories?"),
        ("note.md", "did you mean notes.md?"),
        ("zzzz", f"nothing in . has a similar name; sets with a name: {', '.join(NAMED)}"),
        ("zzzz/a.txt", "nothing in . has a similar name"),
    ],
)  # fmt: skip
def test_a_mistyped_word_may_mean_a_file_here_or_a_set_with_a_name(tmp_path: Path, monkeypatch, word, fix) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "notes.md", "x")
    with pytest.raises(UserError) as caught:
        find_files([word])
    assert caught.value.fix == fix


def test_a_folder_without_text_and_an_empty_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no file of a known type"):
        find_files([str(tmp_path)])
    with pytest.raises(UserError, match="an empty path"):
        find_files([""])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ".txt"),
        ("a.JSONL.GZ", ".jsonl"),
        ("a.v1.2.parquet.zst", ".parquet"),
        ("a.tar.gz", None),
        ("txt", None),
    ],
)
def test_the_type_is_read_from_the_name(name: str, kind: str | None) -> None:
    assert file_type(Path(name)) == kind
