"""The map of the modules is current, and every module says why it exists."""

import subprocess
import sys

import pytest

from tests import make_map


def test_the_map_is_current():
    assert make_map.MAP.read_text() == make_map.map_text(), "run python -m tests.make_map"


def test_every_first_line_is_one_sentence_of_its_own():
    lines = [line for _, line in make_map.top_entries()]
    assert len(set(lines)) == len(lines)
    assert [line for line in lines if len(line) < 20] == []


def test_a_module_without_a_docstring_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(make_map, "REPOSITORY", tmp_path)
    path = tmp_path / "silent.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="silent.py has no docstring"):
        make_map.first_line(path)


def test_an_old_map_fails_the_check_and_says_what_to_run(tmp_path, monkeypatch, capsys):
    old = tmp_path / "MAP.md"
    old.write_text("# Map\n")
    monkeypatch.setattr(make_map, "MAP", old)
    monkeypatch.setattr(sys, "argv", ["make_map", "--check"])
    assert make_map.main() == 1
    assert "python -m tests.make_map" in capsys.readouterr().out


def test_the_readme_has_the_two_set_up_commands_and_ci_runs_the_second():
    first = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/intone run"
    second = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m tests.check"
    readme = (make_map.REPOSITORY / "README.md").read_text()
    assert readme.count(f"\n{first}\n") == 1
    assert readme.count(f"\n{second}\n") == 1
    assert f"\n{second}\n" in (make_map.REPOSITORY / ".ci" / "run").read_text()


def test_the_ci_script_is_valid_bash_and_executable():
    script = make_map.REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
