"""Training in blocks: the same losses as the run itself, whatever the blocks and plans."""

import io
import json

import pytest

from intone.blocks import Exchange
from intone.errors import UserError
from intone.records import read_log
from intone.train.live import live_training


@pytest.fixture
def in_blocks(make_job):
    """in_blocks(*commands, **job fields) -> (ready, answers) of a job that did these blocks."""

    def done(*commands, name="live", **fields):
        folder = make_job(name, steps=60, **fields)
        lines = "".join(json.dumps({"do": "block", **command}) + "\n" for command in commands)
        exchange = Exchange(io.StringIO(lines), io.StringIO())
        assert live_training(folder, exchange).outcome == "done"
        ready, *answers = map(json.loads, exchange.answers.getvalue().splitlines())
        return ready, answers

    return done


@pytest.fixture
def undisturbed(make_job, train):
    """The losses of 60 steps of a normal run."""
    folder = make_job("normal", steps=60, keep=0)
    train(folder)
    return [row["loss"] for row in read_log(folder / "log.jsonl", "step")]


def test_blocks_give_bitwise_the_losses_of_the_run(in_blocks, undisturbed):
    ready, answers = in_blocks({"steps": 5}, {"steps": 1}, {"steps": 11})
    assert [answer["first_step"] for answer in answers] == [3, 8, 9]
    assert sum((answer["losses"] for answer in answers), []) == undisturbed[3:20]
    assert ready["ready"] and ready["first_s"] > 0 and ready["warm_s"] > 0


def test_a_restart_begins_again_with_the_same_weights_and_rows(in_blocks, undisturbed):
    _, answers = in_blocks({"steps": 9, "restart": True}, {"steps": 2}, {"steps": 7, "restart": True})
    assert [answer["first_step"] for answer in answers] == [0, 9, 0]
    assert answers[0]["losses"] == undisturbed[:9]
    assert answers[1]["losses"] == undisturbed[9:11]
    assert answers[2]["losses"] == undisturbed[:7]


def test_a_plan_holds_for_this_and_later_blocks_and_changes_no_mathematics(in_blocks, undisturbed):
    """Micro-batches of 2 of 5 rows: the losses of the same plan in a run, close to those of another plan."""
    ready, answers = in_blocks(
        {"steps": 6, "restart": True, "plan": {"device_batch": 2}}, {"steps": 3}, {"steps": 2, "plan": {"threads": 1}},
        {"steps": 11, "restart": True},
    )  # fmt: skip
    assert ready["facts"]["device_batch"] == 5
    *parts, again = [answer["losses"] for answer in answers]
    assert sum(parts, []) == again
    assert again != undisturbed[:11]
    assert again == pytest.approx(undisturbed[:11], rel=1e-3)


def test_another_plan_is_warmed_up_outside_the_block(in_blocks, undisturbed):
    _, answers = in_blocks({"steps": 4, "plan": {"device_batch": 2}}, {"steps": 4, "plan": {"device_batch": 2}})
    assert [answer["first_step"] for answer in answers] == [6, 10]
    assert answers[0]["first_s"] > 0 and answers[0]["warm_s"] > 0
    assert "first_s" not in answers[1]


def test_a_plan_that_was_computed_before_needs_no_steps_before_its_block(in_blocks, undisturbed):
    _, answers = in_blocks({"steps": 4, "plan": {"device_batch": 2}, "first": False}, {"steps": 1, "rows": 3})
    assert [answer["first_step"] for answer in answers] == [3, 10]  # another size still has its three
    assert "first_s" not in answers[0] and "first_s" in answers[1]


def test_the_plan_of_a_block_is_bitwise_that_of_a_run_planned_so(in_blocks, make_job, train, plan):
    folder = make_job("planned", segments=[plan(0, device_batch=2)], steps=60, keep=0)
    train(folder)
    expected = [row["loss"] for row in read_log(folder / "log.jsonl", "step")][:8]
    _, answers = in_blocks({"steps": 8, "restart": True, "plan": {"device_batch": 2}})
    assert answers[0]["losses"] == expected


def test_tokens_are_counted_by_position_and_by_what_is_learned(in_blocks, text_files):
    _, (answer,) = in_blocks({"steps": 4}, data=(str(text_files / "talks"),))
    assert answer["tokens"] == 4 * 5 * 32
    assert 0 < answer["supervised"] < answer["tokens"]


def test_a_job_that_saves_often_neither_saves_nor_evaluates_in_blocks(in_blocks, tmp_path):
    in_blocks({"steps": 9}, name="saving", save_every_s=0.0, keep=3, eval_every=2)
    assert not (tmp_path / "saving" / "checkpoints").exists()
    assert read_log(tmp_path / "saving" / "log.jsonl", "eval") == []


def test_losses_that_are_not_finite_end_the_worker_as_in_a_run(make_job, monkeypatch):
    from intone.model.gpt import GPT

    real = GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda self, *a: (real(self, *a)[0] * float("nan"), None)
    )
    folder = make_job("broken", steps=60)
    outcome = live_training(folder, Exchange(io.StringIO('{"do": "block", "steps": 9}\n'), io.StringIO()))
    assert outcome.outcome == "not_finite"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ({"steps": 0}, "steps 0 is not a whole number above 0"),
        ({"stepps": 3}, "unknown key of a block 'stepps'"),
        ({"steps": 3, "plan": 4}, "plan 4 is not an object"),
        ({"steps": 3, "plan": {"micro": 3}}, "unknown plan setting 'micro'"),
        ({"steps": 3, "plan": {"attention": "none"}}, "unknown attention backend 'none'"),
        ({"steps": 58}, "58 steps from step 3 on go beyond the 60 of the job"),
    ],
)
def test_a_block_that_cannot_be_says_what_is_wrong(in_blocks, command, words):
    with pytest.raises(UserError) as caught:
        in_blocks(command)
    assert caught.value.message == words


def test_a_folder_with_saves_is_not_measured_in(make_job, train):
    folder = make_job(steps=3)
    train(folder)
    with pytest.raises(UserError, match="has saves: blocks on command would spoil its log"):
        live_training(folder, Exchange(io.StringIO(), io.StringIO()))
    assert len(read_log(folder / "log.jsonl", "step")) == 3
