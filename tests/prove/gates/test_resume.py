"""Resuming: the first row, tensor or number that is not the undisturbed run's is named."""

import dataclasses

import pytest

from intone.prove.gates import resume
from intone.prove.gates.resume import Ended, Resumed
from intone.records import Outcome

ROWS = tuple((step, 192 * step, 5.0 / step) for step in range(1, 8))
WHOLE = Ended(Outcome("done", 7), ROWS, {"head.weight": "ab", "momentum": "cd"}, {"step": 7, "tokens": 1344})


def judge(**fields):
    return resume.judge(Resumed(WHOLE, dataclasses.replace(WHOLE, **fields), 4))


def rows(step, **fields):
    """The rows with one of them changed: tokens, loss, or number."""
    number, tokens, loss = ROWS[step - 1]
    changed = (fields.get("number", number), fields.get("tokens", tokens), fields.get("loss", loss))
    return (*ROWS[: step - 1], changed, *ROWS[step:])


def test_equal_bits_pass():
    result = judge()
    assert result.passed
    assert result.reason == "stopped after 4 of 7 steps and resumed: losses and 2 saved tensors are equal"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rows": rows(5, loss=1.25)}, "loss 1.25 at step 5, the first after the restart, is 1.0 in the undisturbed"),
        ({"rows": rows(7, loss=None)}, "loss None at step 7, 3 after the restart"),
        ({"rows": rows(6, tokens=99)}, "tokens 99 at step 6"),
        ({"rows": rows(5, number=4)}, "the log has step 4 where step 5 belongs"),
        ({"rows": ROWS[:6]}, "6 steps are logged, 7 in the undisturbed run"),
        ({"tensors": {**WHOLE.tensors, "momentum": "xx"}}, "losses are equal, but 1 of 2 saved tensors are"),
        ({"tensors": {"head.weight": "ab"}}, "losses are equal, but 1 of 2 saved tensors are not"),
        ({"state": {"step": 7, "tokens": 1}}, "tokens is 1 in the save, 1344 in the undisturbed run's"),
        ({"outcome": Outcome("error", 4, "KeyError: momentum")}, "the resumed run ended with error: KeyError"),
    ],
)
def test_every_difference_is_rejected_and_named(fields, reason):
    result = judge(**fields)
    assert result.passed is False and result.reason.startswith(reason)


def test_a_run_that_the_machine_ended_or_that_saves_nothing_is_not_judged():
    assert judge(outcome=Outcome("killed", 5, "ended by SIGKILL")).passed is None
    broken = dataclasses.replace(WHOLE, outcome=Outcome("error", 2, "no such kernel"))
    assert resume.judge(Resumed(broken, broken, 4)).passed is None
    bare = dataclasses.replace(WHOLE, tensors={}, state={})
    assert resume.judge(Resumed(bare, bare, 4)).passed is None


def test_the_second_process_starts_from_the_save_and_trains_only_what_is_left(jobs, run_here, capsys):
    calls = []

    def run(folder):
        calls.append(sorted(path.name for path in (folder / "checkpoints").glob("step_*")))
        return run_here(folder)

    found = resume.gather(dataclasses.replace(jobs.side(run_here), run=run), jobs.scratch, steps=5, cut=3)
    assert calls == [[], ["step_000003"]]
    assert "going on from the save at step 3" in capsys.readouterr().err
    assert [row[0] for row in found.parted.rows] == [1, 2, 3, 4, 5] and resume.judge(found).passed
    assert {"head.weight", "num_steps"} <= set(found.whole.tensors) and "elapsed_s" not in found.whole.state


def test_a_cut_that_leaves_other_saves_behind_is_a_mistake(jobs, run_here):
    with pytest.raises(AssertionError, match="leaves other saves"):
        resume.gather(jobs.side(run_here), jobs.scratch, steps=8, cut=4)
