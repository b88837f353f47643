"""From findings on our stages to settings: what is asked for is what the worker takes, and what is kept adds up."""

from dataclasses import replace

import pytest

from intone.errors import UserError
from intone.optimise.detect.catalogue import DETECTORS, detect
from intone.optimise.signals import Signals
from intone.optimise.stages.plan import TOLD, TRAIN_ANSWERS, WRITE_ANSWERS, change_of, plan_part, state_of
from intone.optimise.stages.target import Target, merged, with_worker
from intone.paths import read_json
from intone.records import read_choices

TRAINS = Signals(
    step_s=0.1, device_batch=4, elasticity=1.4, ladder={"4": 1.0, "8": 1.4, "16": 1.41}, pad_share=0.5, compiled=False,
    kernels_gain=1.7, compiled_gain=1.2, matmul_dtypes={"fp32": 1.0}, best_dtype="bf16", best_dtype_gain=1.5,
    parts={"forward": 0.4, "backward": 0.6}, threads=2, threads_gain=(1, 1.2),
)  # fmt: skip
WRITES = Signals(
    kind="generate", late_over_early=5.0, positions=(26, 522), num_samples=64, distinct_first=1, expected_distinct=20.0
)


def planned(target, part, signals, state=None):
    return plan_part(target, part, state or {}, signals, detect(signals)).items


def test_every_finding_of_a_training_becomes_a_setting_of_it(start):
    changes = {item.finding: change_of(item) for item in reversed(planned(start, "train", TRAINS))}
    assert changes == {
        "D1": {"segment": {"device_batch": 8}},
        "D3": {"segment": {"kernels": "native", "attention": "native", "compiled": False}},
        "D14": {"segment": {"dtype": "bf16"}},
        "D16": {"switches": {"padded_rows": False}},
        "D26": {"segment": {"threads": 1}},
    }


def test_a_fault_stands_first_and_a_switch_that_is_mended_is_not_asked_for_again(start):
    items = planned(start, "generate", WRITES)
    assert [item.finding for item in items] == ["D22", "D8"]
    mended = {"switches": {"no_cache": False}}
    again = planned(start, "generate", WRITES, mended)
    assert [(item.finding, item.how) for item in again] == [("D22", "settings"), ("D8", "instruction")]


def test_what_no_setting_answers_is_told_in_words(start_folder):
    ours = Target(start_folder)
    (item,) = planned(ours, "train", replace(Signals(), pad_share=0.5))
    assert item.how == "instruction" and "pack rows" in item.change["words"]


def test_every_detector_is_answered_by_a_setting_or_in_words():
    # these can not fire here: our own stages do not measure what they read
    unseen = {"D10", "D11", "D18", "D19", "D20", "D21", "D25"}
    assert set(DETECTORS) - unseen <= set(TRAIN_ANSWERS) | set(WRITE_ANSWERS) | set(TOLD)


def test_changes_add_up_and_are_what_the_worker_reads(start, tmp_path):
    items = [item for item in planned(start, "train", TRAINS) if item.finding in ("D1", "D16")]
    state = state_of(items)
    folder = start.write("train", state, tmp_path / "job", steps=7)
    assert read_choices(folder).segments[0].device_batch == 8
    assert read_json(folder / "faults.json") == {"padded_rows": False, "no_cache": True, "copied_first_token": True}
    assert read_json(folder / "config.json")["steps"] == 7
    config = start.generation({"engine": {"num_slots": 3}, "generate": {"dtype": "bf16"}})
    assert config["dtype"] == "bf16" and config["engine"] == {"num_guesses": 0, "num_slots": 3}
    with pytest.raises(AssertionError, match="touches 'segments'"):
        merged({"segments": {}})


def test_a_worker_without_switches_is_refused_with_its_own_words(start_folder):
    with pytest.raises(UserError, match=r"no_such_module.* does not say which switches"):
        with_worker(Target(start_folder), "no_such_module")
