"""The swap to compiled code in mid-run: the worker waits for it, reads the plan again, and can be stopped meanwhile."""

import dataclasses
import threading

import pytest
import torch

from intone.paths import FolderLock
from intone.records import read_choices, read_log, write_choices
from intone.train import swap
from intone.train.loop import Trainer
from intone.train.swap import LOCK


@pytest.fixture
def folder(make_job, plan, monkeypatch):
    """A job of seven steps, compiled from the fourth on; what compiles here is nothing."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    monkeypatch.setattr(swap, "LOOK_EVERY_S", 0.01)
    later = dataclasses.replace(plan(3), compiled=True, attention="products", reason="compiled by then")
    place = make_job("swap", segments=[plan(0), later])
    return place, compiled


def steps_of(place):
    return [row["step"] for row in read_log(place / "log.jsonl", "step")]


def test_the_worker_waits_at_the_planned_step_and_goes_on_when_the_code_is_there(folder):
    place, compiled = folder
    lock = FolderLock(place / LOCK, what="test")
    seen = []

    def should_stop():
        seen.append(len(steps_of(place)))
        if seen[-2:] == [3, 3]:  # asked twice without a step in between: it waits
            lock.close()
        return False

    assert Trainer(place, should_stop).run().outcome == "done"
    assert seen[-1] == 7 and len(compiled) == 1


def test_a_plan_that_was_changed_meanwhile_is_followed(folder, plan):
    place, compiled = folder
    lock = FolderLock(place / LOCK, what="test")

    def reject():
        choices = read_choices(place)
        write_choices(place, choices.with_segment(dataclasses.replace(plan(3), reason="stays eager: test")))
        lock.close()

    timer = threading.Timer(0.3, reject)
    timer.start()
    assert Trainer(place, lambda: False).run().outcome == "done"
    timer.join()
    assert compiled == [] and len(steps_of(place)) == 7


def test_a_stop_while_it_waits_saves_and_a_new_start_waits_again(folder):
    place, compiled = folder
    with FolderLock(place / LOCK, what="test"):
        asked = iter([False] * 3 + [True] * 9)
        outcome = Trainer(place, lambda: next(asked)).run()
        assert (outcome.outcome, outcome.step, compiled) == ("stopped", 3, [])
        outcome = Trainer(place, lambda: True).run()
        assert (outcome.outcome, outcome.step, compiled) == ("stopped", 3, [])
    assert Trainer(place, lambda: False).run().outcome == "done"
    assert len(compiled) == 1 and steps_of(place) == list(range(1, 8))
