"""Repairs go through a worktree, one commit each, gates and a ledger; the person's files come last."""

import subprocess
import textwrap

import pytest

from intone.cli import main
from intone.optimise.scan.plan import plan_items
from intone.optimise.scan.repair import Round, last_applied
from intone.optimise.scan.run import scan_path
from intone.paths import read_lines

pytest.importorskip("libcst", reason="the extra `scan` is not installed")

CODE = textwrap.dedent("""
    import torch
    def is_val(doc):
        return hash(doc) % 100 == 0
    def load(path):
        return torch.load(path, weights_only=False)
""")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    root = tmp_path / "repo"
    root.mkdir()
    (root / "data.py").write_text(CODE)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "as it was")
    return root


def git(root, *words):
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout


def round_on(root, tests=None):
    scan = scan_path(root)
    round_ = Round.begin(root, tests)
    return round_, round_.run(plan_items(scan.findings, scan))


def test_each_kept_change_is_a_commit_and_a_row_and_the_files_are_untouched(repository):
    round_, repairs = round_on(repository, "true")
    assert [repair.verdict for repair in repairs] == ["kept", "kept"]
    assert len(round_.tree.changes()) == 2 and (repository / "data.py").read_text() == CODE
    rows = [line for line in read_lines(round_.folder / "ledger.jsonl") if line["kind"] == "try"]
    names = [result["name"] for result in rows[0]["try"]["gates"]["gates"]]
    assert [row["try"]["verdict"] for row in rows] == ["kept", "kept"]
    assert names == ["syntax", "scan", "tests", "sealed inputs"]


def test_a_change_that_breaks_a_test_is_taken_back_and_the_other_one_stays(repository):
    check = "python -c \"assert 'weights_only=False' in open('data.py').read()\""
    round_, repairs = round_on(repository, check)
    verdicts = {repair.item.finding[:3]: repair.verdict for repair in repairs}
    assert verdicts == {"S77": "kept", "S61": "rejected"}
    assert "hash(" not in (round_.code / "data.py").read_text()
    assert "weights_only=False" in (round_.code / "data.py").read_text()


def test_applied_through_the_verb_and_undone(repository, capsys):
    assert main(["scan", str(repository), "--fix", "S77", "--apply", "--tests", "true", "--fail-on", "never"]) == 0
    assert "zlib.crc32" in (repository / "data.py").read_text()
    assert "--undo" in capsys.readouterr().out
    assert last_applied(repository).target["path"] == str(repository)
    assert main(["scan", str(repository), "--undo"]) == 0
    assert (repository / "data.py").read_text() == CODE
    assert main(["scan", str(repository), "--undo"]) == 2
    assert "no repair" in capsys.readouterr().err


def test_a_folder_outside_git_is_repaired_and_undone_too(tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    root = tmp_path / "plain"
    root.mkdir()
    (root / "data.py").write_text(CODE)
    assert main(["scan", str(root), "--fix", "S61", "--apply", "--tests", "true", "--fail-on", "never"]) == 0
    assert "weights_only=True" in (root / "data.py").read_text()
    (root / "data.py").write_text((root / "data.py").read_text() + "# mine\n")
    assert main(["scan", str(root), "--undo"]) == 2
    (root / "data.py").write_text((root / "data.py").read_text().removesuffix("# mine\n"))
    assert main(["scan", str(root), "--undo"]) == 0
    assert (root / "data.py").read_text() == CODE


def test_what_has_no_codemod_is_told_and_changes_nothing(repository):
    (repository / "data.py").write_text("import pickle\ndef load(f):\n    return pickle.load(f)\n")
    round_, repairs = round_on(repository)
    assert [repair.verdict for repair in repairs] == ["told"] and round_.tree.changes() == []
