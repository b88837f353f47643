"""Looks at our own stages: what is planted shows in the signals, what is mended does not."""

import pytest
import torch
from tests.optimise.stages.threads import ThreadChild, run_here

from intone.bench.casestudy_start import Faults, planted
from intone.data.loader import Prefetcher
from intone.model.gpt import GPT
from intone.optimise.detect.catalogue import detect
from intone.optimise.stages.generation import look_at_generation
from intone.optimise.stages.target import Target
from intone.optimise.stages.training import (
    QUIET,
    knee,
    look_at_training,
    most_rows,
    off_step_share,
    rows_ladder,
    signals_of,
)
from intone.optimise.stages.watch import Watch, num_steps
from intone.optimise.trace import read_profile
from intone.paths import read_json
from intone.records import EvalRow, EventRow, StepRow, log_row
from intone.train.loop import Trainer
from intone.train.step import StepResult, TrainStep

MENDED = {"switches": {"no_cache": False, "copied_first_token": False}}


@pytest.fixture
def in_threads(monkeypatch):
    """Generations run in threads of this process."""

    def child(target, part, state, folder, *, name, **changes):
        return ThreadChild(target.write(part, state, folder, **changes))

    monkeypatch.setattr(Target, "child", child)
    monkeypatch.setattr(Target, "run", lambda target, folder, env: run_here(folder))


@pytest.fixture
def watched_here(monkeypatch, start, tmp_path):
    """watched_here(state) -> what the clocks see of the start's training, run in this process."""
    for owner, name in (
        (TrainStep, "__init__"), (TrainStep, "run"), (TrainStep, "_upload"), (torch.Tensor, "backward"),
        (StepResult, "sync_loss"), (Prefetcher, "__next__"), (torch.nn.functional, "cross_entropy"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back after the clocks were put in

    def watched(state):
        plan = {"worker": "-", "folder": "-", "out": str(tmp_path / "seen.json"), "warm": 3, "plain": 4, "split": 2,
                "eager": True, "writes": False}  # fmt: skip
        folder = start.write("train", state, tmp_path / "job", steps=num_steps(plan), **QUIET)
        Watch(plan).install()
        with planted(Faults.from_json(read_json(folder / "faults.json"))):
            assert Trainer(folder, lambda: False).run().outcome == "done"
        return read_json(tmp_path / "seen.json"), read_profile(tmp_path / "seen.json.trace")

    return watched


def test_clocks_and_profile_show_padding_where_the_time_goes_and_what_is_made_anew(
    watched_here, start, facts, monkeypatch
):
    forward = GPT.forward

    def with_mask(model, *args):
        torch.ones(512, 512).tril()
        return forward(model, *args)

    monkeypatch.setattr(GPT, "forward", with_mask)
    found, profile = watched_here({})
    signals = signals_of(found, profile, start, {}, facts)
    assert "D16" in {entry.detector for entry in detect(signals)} and signals.pad_share > 0.15
    assert signals.num_shapes > 1 and signals.micro_steps > 4 and signals.num_steps == 4
    assert sum(signals.parts.values()) == pytest.approx(1.0, abs=0.01)
    assert min(signals.parts[part] for part in ("forward", "backward", "optimizer")) > 0.01
    assert signals.ops_per_step > 100 and 0 <= signals.idle_share < 1 and signals.matmul_dtypes == {"fp32": 1.0}
    kinds = signals.memory_kinds
    assert kinds["weights"] == kinds["gradients"] > 0 and kinds["optimizer"] > 0 and kinds["activations"] >= 0
    assert signals.logits_bytes > 0 and 0 < signals.flop_share < 1
    planted = [(names, path) for _, names, path, _ in found["constants"] if "tril" in names]
    assert planted == [("ones, tril", "intone/train/step.py")] and signals.constant_share > 0.02


def test_packed_the_same_clocks_show_no_padding(watched_here, start, facts):
    state = {"switches": {"padded_rows": False}}
    found, profile = watched_here(state)
    signals = signals_of(found, profile, start, state, facts)
    assert signals.pad_share < 0.1 and signals.num_shapes == 1 and signals.micro_steps == 4
    # the zero that losses are added to, and the mask of a packed row's window
    assert {path for _, _, path, _ in found["constants"]} == {"intone/train/step.py", "intone/model/attention.py"}


def test_more_rows_are_tried_until_they_bring_nothing_or_memory_ends(start, facts):
    class Planted:
        peak_bytes = 1000

        def __init__(self, gains):
            self.gains = gains

        def gain(self, *, base, device_batch):
            assert device_batch == 2 * base["device_batch"]
            return self.gains.get(device_batch)

    segment = start.choices({}).segments[0]
    assert rows_ladder(Planted({8: 1.5, 16: 1.2, 32: 1.01, 64: 2.0}), segment, 64, None) == pytest.approx(
        {4: 1.0, 8: 1.5, 16: 1.8, 32: 1.818}
    )
    assert rows_ladder(Planted({8: 1.5, 16: 1.2}), segment, 64, 1200) == {4: 1.0, 8: 1.5}, "83% of the memory"
    assert rows_ladder(Planted({8: None}), segment, 64, None) == {}
    assert most_rows(start, {}) == 64 and most_rows(start, {"switches": {"padded_rows": False}}) == 16


@pytest.mark.long
def test_the_starts_training_shows_all_three_faults(start, facts, tmp_path):
    signals = look_at_training(start, {}, facts, tmp_path)
    found = {entry.detector: entry for entry in detect(signals)}
    assert {"D1", "D3", "D16"} <= set(found)
    assert signals.pad_share > 0.15 and signals.num_shapes > 1
    assert signals.device_batch == 4 and signals.elasticity == signals.ladder["8"] > 1.05
    assert signals.kernels_gain > 1.05, "our kernels were measured, in turns with PyTorch's operations"
    assert sum(signals.parts.values()) == pytest.approx(1.0, abs=0.01)
    assert signals.parts["forward"] > 0.1 and signals.parts["backward"] > 0.1
    assert signals.memory_kinds["weights"] == signals.memory_kinds["gradients"] > 0
    assert 0 < signals.flop_share < 1


@pytest.mark.long
def test_the_starts_generation_shows_both_faults(in_threads, start, facts, tmp_path):
    signals = look_at_generation(start, {}, facts, tmp_path)
    found = {entry.detector: entry for entry in detect(signals)}
    assert set(found) == {"D8", "D22"} and found["D22"].is_fault
    assert signals.distinct_first == 1 and signals.expected_distinct > 2


def test_mended_the_same_look_finds_neither(in_threads, start, facts, tmp_path):
    signals = look_at_generation(start, MENDED, facts, tmp_path)
    assert not {"D8", "D22"} & {entry.detector for entry in detect(signals)}
    assert signals.distinct_first > 2 and signals.late_over_early < 1.5


@pytest.mark.long
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
