"""A worktree keeps the person's files as they are, whatever is tried in it."""

import subprocess
from pathlib import Path

import pytest

from intone.errors import UserError
from intone.optimise.worktree import open_worktree, run_git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "theirs"
    place.mkdir()
    (place / "train.py").write_text("batch = 4\nlr = 0.1\n\n\n\n\n\n\nsteps = 10\n")
    run_git(place, "init", "-q", "-b", "main")
    run_git(place, "add", "-A")
    run_git(place, "commit", "-q", "-m", "First")
    return place


def test_changes_become_commits_and_the_persons_tree_stays(repository: Path, tmp_path: Path):
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    (tree.path / "train.py").write_text("batch = 64\nlr = 0.1\n\n\n\n\n\n\nsteps = 10\n")
    (tree.path / "new.py").write_text("x = 1\n")
    change = tree.commit("Raise the batch", "because it was 4")
    assert change is not None and change.files == ("new.py", "train.py")
    assert tree.commit("Nothing") is None
    assert [entry.subject for entry in tree.changes()] == ["Raise the batch"]
    assert (repository / "train.py").read_text().startswith("batch = 4")
    assert run_git(repository, "status", "--porcelain") == ""
    assert "+batch = 64" in tree.diff() and "+x = 1" in tree.diff()


def test_uncommitted_changes_of_the_person_come_along_and_stay_uncommitted(repository: Path, tmp_path: Path):
    (repository / "train.py").write_text("batch = 5\n")
    (repository / "notes.txt").write_text("mine")
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    assert (tree.path / "train.py").read_text() == "batch = 5\n"
    assert any("notes.txt" in note for note in tree.notes)
    assert run_git(repository, "status", "--porcelain").split() == ["M", "train.py", "??", "notes.txt"]
    assert run_git(repository, "stash", "list") == ""
    assert tree.changes() == []


def test_data_that_a_folder_outside_git_ignores_is_there_in_every_worktree_of_its_copy(tmp_path: Path):
    place = tmp_path / "loose"
    (place / "data").mkdir(parents=True)
    (place / ".gitignore").write_text("*.bin\n")
    (place / "train.py").write_text("x = 1\n")
    (place / "data" / "train.bin").write_bytes(b"123")
    tree = open_worktree(place, tmp_path / "tree", "intone/a")
    before = tree.at(tree.base, tmp_path / "before")
    assert (before.path / "data" / "train.bin").read_bytes() == b"123"
    assert tree.commit("Nothing") is None


def test_prepared_data_lies_beside_the_code_and_in_no_change(repository: Path, tmp_path: Path):
    (repository / ".gitignore").write_text("*.bin\n")
    (repository / "data").mkdir()
    (repository / "data" / "train.bin").write_bytes(b"123")
    (repository / "loose.txt").write_text("a")
    (repository / ".venv").mkdir()
    (repository / ".venv" / "x").write_text("")
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    assert (tree.path / "data" / "train.bin").read_bytes() == b"123"
    assert not (tree.path / ".venv").exists()
    assert tree.commit("Nothing") is None and tree.diff() == ""
    tree.reset()
    (tree.path / "data" / "train.bin").write_bytes(b"4")
    assert (repository / "data" / "train.bin").read_bytes() == b"123"
    assert (tree.at(tree.base, tmp_path / "base").path / "loose.txt").read_text() == "a"


def test_one_change_is_taken_back_alone_and_a_change_others_build_on_is_not(repository: Path, tmp_path: Path):
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    text = (tree.path / "train.py").read_text()
    (tree.path / "train.py").write_text(text.replace("batch = 4", "batch = 8"))
    first = tree.commit("Batch")
    (tree.path / "train.py").write_text(text.replace("batch = 4", "batch = 9"))
    second = tree.commit("Batch again")
    (tree.path / "train.py").write_text(text.replace("batch = 4", "batch = 9").replace("steps = 10", "steps = 5"))
    third = tree.commit("Steps")
    assert first and second and third
    with pytest.raises(UserError, match="cannot be taken back alone"):
        tree.undo(first)
    other = tree.without(third, tmp_path / "other")
    kept = (other.path / "train.py").read_text()
    assert "steps = 10" in kept and "batch = 9" in kept
    assert "steps = 5" in (tree.path / "train.py").read_text()


def test_reset_removes_what_was_tried_and_not_kept(repository: Path, tmp_path: Path):
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    (tree.path / "train.py").unlink()
    (tree.path / "junk").mkdir()
    (tree.path / "junk" / "a").write_text("")
    tree.reset()
    assert sorted(path.name for path in tree.path.iterdir()) == [".git", "train.py"]


def test_apply_writes_the_changes_into_the_persons_tree_or_nothing(repository: Path, tmp_path: Path):
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    (tree.path / "train.py").write_text("batch = 64\nlr = 0.1\n\n\n\n\n\n\nsteps = 10\n")
    tree.commit("Batch")
    tree.apply()
    assert (repository / "train.py").read_text().startswith("batch = 64")
    (repository / "train.py").write_text("something else\n")
    with pytest.raises(UserError, match="do not fit"):
        tree.apply()
    assert (repository / "train.py").read_text() == "something else\n"


def test_closing_removes_the_folder_and_keeps_the_branch(repository: Path, tmp_path: Path):
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    tree.close()
    tree.close()
    assert not tree.path.exists()
    assert "intone/a" in run_git(repository, "branch")
    with pytest.raises(UserError, match="exists already"):
        open_worktree(repository, tmp_path / "tree", "intone/a")


def test_a_folder_outside_git_is_copied_without_its_environment(tmp_path: Path):
    place = tmp_path / "script"
    (place / ".venv").mkdir(parents=True)
    (place / ".venv" / "large").write_text("x")
    (place / "train.py").write_text("a = 1\n")
    tree = open_worktree(place / "train.py", tmp_path / "tree", "intone/a")
    assert not (tree.path / ".venv").exists() and (tree.path / "train.py").exists()
    (tree.path / "train.py").write_text("a = 2\n")
    assert tree.commit("Two") is not None
    assert (place / "train.py").read_text() == "a = 1\n"
    with pytest.raises(UserError, match="no git repository"):
        tree.apply()


def test_a_hook_of_the_person_does_not_run(repository: Path, tmp_path: Path):
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    hook.chmod(0o755)
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    (tree.path / "train.py").write_text("batch = 1\n")
    assert tree.commit("One") is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("at", ["nothing", "HEAD~5"])
def test_an_unknown_commit_is_refused_by_name(repository: Path, tmp_path: Path, at: str):
    with pytest.raises(UserError, match=at):
        open_worktree(repository, tmp_path / "tree", "intone/a", at)


def test_being_called_from_a_git_hook_does_not_confuse_repositories(repository: Path, tmp_path: Path, monkeypatch):
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    tree = open_worktree(repository, tmp_path / "tree", "intone/a")
    assert (tree.path / "train.py").exists()
