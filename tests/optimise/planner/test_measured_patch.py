"""A model's patch on a program that trains: proven, not proven or rejected by what was measured of it for real."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.bench.test_casestudy import FACTS
from tests.optimise.agent.conftest import PLAN, ScriptedServer, act, scripted  # noqa: F401  a fixture
from tests.optimise.test_round import block, result

from intone.cli import main
from intone.optimise.planner import patch as module
from intone.optimise.planner.patch import program_measure
from intone.optimise.signals import Signals
from intone.prove import measure
from intone.prove.measure import Measured, measure_rounds
from intone.prove.rounds import Round
from intone.prove.verdict import Comparison

# every sum is added up from its beginning again, 40 ms in Python beside a step of about one: planted, and so large that
# it is proven on a machine that others use too
TRAIN = """import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)


def rows_of(step):
    rows = []
    for row in range(32):
        line = []
        for place in range(192):
            line.append(sum((step + row + i * i) % 61 for i in range(place + 1)) % 61)
        rows.append(line)
    return torch.tensor(rows)


table, head = torch.nn.Embedding(61, 8), torch.nn.Linear(8, 61)
optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.1)
for step in range(10**9):
    rows = rows_of(step)
    F.cross_entropy(head(table(rows).mean(1)), rows[:, 0]).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
SLOW = TRAIN[TRAIN.index("    rows = []\n") : TRAIN.index("\n\ntable")]
FAST = """    i = torch.arange(192)
    numbers = (step + torch.arange(32)[:, None] + i * {}) % 61
    return numbers.cumsum(1) % 61
"""
GOOD = act("edit", path="train.py", old=SLOW, new=FAST.format("i"))
OTHER = act("edit", path="train.py", old=SLOW, new=FAST.format(3))
NEUTRAL = act("edit", path="train.py", old="        rows.append(line)", new="        rows.append(list(line))")
DONE = act("done", summary="Add up once", why="1,000 times faster, as I measured")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins of this machine take most of a small run
    monkeypatch.setattr(measure, "load_facts", lambda: FACTS)
    place = tmp_path / "code"
    place.mkdir()
    (place / "train.py").write_text(TRAIN)
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *name, *words], cwd=place, check=True)
    return place


def planned(root: Path, server: ScriptedServer, home: Path, *replies: str):
    """(exit code, result.json) of a model's attempt whose program is really measured, in short blocks."""
    server.replies = [act("read", path="train.py"), PLAN, *replies, DONE]
    words = ["plan", "make the batches faster", str(root), "--model", "scripted", "--base-url", server.url]
    code = main([*words, "--measure", f"{sys.executable} train.py"])
    return code, json.loads((home / "optimise" / "plans" / "plan-1" / "result.json").read_text())


@pytest.fixture
def in_short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes and real times, of a fifth of the length."""
    monkeypatch.setattr(module, "measure_rounds", partial(measure_rounds, block_s=0.2, max_pairs=6))


@pytest.mark.long
def test_a_good_patch_is_measured_on_the_way_and_at_the_end_and_is_proven_faster(
    root: Path, home: Path, scripted: ScriptedServer, in_short_blocks, capsys,  # noqa: F811
):  # fmt: skip
    code, found = planned(root, scripted, home, GOOD, act("measure"))
    heard = scripted.asked[-1]["messages"][-1]["content"]
    assert heard.startswith("faster: faster: ") and heard.endswith("gates: passed 2 gates")
    assert (code, found["outcome"], found["timed"]["verdict"]) == (0, "proven", "faster")
    assert found["timed"]["comparison"]["low"] > 1.01 and found["timed"]["comparison"]["num_pairs"] >= 5
    gates = {gate["name"]: gate for gate in found["timed"]["gates"]["gates"]}
    assert gates["losses"]["passed"] and gates["losses"]["evidence"]["distance"] == 0.0
    branch = subprocess.run(["git", "show", "intone/plan-1:train.py"], cwd=root, capture_output=True, text=True)
    assert "numbers.cumsum(1)" in branch.stdout and (root / "train.py").read_text() == TRAIN
    assert "proven: faster: " in capsys.readouterr().out


@pytest.mark.long
def test_a_patch_that_changes_nothing_of_the_speed_ends_as_not_proven(
    root: Path, home: Path, scripted: ScriptedServer, in_short_blocks,  # noqa: F811
):  # fmt: skip
    code, found = planned(root, scripted, home, NEUTRAL)
    assert (code, found["outcome"], found["branch"]) == (1, "rejected", None)
    assert found["timed"]["verdict"] in ("same", "not proven", "slower")
    assert found["reason"].startswith("not proven faster: ")


@pytest.mark.long
def test_a_faster_patch_that_trains_on_other_rows_is_rejected_by_its_losses(
    root: Path, home: Path, scripted: ScriptedServer, in_short_blocks,  # noqa: F811
):  # fmt: skip
    code, found = planned(root, scripted, home, OTHER)
    assert (code, found["outcome"], found["timed"]["verdict"]) == (1, "rejected", "faster")
    assert found["reason"].startswith("rejected by the gate losses: the losses differ by ")


@pytest.mark.parametrize(("last", "passed"), [(5, True), (6, False)])
def test_of_a_program_that_writes_the_tokens_are_compared(tmp_path: Path, monkeypatch, last: int, passed: bool):
    (tmp_path / "write.py").write_text("")
    looked, sizes = [], []

    def look(program, scratch):
        looked.append(program.folder)
        return Signals(kind="generate", step_s=0.01), {}

    def measured(sides):
        sizes.extend(side.size for side in sides)
        texts = [[[1], [5]], [[1], [last]]]
        blocks = tuple(
            replace(block(side.name, 1.0), answer={"steps": 2, "seconds": 1.0, "first_step": 5, "texts": one})
            for side, one in zip(sides, texts, strict=True)
        )
        verdict = Comparison(1.3, 1.2, 1.4, 6, 0.99, 1.01, "faster", "planted")
        results = tuple(result(side.name) for side in sides)
        return Measured(results, (verdict,), (Round(1, blocks, ()),), 3, False, 1.0, "")

    monkeypatch.setattr(module, "look_at", look)
    monkeypatch.setattr(module, "measure_rounds", measured)
    times = program_measure([sys.executable, "write.py"], tmp_path / "scratch", tmp_path)
    for _ in range(2):
        timed = times(tmp_path / "base", tmp_path / "changed")
        assert timed.verdict == "faster" and timed.gates.passed is passed
        assert [gate.name for gate in timed.gates.results] == ["plausible times", "tokens"]
    assert looked == [tmp_path / "base"], "once, at the code as it was"
    assert sizes == [50] * 4, "half a second of calls, the same ones on both sides"
