"""A template makes a change of our own code base that works: its tests run, and pass, where it was made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

from intone.cli import main
from intone.optimise.planner.feature import template_for
from intone.paths import read_json

TEXTS = {
    "sampler": "add top-n-sigma sampling",
    "profiling hook": "add a profiling hook: time forward, backward and optimizer of a training step",
    "preset": "add a training preset lean: classic with rope_base=50000, smear=true",
}


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of this code base, in a repository of its own."""
    place = tmp_path_factory.mktemp("ours")
    for name in ("src/intone", "tests"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", place)
    return place


@pytest.mark.parametrize(
    "kind", [kind if kind == "sampler" else pytest.param(kind, marks=pytest.mark.long) for kind in TEXTS]
)
def test_a_template_plans_writes_and_tests_a_feature(kind: str, code: Path, home: Path, monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins of this machine take seconds to import
    before = {path: path.read_bytes() for path in (code / "src").rglob("*.py")}
    assert main(["plan", TEXTS[kind], str(code), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    folder = home / "optimise" / "plans" / result["id"]
    assert result["plan"]["kind"] == kind
    assert result["made"]["tests"]["passed"] > 5 and result["made"]["tests"]["failed"] == 0
    assert sorted(result["made"]["files"]) == sorted(result["plan"]["files"])
    changed = folder / "code"
    log = subprocess.run(["git", "log", "--format=%s"], cwd=changed, capture_output=True, text=True, check=True)
    assert log.stdout.splitlines()[0] == result["made"]["subject"] and len(log.stdout.splitlines()) == 2
    names = [name for name in result["made"]["files"] if name.endswith(".py")]
    subprocess.run([sys.executable, "-m", "ruff", "check", "-q", *names], cwd=changed, check=True)
    plan = (folder / "plan.md").read_text()
    for title in ("Decided", "Tasks", "Interfaces", "Risks", "Tests", "Gates", "Expected effect"):
        assert f"## {title}" in plan
    assert read_json(folder / "plan.json")["text"] == TEXTS[kind]
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("add min-p sampling", "the engine has min_p already: src/intone/engine/requests.py:"),
        ("add a training preset lean", "nothing that preset lean does differently"),
        ("add a training preset lean: rope_bass=3", "did you mean 'rope_base'"),
        ("add a training preset classic: smear=true", "there is a preset classic already"),
    ],
)
def test_what_is_there_already_or_cannot_be_planned_is_said(text: str, words: str, code: Path, home: Path, capsys):
    assert main(["plan", text, str(code)]) == 2
    assert words in capsys.readouterr().err


def test_a_text_that_fits_no_template_leaves_an_honest_plan(tmp_path: Path, home: Path, capsys):
    (tmp_path / "a.py").write_text("def f():\n    return 1\n")
    assert main(["plan", "add speculative decoding", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no template fits this: --model NAME --base-url URL writes the patch" in out
    plan = read_json(home / "optimise" / "plans" / "plan-1" / "plan.json")
    assert plan["kind"] is None and plan["effect"] == "not known"


def test_code_that_is_not_as_the_template_knows_it_is_left_alone(code: Path, tmp_path: Path, home: Path, capsys):
    shutil.copytree(code, tmp_path / "other")
    path = tmp_path / "other" / "src" / "intone" / "engine" / "adjust.py"
    path.write_text(path.read_text().replace("if not penalised and", "if not (penalised) and"))
    assert main(["plan", "add top-a sampling", str(tmp_path / "other")]) == 2
    assert "is not as this template knows it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TEXTS)
def test_every_template_knows_the_code_as_it_stands(kind: str, code: Path, tmp_path: Path):
    """Its edits find their places, and what comes of them is Python; whether its tests pass is asked above."""
    root = tmp_path / "code"
    shutil.copytree(code, root, ignore=shutil.ignore_patterns("tests"))
    template = template_for(TEXTS[kind], root)
    assert template is not None and template.plan.kind == kind
    written = template.write(root)
    assert written.subject and written.tests
    changed = [path for path in root.rglob("*.py") if not (code / path.relative_to(root)).exists()
               or path.read_bytes() != (code / path.relative_to(root)).read_bytes()]  # fmt: skip
    assert changed
    for path in changed:
        compile(path.read_text(), str(path), "exec")
