"""The allocator of workers: compared in turns where that pays, never against what the person set."""

from dataclasses import replace

import pytest

from intone.child import ChildFailed
from intone.tune import allocator
from intone.tune.allocator import COST_S, SAVES, candidates, settle_allocator, variables_of


@pytest.fixture
def settled(facts, config, trials, monkeypatch):
    """settled({candidate: seconds}) -> (choice, the candidates in the order they were timed)."""
    monkeypatch.setattr(allocator, "huge_pages", lambda: "madvise")

    def ask(step_s=None, *, run_s=None, already=None, failure=None, **changes):
        order = []

        def time_steps(config, cases, facts, variables):
            if failure:
                raise ChildFailed(failure)
            name = "huge" if "GLIBC_TUNABLES" in variables else "heap" if "MALLOC_MMAP_MAX_" in variables else "system"
            order.append(name)
            return [[(step_s or {}).get(name, 1.0)] * 3]

        choice = settle_allocator(
            replace(facts, **changes), config, trials, dtype="fp32", threads=2, kernels="torch", run_s=run_s,
            already=already or {}, time_steps=time_steps,
        )  # fmt: skip
        return choice, order

    return ask


def test_processes_take_turns_and_a_clear_winner_is_taken_and_remembered(settled):
    choice, order = settled({"huge": 0.8, "system": 1.2})
    assert order == ["heap", "huge", "system", "system", "huge", "heap"]
    assert (choice.value, choice.origin) == ("huge", "measured")
    assert {entry["value"]: entry["why"] for entry in choice.beat} == {
        "heap": "0.80x as fast", "system": "0.67x as fast"
    }  # fmt: skip
    assert settled({"system": 0.1})[0].origin == "cached"


def test_what_is_within_noise_changes_nothing(settled):
    choice, _ = settled({"huge": 0.97, "system": 0.96})
    assert choice.value == "heap" and "nothing is 5% faster" in choice.reason


def test_a_short_run_is_not_made_longer_by_the_comparison(settled):
    choice, order = settled({"huge": 0.5}, run_s=COST_S / SAVES - 1)
    assert (choice.value, choice.origin, order) == ("heap", "default", []) and "more than it is likely" in choice.reason
    assert settled({"huge": 0.5}, run_s=COST_S / SAVES + 1)[0].value == "huge"
    assert settled(run_s=1.0)[0].value == "huge"  # what is known costs nothing


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_person_set_is_left_alone(settled, name):
    choice, order = settled(already={name: "1"})
    assert (choice.value, choice.origin, order) == ("heap", "default", []) and "person has set" in choice.reason


def test_other_libraries_and_gpus_are_not_compared(settled):
    assert settled(libc="musl 1.2")[0].value == "system"
    assert settled(device="cuda")[0].reason == "steps on the GPU do not wait for the C library"


def test_a_step_that_cannot_be_timed_leaves_the_rule_and_is_not_kept(settled):
    choice, _ = settled(failure="no answer within 60 s")
    assert (choice.value, choice.origin) == ("heap", "default")
    assert settled({"huge": 0.5})[0].origin == "measured"


def test_huge_pages_are_tried_only_where_asking_for_them_helps():
    assert candidates("madvise") == ("heap", "huge", "system")
    assert candidates("never") == candidates("always") == candidates(None) == ("heap", "system")


def test_variables_say_what_each_candidate_is(facts):
    heap, huge, system = (variables_of(name, facts, 2) for name in ("heap", "huge", "system"))
    assert huge == heap | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert set(heap) - set(system) == {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    assert heap["OMP_NUM_THREADS"] == system["OMP_NUM_THREADS"] == "2"
