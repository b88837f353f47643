"""Questions to child processes: every way of not answering becomes one error with a reason."""

import gc
import subprocess
import sys

import psutil
import pytest

from intone.child import PACKAGE_PARENT, ChildFailed, ask_child, loading
from tests.tiny_jobs import wait_for

ANSWERS = {
    "good": "import json, sys; q = json.load(sys.stdin); print('noise'); print(json.dumps({'twice': q['n'] * 2}))",
    "raises": "raise ValueError('no tea')",
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": "import time; time.sleep(60)",
    "marks": "import json, os, sys, time; os.mkdir(json.load(sys.stdin)['path']); time.sleep(60)",
    "mumbles": "print('hello')",
    "environment": "import os, json; print(json.dumps({'x': os.environ['INTONE_X']}))",
}


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Modules of these names, importable by a child."""
    for name, source in ANSWERS.items():
        (tmp_path / f"child_{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_the_answer_is_the_last_line(answers):
    assert ask_child("child_good", {"n": 21}, timeout_s=30) == {"twice": 42}


def test_variables_are_added_to_the_childs_environment(answers):
    assert ask_child("child_environment", {}, timeout_s=30, environment={"INTONE_X": "7"}) == {"x": "7"}


@pytest.mark.parametrize(
    ("module", "timeout_s", "words"),
    [
        ("child_raises", 30, "no tea"),
        ("child_dies", 30, "SIGKILL"),
        ("child_hangs", 0.3, "no answer within 0.3 s"),
        ("child_mumbles", 30, "not JSON"),
        ("child_missing", 30, "No module named"),
    ],
)
def test_a_child_without_an_answer_says_why(answers, module, timeout_s, words):
    with pytest.raises(ChildFailed, match=words):
        ask_child(module, {}, timeout_s=timeout_s)


def test_a_child_dies_with_the_process_that_asked_it(answers, tmp_path):
    question = {"path": str(tmp_path / "x")}
    ask = f"from intone.child import ask_child; ask_child('child_marks', {question!r}, timeout_s=60)"
    asker = subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.append({str(PACKAGE_PARENT)!r}); {ask}"])
    wait_for((tmp_path / "x").exists, "the child's first act")
    [child] = psutil.Process(asker.pid).children()
    asker.kill()
    asker.wait()
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_no_module_comes_from_the_folder_where_the_person_stands(answers, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    assert ask_child("child_good", {"n": 4}, timeout_s=30) == {"twice": 8}


@pytest.mark.parametrize("is_on", [True, False])
def test_what_is_loaded_is_spared_by_the_collector_which_is_then_as_it_was(is_on):
    (gc.enable if is_on else gc.disable)()
    try:
        frozen = gc.get_freeze_count()
        with pytest.raises(ImportError), loading():
            assert not gc.isenabled()
            kept = [[n] for n in range(1000)]
            raise ImportError
        assert gc.isenabled() is is_on
        assert gc.get_freeze_count() - frozen >= len(kept)
    finally:
        gc.enable()
