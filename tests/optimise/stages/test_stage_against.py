"""The regression mode on a stage of ours: a job by the code of a revision, and by this code."""

import pytest

from intone.child import PACKAGE_PARENT
from intone.optimise import against
from intone.optimise.against import against_stage
from intone.optimise.stages.target import Target
from intone.optimise.worktree import is_repository
from intone.prove.measure import Measured, SideResult
from intone.prove.noise import Signals
from intone.prove.rounds import Block, Round
from intone.prove.verdict import Comparison


@pytest.mark.long
def test_a_stage_runs_by_the_code_of_a_revision_and_by_this_code(start, home, monkeypatch):
    if not is_repository(PACKAGE_PARENT):
        pytest.skip("this code lies in no repository")
    asked = []

    def measured(sides, *, quick):
        for side in sides:
            with side.start() as child:
                child.wait_ready()
                asked.append((side.name, child.block(steps=1)["steps"]))
        at = Signals(0.0, 0.0, 0.0, 0.0, None, None, None, None, 0.001)
        later = Signals(1.0, 1.0, 0.0, 1.0, None, None, None, None, 0.001)
        found = Comparison(1.0, 0.99, 1.01, 6, 0.99, 1.01, "same", "planted")
        results = tuple(SideResult(side.name, "supervised", 4.0, 4.0, 4.0, 1.0, None, None, {}) for side in sides)
        blocks = tuple(Block(side.name, 1, 0, 4.0, 1.0, {"steps": 4, "seconds": 1.0}, at, later) for side in sides)
        return Measured(results, (found,), (Round(1, blocks, ()),), 3, quick, 10.0, "")

    monkeypatch.setattr(against, "measure_rounds", measured)
    answer = against_stage(Target(start.folder), "train", "HEAD", quick=True, name="sft")
    assert asked == [("at HEAD", 1), ("the working tree", 1)]
    assert answer.exit == 0 and "the working tree is no difference" in answer.text
