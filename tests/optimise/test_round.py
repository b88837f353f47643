"""A round on somebody else's program: what is tried, kept, applied and taken back, and how it goes on after a stop.

Looks and measurements are planted; worktrees, commits, ledger, gates and reports are real.
"""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from intone import cli
from intone.optimise import round as module
from intone.optimise.ledger import Ledger
from intone.optimise.rounds import newest_first
from intone.optimise.signals import Signals
from intone.prove.measure import Measured, SideResult
from intone.prove.noise import Signals as Noise
from intone.prove.rounds import Block, Round
from intone.prove.verdict import Comparison, Pair, judge, rejected
from tests.bench.test_casestudy import FACTS

ONE_CORE = replace(FACTS, cores_physical=1)  # no other number of threads is worth a try
TRAIN = """import torch
net = torch.nn.Linear(3, 3)
opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
"""
FUSED = "opt = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)"
# by change: verdict, and losses of the changed side; the baseline's are 1.0
WORLD = {"fused-optimizer": ("faster", 1.0), "memory": ("faster", 1.0), "compile-model": ("faster", 2.0)}


class World:
    """What measuring says of each change, and what was asked of it. stop_at: number of the comparison that is cut."""

    def __init__(self):
        self.said = dict(WORLD)
        self.looks, self.compared = [], []
        self.stop_at = None

    def look(self, program, scratch, *, facts):
        self.looks.append((program.env, (program.folder / "train.py").read_text()))
        is_fused = "fused=True" in self.looks[-1][1]
        signals = Signals(
            step_s=0.02 if is_fused else 0.03, num_steps=30, compiled=False, threads=1, idle_share=0.1,
            parts={"optimizer": 0.1 if is_fused else 0.4, "forward": 0.6}, ops_per_step=40.0 if is_fused else 90.0,
            memory_kinds={"weights": 3 * 2**20, "optimizer": 6 * 2**20}, flop_share=0.2,
        )  # fmt: skip
        return signals, {}

    def measure(self, sides, *, quick, max_pairs):
        names = [side.name for side in sides]
        self.compared.append(names)
        if self.stop_at == len(self.compared):
            raise KeyboardInterrupt
        verdict, loss = self.said.get(names[1], ("faster", 1.0))
        if verdict == "crashed":
            results = (result(names[0]), None)
            return Measured(results, (rejected("it died"),), (), 3, quick, 1.0, "")
        found = Comparison(1.3, 1.2, 1.4, 6, 0.99, 1.01, verdict, "planted")
        blocks = tuple(block(name, value) for name, value in zip(names, (1.0, loss), strict=True))
        return Measured(tuple(map(result, names)), (found,), (Round(1, blocks, ()),), 3, quick, 1.0, "")


def result(name):
    return SideResult(name, "steps", 4.0, 4.0, 4.0, 1.0, None, None, {})


def block(name, loss):
    before = Noise(0.0, 0.0, 0.0, 0.0, None, None, None, None, 0.001)
    answer = {"steps": 4, "seconds": 1.0, "first_step": 5, "losses": [loss] * 4}
    return Block(name, 1, 0, 4.0, 1.0, answer, before, replace(before, at_s=1.0))


def paired(names, ratio):
    """The blocks of one round there and back."""
    first, second = (replace(block(name, 1.0), work=4.0 * times) for name, times in zip(names, (1, ratio), strict=True))
    return first, second, second, first


@pytest.fixture
def world(home, monkeypatch):
    made = World()
    monkeypatch.setattr(module, "load_facts", lambda: ONE_CORE)
    monkeypatch.setattr(module, "look_at", made.look)
    monkeypatch.setattr(module, "measure_rounds", made.measure)
    return made


@pytest.fixture
def theirs(tmp_path):
    place = tmp_path / "theirs"
    place.mkdir()
    (place / "train.py").write_text(TRAIN)
    name = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *name, *words], cwd=place, check=True)
    return place


def optimise(theirs, *flags):
    return cli.main(["optimise", *flags, "--folder", str(theirs), "--", sys.executable, "train.py"])


def state_of(ledger: Ledger):
    return {entry.item.name: (entry.verdict, entry.kept) for entry in ledger.tries()}


def test_what_is_proven_and_trains_alike_is_kept_on_a_branch_and_reported_with_what_it_moved(world, theirs, capsys):
    world.said["memory"] = ("same", 1.0)
    assert optimise(theirs) == 0
    (folder,) = newest_first()
    assert state_of(Ledger(folder)) == {
        "memory": ("same", False), "fused-optimizer": ("faster", True), "compile-model": ("rejected", False)
    }  # fmt: skip
    assert (theirs / "train.py").read_text() == TRAIN, "the person's files stay as they are"
    branch = subprocess.run(["git", "show", f"intone/{folder.name}:train.py"], cwd=theirs, capture_output=True)
    assert FUSED in branch.stdout.decode() and "compile" not in branch.stdout.decode()
    text = (folder / "report.md").read_text()
    for words in ("What each kept change moved", "busy share", "operators a step", "optimizer, a step", "0.012 s",
                  "memory: optimizer", "of the device's rate of products", "1.00x to 1.67x",
                  "codemod fused"):  # fmt: skip
        assert words in text, words
    assert (folder / "report.html").exists() and (folder / "report.json").exists()
    assert f"intone/{folder.name}" in capsys.readouterr().out


