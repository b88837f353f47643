"""The memory guard: others that take memory, an allocator that retries, and a run that then ends for a smaller size."""

import pytest
import torch
from tests.tiny_jobs import losses, replace, write_job

from intone.records import Choice, Outcome, read_choices, write_choices
from intone.train import guard
from intone.train.guard import LOOK_EVERY_S, MemoryGuard
from intone.train.loop import Trainer

GIB = 2**30
CPU = torch.device("cpu")


class Machine:
    """Memory as a guard sees it: what this process holds, held at most, and what is free."""

    def __init__(self, monkeypatch, **sizes):
        self.now_s, self.retries = 0.0, 0
        self.held, self.peak, self.free = GIB, GIB, 10 * GIB
        monkeypatch.setattr(guard, "resident_bytes", lambda device: self.held)
        monkeypatch.setattr(guard, "peak_bytes", lambda device: self.peak)
        monkeypatch.setattr(guard, "free_bytes", lambda device: self.free)
        monkeypatch.setattr(guard, "alloc_retries", lambda device: self.retries)

    def alarm(self, watch):
        self.now_s += LOOK_EVERY_S
        return watch.alarm()


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def watching(machine, margin_bytes=GIB):
    return MemoryGuard(CPU, margin_bytes, clock=lambda: machine.now_s)


def test_memory_that_others_take_is_noticed_at_the_margin_of_the_worst_moment(machine):
    watch = watching(machine)
    machine.held, machine.peak, machine.free = 2 * GIB, 5 * GIB, 4 * GIB
    assert machine.alarm(watch) is None  # 1 GiB is left at the worst moment: exactly the margin
    machine.free -= 2**28
    assert machine.alarm(watch) == (
        "memory is about to run out: others leave 0.75 GiB at the worst moment of a step, 1 GiB were to stay free"
    )


def test_a_margin_that_a_smaller_micro_batch_could_not_give_back_is_not_defended(machine):
    watch = watching(machine, margin_bytes=4 * GIB)
    machine.held = machine.peak = GIB + 2**20  # the whole job grew by 1 MiB
    machine.free = 2**21
    assert machine.alarm(watch) is None
    machine.free = 2**19
    assert machine.alarm(watch) is not None


def test_the_first_retry_of_the_allocator_is_one_too_many_and_earlier_ones_do_not_count(machine):
    machine.retries = 3
    watch = watching(machine, margin_bytes=None)
    assert machine.alarm(watch) is None
    machine.retries = 4
    assert machine.alarm(watch) == "memory is about to run out: the allocator had to give back its cache 1 times"


def test_it_looks_once_a_second_and_knows_nothing_where_memory_is_not_told(machine):
    watch = watching(machine)
    machine.peak, machine.free = 5 * GIB, 0
    assert watch.alarm() is None
    machine.held = None
    assert machine.alarm(watch) is None


@pytest.fixture
def crowded_job(tiny_job, tmp_path, monkeypatch):
    """crowded_job(fallbacks) -> the folder of a job in whose third look memory is nearly gone."""
    looks = []

    def alarm(self):
        looks.append(1)
        return "memory is about to run out: test" if len(looks) == 3 else None

    monkeypatch.setattr(MemoryGuard, "alarm", alarm)
    threads = torch.get_num_threads()

    def made(fallbacks=(3, 2, 1), **changes):
        return write_job(tmp_path / "job", tiny_job, fallbacks=fallbacks, val=None, save_every_s=1e4, **changes)

    yield made
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_a_run_ends_at_the_step_with_a_save_so_that_nothing_is_trained_twice(crowded_job):
    folder = crowded_job()
    trainer = Trainer(folder, lambda: False)
    assert trainer.run() == Outcome("out_of_memory", 3, "memory is about to run out: test")
    assert trainer.saved_step == 3 and [step for step, _ in losses(folder)] == [1, 2, 3]


@pytest.mark.parametrize("how", [{"fallbacks": (3,)}, {"keep": 0}])
def test_a_run_with_nothing_smaller_and_a_trial_go_on(crowded_job, how):
    assert Trainer(crowded_job(**how), lambda: False).run() == Outcome("done", 9)


def test_the_margin_is_the_plans(tiny_job, tmp_path):
    folder = write_job(tmp_path / "job", tiny_job, val=None, steps=1)
    choices = read_choices(folder)
    margin = Choice(12345, "test", "measured")
    write_choices(folder, replace(choices, settings={**choices.settings, "memory_margin_bytes": margin}))
    trainer = Trainer(folder, lambda: False)
    trainer.set_up()
    with trainer.batches():
        assert trainer.guard._margin_bytes == 12345
