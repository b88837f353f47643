"""A stage that learns from its own answers, as a target: where its time goes, what is planted is found and mended."""

from pathlib import Path

import pytest
import torch
from tests.optimise.stages.rewarded import rewarded_job
from tests.optimise.stages.test_stage_rounds import planted_clock

from intone.data.loader import Prefetcher
from intone.engine.engine import Engine
from intone.optimise.detect.catalogue import detect
from intone.optimise.signals import Signals
from intone.optimise.stages.plan import change_of, plan_part
from intone.optimise.stages.preset import preset_of
from intone.optimise.stages.rollouts import slots_ladder
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.target import Target
from intone.optimise.stages.training import QUIET, look_at_training, signals_of
from intone.optimise.stages.verb import finished
from intone.optimise.stages.watch import Watch, num_steps
from intone.optimise.stages.words import time_text
from intone.optimise.trace import read_profile
from intone.paths import read_json
from intone.prove.gates import answers, resume
from intone.train.rl import Reinforcer
from intone.train.rollouts import RolloutSource
from intone.train.step import StepResult, TrainStep


@pytest.fixture
def slow(tmp_path, tiny_job):
    """One row at a time is trained on, and one answer at a time written."""
    (tmp_path / "jobs" / "train").mkdir(parents=True)
    rewarded_job(tmp_path / "jobs" / "train", tiny_job, device_batch=1, num_slots=1)
    return Target(tmp_path / "jobs")