def test_after_every_kept_change_the_program_is_looked_at_again_and_each_is_taken_out_at_the_end(world, theirs):
    optimise(theirs)
    (folder,) = newest_first()
    kept = [line["kept"] for line in Ledger(folder).lines("signals")]
    first, second = (name for name, (_, is_kept) in state_of(Ledger(folder)).items() if is_kept)
    assert kept == [[], [first], [first, second]] and len(world.looks) == 3
    (whole,) = Ledger(folder).lines("whole")
    assert whole["kept"] == [first, second] == [entry["name"] for entry in whole["without"]]
    assert world.compared[-3:] == [
        ["as it was", "with all"], [f"without {first}", "with all"], [f"without {second}", "with all"]
    ]  # fmt: skip


def test_a_second_call_goes_on_behind_the_last_try_of_one_that_was_stopped(world, theirs, capsys):
    world.stop_at = 2
    assert optimise(theirs) == 130
    said = capsys.readouterr().err
    assert "1 changes tried so far, 1 kept; report: " in said and "the same command goes on" in said
    (folder,) = newest_first()
    assert (folder / "report.html").exists()
    before = list(state_of(Ledger(folder)))
    world.stop_at, world.compared, looks = None, [], len(world.looks)
    assert optimise(theirs, "--minutes", "60") == 0
    assert newest_first() == [folder], "the same round"
    assert list(state_of(Ledger(folder)))[:1] == before and len(state_of(Ledger(folder))) == 3
    assert [names[0] for names in world.compared].count("before") == 2, "what was tried is not tried again"
    assert len(world.looks) == looks + 1, "nor is what was looked at looked at again"
    assert optimise(theirs) == 0 and len(newest_first()) == 2, "a round that ended is not gone on with"


def test_what_was_kept_is_applied_where_asked_and_undone_again(world, theirs, capsys):
    assert optimise(theirs, "--apply") == 0
    assert FUSED in (theirs / "train.py").read_text()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=theirs, capture_output=True, text=True)
    assert status.stdout.split() == ["M", "train.py"], "written into their files, and not committed"
    assert cli.main(["optimise", "--undo"]) == 0
    assert (theirs / "train.py").read_text() == TRAIN
    assert cli.main(["optimise", "--undo"]) == 2
    assert "are not in" in capsys.readouterr().err


def test_a_round_in_which_nothing_differs_proves_nothing_however_noisy_it_is(world, theirs, monkeypatch, capsys):
    noise = random.Random(1)

    def measure(sides, **_):
        rates = [(noise.gauss(9, 0.4), noise.gauss(9, 0.4)) for _ in range(6)]
        pairs = [[Pair(a, b, (a, a), (b, b))] for a, b in rates]
        blocks = tuple(block(side.name, 1.0) for side in sides)
        results = tuple(result(side.name) for side in sides)
        return Measured(results, (judge(pairs),), (Round(1, blocks, ()),), 6, False, 1.0, "")

    monkeypatch.setattr(module, "measure_rounds", measure)
    assert optimise(theirs) == 0
    assert "nothing proven" in capsys.readouterr().out
    (folder,) = newest_first()
    assert {kept for _, kept in state_of(Ledger(folder)).values()} == {False}


def test_a_verdict_that_is_a_few_pairs_away_is_measured_on_and_judged_by_all_pairs(world, theirs, monkeypatch):
    plain, asked = world.measure, []

    def measure(sides, *, quick, max_pairs):
        names = [side.name for side in sides]
        if names[1] != "memory":
            return plain(sides, quick=quick, max_pairs=max_pairs)
        asked.append(max_pairs)
        rounds = tuple(Round(number, paired(names, 1.3 + number / 99), ()) for number in range(1, max_pairs // 2))
        near = Comparison(1.3, 1.1, 1.5, 5, 0.95, 1.05, "not proven", "needs about 3 more pairs", 3)
        return Measured(tuple(map(result, names)), (near,), rounds, len(rounds), quick, 1.0, "")

    monkeypatch.setattr(module, "measure_rounds", measure)
    assert optimise(theirs) == 0
    assert asked == [10, 6], "twice what was missing"
    (folder,) = newest_first()
    (entry,) = [entry for entry in Ledger(folder).tries() if entry.item.name == "memory"]
    assert (entry.verdict, entry.kept, entry.comparison["num_pairs"]) == ("faster", True, 4 + 2)
    asked.clear()
    assert optimise(theirs, "--quick") == 0 and asked == [10], "a quick round takes what it has"


def test_a_change_that_dies_is_a_crash_and_leaves_no_trace_in_the_code(world, theirs):
    world.said["fused-optimizer"] = ("crashed", 1.0)
    assert optimise(theirs) == 0
    (folder,) = newest_first()
    assert state_of(Ledger(folder))["fused-optimizer"] == ("crashed", False)
    assert "fused" not in (folder / "code" / "train.py").read_text()


def test_only_findings_and_plan_where_nothing_is_to_be_changed(world, theirs, capsys):
    assert optimise(theirs, "--analyse-only") == 0
    said = capsys.readouterr().out
    assert "D18" in said and "Update all parameters in one pass" in said and world.compared == []
    (folder,) = newest_first()
    assert Path(folder / "report.md").exists()
