"""The regression mode: a slower or other program at the working tree ends with 1, the same one with 0."""

import subprocess
import sys

import pytest

from intone.errors import UserError
from intone.optimise import against
from intone.optimise.against import against_program, trees_of
from intone.optimise.program import Program
from intone.prove.measure import Measured, SideResult
from intone.prove.noise import Signals
from intone.prove.rounds import Block, Round
from intone.prove.verdict import Comparison


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True,
                   capture_output=True)  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    """A repository whose program says 1 at its commit and 2 in the working tree."""
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "train.py").write_text("print(1)\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    (folder / "sub" / "train.py").write_text("print(2)\n")
    return folder


def test_both_states_are_checked_out_beside_each_other_and_nothing_is_left_behind(repository):
    with trees_of(repository / "sub", "HEAD") as trees:
        texts = [(tree.path / trees.place / "train.py").read_text() for tree in (trees.before, trees.now)]
        assert texts == ["print(1)\n", "print(2)\n"]
    assert (repository / "sub" / "train.py").read_text() == "print(2)\n"
    branches = subprocess.run(["git", "-C", str(repository), "branch", "--list", "intone/*"], capture_output=True)
    assert branches.stdout == b""
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(worktrees.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("verdict", "losses", "code"),
    [("slower", 1.0, 1), ("same", 1.0, 0), ("faster", 1.0, 0), ("not proven", 1.0, 0), ("same", 1.5, 1)],
)
def test_the_exit_code_says_whether_it_became_slower_or_trains_otherwise(
    repository, monkeypatch, verdict, losses, code
):
    def measured(sides, *, quick):
        names = [side.name for side in sides]
        assert names == ["at HEAD", "the working tree"] and quick
        at = Signals(0.0, 0.0, 0.0, 0.0, None, None, None, None, 0.001)
        blocks = tuple(
            Block(name, 1, 0, 4.0, 1.0, {"steps": 4, "seconds": 1.0, "first_step": 0, "losses": [value] * 4}, at,
                  Signals(1.0, 1.0, 0.0, 1.0, None, None, None, None, 0.001))
            for name, value in zip(names, (1.0, losses), strict=True)
        )  # fmt: skip
        found = Comparison(0.8, 0.7, 0.9, 6, 0.99, 1.01, verdict, "planted")
        results = tuple(SideResult(name, "steps", 4.0, 4.0, 4.0, 1.0, None, None, {}) for name in names)
        return Measured(results, (found,), (Round(1, blocks, ()),), 3, quick, 10.0, "")

    monkeypatch.setattr(against, "measure_rounds", measured)
    answer = against_program(Program((sys.executable, "train.py"), repository / "sub"), "HEAD", quick=True)
    assert answer.exit == code, answer.text
    assert f"the working tree is {verdict.replace('same', 'no difference')}" in answer.text


def test_a_revision_that_is_not_there_is_refused(repository, tmp_path):
    with pytest.raises(UserError, match="no revision 'nowhere'"), trees_of(repository, "nowhere"):
        pass
    with pytest.raises(UserError, match="no git repository"), trees_of(tmp_path, "HEAD"):
        pass