@pytest.fixture
def watched_here(monkeypatch, slow, tmp_path):
    """What the clocks see of the stage, run in this process."""
    for owner, name in (
        (TrainStep, "__init__"), (TrainStep, "run"), (TrainStep, "_upload"), (torch.Tensor, "backward"),
        (StepResult, "sync_loss"), (Prefetcher, "__next__"), (torch.nn.functional, "cross_entropy"),
        (RolloutSource, "__next__"), (Engine, "generate"), (Engine, "update_weights"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back after the clocks were put in
    plan = {"worker": "-", "folder": "-", "out": str(tmp_path / "seen.json"), "warm": 3, "plain": 3, "split": 2,
            "eager": True, "writes": True}  # fmt: skip
    folder = slow.write("train", {}, tmp_path / "job", steps=num_steps(plan), **QUIET)
    Watch(plan).install()
    assert Reinforcer(folder, lambda: False).run().outcome == "done"
    return read_json(tmp_path / "seen.json"), read_profile(Path(f"{tmp_path}/seen.json.trace"))


def test_clocks_tell_writing_answers_from_training_on_them(watched_here, slow, facts):
    found, profile = watched_here
    signals = signals_of(found, profile, slow, {}, facts)
    assert sum(signals.parts.values()) == pytest.approx(1.0, abs=0.01)
    assert signals.parts["answers"] > 0.2, "one answer after the other"
    assert min(signals.parts[part] for part in ("packing", "judging", "forward", "backward", "optimizer")) > 0
    assert signals.num_slots == 1 and signals.device_batch == 1 and signals.micro_steps > 2
    assert signals.tokens_per_step > 144, "answers have more than a token"
    # the engine's thread is not profiled, and packed answers are no padding
    assert (signals.idle_share, signals.pad_share, signals.duplicate_rows, signals.flop_share) == (None,) * 4
    assert not {"D2", "D16", "D22", "D23"} & {entry.detector for entry in detect(signals)}
    assert "answers" in time_text(signals)


def test_more_answers_at_once_are_tried_until_they_bring_nothing_or_are_all_of_a_step(slow):
    class Planted:
        peak_bytes = 1000

        def __init__(self, gains):
            self.gains, self.asked = gains, []

        def gain(self, *, base, num_slots):
            self.asked.append((base["num_slots"], num_slots))
            return self.gains.get(num_slots)

    config = slow.job().rollouts
    all_of_them = Planted({4: 3.0, 16: 2.0, 64: 1.5, 144: 1.1})
    assert slots_ladder(all_of_them, config, 1, None) == pytest.approx(
        {"1": 1.0, "4": 3.0, "16": 6.0, "64": 9.0, "144": 9.9}
    )
    assert all_of_them.asked == [(1, 4), (4, 16), (16, 64), (64, 144)]
    assert slots_ladder(Planted({4: 3.0, 16: 1.01, 64: 9.0}), config, 1, None) == pytest.approx(
        {"1": 1.0, "4": 3.0, "16": 3.03}
    )
    assert slots_ladder(Planted({4: 3.0, 16: 2.0}), config, 1, 1200) == {"1": 1.0, "4": 3.0}, "83% of the memory"
    assert slots_ladder(Planted({}), config, 64, None) == {}, "a setting that fails is no rung"
    assert slots_ladder(Planted({}), config, 144, None) == {}, "there are no more answers than that"


LOOKED = Signals(
    step_s=1.0, parts={"answers": 0.7, "forward": 0.1, "backward": 0.2}, device_batch=1, num_slots=1,
    ladder={"1": 1.0, "2": 1.2, "4": 1.21}, elasticity=1.2, slots_ladder={"1": 1.0, "4": 2.0, "16": 2.5, "64": 2.51},
)  # fmt: skip


def test_both_faults_become_settings_with_what_was_measured_beside_them(slow):
    findings = detect(LOOKED)
    assert {entry.detector: entry.evidence[:2] for entry in findings} == {
        "D1": ("with 4 rows at once 1.21 times the tokens/s", "1 rows at once now"),
        "D9": ("with 64 answers written at once steps were measured at 2.51 times the speed", "1 at once now"),
    }
    items = plan_part(slow, "train", {}, LOOKED, findings).items
    assert {item.finding: change_of(item) for item in items} == {
        "D1": {"segment": {"device_batch": 2}}, "D9": {"segment": {"num_slots": 16}},
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{"slots_ladder": {}}, {"slots_ladder": {"1": 1.0, "4": 1.04}}])
def test_answers_at_once_that_bring_nothing_are_no_finding(changes):
    found = detect(Signals.from_json({**LOOKED.as_json(), **changes}))
    assert "D9" not in {entry.detector for entry in found}


@pytest.mark.long
def test_a_look_at_the_real_worker_measures_both(slow, facts, tmp_path):
    for name, state, finding in (
        ("rows", {}, "D1"),
        ("answers", {"segment": {"device_batch": 64}}, "D9"),  # where training takes most of a step, writing hides
    ):
        (tmp_path / name).mkdir()
        signals = look_at_training(slow, state, facts, tmp_path / name)
        assert finding in {entry.detector for entry in detect(signals)}, signals.as_json()


@pytest.mark.long
def test_one_row_and_one_answer_at_a_time_are_found_mended_and_measured_together(
    slow, facts, tmp_path, monkeypatch
):
    """Looks and gates are real; the verdicts come from a planted clock, as in the rounds on other stages."""
    monkeypatch.setattr("tests.optimise.stages.test_stage_rounds.WORTH", {"num_slots": 3.0, "device_batch": 1.3})
    monkeypatch.setattr(StageRound, "compared", planted_clock)
    (tmp_path / "round").mkdir()
    round_ = StageRound.begin(tmp_path / "round", slow, facts, words=["rl"], asked={})
    round_.run()
    result = finished(round_).result
    kept = {entry["item"]["finding"]: entry for entry in result["tries"] if entry["kept"]}
    assert {"D1", "D9"} <= set(kept)
    for entry in kept.values():
        assert {gate["name"] for gate in entry["gates"]["gates"]} >= {answers.WRITES, answers.LEARNS, "recipe"}
    settings = preset_of(round_)["settings"]
    assert settings["num_slots"] > 1 and settings["device_batch"] > 1
    (whole,) = result["whole"]
    assert whole["gates"]["passed"] is True and whole["comparison"]["verdict"] == "faster"
    assert resume.NAME in {gate["name"] for gate in whole["gates"]["gates"]}
