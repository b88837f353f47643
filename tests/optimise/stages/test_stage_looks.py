"""Looks at our own stages: what is planted shows in the signals, what is mended does not."""

import pytest
from tests.optimise.stages.threads import ThreadChild, run_here

from intone.optimise.detect.catalogue import detect
from intone.optimise.stages.generation import look_at_generation
from intone.optimise.stages.target import Target
from intone.optimise.stages.training import knee, look_at_training, off_step_share
from intone.records import EvalRow, EventRow, StepRow, log_row

MENDED = {"switches": {"no_cache": False, "copied_first_token": False}}


@pytest.fixture
def in_threads(monkeypatch):
    """Generations run in threads of this process."""

    def child(target, part, state, folder, *, name, **changes):
        return ThreadChild(target.write(part, state, folder, **changes))

    monkeypatch.setattr(Target, "child", child)
    monkeypatch.setattr(Target, "run", lambda target, folder, env: run_here(folder))


def test_the_starts_training_shows_all_three_faults(start, facts, tmp_path):
    signals = look_at_training(start, {}, facts, tmp_path)
    found = {entry.detector: entry for entry in detect(signals)}
    assert {"D1", "D3", "D16"} <= set(found)
    assert signals.pad_share > 0.2 and signals.num_shapes > 1
    assert signals.device_batch == 4 and signals.elasticity == signals.ladder["8"] > 1.05
    assert signals.kernels_gain > 1.05, "our kernels were measured, in turns with PyTorch's operations"
    assert sum(signals.parts.values()) == pytest.approx(1.0, abs=0.01)
    assert signals.parts["forward"] > 0.1 and signals.parts["backward"] > 0.1
    assert signals.memory_kinds["weights"] == signals.memory_kinds["gradients"] > 0
    assert 0 < signals.flop_share < 1


def test_the_starts_generation_shows_both_faults(in_threads, start, facts, tmp_path):
    signals = look_at_generation(start, {}, facts, tmp_path)
    found = {entry.detector: entry for entry in detect(signals)}
    assert set(found) == {"D8", "D22"} and found["D22"].is_fault
    assert signals.distinct_first == 1 and signals.expected_distinct > 2


def test_mended_the_same_look_finds_neither(in_threads, start, facts, tmp_path):
    signals = look_at_generation(start, MENDED, facts, tmp_path)
    assert not {"D8", "D22"} & {entry.detector for entry in detect(signals)}
    assert signals.distinct_first > 2 and signals.late_over_early < 2


def test_one_slot_for_many_texts_is_found_and_what_more_bring_is_measured(in_threads, start, facts, tmp_path):
    slow = {**MENDED, "engine": {"num_slots": 1}}
    signals = look_at_generation(start, slow, facts, tmp_path)
    assert signals.batch_gain_rows == 4 and 0 < signals.batch_gain < 4
    assert "D9" in {entry.detector for entry in detect(signals)}


def test_evaluations_and_saves_of_a_run_are_time_between_its_steps(tmp_path):
    log = tmp_path / "log.jsonl"
    assert off_step_share(log) is None
    for step in range(4):
        log_row(log, StepRow(step + 1, 10, 2.0, 1.0, 2.0, 0.1, 5.0, None))
    log_row(log, EvalRow(4, 1.0, {"bpb": 1.0}))
    log_row(log, EventRow(4, "save", "step_000004", 1.0))
    log_row(log, EventRow(4, "resumed", "from a save"))
    assert off_step_share(log) == pytest.approx(0.2)


def test_the_fewest_rows_within_a_hundredth_of_the_fastest_are_chosen():
    assert knee({"4": 1.0, "8": 1.495, "16": 1.5, "32": 1.4}) == 8
    assert knee({}) is None
