"""Compiling beside a run: the worker waits at the planned step, goes on with what was decided, and repeats it."""

from dataclasses import replace

import pytest
from tests.tiny_jobs import SEGMENT, write_job

from intone.paths import FolderLock, read_json
from intone.records import read_choices, read_log, write_choices
from intone.supervisor import supervise
from intone.train.swap import LOCK, is_compiling
from intone.tune.background import VERDICT, compiled_meanwhile, planned_swap

SWAP = replace(SEGMENT, from_step=4, compiled=True, attention="products", reason="compiled beside the run")


@pytest.fixture
def folder(tmp_path, tiny_job):
    """A job of nine steps that swaps to compiled code at the fifth."""
    place = write_job(tmp_path / "job", tiny_job, SEGMENT)
    write_choices(place, replace(read_choices(place), segments=(SEGMENT, SWAP)))
    return place


def shape(folder):
    return [(entry.from_step, entry.compiled, entry.attention) for entry in read_choices(folder).segments]


def test_good_code_leaves_the_plan_as_it_is_and_is_compiled_once(folder):
    asked = []

    def compile_code(place):
        asked.append(is_compiling(place))
        return {"ok": True, "reason": "accepted"}

    for _ in range(2):
        with compiled_meanwhile(folder, compile_code):
            pass
    assert asked == [True] and not is_compiling(folder)
    assert read_json(folder / VERDICT)["from_step"] == 4
    assert shape(folder) == [(0, False, "sdpa"), (4, True, "products")]


def test_rejected_code_takes_the_swap_back_before_the_worker_may_go_on(folder):
    with compiled_meanwhile(folder, lambda _: {"ok": False, "reason": "losses part"}):
        pass
    assert shape(folder) == [(0, False, "sdpa"), (4, True, "products"), (4, False, "sdpa")]
    assert read_choices(folder).segment_at(4).reason == "stays eager: losses part"
    assert planned_swap(read_choices(folder)) is None
    with compiled_meanwhile(folder, lambda _: pytest.fail("nothing is to be compiled any more")):
        pass


def test_an_end_in_between_decides_nothing(folder):
    with compiled_meanwhile(folder, lambda _: {}):
        pass
    assert not (folder / VERDICT).exists() and planned_swap(read_choices(folder)) is not None


def test_a_job_that_ends_before_the_swap_compiles_nothing(folder):
    write_choices(folder, replace(read_choices(folder), segments=(SEGMENT, replace(SWAP, from_step=9))))
    with compiled_meanwhile(folder, lambda _: pytest.fail("the job has nine steps")):
        pass


def test_smaller_micro_batches_of_later_segments_stay_when_the_swap_is_taken_back(folder):
    smaller = replace(SWAP, from_step=6, device_batch=1, reason="memory ran out")
    write_choices(folder, replace(read_choices(folder), segments=(SEGMENT, SWAP, smaller)))
    with compiled_meanwhile(folder, lambda _: {"ok": False, "reason": "no"}):
        pass
    last = read_choices(folder).segments[-1]
    assert (last.from_step, last.device_batch, last.compiled) == (6, 1, False)


@pytest.mark.long
def test_a_run_trains_eager_waits_and_swaps_and_the_same_plan_gives_the_same_losses(folder, tmp_path, tiny_job, home):
    """The real thing, on two cores as if some were to spare: a process compiles while the worker trains."""
    environment = read_choices(folder).environment
    with compiled_meanwhile(folder):
        assert supervise(folder, environment).outcome == "done"
    assert read_json(folder / VERDICT)["reason"].startswith("compiled fp32 accepted")
    again = write_job(tmp_path / "again", tiny_job, SEGMENT)
    write_choices(again, replace(read_choices(again), segments=(SEGMENT, SWAP)))
    assert supervise(again, environment).outcome == "done"
    losses = [[row["loss"] for row in read_log(place / "log.jsonl", "step")] for place in (folder, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 9


def test_a_lock_that_somebody_holds_is_seen_by_others(folder):
    assert not is_compiling(folder)
    with FolderLock(folder / LOCK, what="the code of this job"):
        assert is_compiling(folder)
    assert not is_compiling(folder)
