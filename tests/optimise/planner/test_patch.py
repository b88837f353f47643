"""A model's patch is kept where tests and measuring say so; a wrong one and a cheating one are not."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.optimise.agent.conftest import PLAN, ScriptedServer, act, scripted  # noqa: F401  a fixture

from intone.cli import main
from intone.optimise.agent.client import ChatClient
from intone.optimise.agent.loop import Budget
from intone.optimise.agent.tools import Tools, is_sealed
from intone.optimise.planner.patch import Attempt, Judged, Timed, patterns
from intone.prove.gates.result import GateReport, GateResult, Threshold

TRAIN = "def total(n):\n    found = 0\n    for i in range(n):\n        found += i\n    return found\n"
TEST = "import train\n\n\ndef test_total():\n    assert train.total(5) == 10\n"
LOOP = "    found = 0\n    for i in range(n):\n        found += i\n    return found\n"
RIGHT = act("edit", path="train.py", old=LOOP, new="    return n * (n - 1) // 2\n")
WRONG = act("edit", path="train.py", old=LOOP, new="    return n * n // 2\n")
DONE = act("done", summary="Add up without a loop", why="1,000 times faster: I measured 98,765 steps/s")
PASSED = GateReport((GateResult("losses", True, "equal", Threshold("x", "y"), {}),))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins of this machine take most of a small run
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # most people have it unset
    place = tmp_path / "code"
    (place / "tests").mkdir(parents=True)
    (place / "train.py").write_text(TRAIN)
    (place / "tests" / "test_total.py").write_text(TEST)
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *name, *words], cwd=place, check=True)
    return place


def attempt(root: Path, server: ScriptedServer, verdict: str = "faster", gates: GateReport = PASSED) -> Judged:
    def measure(base: Path, changed: Path) -> Timed:
        assert (base / "train.py").read_text() == TRAIN != (changed / "train.py").read_text()
        return Timed(verdict, f"{verdict}, as measured", gates)

    client = ChatClient("scripted", server.url, wait=lambda _: None)
    folder = root.parent / "plan-1"
    folder.mkdir()
    return Attempt(root, folder, client, Budget(), None, measure).run("make it fast")


def shown(root: Path, name: str) -> str:
    """A file as the branch of the attempt has it."""
    words = ["git", "show", f"intone/plan-1:{name}"]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout


def test_a_good_patch_is_proven_and_kept_on_its_branch(root: Path, scripted: ScriptedServer):  # noqa: F811
    scripted.replies = [act("read", path="train.py"), PLAN, RIGHT, act("run_tests"), DONE]
    found = attempt(root, scripted)
    assert (found.outcome, found.reason, found.branch) == ("proven", "faster, as measured", "intone/plan-1")
    assert found.files == ("train.py",) and found.tests is not None and found.tests.passed == 1
    assert "n * (n - 1) // 2" in shown(root, "train.py")
    assert (root / "train.py").read_text() == TRAIN
    assert any("the tests passed" in message["content"] for message in scripted.asked[-1]["messages"])


def test_a_model_may_ask_how_fast_its_state_is_and_is_judged_by_a_measurement_of_its_own(
    root: Path, scripted: ScriptedServer,  # noqa: F811
):  # fmt: skip
    scripted.replies = [PLAN, RIGHT, act("measure"), DONE]
    assert attempt(root, scripted).outcome == "proven"
    heard = scripted.asked[-1]["messages"][-1]["content"]
    assert heard == "faster: faster, as measured; gates: passed 1 gate"


def test_a_wrong_patch_is_rejected_by_the_tests(root: Path, scripted: ScriptedServer):  # noqa: F811
    scripted.replies = [PLAN, WRONG, DONE]
    found = attempt(root, scripted)
    assert (found.outcome, found.branch) == ("rejected", None)
    assert found.reason == "the tests: 0 passed, 1 failed" and found.timed is None
    assert shown(root, "train.py") == TRAIN
    assert "n * n // 2" in (root.parent / "plan-1" / "rejected.diff").read_text()


def test_numbers_that_a_model_claims_or_prints_count_for_nothing(root: Path, scripted: ScriptedServer):  # noqa: F811
    loud = act("edit", path="train.py", old="    return found", new="    print('98,765 steps/s')\n    return found")
    scripted.replies = [PLAN, loud, DONE]
    found = attempt(root, scripted, verdict="same")
    assert (found.outcome, found.reason) == ("rejected", "not proven faster: same, as measured")


def test_a_faster_patch_that_fails_a_gate_is_rejected(root: Path, scripted: ScriptedServer):  # noqa: F811
    scripted.replies = [PLAN, RIGHT, DONE]
    failed = GateReport((GateResult("losses", False, "they differ", Threshold("x", "y"), {}, fix="undo"),))
    found = attempt(root, scripted, gates=failed)
    assert (found.outcome, found.reason) == ("rejected", "rejected by the gate losses: they differ")


CHEATS = {
    # running code makes the judging test agree with a wrong patch
    "edits a sealed file": (
        "from pathlib import Path\n"
        "Path(__file__).with_name('test_total.py').write_text('def test_total():\\n    pass\\n')\n",
        "tests/test_total.py is sealed and was changed",
    ),
    # the code as it was becomes slow, so that anything looks fast beside it
    "sleeps in the baseline": (
        "from pathlib import Path\n"
        "place = Path.cwd().parent / 'base' / 'train.py'\n"
        "place.write_text('import time\\ntime.sleep(1)\\n' + place.read_text())\n",
        "base/train.py was changed while it was being measured",
    ),
    # a test that ends the process before the others run, with success
    "ends the tests early": ("import os\nos._exit(0)\n", "the tests: 0 passed, 1 failed"),
    "writes a file that nobody saw": (
        "from pathlib import Path\nPath('helper.py').write_text('x = 1\\n')\n",
        "helper.py was written by running code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_patch_is_caught(cheat: str, root: Path, scripted: ScriptedServer):  # noqa: F811
    text, reason = CHEATS[cheat]
    new_test = act("create", path="tests/test_new.py", text=f"{text}\n\ndef test_new():\n    pass\n")
    scripted.replies = [PLAN, WRONG, new_test, act("run_tests"), DONE]
    found = attempt(root, scripted)
    assert (found.outcome, found.branch) == ("rejected", None)
    assert reason in found.reason


def test_settings_of_tests_are_sealed_to_the_models_tools(root: Path, scripted: ScriptedServer):  # noqa: F811
    scripted.replies = [PLAN, act("create", path="tests/conftest.py", text="x"), RIGHT, DONE]
    assert attempt(root, scripted).outcome == "proven"
    assert "conftest.py is sealed" in scripted.asked[-1]["messages"][4]["content"]


def test_tests_their_data_and_the_script_that_runs_them_are_sealed():
    names = ["a.py", "check.sh", "tests/test_a.py", "tests/expected.txt", "other.sh"]
    assert [name for name in names if is_sealed(name, patterns(names, ["bash", "./check.sh"]))] == names[1:4]


def test_a_model_that_never_ends_leaves_an_unfinished_plan(root: Path, scripted: ScriptedServer):  # noqa: F811
    client = ChatClient("scripted", scripted.url, wait=lambda _: None)
    folder = root.parent / "plan-1"
    folder.mkdir()
    scripted.replies = [PLAN, RIGHT, act("list")]
    found = Attempt(root, folder, client, Budget(steps=3)).run("make it fast")
    assert (found.outcome, found.reason) == ("unfinished", "the model did not finish: steps")
    assert shown(root, "train.py") == TRAIN


def test_the_verb_tests_a_patch_without_a_program_to_measure(root: Path, home, scripted, capsys):  # noqa: F811
    subprocess.run(["git", "branch", "intone/plan-1"], cwd=root, check=True)  # of an earlier home
    scripted.replies = [PLAN, RIGHT, DONE]
    tests = f"{sys.executable} -m pytest -q"
    words = ["plan", "add up faster", str(root), "--model", "scripted", "--base-url", scripted.url, "--tests", tests]
    assert main(words) == 0
    assert "tested: the tests pass; speed was not measured" in capsys.readouterr().out
    assert "n * (n - 1) // 2" in (home / "optimise" / "plans" / "plan-2" / "change.diff").read_text()


def test_a_second_call_goes_on_where_the_first_was_stopped(root: Path, home, scripted, capsys, monkeypatch):  # noqa: F811
    tests = f"{sys.executable} -m pytest -q"
    words = ["plan", "add up faster", str(root), "--model", "scripted", "--base-url", scripted.url, "--tests", tests]
    scripted.replies = [PLAN, RIGHT, act("run_tests")]

    def stop(tools: Tools) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Tools, "run_tests", stop)
        assert main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    scripted.replies = [DONE]
    assert main(words) == 0
    assert "going on with plan-1" in capsys.readouterr().err
    (folder,) = (home / "optimise" / "plans").iterdir()
    assert "n * (n - 1) // 2" in (folder / "change.diff").read_text(), "what was edited before the stop is part of it"
    assert (folder / "result.json").exists(), "it has an end now, with which no call goes on"
